"""The long description. The rest of the metadata is in setup.cfg.

An index shows README.md without the files beside it: links to these become plain text there, and the picture is left
out. Links to other sites, and within the page, stay.
"""

import re
from pathlib import Path

from setuptools import setup

PICTURE = re.compile(r"<picture>.*?</picture>\n\n", re.DOTALL)
RELATIVE_LINK = re.compile(r"\[([^\[\]]*)\]\((?!https://|#)[^()\s]*\)")


def long_description() -> str:
    readme = (Path(__file__).parent / "README.md").read_text("utf-8")
    return RELATIVE_LINK.sub(r"\1", PICTURE.sub("", readme))


setup(long_description=long_description())
