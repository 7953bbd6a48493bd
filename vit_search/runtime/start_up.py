"""What a process of ours sets before it imports anything heavy."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let the garbage collector run less often, for the whole process.

    An import of MLflow, Ray or torch makes many objects that stay. By default, Python looks through all of them again and again: a
    tenth of the import's time (measured with `gc.callbacks`, Python 3.11).
    """
    gc.set_threshold(20_000)
