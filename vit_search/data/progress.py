"""Progress of the long steps of preparing data (hashing, fetching, decoding), for anyone who shows it.

Nothing is printed here. The command line sets a watcher, cli/data_progress.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Literal

Unit = Literal["bytes", "files", "images", "shards"]
Advance = Callable[[int], None]
"""Reports that this many more units are done. Any thread may call it."""
Watcher = Callable[[str, int | None, Unit], AbstractContextManager[Advance]]
"""Called at the start of a step with its name, its length (None if unknown) and its unit; its context closes when the step ends."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def shown_by(watcher: Watcher) -> Iterator[None]:
    """Let a watcher show all steps inside this block."""
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
