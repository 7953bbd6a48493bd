"""Distributed hyper-parameter search for Vision Transformers: `load_search`, `run_search`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_search.runtime.pickles import refuse_pickles
from vit_search.runtime.torch_import import import_torch_at_root

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.search.launch import SearchResult

__all__ = ["load_search", "run_search"]

refuse_pickles()
import_torch_at_root()
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks at it when it is imported, whichever room does that first


def load_search(path: str | Path) -> SearchSpec:
    """Read and check a search file.

    Raises: SpecError, one line: file, line, key, what was seen, the mend.
    """
    from vit_search.config import search_file

    return search_file.load(Path(path))


def run_search(spec: SearchSpec, **options: Any) -> SearchResult:
    """Run a search to its end; options are those of `vit_search.search.launch.run`."""
    from vit_search.search import launch

    return launch.run(spec, **options)
