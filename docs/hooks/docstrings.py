"""Our docstrings as mkdocstrings reads them: what `Returns:`, `Raises:` and `Source:` say in one line is a paragraph of its own."""

from __future__ import annotations

import re
from typing import Any

import griffe

LINE = re.compile(r"^(Returns|Raises|Source): ", re.MULTILINE)


def paragraphs(text: str) -> str:
    """A docstring whose one-line sections are paragraphs with a bold first word."""
    return LINE.sub(r"\n**\1:** ", text)


class OneLineSections(griffe.Extension):
    """The extension that mkdocs.yml names."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls it for each function, class, module and attribute that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = paragraphs(obj.docstring.value)
