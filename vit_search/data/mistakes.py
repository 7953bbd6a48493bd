"""Mistakes in a data set that are found before any image is decoded: one line for each kind, all kinds at once."""

from __future__ import annotations

from collections.abc import Sequence

from vit_search.errors import DataError


def refuse(title: str, mistakes: Sequence[str]) -> None:
    """Raise an error if there are mistakes.

    Args:
        title: what the data set is called. mistakes: one line each: what was found, and where; how to fix it.
    Raises: DataError, one line for one mistake; a line for each below a first one for several.
    """
    if len(mistakes) == 1:
        raise DataError(f"{title}: {mistakes[0]}")
    if mistakes:
        lines = "".join(f"\n  {mistake}" for mistake in mistakes)
        raise DataError(f"{title}: {len(mistakes)} kinds of mistakes:{lines}")
