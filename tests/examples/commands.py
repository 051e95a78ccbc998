"""The commands that the documents show, and which test runs each.

A command is a line of a shell block, a line after "$ " in a text block, or inline code that looks like a command. The
documents are the Markdown files, the docstrings of examples/, and the comments at the top of the configurations there.

Invariant: a test runs each command. The test names the command with `documented`, or its block with `guides.shell`, or
runs all commands of a kind with `of_kind`. test_documents.py finds these calls in the source of the tests, and fails
for a command that none of them names.
"""

from __future__ import annotations

import ast
import functools
import keyword
import re
import runpy
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.examples.guides import GUIDES
from tests.support import ROOT

__all__ = [
    "COMMANDS",
    "DOCUMENTS",
    "FENCED",
    "KINDS",
    "Command",
    "claimed",
    "documented",
    "notes",
    "of_kind",
    "parts_of_block",
    "run_program",
]

DOCUMENTS = sorted({*GUIDES, *ROOT.glob("*.md"), ROOT / "sseqbridge/README.md", ROOT / "tests/README.md"})
CONFIGURATIONS = [ROOT / "examples" / name for name in ("Caddyfile", "apache.conf", "haproxy.cfg", "nginx.conf")]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`([^`]+)`")
# Assignments, the program, one blank, and an argument that cannot follow a name in Python.
_SHAPE = re.compile(r"(?P<variables>(?:[A-Z_]+=\S+ )*)(?P<program>[a-z.][\w./-]*) (?![= ])\S")
# An optional part of a usage, such as "[--port NUMBER]".
_OPTIONAL = re.compile(r" \[[-\w][^]]*\]")

# Scripts of packages. Tests start them as modules, with their own interpreter.
_SCRIPTS = {"celery", "flask", "gunicorn", "mypy", "nox", "pip", "pytest", "sseqbridge", "uvicorn"}
_PYTHONS = {"python", ".venv/bin/python"}

# Kinds of commands: one test runs all commands of a kind. A command has the first kind whose pattern matches its start.
KINDS = {
    "pip": r"pip install (?!sseqbridge$)",
    "pytest": r"(?:\.venv/bin/python -m )?pytest .*(?:tests|examples)/",
    "run.sh": r"(?:[A-Z]+=\S+ )?bash tests/run\.sh\b",
    "session": r"nox |mypy |(?:SSEQBRIDGE_\w+=\S+ )?\.venv/bin/python -m pytest$|python -m tests\.bench\.resume\b",
    "benchmarks": r"python -m tests\.bench\b(?!\.)",
    "long run": r"python -m tests\.(?!bench\b|examples\b|fuzz\b)\w+\.\w+ ",
    "benchmark of servers": r"python -m tests\.bench\.\w+",
    "command line": r"sseqbridge (?:[a-z]+|URL)$",
    "interpreter": r"python -X ",
}


class Command(NamedTuple):
    """A command, without its comment and the optional parts of a usage, and the documents that show it."""

    text: str
    places: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        """The variables of the environment that it sets."""
        return dict(word.split("=", 1) for word in self._words if word not in self.shell_words)

    @property
    def shell_words(self) -> list[str]:
        """The program and its arguments, as written."""
        assigned = [bool(re.match("[A-Z_]+=", word)) for word in self._words]
        return self._words[assigned.index(False) :]

    @property
    def words(self) -> list[str]:
        """The program and its arguments, with the interpreter of the tests."""
        program, *arguments = self.shell_words
        if program in _PYTHONS:
            return [sys.executable, *arguments]
        return [sys.executable, "-m", program, *arguments] if program in _SCRIPTS else [program, *arguments]

    @property
    def _words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def kind(self) -> str | None:
        """The name of its kind, None if it has none."""
        return next((name for name, pattern in KINDS.items() if re.match(pattern, self.text)), None)


# --- Documents ---


def _is_command(text: str) -> bool:
    match = _SHAPE.match(text)
    return match is not None and not keyword.iskeyword(match["program"]) and text not in _directives()


@functools.cache
def _directives() -> set[str]:
    """Return the lines of the configurations: a directive that a sentence quotes is no command."""
    return {line.strip() for path in CONFIGURATIONS for line in path.read_text("utf-8").splitlines()}


def _parts(line: str) -> Iterator[str]:
    """Yield the commands of a line of shell."""
    line = re.sub(r"\s+#.*", "", line)
    for part in line.split(" && "):
        if part.strip():
            yield _OPTIONAL.sub("", part.strip())


def parts_of_block(code: str) -> Iterator[str]:
    """Yield the commands of a shell block, without `export`."""
    for line in re.sub(r" *\\\n *", " ", code).splitlines():
        yield from (part for part in _parts(line) if not part.startswith("export "))


def _of_inline_code(text: str) -> Iterator[str]:
    for code in _INLINE.findall(text):
        line = " ".join(code.split())
        if _is_command(line):
            yield from _parts(line)


def _of_page(text: str) -> Iterator[str]:
    for language, code in FENCED.findall(text):
        if language == "sh":
            yield from parts_of_block(code)
        elif language == "text":
            for line in re.findall(r"^\$ (.*)$", code, re.M):
                yield from _parts(line)
    for paragraph in re.split(r"\n\n+", FENCED.sub("", text)):
        yield from _of_inline_code(paragraph)


def _of_notes(text: str) -> Iterator[str]:
    """Yield the commands of a docstring or comment: indented lines, and inline code."""
    for line in text.splitlines():
        if re.match(r" {3,}\S", line) and _is_command(line.strip()):
            yield from _parts(line)
    yield from _of_inline_code(text)


def notes() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each docstring of examples/, and of each comment at the top of a configuration."""
    for path in sorted(ROOT.glob("examples/**/*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        name = path.relative_to(ROOT).as_posix()
        # Not cleaned: that would remove the indentation, if all lines but the first have it.
        yield name, ast.get_docstring(tree, clean=False) or ""
        for node in tree.body:
            if isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef, ast.ClassDef)):
                yield name, ast.get_docstring(node) or ""
    for path in CONFIGURATIONS:
        comment = re.match(r"(?:#.*\n)+", path.read_text("utf-8"))
        yield path.relative_to(ROOT).as_posix(), re.sub("^#", "", comment[0], flags=re.M) if comment else ""


def _read() -> dict[str, Command]:
    places: dict[str, list[str]] = defaultdict(list)
    for page in DOCUMENTS:
        for text in _of_page(page.read_text("utf-8")):
            places[text].append(page.relative_to(ROOT).as_posix())
    for name, note in notes():
        for text in _of_notes(note):
            places[text].append(name)
    return {text: Command(text, tuple(dict.fromkeys(names))) for text, names in places.items()}


COMMANDS = _read()


# --- Tests ---


def run_program(command: Command, *more: str) -> None:
    """Run a Python program to its end in this process, so that pytest captures its output. `more` are arguments."""
    _, option, module, *arguments = [*command.words, *more]
    assert option == "-m"
    arguments_before, imported = sys.argv, sys.modules.pop(module, None)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = arguments_before
        if imported is not None:
            sys.modules[module] = imported


def documented(text: str) -> Command:
    """Return the command of a document that a test runs. Raises KeyError if no document has it."""
    return COMMANDS[text]


def of_kind(name: str) -> list[Command]:
    """Return all commands of a kind, for the test that runs them."""
    commands = [command for command in COMMANDS.values() if command.kind == name]
    assert commands, f"no document has a command of the kind {name!r}"
    return commands


# A call whose arguments are strings.
_STRING = r'''(?:\"{3}[^\n]*?\"{3}|"[^"\n]*"|'[^'\n]*')'''
_CALL = re.compile(rf"\b(documented|of_kind|shell)\(\s*({_STRING}(?:, {_STRING})?),?\s*\)")


def claimed(paths: Iterable[Path]) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """Return the commands, kinds and shell blocks that calls in these test modules name."""
    texts, kinds, blocks = set[str](), set[str](), set[tuple[str, str]]()
    for path in paths:
        source = path.read_text("utf-8")
        if not any(f"{function}(" in source for function in ("documented", "of_kind", "shell")):
            continue
        for function, arguments in _CALL.findall(source):
            strings = ast.literal_eval(f"({arguments},)")
            if function == "documented":
                texts.update(strings)
            elif function == "of_kind":
                kinds.update(strings)
            else:
                blocks.add(strings)
    return texts, kinds, blocks
