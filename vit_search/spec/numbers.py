"""Numbers that are read from names of folders and from arguments, and counts in words."""

from __future__ import annotations

import re


def whole_number(text: str) -> int | None:
    """A number of ASCII digits, at most 18; None for all else, also where Unicode calls it digits, as `²` and `٣`."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def counted(number: float, one: str, many: str | None = None) -> str:
    """A count with its noun: `1 trial`, `2 trials`, `1,562 images`, `0.5 GPUs`.

    Args:
        many: the noun's plural, where it is not made by an `s`, or by an `es` after an `s`.
    """
    noun = one if number == 1 else many or one + ("es" if one.endswith("s") else "s")
    return f"{number:g} {noun}" if isinstance(number, float) else f"{number:,} {noun}"
