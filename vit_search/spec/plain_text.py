"""Text of others, made safe to show: what a file, MLflow or a worker says never speaks to a terminal, to rich, or to Markdown."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks of the direction of writing, line separators, halves of characters."""


def plain(text: str) -> str:
    """A text whose control characters and direction marks are written out, as `\\x1b` or `\\u202e`; colours are dropped.

    So are bytes of a file's name that are no UTF-8: `caf\\xe9.jpg`.
    """
    return _UNSAFE.sub(_spelt, _COLOUR.sub("", text))


def file_name(name: str) -> str:
    """A file's name on one line; its newlines and tabs are written out, too."""
    return plain(name).replace("\n", "\\n").replace("\t", "\\t")


def one_line(text: str) -> str:
    """The same on one line."""
    return " ".join(plain(text).split())


def markdown(text: str) -> str:
    """A text that Markdown takes as it stands, on one line: no HTML, no link. No more is escaped: people read the source."""
    text = re.sub(r"([\\`*\[<|])", r"\\\1", one_line(text))
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word, as in val_accuracy, it marks nothing
    return re.sub(r"^(\d*)(?=#+ |>|[+-] |(?<=\d)[.)] )", r"\1\\", text)  # a heading, a quotation, a list


def code_block(text: str, language: str = "") -> str:
    """A text as a block of code, in a fence that it does not hold itself."""
    text = plain(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{fence}"


def _spelt(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file's name that is not UTF-8, as Python holds it
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
