"""From the best trial to production: one reading of the test split, a registered version, the alias `champion`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from vit_search.errors import PromotionError
from vit_search.tracking.model_package import log_model
from vit_search.tracking.store import client_for
from vit_search.vit import checkpoint, training
from vit_search.vit.data import prepare, read_image
from vit_search.vit.splits import load_split


@dataclass(frozen=True)
class Candidate:
    """What promotion needs to know of a search's winner."""

    search: str
    search_id: str
    trial: int
    checkpoint: Path
    name: str
    """Of the registered model."""
    val_metric: str
    val_value: float


@dataclass(frozen=True)
class Promotion:
    """What a promotion did."""

    name: str
    version: str
    test_accuracy: float
    """Fraction in [0, 1]."""
    test_images: int
    reading: int
    """How often this test split has been read, this time included."""
    again: bool
    """The candidate was registered before; its recorded accuracy is given and nothing was read."""


@dataclass(frozen=True)
class Prediction:
    """One image, classified."""

    image: str
    label: str
    probability: float


def promote(candidate: Candidate, *, tracking_uri: str | None = None) -> Promotion:
    """Evaluate a candidate once on the test split, register it, and point `champion` at it.

    The same candidate promoted again is not evaluated again: its version gets the alias back. The alias moves last,
    so it never names a version that is not whole. The old champion becomes `previous`.

    Raises: PromotionError when the data has changed or the candidate's run cannot be found; TrackingError; CheckpointError.
    """
    client = client_for(tracking_uri)
    run_id = _run_of(client, candidate)
    served = checkpoint.load_model(candidate.checkpoint)
    try:
        client.create_registered_model(candidate.name, description=f"Vision Transformers found by the searches named {candidate.name}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise PromotionError(f"{candidate.name}: MLflow refuses this model name ({error.message}).") from None
    known = [v for v in client.search_model_versions(f"name = '{candidate.name}'") if v.run_id == run_id]
    readings_tag = f"test_readings.{served.data_hash[:16]}"
    readings = int(client.get_registered_model(candidate.name).tags.get(readings_tag, 0))
    if known:
        version, again = known[0].version, True
        accuracy, images = float(known[0].tags["test_accuracy"]), int(known[0].tags["test_images"])
    else:
        data = prepare(served.config.data)
        if data.data_hash != served.data_hash:
            raise PromotionError(
                f"{candidate.search}: the data set has changed since the search; its test split is another one. Search again."
            )
        client.set_registered_model_tag(candidate.name, readings_tag, readings + 1)  # before the reading: a crash counts too
        readings += 1
        split = load_split(data, "test")
        accuracy = training.evaluate(served.model, split, served.normalisation).accuracy
        images, again = len(split), False
        models = client.search_logged_models([client.get_run(run_id).info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
        uri = models[0].model_uri if models else log_model(candidate.checkpoint, run_id=run_id)
        tags = {
            "search": candidate.search,
            "trial": candidate.trial,
            "data_hash": served.data_hash,
            candidate.val_metric: candidate.val_value,
            "test_accuracy": accuracy,
            "test_images": images,
            "test_reading": readings,
        }
        version = client.create_model_version(
            candidate.name, uri, run_id=run_id, tags={k: str(v) for k, v in tags.items()}, model_id=uri.rpartition("/")[2]
        ).version
    aliases: dict[str, Any] = client.get_registered_model(candidate.name).aliases
    champion = aliases.get("champion")
    if champion is not None and str(champion) != str(version):
        client.set_registered_model_alias(candidate.name, "previous", champion)
    client.set_registered_model_alias(candidate.name, "champion", version)
    return Promotion(candidate.name, str(version), accuracy, images, readings, again)


def predict(model: str, images: list[Path], *, tracking_uri: str | None = None) -> list[Prediction]:
    """Classify image files with a registered model.

    Args:
        model: `models:/NAME@champion`, `models:/NAME/VERSION`, or any URI that MLflow loads.
        images: image files of any size; they are resized as the model's training images were.
    Raises: PromotionError when the model cannot be loaded; DataError for a file that is no image.
    """
    client_for(tracking_uri)
    try:
        loaded = mlflow.pyfunc.load_model(model)
    except Exception as error:
        raise PromotionError(f"{model}: cannot be loaded ({str(error).splitlines()[0]}); name it like models:/NAME@champion.") from None
    facts = loaded.metadata.metadata or {}
    if "image_size" not in facts:
        raise PromotionError(f"{model}: not a model of vit_search; promote one with `vit-search promote`.")
    height, width = facts["image_size"]
    pixels = np.stack([read_image(path, (height, width), facts["channels"]) for path in images])
    rows = loaded.predict(pixels.transpose(0, 2, 3, 1))
    return [
        Prediction(str(path), str(label), float(chance))
        for path, label, chance in zip(images, rows["label"], rows["probability"], strict=True)
    ]


def _run_of(client: mlflow.MlflowClient, candidate: Candidate) -> str:
    """The child run of the candidate's trial."""
    experiment = client.get_experiment_by_name(candidate.name)
    parents = client.search_runs([experiment.experiment_id], f"tags.search_id = '{candidate.search_id}'") if experiment else []
    for parent in parents:
        condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.trial = '{candidate.trial}'"
        for run in client.search_runs([parent.info.experiment_id], condition):
            return str(run.info.run_id)
    raise PromotionError(f"{candidate.search}: MLflow has no run of trial {candidate.trial}; give the --tracking-uri that the search used.")
