"""The project's Markdown pages, and the blocks of code in them."""

from helpers import documents
from helpers.paths import ROOT


def text(name):
    """A page by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    """The blocks of one language, in their order."""
    return [block.text for block in documents.blocks(language) if block.page == ROOT / name]
