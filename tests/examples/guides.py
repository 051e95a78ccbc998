"""The guides: their blocks of code, and the functions that run them.

Invariant: every block of Python or shell in README.md and in examples/*.md either is an excerpt of a program in
examples/, under a line "From [NAME](NAME):", or belongs to a section that a test names with `example`. test_guides.py
checks both, and `example` that the test runs each block of Python: with a Session, or `run_as_printed`.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import functools
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, SupportsIndex

import sseqbridge
from sseqbridge.testing import send
from tests.support import ROOT

__all__ = [
    "BLOCKS",
    "DONE",
    "EXCERPTS",
    "GUIDES",
    "HEADERS",
    "OPENAI",
    "SCRIPTS",
    "Excerpt",
    "Session",
    "example",
    "names_of",
    "python",
    "run_as_printed",
    "run_in_shell",
    "shell",
]

P = ParamSpec("P")

OPENAI = "https://api.openai.com/v1/chat/completions"
DONE = send("[DONE]")
HEADERS = {"Authorization": "Bearer ..."}

GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("examples/*.md"))]


_BLOCK = re.compile(
    r"^(?:From \[(?P<program>[\w./]+)\]\((?P<link>[\w./]+)\):\n\n)?```(?P<language>\w*)\n(?P<code>.*?)^```", re.M | re.S
)


class Excerpt(NamedTuple):
    """A block of a guide that is a part of a program. A line "# ..." stands for lines that are left out."""

    guide: Path
    program: Path
    code: str

    def parts(self) -> list[list[str]]:
        """Return the lines of each part."""
        return [part.strip("\n").splitlines() for part in re.split(r"^ *(?:#|//) \.\.\.$", self.code, flags=re.M)]


def _read() -> tuple[dict[tuple[str, str], list[tuple[str, str]]], dict[str, list[str]], list[Excerpt]]:
    blocks: dict[tuple[str, str], list[tuple[str, str]]] = {}
    scripts: dict[str, list[str]] = {}
    excerpts = []
    for guide in GUIDES:
        for section in re.split(r"^##+ ", guide.read_text("utf-8"), flags=re.M):
            title = section.partition("\n")[0].removeprefix("# ")
            for block in _BLOCK.finditer(section):
                if block["program"]:
                    excerpts.append(Excerpt(guide, guide.parent / block["link"], block["code"]))
                elif block["language"] in ("python", "sh"):
                    key = guide.relative_to(ROOT).as_posix(), title
                    blocks.setdefault(key, []).append((block["language"], block["code"]))
                elif block["language"] == "js":
                    scripts.setdefault(guide.relative_to(ROOT).as_posix(), []).append(block["code"])
    return blocks, scripts, excerpts


# The (language, code) blocks of each document and section; the JavaScript of each document; and the excerpts.
BLOCKS, SCRIPTS, EXCERPTS = _read()

# The blocks of Python that have run. `example` removes those of its section before the test.
_run: set[str] = set()


class Block(str):
    """A block of code, also after changes by `replace`: `block` is the code as the guide shows it."""

    __slots__ = ("block",)

    block: str

    @classmethod
    def of(cls, code: str, block: str) -> Block:
        made = cls(code)
        made.block = block
        return made

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> Block:
        assert old in self, f"the block does not have {old!r}"
        return Block.of(super().replace(old, new, count), self.block)


def _note(code: str) -> None:
    """Note that a block has run."""
    if isinstance(code, Block):
        _run.add(code.block)


def example(document: str, section: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Declare that a test runs the blocks of a section. The test fails if it leaves a block of Python out."""
    blocks = {code for language, code in BLOCKS[document, section] if language == "python"}

    def checked(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run_all(*args: P.args, **options: P.kwargs) -> None:
            _run.difference_update(blocks)
            function(*args, **options)
            assert blocks <= _run, f"the test does not run all blocks of {section} in {document}"

        return run_all

    return checked


class Session:
    """Runs code as one module that has request_sse and the url, headers and data of a request."""

    def __init__(self, url: str, **names: Any) -> None:
        self.url = url
        self.module = types.ModuleType("example")
        self.names: dict[str, Any] = self.module.__dict__
        self.names.update(
            {
                name: getattr(sseqbridge, name)
                for name in ("request_sse", "arequest_sse", "Bridge", "ReconnectionPolicy")
            },
            url=url,
            UPSTREAM=url,
            headers=HEADERS,
            data={"n": 1},
            **names,
        )

    def run(self, code: str) -> dict[str, Any]:
        _note(code)
        code = str(code).replace(OPENAI, self.url)
        compiled = compile(code, "a guide", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        made = eval(compiled, self.names)
        if asyncio.iscoroutine(made):
            asyncio.run(made)
        return self.names


def run_as_printed(code: str) -> dict[str, Any]:
    """Run code as a module of its own, without the names that a Session has, and return its names."""
    _note(code)
    module = types.ModuleType("example")
    exec(compile(code, "a guide", "exec"), module.__dict__)
    return module.__dict__


class Names(NamedTuple):
    """The names of a piece of code: those that it imports, those that it binds in any way, and those that it reads."""

    imported: set[str]
    bound: set[str]
    read: set[str]

    @property
    def undefined(self) -> set[str]:
        return self.read - self.bound - set(dir(builtins))


def names_of(code: str) -> Names:
    """Return the names of a piece of code, whatever the scopes that they are in."""
    imported, bound, read = set(), set(), set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                imported |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case _:
                pass
    return Names(imported, imported | bound, read)


def python(document: str, section: str) -> list[Block]:
    return [Block.of(code, code) for language, code in BLOCKS[document, section] if language == "python"]


def shell(document: str, section: str) -> list[str]:
    return [code for language, code in BLOCKS[document, section] if language == "sh"]


def run_in_shell(code: str, directory: Path, **replaced: str) -> subprocess.CompletedProcess[str]:
    for old, new in {"sseqbridge ": f"{shlex.quote(sys.executable)} -m sseqbridge ", **replaced}.items():
        code = code.replace(old, new)
    environment = {**os.environ, "OPENAI_API_KEY": "sk-test", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-ec", code], check=False, capture_output=True, text=True, timeout=250, cwd=directory, env=environment
    )
