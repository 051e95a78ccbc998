"""Draws the pictures of the chat page for README.md: `python -m tests.examples.picture [DIRECTORY]`.

It serves examples/flask_chat in this process, has a fixed conversation in Chromium, and writes
chat-light.png and chat-dark.png, to examples/images by default. Fonts are those of the machine.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver

from examples.flask_chat.app import create_app
from examples.flask_chat.scripted import PROMPTS
from examples.flask_chat.upstream import Upstream
from tests.browser_support import ControlledUpstream, Page, chromium
from tests.local_servers import under_werkzeug
from tests.support import ROOT, until

__all__ = ["SCHEMES", "draw"]

SCHEMES = ("light", "dark")
_IMAGES = ROOT / "examples/images"
_WIDTH, _HEIGHT, _SCALE = 900, 640, 1.5
# The page shows how long an answer took.
_CLOCK = "let time = 0; performance.now = () => (time += 1800);"
_ANSWER = (
    "An HTTP response that stays open. The server writes one event after another: a few lines of text and an empty "
    "line. This library delivers each one as it arrives."
)
_SECOND_ANSWER = (
    "Your browser closes its connection. The relay notices it, and aborts the request to the model. Nobody pays for "
    "tokens that"
)


def draw(directory: Path) -> list[Path]:
    """Draw one picture for each color scheme."""
    files = [directory / f"chat-{scheme}.png" for scheme in SCHEMES]
    with chromium() as chrome:
        for scheme, file in zip(SCHEMES, files, strict=True):
            with ControlledUpstream() as upstream, _serving(upstream) as url:
                file.write_bytes(_picture(chrome, url, upstream, scheme))
                chrome.get("about:blank")
                upstream.response(2).request.wait_aborted()
    return files


@contextlib.contextmanager
def _serving(upstream: ControlledUpstream) -> Iterator[str]:
    """Serve the page, as if its upstream were the scripted one."""
    about = {"name": "a scripted upstream", "place": "inside this program", "suggestions": PROMPTS}
    app = create_app(Upstream(upstream.base_url, "scripted", about=about))
    with under_werkzeug(app, joins_threads=True) as url:
        yield f"{url}/"


def _picture(chrome: webdriver.Chrome, url: str, upstream: ControlledUpstream, scheme: str) -> bytes:
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": _WIDTH, "height": _HEIGHT, "deviceScaleFactor": _SCALE, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _CLOCK})
    page = Page(chrome, url)
    page.ask("What are Server-Sent Events?")
    upstream.response().send_text(*_words(_ANSWER))
    upstream.response().end()
    page.wait_for_answer(_ANSWER, "done")
    page.ask("And when I press Stop?")
    upstream.response(2).send_text(*_words(_SECOND_ANSWER))
    page.wait_for_answer(_SECOND_ANSWER, "streaming")
    until(lambda: page.count("open") == 1)
    page.run("document.activeElement.blur(); document.scrollingElement.scrollTop = 0")
    chrome.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    shot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return base64.b64decode(shot["data"])


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    images = Path(sys.argv[1]) if len(sys.argv) > 1 else _IMAGES
    images.mkdir(exist_ok=True)
    for file in draw(images):
        print(f"{file.name}: {file.stat().st_size // 1000} KB")
