"""The parts of the reference that come from the code, as Markdown."""

from __future__ import annotations

from collections.abc import Callable

GENERATORS: dict[str, Callable[[], str]] = {}
