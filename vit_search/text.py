"""Formats text for people: foreign text made safe, counts and values, the nearest known word for a misspelt one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, marks for the direction of writing, line separators, single surrogates."""


def plain(text: str) -> str:
    """A text with control characters and direction marks written out, as `\\x1b` or `\\u202e`. Colours are dropped.

    Bytes of a file name that are not UTF-8 are written out, too: `caf\\xe9.jpg`.
    """
    return _UNSAFE.sub(_spelt, _COLOUR.sub("", text))


def file_name(name: str) -> str:
    """A file name on one line. Newlines and tabs are written out, too."""
    return plain(name).replace("\n", "\\n").replace("\t", "\\t")


def one_line(text: str) -> str:
    """A text as from `plain`, on one line."""
    return " ".join(plain(text).split())


def last_line(error: BaseException) -> str:
    """The last line of an error's text, or the name of its class if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def markdown(text: str) -> str:
    """A text that Markdown shows unchanged, on one line: no HTML, no link. Only the needed is escaped, because people read the source."""
    text = re.sub(r"([\\`*\[<|])", r"\\\1", one_line(text))
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word, as in val_accuracy, it has no meaning
    return re.sub(r"^(\d*)(?=#+ |>|[+-] |(?<=\d)[.)] )", r"\1\\", text)  # start of a heading, a quotation or a list


def code_block(text: str, language: str = "") -> str:
    """A text as a block of code. The fence is longer than any in the text."""
    text = plain(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{fence}"


def _spelt(match: re.Match[str]) -> str:
    number = ord(match[0])
    if 0xDC80 <= number <= 0xDCFF:  # how Python represents a byte of a file name that is not UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def whole_number(text: str) -> int | None:
    """A number of at most 18 ASCII digits; None for anything else, also for other digits of Unicode, such as `²` and `٣`."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def counted(number: float, one: str, many: str | None = None) -> str:
    """A count with its noun: `1 trial`, `2 trials`, `1,562 images`, `0.5 GPUs`.

    Args:
        many: the plural. By default, with an `s`, or an `es` after an `s`.
    """
    noun = one if number == 1 else many or one + ("es" if one.endswith("s") else "s")
    return f"{number:g} {noun}" if isinstance(number, float) else f"{number:,} {noun}"


LISTED = 5
"""Maximum number of things that `listed` names."""


def listed(things: Sequence[object]) -> str:
    """The first few things, separated by commas: `a, b, c, d, e, … 7 more`."""
    more = len(things) - LISTED
    return ", ".join(map(str, things[:LISTED])) + (f", … {more:,} more" if more > 0 else "")


def in_words(names: Sequence[str]) -> str:
    """All names, as in a sentence: `table`, `table and webdataset`, `image_folder, table and webdataset`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def one_of(things: Sequence[object]) -> str:
    """`a, b or c`."""
    *others, last = map(str, things)
    return f"{', '.join(others)} or {last}" if others else last


def value_text(value: Any) -> str:
    """A parameter's value: three digits of a float, pretrained weights without their sha256, a dash for no value."""
    if value is None or value == "":
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else one_line(str(value).partition("#sha256=")[0])


def nearest(word: str, names: Sequence[str]) -> str:
    """How to fix a misspelt name."""
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.62)  # with 0.6, cmaes would match bayes
    return f"did you mean {match[0]}?" if match else f"choose from {', '.join(names)}."
