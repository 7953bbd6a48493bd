"""Check that two tables have the same names: a light one in config/, and one beside the code, which may import heavy libraries."""

from __future__ import annotations

from collections.abc import Iterable

from vit_search.errors import TableError


def check_tables(light: str, names: Iterable[str], heavy: str, code: Iterable[str]) -> None:
    """Reject two tables with different names. Call it below the table with the code.

    Args:
        light: name and file of the table in config/, for example `SAMPLERS of vit_search/config/samplers.py`.
        heavy: name and file of the table with the code.
    Raises: TableError that says which name is missing, and where.
    """
    first, second = list(names), list(code)
    for has, others, where, missing in ((first, second, light, heavy), (second, first, heavy, light)):
        alone = [name for name in has if name not in others]
        if alone:
            raise TableError(
                f"{missing}: {', '.join(alone)} is missing, which stands in {where}; add a line for it. See docs/extending.md."
            )
