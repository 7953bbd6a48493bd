"""Describes a search's images as inputs of MLflow runs: one data set for each split, with the search's data hash. Reads no images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from vit_search.config.data_sets import DATA_SETS
from vit_search.config.data_urls import is_remote
from vit_search.ledger.searches import SearchFacts

DIGEST_LENGTH = 32
"""Characters of the data hash that are used. MLflow allows 36; the data set's cache folder has the same 32 in its name."""


def splits(facts: SearchFacts) -> tuple[str, ...]:
    """The splits that contain images. Searches of earlier versions stored no counts, but all have "train" and "val"."""
    return tuple(name for name, images in facts.splits.items() if images) or ("train", "val")


def splits_of_a_trial(facts: SearchFacts) -> tuple[str, ...]:
    """The splits that a trial uses for training and validation. It opens no others."""
    return ("train", "val", "holdout") if facts.resolved.get("train_on") == "train+val" else ("train", "val")


def inputs(facts: SearchFacts, names: Iterable[str]) -> list[DatasetInput]:
    """The splits of these names, for `MlflowClient.log_inputs`.

    MLflow identifies a data set by name and digest. So each split has its own name, for example `digits/train`.
    """
    data = facts.resolved["data"]
    title = Path(data["path"]).name if DATA_SETS[data["name"]].path else data["name"]
    kind, source = _source(data)
    return [
        DatasetInput(
            Dataset(
                name=f"{title}/{name}"[:500],
                digest=facts.data_hash[:DIGEST_LENGTH],
                source_type=kind,
                source=json.dumps(source),
                schema=_schema(facts),
                profile=json.dumps(_profile(facts, name)),
            ),
            [InputTag("mlflow.data.context", name)],
        )
        for name in names
    ]


def _source(data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Type and content of the source, in the form of MLflow's own sources."""
    facts = DATA_SETS[data["name"]]
    if facts.path and is_remote(data["path"]):
        kind = data["path"].partition("://")[0].lower()
        return ("http", {"url": data["path"]}) if kind in ("http", "https") else (kind, {"uri": data["path"]})
    return ("local", {"uri": data["path"]}) if facts.path else ("code", {"tags": {"loader": facts.loader}})


def _schema(facts: SearchFacts) -> str | None:
    """Schema of images and labels; None if the search stored no image shape."""
    if not facts.image_shape:
        return None
    image = {"dtype": "uint16" if facts.resolved["data"].get("bit_depth") == 16 else "uint8", "shape": [-1, *facts.image_shape]}
    columns = [
        {"name": "image", "type": "tensor", "tensor-spec": image, "required": True},
        {"name": "label", "type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}, "required": True},
    ]
    return json.dumps({"mlflow_colspec": columns})


def _profile(facts: SearchFacts, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {"images": facts.splits.get(name), "classes": facts.classes or None}
    if facts.image_shape:
        values |= dict(zip(("channels", "height", "width"), facts.image_shape, strict=True))
    return {key: value for key, value in values.items() if value is not None}
