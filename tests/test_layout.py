"""The floors: which file may import which, and what each may know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sseqbridge"

# From the top down. A file may import those that stand below its own line, none beside it.
FLOORS = [
    ["_cli"],
    ["relay.flask", "relay.django", "relay.starlette"],
    ["resume.redis"],
    ["resume._log"],
    ["resume._beginning", "resume._errand"],
    ["resume._memory", "resume._producing", "resume._reading"],
    ["resume._hub", "resume._redis_errors"],
    ["resume._store", "resume._parts"],
    ["resume._entries", "resume._lua"],
    ["relay._frames", "relay._response"],
    ["relay._sources", "relay._reader"],
    ["relay._writer"],
    ["_merge"],
    ["_api", "_tee"],
    ["_printing"],
    ["_streams"],
    ["pytest_plugin"],
    ["testing"],
    ["_bridge"],
    ["_pump"],
    ["_reconnecting"],
    ["_handoff", "_connection", "_claims"],
    ["_client"],
    ["_transport", "_bodies"],
    ["_runtime", "_options", "_loop_watch"],
    ["_scripts"],
    ["_recording"],
    ["_reconnection", "_parser", "_decoding", "_encoder", "_content_encoding", "_framing", "_heads", "_tls"],
    ["_callbacks"],
    ["_exceptions", "_fast", "_gevent"],
    ["_models", "_clock"],
]
# Outside the floors: public names, each imported when it is asked for.
OUTSIDE = ["__init__", "__main__", "relay.__init__", "resume.__init__"]

FILES = [name for floor in FLOORS for name in floor]

# These do the work without doing any input or output.
SANS_IO = ["_parser", "_encoder", "_decoding", "_content_encoding", "_framing", "_heads", "_tls"]
SANS_IO += ["_reconnection", "_fast", "_models", "_exceptions", "relay._writer"]
KNOW_HTTPX = {"_client", "_connection", "_transport"}
START_THREADS = {"_runtime", "_gevent", "testing"}

every_file = pytest.mark.parametrize("name", FILES + OUTSIDE)


def tree_of(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text("utf-8"))


def nodes(tree: ast.AST, *, with_type_checking: bool) -> Iterator[ast.AST]:
    """All nodes, those that only a type checker sees included or not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            if with_type_checking:
                yield from nodes(node, with_type_checking=True)
        else:
            yield node
            yield from nodes(node, with_type_checking=with_type_checking)


def imports(name: str, *, with_type_checking: bool) -> Iterator[str]:
    """The modules that a file imports: "httpx", "._models", "._writer" in relay being ".relay._writer"."""
    folder = name.rpartition(".")[0]
    for node in nodes(tree_of(name), with_type_checking=with_type_checking):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "modules of another folder are imported by their full name"
            start = f".{folder}." if node.level and folder else "." * node.level
            if node.module is None or node.module == "sseqbridge":
                start = start if node.level else "."
                yield from (start + alias.name for alias in node.names)
            else:
                yield start + node.module.replace("sseqbridge.", "." if not node.level else "", 1)


def packages(name: str, *, with_type_checking: bool = False) -> set[str]:
    """The packages other than this one that a file imports, `http.client` being `http`."""
    return {module.partition(".")[0] for module in imports(name, with_type_checking=with_type_checking)} - {""}


def test_files_are_those_that_stand_here() -> None:
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    assert files == {*FILES, *OUTSIDE}
    assert len(FILES) == len(set(FILES))


def test_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", FILES)
def test_file_imports_only_from_below(name: str) -> None:
    at = next(index for index, floor in enumerate(FLOORS) if name in floor)
    below = {f".{file}" for floor in FLOORS[at + 1 :] for file in floor}
    own = {module for module in imports(name, with_type_checking=True) if module.startswith((".", "sseqbridge"))}
    assert own <= below


@pytest.mark.parametrize("name", SANS_IO)
def test_work_on_bytes_knows_no_loop_thread_or_client(name: str) -> None:
    assert packages(name).isdisjoint({"asyncio", "threading", "_thread", "anyio", "httpx", "socket", "time"})


@every_file
def test_only_what_is_about_requests_knows_httpx(name: str) -> None:
    assert "httpx" not in packages(name) or name in KNOW_HTTPX
    assert packages(name, with_type_checking=True).isdisjoint({"httpcore", "httpx2", "aiohttp"})


@every_file
def test_threads_are_started_in_one_place(name: str) -> None:
    called = {ast.unparse(node.func) for node in ast.walk(tree_of(name)) if isinstance(node, ast.Call)}
    starts = {"threading.Thread", "threading.Timer", "_thread.start_new_thread"}
    assert called.isdisjoint(starts) or name in START_THREADS
    assert packages(name).isdisjoint({"concurrent", "multiprocessing", "subprocess"})


@every_file
def test_threading_is_imported_whole_so_that_a_patched_one_is_seen(name: str) -> None:
    taken_from = {node.module for node in ast.walk(tree_of(name)) if isinstance(node, ast.ImportFrom)}
    assert taken_from.isdisjoint({"threading", "_thread", "time", "socket", "select", "queue"})


@pytest.mark.parametrize("name", FILES + OUTSIDE)
def test_module_says_what_it_holds_and_what_it_gives(name: str) -> None:
    tree = tree_of(name)
    assert ast.get_docstring(tree)
    [exported] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert exported
    assert not [public for public in exported if public.startswith("_")]
