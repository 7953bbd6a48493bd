"""Numbers that are read from names of folders and from arguments, and counts and values as they are shown."""

from __future__ import annotations

import re
from typing import Any

from vit_search.spec.plain_text import one_line


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


def value_text(value: Any) -> str:
    """A parameter's value: of a float its first three digits, for no value a dash."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else one_line(str(value))
