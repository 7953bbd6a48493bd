"""torch is imported with / as the current folder, whoever imports it, so that no library of the current folder is loaded with it.

Its libcusparseLt.so.0 loads libcuda.so.1 as it is loaded itself, and the search path in it, `$ORIGIN:`, ends in an empty entry: the
current folder. On a machine without a GPU, a libcuda.so.1 there is the only one.
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
    """Finds torch where Python does."""

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
    before = os.open(".", os.O_PATH)  # a folder that has been removed, or may not be read, is come back to as well
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def import_torch_at_root() -> None:
    """Have every later `import torch` of this process done so."""
    if not any(isinstance(finder, _TorchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchFinder())
