"""Numbers that are read from names of folders and from arguments."""

from __future__ import annotations

import re


def whole_number(text: str) -> int | None:
    """A number of ASCII digits, at most 18; None for all else, also where Unicode calls it digits, as `²` and `٣`."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
