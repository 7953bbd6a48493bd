"""From the best trial to production: one reading of the test split, a comparison with the champion, a version, the alias."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from vit_search.errors import CheckpointError, PromotionError, PromotionRefusedError
from vit_search.production import gate
from vit_search.production.gate import Comparison
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
    """The candidate is the champion already; its recorded accuracy is given and nothing was read."""
    comparison: Comparison | None
    """With the champion that it replaces; None where there was none, or it was replaced by force."""


@dataclass(frozen=True)
class Prediction:
    """One image, classified."""

    image: str
    label: str
    probability: float


def promote(candidate: Candidate, *, tracking_uri: str | None = None, force: str = "") -> Promotion:
    """Evaluate a candidate once on the test split, compare it with the champion there, and put it in the champion's place.

    Both classify the same test images; production/gate.py says whether the candidate is better. Where it is not, its version is
    registered with the evidence as tags, and the champion stays. The alias moves last, so it never names a version that is not
    whole; the old champion becomes `previous`.

    Args:
        force: a reason to put it there without a comparison; recorded with the version.
    Raises: PromotionRefusedError; PromotionError when the data has changed or the candidate's run cannot be found;
        TrackingError; CheckpointError.
    """
    client = client_for(tracking_uri)
    run_id = _run_of(client, candidate)
    served = checkpoint.load_model(candidate.checkpoint)
    try:
        client.create_registered_model(candidate.name, description=f"Vision Transformers found by the searches named {candidate.name}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise PromotionError(f"{candidate.name}: MLflow refuses this model name ({error.message}).") from None
    known = next((v for v in client.search_model_versions(f"name = '{candidate.name}'") if v.run_id == run_id), None)
    champion = _champion(client, candidate.name)
    readings_tag = f"test_readings.{served.data_hash[:16]}"
    readings = int(client.get_registered_model(candidate.name).tags.get(readings_tag, 0))
    if known is not None and champion is not None and str(known.version) == str(champion.version):
        tags = known.tags
        return Promotion(candidate.name, str(known.version), float(tags["test_accuracy"]), int(tags["test_images"]), readings, True, None)
    if known is not None and not force and champion is not None and known.tags.get("refused_against") == str(champion.version):
        raise PromotionRefusedError(f"{_named(candidate)}: refused before, and the test split was not read again; {known.tags['gate']}")
    other_data = champion is not None and champion.tags.get("data_hash") != served.data_hash
    if other_data and not force:
        raise PromotionRefusedError(
            f"{candidate.name}: the champion, version {champion.version}, was trained on other data, and may have seen these test images; "
            "search over its data, or promote with --force --reason."
        )
    data = prepare(served.config.data)
    if data.data_hash != served.data_hash:
        raise PromotionError(f"{candidate.search}: the data set has changed since the search; its test split is another one. Search again.")
    rival = _model_of(champion) if champion is not None and not force else None
    client.set_registered_model_tag(candidate.name, readings_tag, readings + 1)  # before the reading: a crash counts too
    readings += 1
    split = load_split(data, "test")
    seen = training.evaluate(served.model, split, served.normalisation)
    comparison = None
    if rival is not None:
        theirs = training.evaluate(rival.model, split, rival.normalisation)
        comparison = gate.compare(seen.predictions.numpy(), theirs.predictions.numpy(), split.labels.cpu().numpy(), reading=readings)
    problem = comparison.problem if comparison is not None else ""
    tags = {
        "search": candidate.search,
        "trial": str(candidate.trial),
        "data_hash": served.data_hash,
        candidate.val_metric: str(candidate.val_value),
        "test_accuracy": str(seen.accuracy),
        "test_images": str(len(split)),
        "test_reading": str(readings),
        "gate": comparison.in_words() if comparison else "not compared" if force else "there was no champion to compare with",
        **({"refused_against": str(champion.version)} if problem and champion is not None else {}),
        **({"forced": force} if force else {}),
    }
    version = _registered(client, candidate, run_id, tags, known)
    if problem and not force:
        raise PromotionRefusedError(f"{_named(candidate)}: not promoted, {problem}. It is version {version}; the champion stays.")
    if champion is not None:
        client.set_registered_model_alias(candidate.name, "previous", champion.version)
    client.set_registered_model_alias(candidate.name, "champion", version)
    return Promotion(candidate.name, version, seen.accuracy, len(split), readings, False, comparison)


def _named(candidate: Candidate) -> str:
    return f"{candidate.name}: trial {candidate.trial} of {candidate.search}"


def _champion(client: mlflow.MlflowClient, name: str) -> Any:
    """The version that the alias names; None where it names none."""
    version = client.get_registered_model(name).aliases.get("champion")
    return client.get_model_version(name, version) if version is not None else None


def _model_of(version: Any) -> checkpoint.ServedModel:
    """The model of a registered version.

    Raises: PromotionError when its files are gone or damaged.
    """
    try:
        with tempfile.TemporaryDirectory() as place:
            home = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=place))
            return checkpoint.load_model(home / "artifacts" / "checkpoint")
    except (MlflowException, OSError, CheckpointError) as error:
        raise PromotionError(
            f"{version.name}: the champion, version {version.version}, cannot be loaded to compare with ({str(error).splitlines()[0]}); "
            "mend it, or promote with --force --reason."
        ) from None


def _registered(client: mlflow.MlflowClient, candidate: Candidate, run_id: str, tags: dict[str, str], known: Any) -> str:
    """The candidate's version, made where it is not known, with its evidence."""
    if known is not None:
        if "refused_against" in known.tags and "refused_against" not in tags:
            client.delete_model_version_tag(candidate.name, known.version, "refused_against")
        for name, value in tags.items():
            client.set_model_version_tag(candidate.name, known.version, name, value)
        return str(known.version)
    models = client.search_logged_models([client.get_run(run_id).info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    uri = models[0].model_uri if models else log_model(candidate.checkpoint, run_id=run_id)
    made = client.create_model_version(candidate.name, uri, run_id=run_id, tags=tags, model_id=uri.rpartition("/")[2])
    return str(made.version)


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
