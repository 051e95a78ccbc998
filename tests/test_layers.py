"""Rules about the source text that no linter checks: private attributes, sizes, names, threads, and imports.

Layers and cycles of imports are checked by import-linter: setup.cfg.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]

MODULES = sorted((ROOT / "sseqbridge").rglob("*.py"))
_MODULES = frozenset(MODULES)
TEST_MODULES = sorted((ROOT / "tests").rglob("test_*.py"))

# Private attributes of the standard library and of dependencies, for which there is no public access.
FOREIGN = {
    "_get_running_loop": "asyncio: the running loop or None; get_running_loop() raises, which costs ten times as much",
    "_get_current_object": "Werkzeug: the application behind flask.current_app; Flask documents it",
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

# The modules that may start threads. Everything else uses `_runtime/threads.py`, which knows daemons, gevent and forks.
STARTS_THREADS = {
    "sseqbridge/_runtime/threads.py": "the threads of bridges, and of blocking functions",
    "sseqbridge/_runtime/gevent.py": "a native thread in a process that gevent has patched",
    "sseqbridge/relay/_ending.py": "anyio's worker threads, where Starlette runs the plain functions of an application",
    "sseqbridge/testing/_server.py": "the thread of an SSEServer; the package `testing` is a tool for tests alone",
}
THREAD_NAMES = {
    "Thread", "Timer", "ThreadPoolExecutor", "start_new_thread", "start_joinable_thread", "to_thread",
    "run_in_executor",
}  # fmt: skip

# gevent's monkey.patch_all() replaces the attributes of these modules: a name that was imported from them before stays
# the unpatched one. Modules that import names nevertheless are listed with their reason.
PATCHED_BY_GEVENT = {"threading", "_thread", "socket", "time", "queue", "select", "ssl", "subprocess"}
IMPORTS_PATCHED_NAMES: dict[str, str] = {}

# Packages that import httpx when they run; for annotations alone, under TYPE_CHECKING, every module may.
IMPORTS_HTTPX = {
    "_http": "the HTTP layer, whose interface has httpx's types",
    "_engine": "maps the responses and errors of httpx to those of a stream",
    "_cli": "makes the client of the option --insecure, as an application would",
}

# Private attributes that tests read, with the reason: the state that a race, a fork or an interrupt finds, where no
# public name shows it. Streams have reader_of() and subscription_of(), bridges started() and thread_of().
READ_BY_TESTS = {
    "the waiters of a channel, in the middle of a race": "_waiters",
    "the channels that are counted": "_open",
    "the future that ends the thread of a bridge": "_stop",
    "the work of a loop between two of its callbacks": "_posted _run_end_callback _version _counted _timer",
    "what a fork leaves to the child": "_detachables _detach_all _close_with_loop",
    "the exit of the interpreter, called early": "_close_all _take_standard_descriptors",
    "the lookups of a process": "_resolvers _running",
    "the readers of a tee, in the middle of a race": "_broadcaster _is_left _leaving _is_moving _move _must_move",
    "the members of merged streams, in the middle of a race": "_merger _members _step",
    "the checked request of a client or call, which has no public form": "_prepared",
    "the TLS of the own transport": "_built_tls_context _incoming",
    "which optional parts are in use, and the names of hints": "_left_out _failed _ELSEWHERE",
    "the context of a scope, or of asynchronous code": "_current _context",
    "the driver of redis": "_DRIVER",
    "the iterator of a response of Django": "_iterator",
    "the cache of the targets of requests": "_target",
}
MOST_PRIVATE_READS_OF_TESTS = 49
# Private names of Python and of other packages.
FOREIGN_TO_TESTS = {
    "_Compress", "_auth_header", "_build_redirect_request", "_exit", "_log_destroy_pending", "_run_once",
    "_set_running_loop",
}  # fmt: skip

MOST_LINES_OF_A_CLASS = 300
MOST_LINES_OF_A_FUNCTION = 50
MOST_LINES_OF_A_TEST_MODULE = 800
MOST_WORDS_OF_A_TESTS_NAME = 10

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def parsed(path: Path) -> ast.Module:
    # The package's modules are read by several tests, those of the tests once.
    return _parsed_module(path) if path in _MODULES else ast.parse(path.read_text("utf-8"), str(path))


@functools.cache
def _parsed_module(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below a node, without expressions and their parts."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield child
            yield from statements(child)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def accessed(node: ast.AST) -> tuple[ast.expr, str] | None:
    """Return (object, name) of an access to an attribute of another object than self, None for other nodes."""
    match node:
        case ast.Attribute(value=value, attr=name) if not is_own(node):
            return value, name
        case ast.Call(
            func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
            args=[value, ast.Constant(value=str(name)), *_],
        ):
            return value, name
    return None


def own_attributes(node: ast.ClassDef) -> set[str]:
    """Return the attributes that a class defines: members, slots, and what its methods assign to self and cls."""
    names: set[str] = set()
    for child in node.body:
        if isinstance(child, Definition):
            names.add(child.name)
        elif isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "__slots__":
            names.update(str(slot.value) for slot in ast.walk(child.value) if isinstance(slot, ast.Constant))
        elif isinstance(child, (ast.Assign, ast.AnnAssign)):
            names.update(each.id for each in ast.walk(child) if isinstance(each, ast.Name))
    names.update(
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and is_own(each)
    )
    return names


def names_in(annotation: ast.expr) -> set[str]:
    """Return the names in an annotation, also in quoted parts."""
    return set(re.findall(r"[^\W\d]\w*", ast.unparse(annotation)))


def types_of_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, set[str]]:
    """Return the names in the annotation of each parameter, none for a parameter without annotation."""
    parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return {each.arg: names_in(each.annotation) if each.annotation else set() for each in parameters}


@dataclass
class Scope:
    """The known types in one function or class: the names in annotations, by variable and by attribute of self."""

    own_class: str | None = None
    variables: dict[str, set[str]] = field(default_factory=dict)
    attributes: dict[str, set[str]] = field(default_factory=dict)


class PrivateReads(ast.NodeVisitor):
    """Finds accesses to private attributes of objects whose class is not defined in the module.

    An access is allowed if the object's annotation names a class of this module that defines the attribute. Without an
    annotation it is allowed if any class of this module defines it.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[ast.AST] = []
        nodes = list(ast.walk(tree))
        classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
        self._attributes = {node.name: own_attributes(node) for node in classes}
        self._bases = {node.name: set().union(*map(names_in, node.bases)) for node in classes}
        self._known = set().union(*self._attributes.values())
        self._modules = {
            (alias.asname or alias.name).partition(".")[0]
            for node in nodes
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        self._scopes = [Scope()]
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        scope = Scope(node.name)
        for method in node.body:
            if isinstance(method, ast.FunctionDef):
                parameters = types_of_parameters(method)
                for child in ast.walk(method):
                    match child:
                        case ast.Assign(targets=[ast.Attribute(attr=name) as target], value=ast.Name(id=value)) if (
                            is_own(target) and value in parameters
                        ):
                            scope.attributes[name] = parameters[value]
        for child in ast.walk(node):
            match child:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                    scope.attributes[name] = names_in(annotation)
                case ast.AnnAssign(target=ast.Attribute(attr=name) as target, annotation=annotation) if is_own(target):
                    scope.attributes[name] = names_in(annotation)
        self._visit_in(scope, node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        scope = Scope(variables=types_of_parameters(node))
        for child in ast.walk(node):
            if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                scope.variables[child.target.id] = names_in(child.annotation)
        self._visit_in(scope, node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 (the name that NodeVisitor looks for)

    def _visit_in(self, scope: Scope, node: ast.AST) -> None:
        self._scopes.append(scope)
        self.generic_visit(node)
        self._scopes.pop()

    def generic_visit(self, node: ast.AST) -> None:
        if (access := accessed(node)) is not None:
            value, name = access
            if is_private(name) and name not in FOREIGN and not self._is_of_this_module(value, name):
                self.found.append(node)
        super().generic_visit(node)

    def _is_of_this_module(self, value: ast.expr, name: str) -> bool:
        types = self._types_of(value)
        if not types or types & {"Any", "object"}:
            return name in self._known
        return any(name in self._attributes_of(each) for each in types)

    def _attributes_of(self, name: str) -> set[str]:
        """Return the attributes that a class of this module and its bases in this module define."""
        own = self._attributes.get(name, set())
        return own.union(*(self._attributes_of(base) for base in self._bases.get(name, ())))

    def _types_of(self, value: ast.expr) -> set[str]:
        """Return the names in the annotation of an object, an empty set if it has none."""
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
            return self._bases.get(next(s.own_class for s in reversed(self._scopes) if s.own_class), set())
        if isinstance(value, ast.Name):
            for scope in reversed(self._scopes):
                if value.id in scope.variables:
                    return scope.variables[value.id]
            if value.id in self._attributes:
                return {value.id}
            if value.id in self._modules:
                return {"a module"}
        elif isinstance(value, ast.Attribute) and is_own(value):
            for scope in reversed(self._scopes):
                if value.attr in scope.attributes:
                    return scope.attributes[value.attr]
        return set()


def place(path: Path, node: ast.AST) -> str:
    """Return the place of a node, as `sseqbridge/module.py:1`."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


# Text that may access a private attribute. Most modules have none, which saves the search in their trees.
_IMPORT = re.compile(r"^\s*(?:from|import)\b.*", re.MULTILINE)
_PRIVATE_NAME = re.compile(r"(?<!\bself)(?<!\bcls)\._(?!_\w+__\b)")
_BY_NAME = re.compile(r"(?<![.\w])(?:get|set|has|del)attr\(")
_PRIVATE_TEXT = re.compile(r"""["']_(?!_\w+__\b)\w""")


def may_read_private(source: str) -> bool:
    if _PRIVATE_NAME.search(_IMPORT.sub("", source)):
        return True
    return bool(_BY_NAME.search(source) and _PRIVATE_TEXT.search(source))


def private_nodes(path: Path) -> list[ast.AST]:
    """Return the accesses of a module to private attributes of other modules' objects."""
    return PrivateReads(parsed(path)).found if may_read_private(path.read_text("utf-8")) else []


def private_reads(path: Path) -> Iterator[str]:
    """Yield the lines of a module that access private attributes of other modules' objects."""
    for node in private_nodes(path):
        yield f"{place(path, node)}: {ast.unparse(node)}"


def definitions(path: Path) -> Iterator[tuple[str, Definition]]:
    """Return classes and functions with their names, as `sseqbridge/module.py Class.method`."""

    def below(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, Definition]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Definition):
                inner = (*names, child.name)
                yield f"{path.relative_to(ROOT)} {'.'.join(inner)}", child
                yield from below(child, inner)
            elif not isinstance(child, ast.expr):
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
    found = [line for path in MODULES for line in private_reads(path)]
    assert not found, "give the attribute a public name, or list one of a dependency in FOREIGN with its reason"


def test_tests_read_few_private_attributes() -> None:
    nodes = [node for path in TEST_MODULES for node in private_nodes(path)]
    names = [access[1] for node in nodes if (access := accessed(node))]
    own = [name for name in names if name not in FOREIGN_TO_TESTS]
    assert set(own) == set(" ".join(READ_BY_TESTS.values()).split()), "list the attribute with its reason, or read none"
    assert len(own) <= MOST_PRIVATE_READS_OF_TESTS


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


def test_names_of_tests_are_short() -> None:
    names = [name for path in TEST_MODULES for name in re.findall(r"\bdef test_(\w+)", path.read_text("utf-8"))]
    assert len(names) > 3000
    assert [name for name in names if len(name.split("_")) > MOST_WORDS_OF_A_TESTS_NAME] == []


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that writes a module, and returns its path."""

    def write(source: str) -> Path:
        path = tmp_path / "sseqbridge" / "module.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, "utf-8")
        return path

    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    return write


def test_private_reads_are_found(module: Callable[[str], Path]) -> None:
    path = module(
        "import other\n"
        "from elsewhere import Foreign\n"
        "class Base:\n"
        "    def _inherited(self): ...\n"
        "class Own(Base):\n"
        "    __slots__ = ('_slot',)\n"
        "    def __init__(self, foreign: Foreign, own: 'Own | None'):\n"
        "        self._set = self._method = 1\n"
        "        self._foreign = foreign\n"
        "        self._own = own\n"
        "    def read(self, foreign: Foreign, own: Own, unknown):\n"
        "        own._slot, own._method, self._own._set, own._inherited, unknown._set, u.__dict__, sys._getframe\n"
        "        foreign._set\n"
        "        self._foreign._set\n"
        "        other._set\n"
        "        getattr(unknown, '_named')\n"
        "        return unknown._of_another\n"
    )
    assert set(private_reads(path)) == {
        "sseqbridge/module.py:13: foreign._set",
        "sseqbridge/module.py:14: self._foreign._set",
        "sseqbridge/module.py:15: other._set",
        "sseqbridge/module.py:16: getattr(unknown, '_named')",
        "sseqbridge/module.py:17: unknown._of_another",
    }


# Threads.


_THREAD_NAME = re.compile(rf"\b(?:{'|'.join(THREAD_NAMES)})\b")


def thread_starts(path: Path) -> Iterator[str]:
    """Yield the lines of a module that name a class or function which starts threads."""
    if not _THREAD_NAME.search(path.read_text("utf-8")):
        return
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name) if name in THREAD_NAMES:
                yield f"{place(path, node)}: {ast.unparse(node)}"
            case ast.Constant(value=str(name)) if name in THREAD_NAMES:
                yield f"{place(path, node)}: {ast.unparse(node)}"


def test_threads_start_in_few_modules() -> None:
    found = {str(path.relative_to(ROOT)): list(thread_starts(path)) for path in MODULES}
    others = [line for name, lines in found.items() if name not in STARTS_THREADS for line in lines]
    assert not others, "start the thread with sseqbridge._runtime.threads, or add the module to STARTS_THREADS"
    assert [name for name in STARTS_THREADS if not found[name]] == [], "starts no thread: remove it from STARTS_THREADS"


def test_thread_starts_are_found(module: Callable[[str], Path]) -> None:
    path = module(
        "from threading import Thread as T\n"
        "threading.Thread(target=f)\n"
        "class Own(threading.Timer): ...\n"
        "get_original('_thread', 'start_new_thread')\n"
        "loop.run_in_executor(None, f)\n"
        "threading.current_thread()\n"
    )
    assert sorted(line.split(":")[1] for line in thread_starts(path)) == ["1", "2", "3", "4", "5"]


# Imports.


def imports_of_names(path: Path) -> Iterator[str]:
    """Yield the imports of names from modules that gevent patches."""
    for node in statements(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in PATCHED_BY_GEVENT:
            yield f"{place(path, node)}: {ast.unparse(node)}"


def test_modules_that_gevent_patches_are_imported_whole() -> None:
    found = {str(path.relative_to(ROOT)): list(imports_of_names(path)) for path in MODULES}
    others = [line for name, lines in found.items() if name not in IMPORTS_PATCHED_NAMES for line in lines]
    assert not others, "import the module (`import threading`), since gevent's patching replaces its attributes"
    assert [name for name in IMPORTS_PATCHED_NAMES if not found[name]] == [], "remove it from IMPORTS_PATCHED_NAMES"


def test_imports_of_names_are_found(module: Callable[[str], Path]) -> None:
    path = module(
        "import threading\nfrom threading import Lock\nfrom .threading import Lock\nfrom queue import Queue\n"
    )
    assert sorted(line.split(":")[1] for line in imports_of_names(path)) == ["2", "4"]


def running_statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below a node, without expressions and without the code under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (each for child in node.orelse for each in (child, *running_statements(child)))
        else:
            yield node
            yield from running_statements(node)


def imports_of_httpx(path: Path) -> Iterator[str]:
    """Yield the imports of httpx that run."""
    for node in running_statements(parsed(path)):
        match node:
            case ast.Import(names=names) if any(each.name.partition(".")[0] == "httpx" for each in names):
                yield f"{place(path, node)}: {ast.unparse(node)}"
            case ast.ImportFrom(module=str(name), level=0) if name.partition(".")[0] == "httpx":
                yield f"{place(path, node)}: {ast.unparse(node)}"


def test_httpx_is_imported_by_the_http_layers_alone() -> None:
    found: dict[str, list[str]] = {}
    for path in MODULES:
        found.setdefault(path.relative_to(ROOT / "sseqbridge").parts[0], []).extend(imports_of_httpx(path))
    others = [line for name, lines in found.items() if name not in IMPORTS_HTTPX for line in lines]
    assert not others, "use what sseqbridge._http offers, import httpx under TYPE_CHECKING, or extend IMPORTS_HTTPX"
    assert [name for name in IMPORTS_HTTPX if not found[name]] == [], "imports no httpx: remove it from IMPORTS_HTTPX"


def test_imports_of_httpx_are_found(module: Callable[[str], Path]) -> None:
    path = module(
        "import httpx\n"
        "if TYPE_CHECKING:\n"
        "    import httpx\n"
        "else:\n"
        "    from httpx import Client\n"
        "import httpx2\n"
        "def function():\n"
        "    import httpx._client\n"
    )
    assert sorted(line.split(":")[1] for line in imports_of_httpx(path)) == ["1", "5", "8"]


# The head of a module.


def test_every_module_has_a_docstring() -> None:
    without = [str(path.relative_to(ROOT)) for path in MODULES if not ast.get_docstring(parsed(path))]
    assert not without, "begin the module with a docstring: its contents, the thread that runs it, its invariant"


def names_of(statement: ast.stmt) -> list[str]:
    """Return the variables that a statement of a module assigns."""
    match statement:
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def test_every_module_declares_its_names() -> None:
    """But for a package that has nothing but its docstring."""
    without = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if len(body := parsed(path).body) > 1 and not any("__all__" in names_of(statement) for statement in body)
    ]
    assert not without, "list the names for other modules in `__all__`, below the imports; an empty list for none"
