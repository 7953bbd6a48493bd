"""The configuration of a registered model as a search file with fixed values, which `vit-search train` makes the model of again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from vit_search.production import registry
from vit_search.production.export import find_version
from vit_search.spec.fixed_file import FixedFile, fixed_file
from vit_search.tracking.store import client_for
from vit_search.vit import checkpoint
from vit_search.vit.splits import TRAINED_AND_VALIDATED_ON

FROM_THE_SEARCH = ("metric", "mode", "resources")
"""What the model's checkpoint does not know; resources decide the number of threads, and with it the last bits of each sum."""


def configuration(model: str, *, tracking_uri: str | None = None) -> FixedFile:
    """The search file of a registered model.

    Args:
        model: `NAME@champion`, `NAME/VERSION`, or either after `models:/`.
    Raises: PromotionError when the model cannot be had.
    """
    client = client_for(tracking_uri)
    version = find_version(client, model)
    with tempfile.TemporaryDirectory() as place:
        served, folder = registry.fetch_version(client, version, Path(place))
        digest = checkpoint.weights_sha256(folder)
    searched = _of_its_search(client, version)
    train_on = next((name for name, (splits, _) in TRAINED_AND_VALIDATED_ON.items() if splits == served.trained_on), "train")
    about = [f"{version.name} version {version.version}{_origin(version)}", f"weights: sha256 {digest}"]
    if searched is None:
        about.append("metric, mode and resources are the defaults: MLflow has no search of this model")
    return fixed_file(served.config, name=version.name, about=about, rest={"train_on": train_on} | (searched or {}))


def _origin(version: ModelVersion) -> str:
    """Where a version comes from, as far as its tags tell."""
    tags = version.tags
    parts = [f"trial {tags['trial']} of {tags['search']}"] if {"trial", "search"} <= tags.keys() else []
    parts += [f"test accuracy {float(tags['test_accuracy']):.4f}"] if "test_accuracy" in tags else []
    return ": " + ", ".join(parts) if parts else ""


def _of_its_search(client: mlflow.MlflowClient, version: ModelVersion) -> dict[str, Any] | None:
    """Metric, mode and resources of the search whose trial the model is; None where MLflow does not have it."""
    if not version.run_id:
        return None
    try:
        run = client.get_run(version.run_id)
        parent = run.data.tags.get("mlflow.parentRunId", version.run_id)
        with tempfile.TemporaryDirectory() as place:
            resolved = json.loads(Path(client.download_artifacts(parent, "resolved.json", place)).read_text())
        return {key: resolved[key] for key in FROM_THE_SEARCH}
    except (MlflowException, OSError, ValueError, KeyError, TypeError):
        return None
