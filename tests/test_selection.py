"""The tests that a run leaves out to save time: files without tests of it, and surplus cases."""

from __future__ import annotations

import itertools
import json
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


MODULE = """\
import pytest

@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("a, b", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_rows(a, b, loop): pass

def test_without_parameters(): pass

@pytest.mark.slow
@pytest.mark.parametrize("c", [1, 2])
@pytest.mark.parametrize("d", [3, 4])
def test_slow(c, d): pass
"""
# The arguments of pytest in several runs of MODULE, a module of 8 quick cases, 4 slow ones, and a test without
# parameters. A run with `testpaths` has no paths, like that of the whole suite.
RUNS = {
    "path": ["{module}"],
    "whole": ["-o", "testpaths={module}"],
    "whole, all": ["-o", "testpaths={module}", "--cases", "all"],
    "whole, -k": ["-o", "testpaths={module}", "-k", "not without"],
    "whole, fewer-costly": ["-o", "testpaths={module}", "--cases", "fewer-costly"],
}
# All in one process: importing conftest.py takes most of the time of a run.
COLLECT = """\
import json, sys
import pytest

for arguments in json.loads(sys.argv[1]):
    print("a run", flush=True)
    assert pytest.main(["-q", "--collect-only", "-n", "0", "-m", "", "-p", "tests.conftest", *arguments]) == 0
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The cases of each of RUNS, by its name."""
    path = tmp_path_factory.mktemp("rows") / "test_rows.py"
    path.write_text(MODULE)
    runs = [[argument.format(module=path) for argument in arguments] for arguments in RUNS.values()]
    command = [sys.executable, "-c", COLLECT, json.dumps(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    outputs = done.stdout.split("a run\n")[1:]
    cases = [{line.partition("::")[2] for line in output.splitlines() if "::" in line} for output in outputs]
    return dict(zip(RUNS, cases, strict=True))


def test_rows_of_one_list_are_all_kept(collected: dict[str, set[str]]) -> None:
    """As they were written for a reason, although their elements occur in other rows."""
    rows = sorted(name for name in collected["whole"] if name.startswith("test_rows"))
    assert [name[len("test_rows[") :][:3] for name in rows] == ["1-1", "1-2", "2-1", "2-2"]
    assert {name[len("test_rows[1-1-") : -1] for name in rows} == {"uvloop", "asyncio"}


def test_run_of_some_tests_has_all_cases(collected: dict[str, set[str]]) -> None:
    everything = collected["path"]
    assert len(everything) == 13
    assert collected["whole, all"] == everything
    assert collected["whole, -k"] == everything - {"test_without_parameters"}


def test_quick_tests_may_keep_all_cases(collected: dict[str, set[str]]) -> None:
    quick = {name for name in collected["path"] if "slow" not in name}
    kept = collected["whole, fewer-costly"]
    assert kept > quick
    assert len(kept - quick) == 2
