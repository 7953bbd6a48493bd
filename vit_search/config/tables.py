"""Two tables of the same names: one in config/, which imports no heavy library, and one beside the code that the names stand for."""

from __future__ import annotations

from collections.abc import Iterable

from vit_search.errors import TableError


def check_tables(light: str, names: Iterable[str], heavy: str, code: Iterable[str]) -> None:
    """Refuse two tables of different names. Call it below the table with the code.

    Args:
        light: what the table in config/ is called and where it stands, as `SAMPLERS of vit_search/config/samplers.py`.
        heavy: the same of the table with the code.
    Raises: TableError that names what is missing, and where.
    """
    first, second = list(names), list(code)
    for has, others, where, missing in ((first, second, light, heavy), (second, first, heavy, light)):
        alone = [name for name in has if name not in others]
        if alone:
            raise TableError(
                f"{missing}: {', '.join(alone)} is missing, which stands in {where}; add a line for it. See docs/extending.md."
            )
