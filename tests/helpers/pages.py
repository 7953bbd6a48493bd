"""The project's Markdown pages, and the blocks of code in them."""

import re

from helpers.paths import ROOT


def text(name):
    """A page by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    """The blocks of one language, in their order."""
    return re.findall(rf"^```{language}(?: title=\"[^\"]*\")?\n(.*?)^```", text(name), re.DOTALL | re.MULTILINE)
