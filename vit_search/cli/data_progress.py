"""Progress of fetching, hashing and decoding, on standard error: a bar on a terminal, else a line every 10 seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from threading import Lock

from rich.console import Console

from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_units
from vit_search.data.progress import Advance, Unit, shown_by

SHOWN_AFTER_S = 1.0
"""A step that ends before this is not shown on a terminal."""

LINE_EVERY_S = 10.0


def data_progress(console: Console) -> AbstractContextManager[None]:
    """In this block, show the progress of preparing data."""

    def watcher(name: str, total: int | None, unit: Unit) -> AbstractContextManager[Advance]:
        return (_bar if console.is_terminal else _lines)(console, name, total, unit)

    return shown_by(watcher)


@contextlib.contextmanager
def _bar(console: Console, name: str, total: int | None, unit: Unit) -> Iterator[Advance]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(escaped(name), total=total, count="")
    done, lock, began, shown = 0, Lock(), time.monotonic(), False

    def advance(more: int) -> None:
        nonlocal done, shown
        with lock:
            done += more
            if not shown and time.monotonic() - began > SHOWN_AFTER_S:
                bar.start()
                shown = True
            bar.update(task, completed=done, count=_count(done, total, unit))

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


@contextlib.contextmanager
def _lines(console: Console, name: str, total: int | None, unit: Unit) -> Iterator[Advance]:
    done, lock, last = 0, Lock(), time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, last
        with lock:
            done += more
            if time.monotonic() - last > LINE_EVERY_S:
                last = time.monotonic()
                share = f" ({done / total:.0%})" if total else ""
                console.print(f"{escaped(name)}: {_count(done, total, unit)}{share}")

    yield advance


def _count(done: int, total: int | None, unit: Unit) -> str:
    """`1.2 GB of 3.4 GB`, `12,000 of 100,000 images`."""
    if unit == "bytes":
        return in_units(done) + (f" of {in_units(total)}" if total else "")
    return f"{done:,}" + (f" of {total:,}" if total else "") + f" {unit}"
