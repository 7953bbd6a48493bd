"""Report the mistakes in a data set before any image is decoded: all kinds at once, one line per kind."""

from __future__ import annotations

from collections.abc import Sequence

from vit_search.errors import DataError


def refuse(title: str, mistakes: Sequence[str]) -> None:
    """Raise an error if there are mistakes.

    Args:
        title: name of the data set.
        mistakes: one line each: what was found, where, and how to fix it.
    Raises: DataError. One mistake gives one line; several give a heading with a line for each below it.
    """
    if len(mistakes) == 1:
        raise DataError(f"{title}: {mistakes[0]}")
    if mistakes:
        lines = "".join(f"\n  {mistake}" for mistake in mistakes)
        raise DataError(f"{title}: {len(mistakes)} kinds of mistakes:{lines}")
