"""The overloads for `decode`: SSEClient's constructor defines them, and functions without a client agree with it.

Python's types cannot express "the same overloads with other parameters": see keywords.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "sseqbridge"
CONSTRUCTOR = "SSEClient.__init__"
REQUESTS = ("arequest_sse", "request_sse")
WITHOUT_COMMENTS = ("Log.aopen", "Log.open", "request_jsonl")
NAMES = (CONSTRUCTOR, *REQUESTS, *WITHOUT_COMMENTS)
SELECTING = ("decode", "comments")


class Overload(NamedTuple):
    """One overload: the parameters that select the type of its items, that type, and the other parameters."""

    selecting: tuple[str, ...]
    items: str
    others: tuple[str, ...]


Functions = dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef]]


def functions_with_overloads() -> Functions:
    """Return the definitions of each function that has overloads for `decode`: these, then its implementation."""
    found: Functions = {}
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text("utf-8")
        if "@overload" in source and "decode:" in source:
            for name, function in functions_of(ast.parse(source)):
                found.setdefault(name, []).append(function)
    return {name: each for name, each in found.items() if sum("decode" in names(overload) for overload in each) > 1}


def functions_of(node: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions_of(child, f"{child.name}.")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{scope}{child.name}", child


def names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]


def overload_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Overload:
    arguments = function.args
    own = arguments.args[0] if arguments.args and arguments.args[0].arg == "self" else None
    parameters = arguments.args[1 if own is not None else 0 :]
    defaults = [*[None] * (len(parameters) - len(arguments.defaults)), *arguments.defaults]
    pairs = [*zip(parameters, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    shown = {each.arg: f"{ast.unparse(each)} = {default and ast.unparse(default)}" for each, default in pairs}
    assert arguments.kwarg is not None
    rest = f"**{ast.unparse(arguments.kwarg)}"
    result = own.annotation if own is not None and own.annotation is not None else function.returns
    assert isinstance(result, ast.Subscript), ast.unparse(function)
    selecting = tuple(shown[name] for name in SELECTING if name in shown)
    others = tuple(text for name, text in shown.items() if name not in SELECTING)
    return Overload(selecting, ast.unparse(result.slice), (*others, rest))


def overloads() -> dict[str, list[Overload]]:
    return {
        name: [renamed(overload_of(each)) for each in functions[:-1]]
        for name, functions in functions_with_overloads().items()
    }


def renamed(overload: Overload) -> Overload:
    """Return an overload whose type variable is named R, as in the class, if it has one of its own."""
    function = re.search(r"Callable\[\[ServerSentEvent\], (\w+)\]", " ".join(overload.selecting))
    if function is None:
        return overload
    assert overload.items == function[1]
    selecting = tuple(each.replace(function[0], "Callable[[ServerSentEvent], R]") for each in overload.selecting)
    return overload._replace(selecting=selecting, items="R")


OVERLOADS = overloads()


def rows(name: str) -> list[tuple[tuple[str, ...], str]]:
    return [(each.selecting, each.items) for each in OVERLOADS[name]]


def test_no_other_function_has_overloads_for_decode() -> None:
    assert sorted(OVERLOADS) == sorted(NAMES)


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_have_the_overloads_of_a_client(name: str) -> None:
    assert rows(name) == rows(CONSTRUCTOR)


@pytest.mark.parametrize("name", WITHOUT_COMMENTS)
def test_streams_without_comments_have_the_other_overloads_of_a_client(name: str) -> None:
    expected = [
        (tuple(each for each in selecting if not each.startswith("comments")), items)
        for selecting, items in rows(CONSTRUCTOR)
        if "comments: bool = None" not in selecting
    ]
    assert rows(name) == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_overloads_of_a_function_differ_in_the_items_alone(name: str) -> None:
    assert len({each.others for each in OVERLOADS[name]}) == 1
