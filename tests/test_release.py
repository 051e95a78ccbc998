"""The distributions: they build, their metadata is valid, and an installed wheel works without this checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import sseqbridge
from tests.examples.commands import documented
from tests.support import ROOT

pytestmark = [pytest.mark.configurations("default"), pytest.mark.heavy]

SOURCES = ("LICENSE", "README.md", "setup.cfg", "setup.py", "sseqbridge")
NAME = f"sseqbridge-{sseqbridge.__version__}"


def run(*command: str | Path, cwd: Path) -> str:
    # The environment without what would let the checkout be imported.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both distributions from a copy of the sources, offline."""
    folder = tmp_path_factory.mktemp("release")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=folder)
    return folder / "dist"


def test_wheel_and_sdist_are_built(distributions: Path) -> None:
    assert {path.name for path in distributions.iterdir()} == {f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"}


def test_metadata_is_valid(distributions: Path) -> None:
    paths = sorted(str(path) for path in distributions.iterdir())
    report = run(sys.executable, "-m", "twine", "check", "--strict", *paths, cwd=distributions)
    assert report.count("PASSED") == 2


def test_wheel_holds_the_package_alone(distributions: Path) -> None:
    with zipfile.ZipFile(distributions / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sseqbridge").rglob("*.py")}
    others = {"sseqbridge/py.typed", "sseqbridge/relay/browser/relay.js", "sseqbridge/relay/browser/relay.d.ts"}
    assert {name for name in names if not name.startswith(NAME)} == modules | others


def test_sdist_holds_what_a_build_needs(distributions: Path) -> None:
    with tarfile.open(distributions / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", "setup.py", "sseqbridge/py.typed"} <= names
    assert {"sseqbridge/relay/browser/relay.js", "sseqbridge/relay/browser/relay.d.ts"} <= names


def test_metadata_names_versions_and_extras(distributions: Path) -> None:
    with zipfile.ZipFile(distributions / f"{NAME}-py3-none-any.whl") as wheel:
        metadata = Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())
    assert metadata["Version"] == sseqbridge.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"fast", "flask", "django", "starlette", "redis", "docs"} <= set(metadata.get_all("Provides-Extra", []))
    plain = {re.split("[^a-z0-9]", line)[0] for line in metadata.get_all("Requires-Dist", []) if "extra" not in line}
    assert plain == {"httpx", "anyio", "h11"}


def test_page_of_an_index_links_to_no_files(distributions: Path) -> None:
    with zipfile.ZipFile(distributions / f"{NAME}-py3-none-any.whl") as wheel:
        page = Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode()).get_payload()
    assert isinstance(page, str)
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)]*)\)|(?:href|src|srcset)=\"([^\"]*)\"", prose)
    assert links
    assert [link for link in links if not "".join(link).startswith(("https://", "#"))] == []
    # The examples and headings are those of the README.
    kept = re.compile(r"^```.*?^```$|^#[^\n]*$", re.MULTILINE | re.DOTALL)
    assert kept.findall(page) == kept.findall((ROOT / "README.md").read_text("utf-8"))


def test_installed_wheel_reads_a_stream(distributions: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    # As from an index.
    *pip, action, name = documented("pip install sseqbridge").words
    options = ["--no-index", "--no-deps", f"--find-links={distributions}"]
    run(*pip, "--python", str(python), action, *options, name, cwd=tmp_path)
    # httpx comes from the environment of the tests. Its .pth files, such as that of this checkout, are not read.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    program = tmp_path / "program.py"
    program.write_text(
        "import sseqbridge\n"
        "from sseqbridge.testing import SSEServer, send\n"
        "with SSEServer([send({'n': 1}), send('[DONE]')]) as server:\n"
        "    items = list(sseqbridge.request_sse(server.url).events)\n"
        "print(sseqbridge.__version__, items, sseqbridge.__file__, sep='\\n')\n"
        "from importlib.resources import files\n"
        "print((files('sseqbridge.relay') / 'browser/relay.js').read_text('utf-8'))\n"
    )
    version, items, place, *module = run(python, program, cwd=tmp_path).splitlines()
    assert "export async function readByFetch(url, options) {" in module
    assert (version, items) == (sseqbridge.__version__, "[{'n': 1}]")
    assert Path(place).is_relative_to(site)
    assert run(python.with_name("sseqbridge"), "--version", cwd=tmp_path).strip() == f"sseqbridge {version}"


def test_changelog_has_the_version_with_a_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[{re.escape(sseqbridge.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)
