"""Limits on the source text that no linter checks: private attributes across modules, and the size of units.

Layers and cycles of imports are checked by import-linter: setup.cfg.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.configurations("default")

MODULES = sorted((ROOT / "sseqbridge").rglob("*.py"))
TEST_MODULES = sorted((ROOT / "tests").rglob("test_*.py"))

# Private attributes of the standard library and of dependencies, for which there is no public access.
FOREIGN = {
    "_get_running_loop": "asyncio: the running loop or None; get_running_loop() raises, which costs ten times as much",
    "_getframe": "sys: the caller's line, for a warning",
    "_h2_state": "httpcore: the state of an HTTP/2 connection, to close one of its streams",
    "_mounts": "httpx: whether a client of the caller's has transports of its own",
    "_pool": "httpx: the connections of its transport",
    "_replace": "NamedTuple: public in spite of its name",
    "_request": "Django REST framework: the request that its own wraps",
    "_transport_for_url": "httpx: whether other code has replaced it, as pook does",
    "_write_outgoing_data": "httpcore: sends what the state of an HTTP/2 connection has to send",
    "_send_single_request": "httpx: whether other code has replaced it, as pytest-httpx and RESPX do",
}

MOST_LINES_OF_A_CLASS = 300
MOST_LINES_OF_A_FUNCTION = 50
MOST_LINES_OF_A_TEST_MODULE = 800

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined_names(tree: ast.Module) -> set[str]:
    """Return the names that a module defines: variables, functions, classes, their attributes, and slots."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            names.add(node.attr)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            names.update(str(slot.value) for slot in ast.walk(node.value) if isinstance(slot, ast.Constant))
    return names


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def attribute_name(node: ast.expr) -> str:
    """Return the name of the attribute that `node` accesses on another object than self, "" if on none."""
    match node:
        case ast.Attribute(attr=name) if not is_own(node):
            return name
        case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]):
            return name
    return ""


def private_reads(path: Path) -> Iterator[str]:
    tree = parsed(path)
    known = defined_names(tree) | FOREIGN.keys()
    for node in ast.walk(tree):
        if not isinstance(node, ast.expr):
            continue
        name = attribute_name(node)
        if is_private(name) and name not in known:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


def definitions(path: Path) -> Iterator[tuple[str, Definition]]:
    """Return classes and functions with their names, as `sseqbridge/module.py Class.method`."""

    def below(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, Definition]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Definition):
                inner = (*names, child.name)
                yield f"{path.relative_to(ROOT)} {'.'.join(inner)}", child
                yield from below(child, inner)
            else:
                yield from below(child, names)

    yield from below(parsed(path), ())


def lines_of_body(node: Definition) -> int:
    """Return the number of lines without signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body:
        return 0
    assert body[-1].end_lineno is not None
    return body[-1].end_lineno - body[0].lineno + 1


def lines_of(node: Definition) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_no_module_reads_private_attributes_of_another() -> None:
    assert [line for path in MODULES for line in private_reads(path)] == []


def test_no_class_is_long() -> None:
    found = {
        name: lines_of(node)
        for path in MODULES
        for name, node in definitions(path)
        if isinstance(node, ast.ClassDef) and lines_of(node) > MOST_LINES_OF_A_CLASS
    }
    assert found == {}


def test_no_function_is_long() -> None:
    found = {
        name: lines_of_body(node)
        for path in MODULES
        for name, node in definitions(path)
        if not isinstance(node, ast.ClassDef) and lines_of_body(node) > MOST_LINES_OF_A_FUNCTION
    }
    assert found == {}


def test_no_test_module_is_long() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in TEST_MODULES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_TEST_MODULE} == {}


def test_private_reads_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(
        "class Own:\n    __slots__ = ('_slot',)\n    def _method(self):\n        self._set = self._inherited = 1\n"
        "def read(own, other):\n    own._slot, own._method, own._set, other.__dict__, sys._getframe\n"
        "    getattr(other, '_named')\n    return other._of_another\n"
    )
    assert set(private_reads(path)) == {"module.py:7: getattr(other, '_named')", "module.py:8: other._of_another"}
