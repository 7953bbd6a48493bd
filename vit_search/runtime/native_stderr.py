"""Hides what C++ code prints to stderr, and still shows what Python prints."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr_hidden() -> Iterator[None]:
    """Inside this block, only Python can print to stderr. Ray's C++ code warns there about daemons that start or end slowly."""
    python, kept, nowhere = sys.stderr, os.dup(2), os.open(os.devnull, os.O_WRONLY)
    if stderr_number() == 2:
        python.flush()
        sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=python.encoding, errors=python.errors, closefd=False)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = python
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def stderr_number() -> int | None:
    """The file number of Python's stderr; None if it has none, for example in a notebook or a test."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return sys.stderr.fileno()
    return None
