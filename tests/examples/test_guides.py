"""No guide, snippet or program of examples/ is left out: each is linked, run, and like the program that it quotes."""

from __future__ import annotations

import functools
import re
import textwrap
from pathlib import Path

import pytest

import sseqbridge
import sseqbridge.resume
import sseqbridge.testing
from tests.examples.guides import BLOCKS, EXCERPTS, GUIDES, Excerpt, example, names_of, python, run_as_printed
from tests.support import ROOT
from tests.support import python as in_new_process

HERE = Path(__file__).parent
EXAMPLES_DIRECTORY = ROOT / "examples"
PUBLIC = {*sseqbridge.__all__, *sseqbridge.resume.__all__, *sseqbridge.testing.__all__}
INDEX = EXAMPLES_DIRECTORY / "README.md"


# Packages that no extra of a framework brings.
_OPTIONAL = ["anthropic", "django", "fastapi", "mcp", "openai", "redis", "starlette", "tqdm"]
_NEEDS = {"django": ["django"], "fastapi": ["fastapi", "starlette"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "framework"),
    [
        ("quickstart", ""),
        ("failures", ""),
        ("feed", ""),
        ("ollama", ""),
        ("prompts", ""),
        ("providers", ""),
        ("tokens", ""),
        ("saved_answers", ""),
        ("flask_chat.app", ""),
        ("small_chat.flask_app", ""),
        ("small_chat.fastapi_app", "fastapi"),
        ("django_chat.asgi", "django"),
    ],
)
def test_program_needs_only_its_framework(module: str, framework: str) -> None:
    missing = [name for name in _OPTIONAL if name not in _NEEDS.get(framework, [])]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({missing}))"
    code = f"{blocked}; import importlib; importlib.import_module('examples.' + sys.argv[1])"
    status, _, errors = in_new_process(code, module)
    assert (status, errors) == (0, "")


def test_every_block_is_run() -> None:
    declared = r'^@example\("([^"]+)", "([^"]+)"\)$'
    modules = [module.read_text("utf-8") for module in HERE.glob("test_*.py")]
    assert {section for module in modules for section in re.findall(declared, module, re.M)} == set(BLOCKS)


def test_example_that_leaves_a_block_out_fails() -> None:
    document, section = "examples/testing.md", "Scripts"

    @example(document, section)
    def runs(*numbers: int) -> None:
        for number in numbers:
            # A block counts as run after a replacement, too.
            run_as_printed(python(document, section)[number].replace("import", "import"))

    runs(0, 1)
    with pytest.raises(AssertionError, match="does not run all blocks of Scripts"):
        runs(1)
    with pytest.raises(AssertionError, match="does not have 'imported'"):
        python(document, section)[0].replace("imported", "")


def test_languages_of_blocks_are_known() -> None:
    # Blocks of JavaScript are run in a browser (test_browser_guide.py), those of `text` are no programs.
    texts = [guide.read_text("utf-8") for guide in GUIDES]
    languages = {language for text in texts for language in re.findall(r"^```(\w*)\n.*?^```", text, re.M | re.S)}
    assert languages <= {"js", "python", "sh", "text"}


@pytest.mark.parametrize("excerpt", EXCERPTS, ids=lambda excerpt: f"{excerpt.guide.name}-{excerpt.program.name}")
def test_excerpt_is_a_part_of_its_program(excerpt: Excerpt) -> None:
    lines = re.sub(r"  # (type: ignore|noqa).*$", "", excerpt.program.read_text("utf-8"), flags=re.M).splitlines()
    for part in excerpt.parts():
        found = [textwrap.dedent("\n".join(lines[n : n + len(part)])) for n in range(len(lines))]
        assert textwrap.dedent("\n".join(part)) in found, f"{excerpt.program.name} differs from the part at {part[0]!r}"


def sections() -> list[tuple[str, str]]:
    return [key for key, blocks in BLOCKS.items() if any(language == "python" for language, _ in blocks)]


@pytest.mark.parametrize("section", sections(), ids=" ".join)
def test_snippets_import_what_they_use_and_nothing_else(section: tuple[str, str]) -> None:
    document, title = section
    names = names_of("\n".join(python(document, title)))
    of_document = [code for name, part in sections() if name == document for code in python(name, part)]
    in_document = names_of("\n".join(of_document))
    assert names.imported <= in_document.read, "a snippet imports a name that the page does not use"
    if document == "examples/testing.md":
        # Its snippets are whole modules.
        assert names.undefined == set()
    if names.imported & PUBLIC:
        # A snippet that shows where names of the package come from shows all of them.
        assert names.undefined & PUBLIC <= in_document.imported


@pytest.mark.parametrize(
    "excerpt",
    [excerpt for excerpt in EXCERPTS if excerpt.program.suffix == ".py" and names_of(excerpt.code).imported],
    ids=lambda excerpt: f"{excerpt.guide.name}-{excerpt.program.name}",
)
def test_excerpt_with_imports_is_complete(excerpt: Excerpt) -> None:
    names = names_of(excerpt.code)
    if re.search("^(?:from|import) ", excerpt.code, re.M):
        assert names.undefined == set()
        assert names.imported <= names.read


def test_check_of_names_finds_undefined_and_unused_ones() -> None:
    names = names_of("from a import b, c\n\ndef f(x):\n    return [b(x, y) for y in d]\n")
    assert (names.undefined, names.imported - names.read) == ({"d"}, {"c"})


def test_index_names_every_guide() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)", INDEX.read_text("utf-8")))
    assert linked == {guide.name for guide in EXAMPLES_DIRECTORY.glob("*.md")} - {"README.md"}


def programs() -> list[Path]:
    # endpoint.py is a part of other programs.
    files = {path for path in EXAMPLES_DIRECTORY.glob("*.py") if path.name not in ("__init__.py", "endpoint.py")}
    packages = {path.parent for path in EXAMPLES_DIRECTORY.glob("*/__init__.py")}
    return sorted(files | packages)


@pytest.mark.parametrize("program", programs(), ids=lambda path: path.name)
def test_program_is_linked_and_has_tests(program: Path) -> None:
    assert any(re.search(rf"\]\({program.name}[/)]", guide.read_text("utf-8")) for guide in GUIDES)
    name = program.stem
    pattern = rf"examples\.{name}\b|from examples import .*\b{name}\b|examples/{program.name}"
    assert re.search(pattern, text_of_tests())


@functools.cache
def text_of_tests() -> str:
    """Return the source of all tests but this module, and the snippets of the guides."""
    texts = [path.read_text("utf-8") for path in ROOT.glob("tests/**/*.py") if path != Path(__file__)]
    return "\n".join([*texts, *map(python_of, GUIDES)])


def python_of(guide: Path) -> str:
    """Return the snippets of a guide, each of which a test runs."""
    return "".join(re.findall(r"^```python\n(.*?)^```", guide.read_text("utf-8"), re.M | re.S))
