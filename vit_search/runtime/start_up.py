"""Settings that our processes make before they import large libraries."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let the garbage collector run less often, for the whole process.

    Importing MLflow, Ray or torch makes many objects that stay. By default, Python examines all of them again and again, which takes a
    tenth of the import's time (measured with `gc.callbacks`, Python 3.11).
    """
    gc.set_threshold(20_000)
