"""The optional fast parts: which are in use, and that they decode JSON like the standard library."""

from __future__ import annotations

import decimal
import json
import logging
import math
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sseqbridge import DecodeError, ServerSentEvent, _accelerators
from sseqbridge._streams.decoding import Decoder

pytestmark = pytest.mark.configurations("default", "plain")

Logs = pytest.LogCaptureFixture

OURS = "the library's own transport"


def forget() -> None:
    """Clear all caches."""
    for function in (
        _accelerators._left_out,
        _accelerators.imported,
        _accelerators.json_decode,
        _accelerators.log_in_use,
    ):
        function.cache_clear()
    _accelerators._failed.clear()


@pytest.fixture(autouse=True)
def forgetting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test like a process without the variable, and clean up after it."""
    monkeypatch.delenv("SSEQBRIDGE_WITHOUT", raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages that appear installed during the test: names and versions."""
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr(_accelerators, "find_spec", installed.get)
    return installed


def without(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("SSEQBRIDGE_WITHOUT", names)


# SSEQBRIDGE_WITHOUT.


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        ("", set()),
        (" , ,", set()),
        ("msgspec", {"msgspec"}),
        ("uvloop,transport", {"uvloop", "transport"}),
        (" UVLoop , MsgSpec,", {"uvloop", "msgspec"}),
        ("transport,transport", {"transport"}),
    ],
)
def test_variable_names_parts_to_leave_out(
    monkeypatch: pytest.MonkeyPatch, caplog: Logs, names: str, left_out: set[str]
) -> None:
    without(monkeypatch, names)
    assert {part for part in _accelerators.PARTS if not _accelerators.is_wanted(part)} == left_out
    assert caplog.messages == []


def test_every_part_is_wanted_by_default() -> None:
    assert all(_accelerators.is_wanted(part) for part in _accelerators.PARTS)


def test_variable_is_read_once_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "uvloop")
    assert not _accelerators.is_wanted("uvloop")
    without(monkeypatch, "msgspec")
    assert not _accelerators.is_wanted("uvloop")
    assert _accelerators.is_wanted("msgspec")


def test_unknown_name_logs_one_warning_with_the_known_names(monkeypatch: pytest.MonkeyPatch, caplog: Logs) -> None:
    without(monkeypatch, "uvlop,msgspec,orjson")
    assert _accelerators.is_wanted("uvloop")
    assert not _accelerators.is_wanted("msgspec")
    [record] = caplog.records
    assert (record.name, record.levelname) == ("sseqbridge", "WARNING")
    assert record.getMessage() == "SSEQBRIDGE_WITHOUT must name uvloop, msgspec, transport, got orjson, uvlop"


# Imports.


def is_of_json(decode: Callable[[str], Any]) -> bool:
    """Whether a decoder is the one of the standard library: msgspec refuses NaN."""
    return str(decode("NaN")) == "nan"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module in the place of uvloop."""
    module = types.ModuleType("uvloop")
    monkeypatch.setitem(sys.modules, "uvloop", module)
    return module


def test_wanted_package_is_imported(package: types.ModuleType) -> None:
    assert _accelerators.imported("uvloop") is package


def test_left_out_package_is_not_imported(monkeypatch: pytest.MonkeyPatch, package: types.ModuleType) -> None:
    without(monkeypatch, "uvloop")
    assert _accelerators.imported("uvloop") is None


@pytest.mark.parametrize("error", [ModuleNotFoundError, ImportError, AttributeError, SystemError])
def test_package_that_fails_to_import_is_left_out(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], error: type[Exception]
) -> None:
    def fail(name: str) -> types.ModuleType:
        raise error(name)

    versions["msgspec"] = "1.2"
    monkeypatch.setattr(_accelerators, "import_module", fail)
    assert _accelerators.imported("msgspec") is None
    assert is_of_json(_accelerators.json_decode())
    assert "msgspec (cannot be imported)" in _accelerators.in_use()


# The line about the parts in use.


def test_line_has_versions_of_parts_in_use(versions: dict[str, str]) -> None:
    versions.update(uvloop="0.23.0", msgspec="0.22.0")
    assert _accelerators.in_use() == f"in use: uvloop 0.23.0, msgspec 0.22.0, {OURS}"


def test_line_has_reasons_of_parts_not_in_use(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    versions.update(uvloop="0.23.0")
    without(monkeypatch, "uvloop")
    assert _accelerators.in_use() == f"in use: {OURS}; not in use: uvloop (SSEQBRIDGE_WITHOUT), msgspec (not installed)"


@pytest.mark.usefixtures("versions")
def test_line_reports_that_no_part_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "transport")
    assert _accelerators.in_use() == (
        "in use: no fast part; not in use: uvloop (not installed), msgspec (not installed), "
        "transport (SSEQBRIDGE_WITHOUT)"
    )


def test_line_names_packages_without_metadata_or_spec(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    def find_spec(name: str) -> None:
        raise ValueError(f"{name}.__spec__ is None")

    versions["uvloop"] = "0.23.0"
    monkeypatch.setattr(_accelerators, "find_spec", find_spec)
    assert _accelerators.in_use() == f"in use: uvloop 0.23.0, msgspec, {OURS}"


def test_line_is_logged_once(caplog: Logs) -> None:
    with caplog.at_level(logging.INFO, "sseqbridge"):
        _accelerators.log_in_use()
        _accelerators.log_in_use()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("sseqbridge", "INFO")
    assert record.getMessage() == _accelerators.in_use()


def test_line_is_not_built_if_logging_is_off(monkeypatch: pytest.MonkeyPatch, caplog: Logs) -> None:
    monkeypatch.delattr(_accelerators, "in_use")
    with caplog.at_level(logging.WARNING, "sseqbridge"):
        _accelerators.log_in_use()
    assert caplog.messages == []


def test_line_imports_none_of_the_parts() -> None:
    program = "import sys; from sseqbridge import _accelerators; _accelerators.in_use(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert {"uvloop", "msgspec", "asyncio", "httpx"}.isdisjoint(done.stdout.split())


# JSON.


def decoded_by_the_library(text: str) -> Any:
    """Return the decoded data of an event. Raises the cause of the DecodeError if it is not JSON."""
    try:
        return Decoder("json", None, "yield").item(ServerSentEvent(data=text))
    except DecodeError as exc:
        assert exc.__cause__ is not None
        raise exc.__cause__ from None


def test_json_is_decoded_by_json_without_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "msgspec")
    assert is_of_json(_accelerators.json_decode())


@pytest.mark.parametrize("text", ["1 2", "[]]", "{} ", "1\x00"])
def test_document_with_trailing_text_decodes_as_with_json(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    without(monkeypatch, "msgspec")
    assert_decodes_alike(text)


def test_json_is_decoded_by_msgspec_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("msgspec", reason="tests msgspec")
    loads = decoded_by_the_library
    monkeypatch.delattr(json, "loads")
    assert loads('{"a": [1, "\\u00e9", 1.5, null]}') == {"a": [1, "é", 1.5, None]}


def test_json_error_has_no_msgspec_context() -> None:
    with pytest.raises(DecodeError) as raised:
        Decoder("json", None, "yield").item(ServerSentEvent(data="{"))
    assert isinstance(raised.value.__cause__, json.JSONDecodeError)
    assert raised.value.__cause__.__context__ is None


def outcome(loads: Callable[[str], Any], text: str) -> object:
    """Return a document's value or error in a form that compares equal only if it is identical."""
    try:
        # repr() differs for 1, 1.0 and True, for -0.0, all floats and nan, and keeps the order of keys.
        return repr(loads(text))
    except (ValueError, RecursionError) as exc:
        return type(exc), str(exc)


def assert_decodes_alike(text: str) -> None:
    assert outcome(decoded_by_the_library, text) == outcome(json.loads, text)


HALFWAY = 2**53 + 1  # Between two floats.
NUMBERS = [
    *("-0", "-0.0", "0.0", "0", "-0e5", "0e99999999999", "1e5", "1E5", "1e+05", "1.0E-2", "-1e-7", "8.5e-2", "1e23"),
    *("NaN", "Infinity", "-Infinity", "-NaN", "+1", "01", "-01", "00", ".5", "1.", "1.e5", "1e", "1e+", "-", "--1"),
    *("0x1", "1_0", "1e400", "-1e400", "1e-400", "1e308", "1.7976931348623157e308", "1.7976931348623159e308"),
    *("5e-324", "2e-324", "2.4703282292062327e-324", "2.4703282292062328e-324", "2.2250738585072011e-308"),
    *("0.1000000000000000055511151231257827021181583404541015625", "123456789012345678901234567890.5"),
    *(f"{HALFWAY}", f"{HALFWAY}.0", f"{HALFWAY}.{'0' * 800}1", f"{HALFWAY}e0"),
    *(f"1e{exponent}" for exponent in (2**31, -(2**31), 2**32, 2**63, -(2**63), 2**64, 10**30, -(10**30))),
    *(str(sign * 2**bits + delta) for bits in (53, 63, 64, 70) for sign in (1, -1) for delta in (-1, 0, 1)),
    # As many digits as int() takes, and one more.
    *("9" * 4300, "9" * 4301, "-" + "9" * 4300, "-" + "9" * 4301),
    *("9" * 400, "9" * 400 + ".5", "9" * 400 + "e-390", f"0.{'0' * 400}1e401", f"1.{'0' * 5000}"),
]
STRINGS = [
    *(r'"\ud800"', r'"\udc00"', r'"\ud800\udc00"', r'"\ud800x"', r'"\ud800\u0041"', r'"\udc00\ud800"'),
    *(r'"\uD83D\uDE00"', '"\ud800"', '"\udc00 "', '{"\ud800": 1}', '"\\ud83d\ude00"', '"\U0001f600"'),
    *(r'"\u0000"', r'"\u00zz"', r'"\u 123"', r'"\u+123"', r'"\u0x1"', r'"\u1_23"', r'"\u12', r'"\u12"'),
    *('"\\', r'"\"', r'"\x41"', r'"\'"', r'"\/"', r'"\b\f\n\r\t\"\\"'),
    *('"\x00"', '"\x1f"', '"\x7f"', '"\x80"', '"\u2028"', '"\ufeff"', '"a\nb"', '"\t"', '"', "'a'", '"a" "b"'),
]
SHAPES = [
    *("", " ", "\n", " 1 ", "\t\r\n1", "\x0b1", "\x0c1", "\xa01", "\u20281", "\x85", "1\x00"),
    *("\ufeff", "\ufeff1", "1\ufeff", "// c\n1", "/* c */1", "#", "1//", "{null:1}"),
    *("1 2", "[1,]", "[,1]", "[1 2]", "[1,,2]", "{,}", '{"a"}', '{"a":1,}', '{"a" 1}', "{a:1}", "{'a':1}", "{1:2}"),
    *("[", "]", "{", "}", "[]]", "{}}", ",", ":", '{"a":', "[1", '{"a":1'),
    *("true", "false", "null", "tru", "truex", "True", "nul", "None", "[]", "{}", "[true,1,1.0,false,0,0.0,-0.0]"),
    *('{"a":1,"b":2,"a":3}', '{"a":1,"a":1.0}', '{"\\u0061":1,"a":2,"b":3}', '{"":0}', '{"a":{"a":[{"a":1}]}}'),
    *("[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300, "[" * 100_000, '{"a":' * 100_000, "[{" * 50_000),
]


@pytest.mark.slow
@pytest.mark.parametrize("text", NUMBERS + STRINGS + SHAPES, ids=lambda text: ascii(text[:24]))
def test_nasty_document_decodes_as_with_json(text: str) -> None:
    assert_decodes_alike(text)
    assert_decodes_alike(f'{{"key": [{text}]}}')


digits = st.text("0123456789", min_size=1, max_size=40)
numbers = st.builds(
    lambda sign, whole, fraction, exponent: sign + whole + fraction + exponent,
    st.sampled_from(["", "", "-"]),
    digits,
    st.just("") | digits.map(".{}".format),
    st.just("") | st.integers(-400, 400).map("e{}".format) | st.integers(0, 400).map("E+{}".format),
)
escapes = st.sampled_from([r"\"", r"\\", r"\/", r"\n", r"\u00e9", r"\ud83d", r"\ude00", r"\uD800", "\\x", "\\u1"])
characters = escapes | st.characters() | st.sampled_from("abc \ud800\udc00\x00\x1f")
strings = st.lists(characters).map("".join).map('"{}"'.format)
names = st.sampled_from(["true", "false", "null", "NaN", "-Infinity"])
leaves = numbers | strings | names | st.floats().map(json.dumps)
blanks = st.sampled_from(["", "", " ", "\n", "\t\r"])
keys = strings | st.text("abcde", max_size=3).map(json.dumps)
pairs = st.tuples(keys, blanks, blanks)


def array_of(values: list[str]) -> str:
    return f"[{','.join(values)}]"


def object_of(members: list[tuple[tuple[str, str, str], str]]) -> str:
    return "{" + ",".join(f"{key}{before}:{after}{value}" for (key, before, after), value in members) + "}"


documents = st.recursive(
    leaves,
    lambda values: (
        st.lists(values, max_size=4).map(array_of) | st.lists(st.tuples(pairs, values), max_size=4).map(object_of)
    ),
    max_leaves=12,
)
TOKENS = [*'{}[]:,"\\0123456789eE+-. \t\n', "true", "null", r"\u", r"\ud800", "\ufeff", "\x00", "é", "\ud800", "9" * 20]
edit = st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from(["", *TOKENS]))


@pytest.mark.heavy
@given(documents)
def test_any_document_decodes_as_with_json(text: str) -> None:
    assert_decodes_alike(text)


@pytest.mark.heavy
@given(documents, st.lists(edit, min_size=1, max_size=4))
@example('{"a": 1}', [(5, 1, "")])
def test_faulty_document_fails_as_with_json(text: str, changes: list[tuple[int, int, str]]) -> None:
    for place, removed, added in changes:
        at = place % (len(text) + 1)
        text = text[:at] + added + text[at + removed :]
    assert_decodes_alike(text)


@pytest.mark.slow
@given(st.floats(0, 1e308), st.sampled_from("fe"), st.sampled_from([-1, 0, 1]))
def test_number_near_a_rounding_boundary_decodes_as_with_json(value: float, form: str, side: int) -> None:
    with decimal.localcontext() as context:
        # More digits than the middle of any two floats has.
        context.prec = 1200
        middle = (decimal.Decimal(value) + decimal.Decimal(math.nextafter(value, math.inf))) / 2
        neighbour = middle * (1 + side * decimal.Decimal("1e-900"))
    assert_decodes_alike(format(neighbour, form))
