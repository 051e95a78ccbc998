"""Saves time of a run: which files it need not import, and which cases of a test it need not run.

All functions run on the main thread, while pytest collects.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.tiers import CONFIGURATION, DEFAULT_ONLY

__all__ = ["chosen_cases", "covering", "is_left_out", "may_select"]

_TESTS = Path(__file__).parent
_MARK = re.compile(r"\bmark\.(\w+)")
_MARK_OF_FOLDER = re.compile(r"\bitem\.add_marker\(pytest\.mark\.(\w+)\)")
_IMPORT = re.compile(r"^\s*(?:from|import) .*", re.MULTILINE)
# A statement at the margin: the lines after it are indented, or close its bracket.
_MODULE_MARKS = re.compile(r"^pytestmark = .*\n(?:[ \])].*\n)*", re.MULTILINE)


# --- Files ---


def is_left_out(path: Path, config: pytest.Config) -> bool:
    """Return whether the option -m, or the configuration, selects no test of a file. Imports nothing.

    A file that the command line names is not left out: pytest would say that it has no tests.
    """
    if not path.match("test_*.py") or any(_is_named(path, argument) for argument in config.args):
        return False
    text = path.read_text("utf-8")
    of_folder = _text_of_conftest(path.parent)
    of_module = "".join(_MODULE_MARKS.findall(text))
    always = set(_MARK.findall(of_module)) | set(_MARK_OF_FOLDER.findall(of_folder))
    names_configurations = "configurations" in always or "set_defaults(" in of_folder
    if names_configurations and f'"{CONFIGURATION}"' not in text + of_folder:
        return True
    if CONFIGURATION != "default" and always & DEFAULT_ONLY and "configurations(" not in text:
        return True
    possible = {name for each in (text, *_helpers_of(text, path.parent)) for name in _marks_of(each)}
    return not may_select(config.option.markexpr, always, possible)


def _is_named(path: Path, argument: str) -> bool:
    return Path(argument.partition("::")[0]).resolve() == path


@functools.cache
def _text_of_conftest(folder: Path) -> str:
    path = folder / "conftest.py"
    return path.read_text("utf-8") if folder != _TESTS and path.exists() else ""


def _helpers_of(text: str, folder: Path) -> list[str]:
    """Return the source of the helpers that a module imports, directly or not: they may define its markers."""
    unread = dict(_helpers(folder))
    # Fixtures of conftest.py are not imported.
    imported = [text, unread.pop("conftest", "")]
    for each in imported:
        imported += [unread.pop(name) for name in sorted(_imported_words_of(each) & unread.keys())]
    return imported[1:]


# Both are called for a helper as often as modules import it.


@functools.cache
def _marks_of(text: str) -> frozenset[str]:
    return frozenset(_MARK.findall(text))


@functools.cache
def _imported_words_of(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", "\n".join(_IMPORT.findall(text))))


@functools.cache
def _helpers(folder: Path) -> dict[str, str]:
    # Not tests/conftest.py, which marks no test, and imports much.
    others = {_TESTS / name for name in ("conftest.py", "noxfile.py", "selection.py", "tiers.py")}
    paths = [path for each in (_TESTS, folder) for path in each.glob("*.py") if not path.name.startswith("test_")]
    return {path.stem: path.read_text("utf-8") for path in paths if path not in others}


def may_select(expression: str, always: set[str], possible: set[str]) -> bool:
    """Return whether an expression of -m may select a test that has the markers `always`, and others of `possible`."""
    return not expression or _value(ast.parse(expression, mode="eval").body, always, possible) is not False


def _value(node: ast.expr, always: set[str], possible: set[str]) -> bool | None:
    """Evaluate an expression; None if it depends on the test."""
    if isinstance(node, ast.Name):
        return True if node.id in always else None if node.id in possible else False
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, always, possible)
        return None if value is None else not value
    if isinstance(node, ast.BoolOp):
        values = [_value(each, always, possible) for each in node.values]
        decisive = isinstance(node.op, ast.Or)
        return decisive if decisive in values else None if None in values else not decisive
    return None


# --- Cases ---


def chosen_cases(items: Sequence[pytest.Item], *, keep_quick: bool) -> list[pytest.Item]:
    """Return the tests to run: of a test with several parameters, a few cases in which each argument occurs.

    With `keep_quick`, a test that is neither slow nor needs a program keeps all its cases.
    """
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        is_costly = any(marker.name == "slow" or marker.name in DEFAULT_ONLY for marker in item.iter_markers())
        if (is_costly or not keep_quick) and getattr(item, "callspec", None) is not None:
            cases[item.nodeid.partition("[")[0]].append(item)
    surplus: set[pytest.Item] = set()
    for of_one_test in cases.values():
        # In one order in each process, whatever the order of the run.
        of_one_test.sort(key=lambda item: item.nodeid)
        kept = covering([_arguments(item) for item in of_one_test])
        surplus.update(item for number, item in enumerate(of_one_test) if number not in kept)
    return [item for item in items if item not in surplus]


def _arguments(item: pytest.Item) -> set[object]:
    """Return a case's rows of each list of parameters: an element is equal for the same row."""
    values = {name: id(value) for name, value in item.callspec.params.items()}  # type: ignore[attr-defined]
    rows: set[object] = set()
    for marker in item.iter_markers("parametrize"):
        names = marker.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        rows.add(tuple((name, values.pop(name)) for name in names if name in values))
    return rows | set(values.items())


def covering(cases: Sequence[Iterable[object]]) -> set[int]:
    """Return the numbers of a few cases that together contain every element of all cases (a greedy set cover)."""
    sets = [frozenset(case) for case in cases]
    if all(len(case) == 1 for case in sets):
        return set(range(len(sets)))
    missing = set().union(*sets)
    uses: Counter[object] = Counter()
    kept: set[int] = set()
    while missing:
        # On a tie the case whose elements were used least, so that the kept cases have many different pairs.
        best = max(range(len(sets)), key=lambda n: (len(sets[n] & missing), -sum(uses[each] for each in sets[n])))
        kept.add(best)
        uses.update(sets[best])
        missing -= sets[best]
    return kept
