"""How far a long step of preparing data is (hashing, fetching, decoding), for whoever shows it. Nothing is printed here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Literal

Unit = Literal["bytes", "files", "images", "shards"]
Advance = Callable[[int], None]
"""Says that so many more units are done. Any thread may call it."""
Watcher = Callable[[str, int | None, Unit], AbstractContextManager[Advance]]
"""Opened at the start of a step with its name, its length (None: not known) and its unit; closed at the end."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def shown_by(watcher: Watcher) -> Iterator[None]:
    """Have all steps inside this block shown by a watcher."""
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


@contextlib.contextmanager
def step(name: str, total: int | None, unit: Unit) -> Iterator[Advance]:
    """One long step, for example `with step("hashing", len(files), "files") as advance`."""
    watcher = _watcher.get()
    with contextlib.nullcontext(lambda _: None) if watcher is None else watcher(name, total, unit) as advance:
        yield advance
