"""Imports torch with / as the current folder, so that no library in the user's folder is loaded with it.

torch's libcusparseLt.so.0 loads libcuda.so.1. Its search path, `$ORIGIN:`, ends in an empty entry, which means the current folder. On a
machine without a GPU, a libcuda.so.1 in that folder would be the only one, and be loaded.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _TorchFinder(MetaPathFinder):
    """Makes Python's own finder load torch with / as the current folder."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "torch" else None
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_at_root(module: ModuleType) -> None:
            with _at_root():
                execute(module)

        loader.exec_module = execute_at_root
        return spec


@contextlib.contextmanager
def _at_root() -> Iterator[None]:
    before = os.open(".", os.O_PATH)  # works also if the folder was removed or cannot be read
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def import_torch_at_root() -> None:
    """Apply this to each later `import torch` of this process."""
    if not any(isinstance(finder, _TorchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchFinder())
