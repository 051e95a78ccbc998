"""The tests that a run leaves out to save time: files without tests of it, and surplus cases."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests import selection
from tests.support import ROOT

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]

WITHOUT_PROGRAMS = "not (heavy or redis or sdk)"


@pytest.mark.parametrize(
    ("expression", "always", "possible", "may"),
    [
        ("", set(), set(), True),
        (WITHOUT_PROGRAMS, set(), set(), True),
        (WITHOUT_PROGRAMS, set(), {"redis"}, True),
        (WITHOUT_PROGRAMS, {"redis"}, {"redis"}, False),
        ("redis and not heavy", set(), set(), False),
        ("redis and not heavy", set(), {"redis"}, True),
        ("redis and not heavy", {"redis"}, {"redis", "heavy"}, True),
        ("redis and not heavy", {"heavy"}, {"redis", "heavy"}, False),
        ("(redis or nginx) and not heavy", {"nginx"}, {"nginx"}, True),
        # An argument of a marker depends on the test.
        ("redis(version=8)", {"redis"}, {"redis"}, True),
    ],
)
def test_only_files_without_selectable_tests_are_left_out(
    expression: str, always: set[str], possible: set[str], may: bool
) -> None:
    assert selection.may_select(expression, always, possible) is may


SOURCES = {
    # Imported by the first test, which is not heavy, by way of another helper.
    "helpers.py": "from .marks import needs_redis\n",
    "marks.py": "import pytest\nneeds_redis = pytest.mark.redis\n",
    "test_imported.py": "from .helpers import needs_redis\n\n@needs_redis\ndef test_it(): pass\n",
    "test_all_heavy.py": "import pytest\npytestmark = [\n    pytest.mark.heavy,\n]\n\ndef test_it(): pass\n",
    "test_unmarked.py": "def test_it(): pass\n",
}


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("redis", ["test_imported.py"]),
        ("heavy", ["test_all_heavy.py"]),
        ("not heavy", ["test_imported.py", "test_unmarked.py"]),
        ("", ["test_all_heavy.py", "test_imported.py", "test_unmarked.py"]),
    ],
)
def test_markers_of_imported_helpers_count(
    expression: str, selected: list[str], tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in SOURCES.items():
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(pytestconfig, "args", [str(tmp_path)])
    monkeypatch.setattr(pytestconfig.option, "markexpr", expression)
    files = sorted(tmp_path.glob("test_*.py"))
    assert [path.name for path in files if not selection.is_left_out(path, pytestconfig)] == selected


def test_fewer_cases_have_each_argument() -> None:
    cases = [
        {("url", url), ("kind", kind), ("is_async", is_async)}
        for url, kind, is_async in itertools.product(range(7), range(3), range(2))
    ]
    kept = selection.covering(cases)
    assert len(kept) == 7
    assert set().union(*(cases[number] for number in kept)) == set().union(*cases)


def test_cases_of_one_parameter_are_all_kept() -> None:
    assert selection.covering([{("url", 1)}, {("url", 1)}, {("url", 2)}]) == {0, 1, 2}


def collected(*arguments: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-n", "0", "-m", "", "-p", "tests.conftest"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module of 8 quick cases, 4 slow ones, and a test without parameters."""
    path = tmp_path / "test_rows.py"
    path.write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('loop', ['uvloop', 'asyncio'])\n"
        "@pytest.mark.parametrize('a, b', [(1, 1), (1, 2), (2, 1), (2, 2)])\n"
        "def test_rows(a, b, loop): pass\n\n"
        "def test_without_parameters(): pass\n\n"
        "@pytest.mark.slow\n"
        "@pytest.mark.parametrize('c', [1, 2])\n"
        "@pytest.mark.parametrize('d', [3, 4])\n"
        "def test_slow(c, d): pass\n"
    )
    return path


def collected_by_whole_run(module: Path, *arguments: str) -> set[str]:
    """Return the cases of a run that has no paths."""
    return collected("-o", f"testpaths={module}", *arguments)


def test_rows_of_one_list_are_all_kept(module: Path) -> None:
    """As they were written for a reason, although their elements occur in other rows."""
    rows = sorted(name for name in collected_by_whole_run(module) if name.startswith("test_rows"))
    assert [name[len("test_rows[") :][:3] for name in rows] == ["1-1", "1-2", "2-1", "2-2"]
    assert {name[len("test_rows[1-1-") : -1] for name in rows} == {"uvloop", "asyncio"}


def test_run_of_some_tests_has_all_cases(module: Path) -> None:
    everything = collected(str(module))
    assert len(everything) == 13
    assert collected_by_whole_run(module, "--cases", "all") == everything
    assert collected_by_whole_run(module, "-k", "not without") == everything - {"test_without_parameters"}


def test_quick_tests_may_keep_all_cases(module: Path) -> None:
    quick = {name for name in collected(str(module)) if "slow" not in name}
    kept = collected_by_whole_run(module, "--cases", "fewer-costly")
    assert kept > quick
    assert len(kept - quick) == 2
