"""The reference: docstrings of all public names are complete, help() is readable, and pdoc makes pages of them."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import pydoc
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_origin

import httpx
import pytest

from sseqbridge.relay import flask
from tests.examples import commands
from tests.support import ROOT, reserved_port

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]

MODULES = (
    "sseqbridge",
    "sseqbridge.relay",
    "sseqbridge.relay.django",
    "sseqbridge.relay.flask",
    "sseqbridge.relay.starlette",
    "sseqbridge.resume",
    "sseqbridge.testing",
)

# Classes that callers do not construct. Their docstrings name the function that returns them.
RETURNED = {
    "AsyncEventStream": "arequest_sse",
    "AsyncFrames": "aframes",
    "AsyncMergedStreams": "amerge",
    "AsyncSSEResponse": "arequest_sse",
    "Attempt": "resume",
    "BridgeStats": "stats",
    "Call": "SSEClient.call",
    "CancelScope": "cancel_on",
    "EventStream": "request_sse",
    "Frames": "frames",
    "MergedStreams": "merge",
    "ReceivedRequest": "wait_for_request",
    "RelayEnd": "on_end",
    "SSEResponse": "request_sse",
    "Stream": "iterate",
    "StreamStats": "stats",
    "Tee": "tee",
}
# Kinds of members that have docstrings of their own.
HAVE_DOCSTRINGS = (classmethod, property)
# A framework constructs it.
CONSTRUCTED_BY_DJANGO = {"ErrorMiddleware"}

# Parameters and attributes that are a time or a size, and the unit that the docstring must name.
UNITS = {
    "second": {
        *("abandon_after", "connect", "delay", "heartbeat", "idle", "lease", "longest_wait", "max_delay", "outage"),
        *("probe", "read", "reset_after", "retry", "seconds", "send_timeout", "timeout", "time_to_first_event"),
        *("total", "ttl", "wait"),
    },
    "byte": {"bytes", "length", "max_buffered_bytes", "max_event_bytes", "max_history_bytes"},
    "items": {"max_buffered"},
}


class Documented(NamedTuple):
    """One public object. `owner` is the class of a member, None for a name of a module."""

    name: str
    value: Any
    owner: type | None = None

    @property
    def text(self) -> str:
        return inspect.getdoc(self.value) or ""


def public_names() -> Iterator[Documented]:
    """Yield the functions and classes of all public modules, each once."""
    seen: set[int] = set()
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            is_alias = get_origin(value) is not None
            if id(value) not in seen and not is_alias and (inspect.isclass(value) or inspect.isfunction(value)):
                seen.add(id(value))
                yield Documented(f"{module.__name__}.{name}", value)


def members() -> Iterator[Documented]:
    """Yield the public methods and properties of all public classes, inherited ones once."""
    seen: set[tuple[type, str]] = set()
    for documented in NAMES:
        kind = documented.value
        for base in kind.__mro__ if inspect.isclass(kind) else ():
            if base.__module__.startswith("sseqbridge"):
                for name, member in vars(base).items():
                    is_member = inspect.isfunction(member) or isinstance(member, (property, classmethod))
                    if not name.startswith("_") and is_member and (base, name) not in seen:
                        seen.add((base, name))
                        value = getattr(base, name) if isinstance(member, classmethod) else member
                        yield Documented(f"{documented.name}.{name}", value, kind)


NAMES = list(public_names())
MEMBERS = list(members())
FUNCTIONS = [each for each in NAMES if inspect.isfunction(each.value)]
CLASSES = [each for each in NAMES if inspect.isclass(each.value)]
METHODS = [each for each in MEMBERS if not isinstance(each.value, property)]
CONSTRUCTED = [
    each
    for each in CLASSES
    if not issubclass(each.value, BaseException)
    and each.value.__name__ not in RETURNED
    and each.value.__name__ not in CONSTRUCTED_BY_DJANGO
]


def each_of(values: list[Documented]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("documented", values, ids=[each.name for each in values])


def parameters(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def attributes(kind: type) -> set[str]:
    """Return the public attributes that a class declares, or that the constructor of an exception sets."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("sseqbridge"):
            names.update(inspect.get_annotations(base))
            for name, value in vars(base).items():
                is_plain = not callable(value) and not inspect.isdatadescriptor(value)
                if is_plain or inspect.ismemberdescriptor(value):
                    names.add(name)
            if issubclass(kind, BaseException) and "__init__" in vars(base):
                source = textwrap.dedent(inspect.getsource(vars(base)["__init__"]))
                stored = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
                names.update(node.attr for node in stored if isinstance(node.ctx, ast.Store))
    has_docstring = {name for name in names if isinstance(inspect.getattr_static(kind, name, None), HAVE_DOCSTRINGS)}
    return {name for name in names - has_docstring if not name.startswith("_")}


def is_named(name: str, text: str) -> bool:
    return re.search(rf"`[^`]*\b{re.escape(name)}\b[^`]*`", text) is not None


def text_of_class(kind: type) -> str:
    """Return the docstrings of a class and of its bases in the package."""
    return "\n\n".join(inspect.getdoc(base) or "" for base in kind.__mro__ if base.__module__.startswith("sseqbridge"))


def missing_units(names: set[str], text: str) -> list[str]:
    return [name for unit, of in UNITS.items() for name in names & of if unit not in text.lower()]


@each_of([*NAMES, *MEMBERS])
def test_docstring_begins_with_a_sentence(documented: Documented) -> None:
    begin = documented.text.partition("\n\n")[0]
    assert re.match(r"[A-Z`\d]", begin), begin
    assert re.search(r"[.:]$", begin), begin


@each_of([*FUNCTIONS, *METHODS])
def test_docstring_names_each_parameter(documented: Documented) -> None:
    names = parameters(documented.value)
    assert [name for name in sorted(names) if not is_named(name, documented.text)] == []
    assert missing_units(names, documented.text) == []


@each_of(CONSTRUCTED)
def test_docstring_of_a_class_names_each_parameter(documented: Documented) -> None:
    names = parameters(documented.value)
    text = text_of_class(documented.value)
    assert [name for name in sorted(names) if not is_named(name, documented.text)] == []
    assert missing_units(names, text) == []


@each_of(CLASSES)
def test_docstring_of_a_class_names_each_attribute(documented: Documented) -> None:
    names, text = attributes(documented.value), text_of_class(documented.value)
    assert [name for name in sorted(names) if not is_named(name, text)] == []
    assert missing_units(names, text) == []


@each_of([*FUNCTIONS, *CONSTRUCTED])
def test_docstring_says_what_is_raised(documented: Documented) -> None:
    # A value without checks of its own.
    if documented.value.__name__ not in ("Comment", "ServerSentEvent"):
        assert re.search(r"\b[Rr]aises? ", documented.text)


@each_of([each for each in METHODS if parameters(each.value)])
def test_docstring_of_a_method_says_what_is_raised(documented: Documented) -> None:
    assert re.search(r"\b[Rr]aises?\b|\berrors\b", documented.text)


@each_of(NAMES)
def test_docstring_has_an_example(documented: Documented) -> None:
    assert re.search(r"(?:^|\n\n) {4}\S|^Example: `", documented.text, re.MULTILINE)


PUBLIC = {each.name.rpartition(".")[2]: each.value for each in NAMES}


def calls_in_examples(text: str) -> Iterator[ast.Call]:
    """Yield the calls of public names in the indented examples of a docstring."""
    for example in re.findall(r"(?:^|\n\n)((?: {4}.*(?:\n|$)|\n(?= {4}))+)", text):
        code = textwrap.dedent(example)
        begin = "try:\n    ...\n" if code.startswith("except") else ""
        for node in ast.walk(ast.parse(begin + code)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PUBLIC:
                yield node


@each_of([*NAMES, *MEMBERS])
def test_calls_in_examples_match_the_signatures(documented: Documented) -> None:
    for call in calls_in_examples(documented.text):
        assert isinstance(call.func, ast.Name)
        if not any(isinstance(each, ast.Starred) for each in call.args):
            keywords = {each.arg: None for each in call.keywords if each.arg is not None}
            # Each framework has a stream_response.
            is_own = call.func.id == getattr(documented.value, "__name__", "")
            called = documented.value if is_own else PUBLIC[call.func.id]
            inspect.signature(called).bind(*call.args, **keywords)


def test_examples_are_found() -> None:
    names = {call.func.id for each in NAMES for call in calls_in_examples(each.text) if isinstance(call.func, ast.Name)}
    assert {"Resume", "SSEClient", "gather", "request_sse"} <= names


@each_of([each for each in CLASSES if each.value.__name__ in RETURNED])
def test_docstring_names_what_returns_the_class(documented: Documented) -> None:
    assert is_named(RETURNED[documented.value.__name__].rpartition(".")[2], documented.text)


def test_other_names_are_in_the_docstring_of_their_module() -> None:
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, ModuleType) or not (inspect.isclass(value) or inspect.isfunction(value)):
                assert is_named(name, module.__doc__ or ""), f"{module.__name__}.{name}"


@each_of(NAMES)
def test_help_is_readable(documented: Documented) -> None:
    text = pydoc.plain(pydoc.render_doc(documented.value))
    first, _, rest = text.partition("\n |  \n |  Method resolution order")
    assert not re.search(r"(\d+, ){5}", text), "a list of numbers"
    assert not re.search(r"[(,] ?_(?!warn)[a-z]\w* ?[:=,]", text), "a private parameter"
    assert " at 0x" not in first, "the address of an object"
    assert len(text.splitlines()) < 250, rest[-1000:]


def requirements(extra: str) -> set[str]:
    """Return the packages of an extra, with those of the extras that it names."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found: set[str] = set()
    for line in filter(None, setup["options.extras_require"][extra].splitlines()):
        name, _, rest = line.partition("[")
        if name == "sseqbridge":
            found = found.union(*map(requirements, rest.rstrip("]").split(",")))
        elif not line.startswith("#"):
            found.add(re.split(r"[^\w-]", line)[0])
    return found


def test_extra_docs_has_all_that_the_pages_import() -> None:
    frameworks = {module.rpartition(".")[2] for module in MODULES if module.startswith("sseqbridge.relay.")}
    # `resume` has RedisLog.
    assert requirements("docs") == {"pdoc", "redis", *frameworks}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the pages, as `python -m pdoc sseqbridge` shows them."""
    folder = tmp_path_factory.mktemp("pages")
    command = [*commands.documented("python -m pdoc sseqbridge").words, "--output-directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    # It would warn about an annotation that it cannot resolve.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.mark.heavy
def test_pages_are_served(tmp_path: Path) -> None:
    # Not at the top: it imports Selenium.
    from tests.browser_support import running

    with reserved_port() as port:
        options = ["--no-browser", "--port", str(port)]
        with running([*commands.documented("python -m pdoc sseqbridge").words, *options], tmp_path) as program:
            program.wait_until_serving(f"http://localhost:{port}")
            page = httpx.get(f"http://localhost:{port}/sseqbridge/relay/flask.html", timeout=60).text
            # pdoc reloads all modules for each page, and prints a traceback for one that cannot be imported again.
            httpx.get(f"http://localhost:{port}/sseqbridge.html", timeout=60).raise_for_status()
    # Its output is complete now.
    assert "Traceback" not in program.output
    assert set(flask.__all__) <= set(re.findall(r'id="([\w.]+)"', page))


@pytest.mark.heavy
def test_pages_have_each_public_name(pages: Path) -> None:
    for module in map(importlib.import_module, MODULES):
        page = (pages / f"{module.__name__.replace('.', '/')}.html").read_text("utf-8")
        identifiers = set(re.findall(r'id="([\w.]+)"', page))
        for name in module.__all__:
            if not isinstance(getattr(module, name), ModuleType):
                assert name in identifiers, f"{module.__name__}.{name}"
        for documented in MEMBERS:
            begin, _, member = documented.name.removeprefix(f"{module.__name__}.").partition(".")
            if documented.name.startswith(f"{module.__name__}.") and begin in module.__all__ and "." not in member:
                # In the class that has it, which the page of a derived class links.
                places = {f"{base.__name__}.{member}" for base in (documented.owner or object).__mro__}
                is_internal = "For use within the package" in documented.text
                assert is_internal or places & identifiers, documented.name


@pytest.mark.heavy
def test_pages_have_no_private_module(pages: Path) -> None:
    made = {str(path.relative_to(pages).with_suffix("")).replace("/", ".") for path in pages.rglob("*.html")}
    assert made == {"index", *MODULES}
