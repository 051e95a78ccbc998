"""Checks that the documents agree with the code: links, commands, imports, tables of options, the error tree."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import sseqbridge
from sseqbridge import Dialect, ReconnectionPolicy, Timeout, request_sse, tee
from sseqbridge._engine.channel import Outcome as StreamOutcome
from sseqbridge.relay import django
from sseqbridge.relay._ending import Outcome as RelayOutcome
from sseqbridge.resume import MemoryLog
from tests.examples.commands import COMMANDS, DOCUMENTS, FENCED, KINDS, claimed, notes, parts_of_block
from tests.examples.guides import BLOCKS
from tests.support import ROOT, python

_CODE = re.compile(r"`[^`\n]+`")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def prose(document: Path) -> str:
    """Return a document's text without its fenced blocks."""
    return FENCED.sub("", document.read_text("utf-8"))


# --- Links ---


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_links_are_relative_and_lead_to_a_file_and_heading(document: Path) -> None:
    text = _CODE.sub("", prose(document))
    for link in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert ROOT in target.parents, f"{link} leaves the repository"
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document not in reached:
            reached.add(document)
            links = re.findall(r"\]\(([^)#]+\.md)[^)]*\)", document.read_text("utf-8"))
            waiting += [(document.parent / link).resolve() for link in links if "://" not in link]
    assert reached == set(DOCUMENTS)


# --- README and changelog ---


def test_readme_is_short_and_begins_with_its_purpose() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) < 250
    assert lines[:2] == ["# sseqbridge", ""]
    assert lines.index("", 2) - 2 <= 2


def test_each_breaking_change_has_a_migration() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(r"^### Breaking changes\n(.*?)^###? ", text, re.M | re.S)
    changes = [change for section in sections for change in re.split(r"^- ", section, flags=re.M)[1:]]
    assert len(changes) > 30
    assert [change for change in changes if "Migration:" not in change] == []


# --- Commands ---


def test_every_command_is_run_by_a_test() -> None:
    texts, kinds, blocks = claimed(ROOT.glob("tests/**/*.py"))
    of_blocks = {
        command
        for block in blocks
        for language, code in BLOCKS[block]
        if language == "sh"
        for command in parts_of_block(code)
    }
    assert texts <= COMMANDS.keys(), "a test names a command that no document has"
    assert kinds == KINDS.keys()
    run = {command.text for command in COMMANDS.values() if command.kind in kinds} | texts | of_blocks
    assert {text: command.places for text, command in COMMANDS.items() if text not in run} == {}


def test_no_command_is_overlooked() -> None:
    assert len(COMMANDS) > 100
    programs = {command.shell_words[0] for command in COMMANDS.values()}
    begins = rf"(?:{'|'.join(map(re.escape, sorted(programs)))}) (?:-|examples[./]|tests[./])"
    texts = [(name, re.sub(r"`[^`]+`|^ {3,}\S.*", "", note, flags=re.M)) for name, note in notes()]
    for document in DOCUMENTS:
        blocks = FENCED.findall(document.read_text("utf-8"))
        texts += [(document.name, code) for language, code in blocks if language == "text"]
    # Output follows "$ ", and a docstring has its commands as code.
    assert [name for name, text in texts if re.search(rf"^{begins}|(?<!\$)(?<![\w.]) {begins}", text, re.M)] == []


def applications() -> set[str]:
    """Return the applications that commands of documents and docstrings start, as MODULE or MODULE:NAME."""
    texts = [document.read_text("utf-8") for document in DOCUMENTS]
    texts += [path.read_text("utf-8") for path in ROOT.glob("examples/**/*.py")]
    return {name for text in texts for name in re.findall(r"(?<![\w.])(examples\.[\w.]+(?::\w+)?)\b", text)}


@pytest.mark.parametrize("application", sorted(applications()))
def test_modules_and_applications_exist(application: str) -> None:
    module, _, name = application.partition(":")
    parent, _, last = module.rpartition(".")
    spec = importlib.util.find_spec(module) if importlib.util.find_spec(parent) else None
    if spec is None:
        # A name in a module.
        module, name = parent, last
        spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text("utf-8")
    assert not name or re.search(rf"^(?:(?:async )?def |class )?{name}\b", source, re.M)


def test_extras_that_are_named_exist() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [document.read_text("utf-8") for document in DOCUMENTS]
    lists = [names for text in texts for names in re.findall(r"(?:sseqbridge|['\"]\.|`)\[([a-z,]+)\]", text)]
    named = {name for names in lists for name in names.split(",")}
    assert named >= {"flask", "redis", "bench"}
    assert named <= set(setup["options.extras_require"])


@pytest.mark.slow
def test_options_of_the_command_line_exist() -> None:
    status, text, errors = python("from sseqbridge.__main__ import run; run()", "--help")
    assert (status, errors) == (0, "")
    document = (ROOT / "examples/command-line.md").read_text("utf-8")
    options = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", re.split("## Record", document)[0])) - {"-m"}
    assert len(options) > 8
    assert options <= set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


# --- Python ---


@documents
def test_examples_compile_and_import_names_that_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
        lines_before = text.count("\n", 0, block.start(1))
        code = "\n" * lines_before + block[1]
        compile(code, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sseqbridge"):
                name = node.module or ""
                module = importlib.import_module(name)
                for alias in node.names:
                    # A submodule may not have been imported yet.
                    exists = hasattr(module, alias.name) or importlib.util.find_spec(f"{name}.{alias.name}")
                    assert exists, f"line {node.lineno} imports {alias.name} from {name}"


# --- Tables of options ---

_UNITS = {" MiB": 1024 * 1024}

TABLES: dict[tuple[str, str], tuple[Callable[..., Any], set[str]]] = {
    # The table under a heading; the function, and its parameters that are not options.
    ("README.md", "Options"): (request_sse, {"url", "headers"}),
    ("examples/retries.md", "Time limits"): (Timeout, set()),
    ("examples/reconnecting.md", "ReconnectionPolicy"): (ReconnectionPolicy, {"_tried", "resend"}),
    ("examples/dialects.md", "Fields of a Dialect"): (Dialect, set()),
    ("examples/tee.md", "tee"): (tee, {"stream"}),
    ("examples/relay.md", "Views"): (django.stream_response, {"request", "stream"}),
    ("examples/resume.md", "Logs"): (MemoryLog, set()),
    ("examples/resume.md", "Options of open"): (MemoryLog.open, {"self", "key"}),
}
# Cells that are not Python.
_IN_WORDS = {"408, 425, 429, 5xx": frozenset({408, 425, 429, *range(500, 600)})}


def options_of(document: str, section: str) -> dict[str, str]:
    """Return the default's cell of each option in the table of a section."""
    sections = re.split(r"^#+ ", (ROOT / document).read_text("utf-8"), flags=re.M)
    [text] = [text for text in sections if text.startswith(f"{section}\n")]
    options: dict[str, str] = {}
    for row in re.findall(r"^\|(.*)\|$", text, re.M)[2:]:
        names, defaults = row.split("|")[:2]
        found = re.findall(r"`(\w+)`", names)
        cells = [cell.strip() for cell in defaults.split(",")] if len(found) > 1 else [defaults.strip()]
        # One default may stand for all options of a row.
        options |= dict(zip(found, cells if len(cells) == len(found) else cells * len(found), strict=True))
    return options


def value_of(cell: str) -> object:
    if cell in _IN_WORDS:
        return _IN_WORDS[cell]
    for unit, factor in _UNITS.items():
        if cell.endswith(unit):
            return int(cell.removesuffix(unit)) * factor
    return Timeout() if cell == "`Timeout()`" else ast.literal_eval(cell.strip("`"))


@pytest.mark.parametrize("table", TABLES, ids=" ".join)
def test_table_of_options_is_the_signature(table: tuple[str, str]) -> None:
    function, others = TABLES[table]
    parameters = inspect.signature(function).parameters
    options = {name: value_of(cell) for name, cell in options_of(*table).items()}
    assert options == {name: parameters[name].default for name in parameters if name not in others}


def test_timeout_in_the_table_has_its_defaults() -> None:
    [shown] = re.findall(r"`(Timeout\(\w+=.*?\))`", (ROOT / "README.md").read_text("utf-8"))
    assert eval(shown, {"Timeout": Timeout}) == Timeout()


# --- Outcomes ---


def test_table_of_outcomes_has_all_of_them() -> None:
    text = (ROOT / "examples/reading.md").read_text("utf-8")
    [section] = [part for part in re.split(r"^## ", text, flags=re.M) if part.startswith("Outcomes\n")]
    rows = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", section, re.M)[2:]]
    of_streams, of_relays = ({name for row in rows for name in re.findall(r'`"(\w+)"`', row[n])} for n in (1, 2))
    assert of_streams == set(get_args(StreamOutcome))
    assert of_relays == set(get_args(RelayOutcome))
    declared = (ROOT / "sseqbridge/relay/browser/relay.d.ts").read_text("utf-8")
    types = re.findall(r"^export type (?:Outcome|Failure) = (.*);$", declared, re.M)
    assert len(types) == 2
    assert set(re.findall(r'"(\w+)"', " ".join(types))) <= set(re.findall(r'`"(\w+)"`', section))


# --- Errors ---


def tree_of(text: str) -> dict[str, str]:
    """Return the base of each error in a tree of text."""
    bases: dict[str, str] = {}
    path: list[str] = []
    for indent, name, base in re.findall(r"^ *((?:[|+]  ?|\+- )*)(\w+Error)(?: \(an? (\w+)\))?  ", text, re.M):
        level = len(indent) // 3
        path[level:] = [name]
        bases[name] = base or (path[level - 1] if level else "Exception")
    return bases


@pytest.mark.parametrize("where", ["README.md", "_exceptions.py"])
def test_tree_of_errors_is_that_of_the_classes(where: str) -> None:
    if where == "README.md":
        blocks = FENCED.findall((ROOT / where).read_text("utf-8"))
        [text] = [code for _, code in blocks if "SSEError  " in code]
    else:
        text = importlib.import_module("sseqbridge._exceptions").__doc__ or ""
    errors = [getattr(sseqbridge, name) for name in sseqbridge.__all__ if name.endswith("Error")]
    assert tree_of(text) == {error.__name__: error.__base__.__name__ for error in errors}


def test_attributes_of_errors_in_the_readme_exist() -> None:
    rows = re.findall(r"(\w+Error) .*; attributes? (.*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert len(rows) == 8
    for name, attributes in rows:
        error = getattr(sseqbridge, name)
        known = {*dir(error), *inspect.signature(error.__init__).parameters}
        assert set(re.findall(r"`(\w+)`", attributes)) <= known, name


# --- Names of files, sessions and markers ---


def test_architecture_names_files_that_exist() -> None:
    code = _CODE.findall(prose(ROOT / "sseqbridge/README.md"))
    names = {name for text in code for name in re.findall(r"^`([\w/]+\.py)`$", text)}
    assert len(names) > 30
    existing = [path.as_posix() for path in (*ROOT.glob("sseqbridge/**/*.py"), *ROOT.glob("tests/**/*.py"))]
    assert [name for name in sorted(names) if not any(path.endswith(f"/{name}") for path in existing)] == []


def test_architecture_describes_each_package() -> None:
    text = (ROOT / "sseqbridge/README.md").read_text("utf-8")
    described = re.findall(r"^- \*\*`(\w+)/`\*\*", text, re.M)
    assert sorted(described) == sorted(path.parent.name for path in ROOT.glob("sseqbridge/*/__init__.py"))


def test_packages_describe_their_modules() -> None:
    """Each package names its modules, in its docstring or, if that is for users, in the comment after it."""
    packages = list(ROOT.glob("sseqbridge/*/__init__.py"))
    assert len(packages) > 5
    for package in packages:
        named = re.findall(r"`(\w+\.py)`", package.read_text("utf-8"))
        modules = {path.name for path in package.parent.glob("*.py")} - {package.name}
        assert set(named) == modules, package


def _rows(heading: str) -> list[str]:
    """Return the names in the first cells of a table of tests/README.md."""
    sections = re.split(r"^#+ ", (ROOT / "tests/README.md").read_text("utf-8"), flags=re.M)
    [text] = [text for text in sections if text.startswith(f"{heading}\n")]
    rows = re.findall(r"^\|(.*?)\|", text, re.M)[2:]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_sessions_in_the_table_are_those_of_nox() -> None:
    tree = ast.parse((ROOT / "tests/noxfile.py").read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    sessions = [function.name for function in functions if function.decorator_list]
    assert sorted(_rows("Sessions")) == sorted(sessions)


def test_markers_in_the_table_are_declared(pytestconfig: pytest.Config) -> None:
    declared = {line.partition(":")[0].partition("(")[0] for line in pytestconfig.getini("markers")}
    assert set(_rows("Markers")) <= declared
