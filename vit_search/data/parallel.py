"""Share the same work on many items among all cores, in processes that are forked for it and end with it.

Python runs one thread at a time, so small files are read, hashed and decoded faster in processes. A forked process sees the memory of this
one: a source need not be sent to it.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, cast

import numpy as np

from vit_search.errors import DataError

Result = TypeVar("Result")

ALONE = 2_000
"""Up to this many items, the process does the work itself: starting others takes about as long (2,000 small files: 0.1 s)."""

CHUNK = 500
"""Items that a process gets at once."""

_work: Callable[[range], object] | None = None
"""What the forked processes do. They inherit it."""


def in_chunks(count: int, work: Callable[[range], Result], *, size: int = CHUNK, alone: int = ALONE) -> Iterator[Result]:
    """Call `work` with the numbers from 0 to `count`, chunk by chunk; yields the results in order.

    Args:
        size: numbers in a chunk.
        alone: up to this count, this process does the work itself.
        work: gets a range of numbers. Keep its result small, since it is sent here. What it raises is raised here.
    Raises: DataError if a process is killed.
    """
    chunks = [range(begin, min(begin + size, count)) for begin in range(0, count, size)]
    cores = len(os.sched_getaffinity(0))
    if count <= alone or cores == 1:
        yield from map(work, chunks)
        return
    global _work
    before, _work = _work, work
    try:
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork")) as pool:
            try:
                yield from cast(Iterator[Result], pool.map(_do, chunks))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise DataError("a process that read images was killed, probably since the memory was full; free some, and start again.") from None
    finally:
        _work = before


def _do(chunk: range) -> object:
    assert _work is not None, "set before the process was forked"
    return _work(chunk)


def shared_array(shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
    """An array of zeros, uint8 or uint16, that this process and the ones it forks can all write to."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(mmap.mmap(-1, max(size * bits // 8, 1)), f"uint{bits}", size).reshape(shape)
