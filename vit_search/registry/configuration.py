"""The configuration of a model as a search file with fixed values. `vit-search train` makes the same model from it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from vit_search.config.strict_json import parse
from vit_search.data.split import TRAINED_AND_VALIDATED_ON
from vit_search.planning.fixed_file import FixedFile, fixed_file
from vit_search.registry import references
from vit_search.vit.checkpoint_files import TRAINED, Described, describe

FROM_THE_SEARCH = ("metric", "mode", "resources")
"""Keys that the checkpoint does not hold. `resources` sets the number of threads, which affects the last bits of each sum."""


def configuration(model: str, *, tracking_uri: str | None = None) -> FixedFile:
    """The search file of a model.

    Args:
        model: a name or a folder; see references.py.
    Raises: PromotionError if the model cannot be found or loaded; CheckpointError.
    """
    folder = references.folder_of(model)
    if folder is not None:
        described = describe(folder)
        return _written(described, name=_file_name(folder), about=[str(folder)], searched=None)
    from vit_search.registry.version_files import fetch_files
    from vit_search.tracking.mlflow_client import client_for
    from vit_search.tracking.uris import of_newest

    client = client_for(of_newest(tracking_uri), needs="read")
    version = references.find_version(client, model)
    with tempfile.TemporaryDirectory() as temporary:
        described = describe(fetch_files(client, version, Path(temporary)))
    about = [f"{version.name} version {version.version}{_origin(version)}"]
    return _written(described, name=version.name, about=about, searched=_of_its_search(client, version))


def _written(described: Described, *, name: str, about: list[str], searched: dict[str, Any] | None) -> FixedFile:
    if described.left_out is None:
        about = [*about, f"weights: sha256 {described.file_sha256}"]
    else:
        about = [*about, f"weights: those of model.pretrained, and {TRAINED} with sha256 {described.file_sha256}"]
    if searched is None:
        about.append("metric, mode and resources are the defaults: MLflow has no search of this model")
    train_on = next((key for key, (splits, _) in TRAINED_AND_VALIDATED_ON.items() if splits == described.trained_on), "train")
    return fixed_file(described.config, name=name, about=about, rest={"train_on": train_on} | (searched or {}))


def _file_name(folder: Path) -> str:
    """A valid name for the search file, from the folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("._-")[:64] or "model"


def _origin(version: Any) -> str:
    tags = version.tags
    parts = [f"trial {tags['trial']} of {tags['search']}"] if {"trial", "search"} <= tags.keys() else []
    parts += [f"test accuracy {float(tags['test_accuracy']):.4f}"] if "test_accuracy" in tags else []
    return ": " + ", ".join(parts) if parts else ""


def _of_its_search(client: Any, version: Any) -> dict[str, Any] | None:
    """Metric, mode and resources of the search that the model comes from; None if MLflow does not have it."""
    from mlflow.exceptions import MlflowException

    if not version.run_id:
        return None
    try:
        run = client.get_run(version.run_id)
        parent = run.data.tags.get("mlflow.parentRunId", version.run_id)
        with tempfile.TemporaryDirectory() as temporary:
            resolved = parse(Path(client.download_artifacts(parent, "resolved.json", temporary)).read_text())
        return {key: resolved[key] for key in FROM_THE_SEARCH}
    except (MlflowException, OSError, ValueError, KeyError, TypeError):
        return None
