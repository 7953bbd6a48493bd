"""Distributed hyper-parameter search for Vision Transformers.

`load_search` reads a search file, `run_search` runs it, `read_search` reads the results of a search, and `load_classifier` loads a model
to classify images with. Each of them imports what it needs only when you call it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vit_search.runtime.pickles import refuse_pickles
from vit_search.runtime.torch_import import import_torch_at_root

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.search.launch import SearchResult
    from vit_search.search.result import Search
    from vit_search.vit.classifier import Classifier

__all__ = ["load_classifier", "load_search", "read_search", "run_search"]

refuse_pickles()
import_torch_at_root()
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # both are read at import, by whichever package imports them first


def load_search(path: str | Path) -> SearchSpec:
    """Read and check a search file.

    Raises: SpecError, one line: file, line, key, what was found, and how to fix it.
    """
    from vit_search.config import search_file

    return search_file.load(Path(path))


def run_search(
    spec: SearchSpec,
    *,
    output: str | Path = "searches",
    tracking_uri: str | None = None,
    download: bool = False,
    address: str | None = None,
    name: str | None = None,
) -> SearchResult:
    """Run a search to its end, as `vit-search run` does.

    Args:
        spec: a search file that `load_search` has read.
        output: the folder of all searches. A new folder is made in it.
        tracking_uri: of MLflow; by default MLFLOW_TRACKING_URI, else SQLite in `./mlruns.db`.
        download: whether a missing data set may be downloaded.
        address: of a Ray cluster. By default, a Ray is started on this machine and ended with the search.
        name: of the new folder; by default the next free `NAME-N`.
    Raises: DataError, TrackingError or SearchError before the first trial; NoTrialCompletedError if no trial reached full length.
    """
    from vit_search.registry.weight_versions import Versions
    from vit_search.search import launch

    versions = Versions(tracking_uri)
    return launch.run(
        spec, output=Path(output), tracking_uri=tracking_uri, download=download, address=address, name=name, registry=versions
    )


def read_search(search: str | Path | None = None, output: str | Path = "searches") -> Search:
    """Read a search from its folder, while it runs or after its end.

    Args:
        search: its name or folder; the newest by default.
        output: the folder of all searches.
    Raises: SearchError with the nearest name, or with what is wrong with the folder.
    """
    from vit_search.search import result

    return result.read_search(search, Path(output))


def load_classifier(model: str | Path, *, tracking_uri: str | None = None, device: str = "cpu") -> Classifier:
    """Load a model to classify images with.

    Args:
        model: `digits@champion`, `digits/3`, or a folder that `vit-search train` or a trial has written.
        tracking_uri: of MLflow; by default that of the newest search in `./searches`.
        device: where the model runs, for example `cuda`.
    Raises: PromotionError if there is no such model, or its files are not the registered ones.
    """
    from vit_search.serving import prediction

    return prediction.load_classifier(str(model), tracking_uri=tracking_uri, device=device)
