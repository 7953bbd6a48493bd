"""The readings of the test split. Each is counted in the registry before it is made, and its answers are kept in a file.

A promotion that was killed after its reading uses the file. It does not read the test split again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from vit_search.config.strict_json import parse
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import DataSet
from vit_search.files import make_folder, write_whole
from vit_search.promotion.candidate import Candidate
from vit_search.promotion.evidence import baselines
from vit_search.promotion.evidence.answers import SplitAnswers, classify_split
from vit_search.promotion.evidence.corruptions import fits
from vit_search.promotion.evidence.weighted_metrics import needs_probabilities, value_of
from vit_search.promotion.finalists import Retrained
from vit_search.promotion.policy import Policy
from vit_search.registry.lock import locked
from vit_search.vit.checkpoint import ServedModel


@dataclass(frozen=True)
class Reading:
    """One reading of the test split."""

    number: int
    """Number of the reading, from 1."""
    policy: str
    """Digest of the policy at the time of the reading."""
    answers: SplitAnswers
    """The candidate's answers."""
    champion: SplitAnswers | None
    """The champion's answers; None if there was none to compare with."""
    majority: Mapping[str, float]
    """Accuracy and search metric of the baseline that always answers the most frequent class, by metric."""
    linear_probe: Mapping[str, float]
    """The same for logistic regression on the pixels."""
    fresh: bool = True
    """False if an earlier promotion made the reading."""

    def baseline_metric(self, metric: str) -> str:
        """The metric for the comparison with the baselines: the search's, or accuracy if they do not have it.

        Also accuracy for the calibration error: a model that always gives the classes' shares as probabilities is perfectly calibrated.
        """
        measured = metric in self.majority and metric in self.linear_probe and value_of(self.answers, metric) is not None
        return metric if measured and metric != "val_ece" else "val_accuracy"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the file."""
        return {
            "reading": self.number,
            "policy": self.policy,
            "seen": self.answers.to_dict(),
            "rival": self.champion.to_dict() if self.champion else None,
            "majority": dict(self.majority),
            "linear_probe": dict(self.linear_probe),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Reading:
        """The inverse of `to_dict`. It also reads a record that has only accuracies. The reading is not fresh."""
        champion = SplitAnswers.from_dict(values["rival"]) if values["rival"] else None
        answers = SplitAnswers.from_dict(values["seen"])
        majority, probe = (
            {"val_accuracy": v} if isinstance(v, (int, float)) else dict(v) for v in (values["majority"], values["linear_probe"])
        )
        return Reading(values["reading"], values["policy"], answers, champion, majority, probe, fresh=False)


def readings_of(client: mlflow.MlflowClient, name: str, data_hash: str) -> int:
    """How often the test split of this data has been read for a registered model; 0 if there is no such model."""
    try:
        return count_readings(client.get_registered_model(name), data_hash)
    except MlflowException:
        return 0


def count_readings(model: Any, data_hash: str) -> int:
    """The same for a registered model that MLflow has returned."""
    return int(model.tags.get(_readings_tag(data_hash), 0))


def read_test_split(
    client: mlflow.MlflowClient,
    name: str,
    path: Path,
    *,
    candidate: ServedModel,
    champion: ServedModel | None,
    data: DataSet,
    policy: Policy,
    metric: str,
) -> Reading:
    """Count a reading of the test split, then make it and keep the answers.

    Args:
        name: of the registered model, which counts the readings.
        path: of the file for the answers.
        metric: of the search.
    """
    with locked(client, name):  # under the lock, so two promotions count two; before the reading, so a crash counts
        number = count_readings(client.get_registered_model(name), data.data_hash) + 1
        client.set_registered_model_tag(name, _readings_tag(data.data_hash), str(number))
    split = load_split(data, "test")
    unfit, keep = unfit_corruptions(policy, candidate.config), needs_probabilities(metric)
    kinds = [kind for kind in policy.robustness.kinds if kind not in unfit]

    def values(answers: SplitAnswers) -> dict[str, float]:
        found = {name: value_of(answers, name) for name in ("val_accuracy", metric)}
        return {name: value for name, value in found.items() if value is not None}

    reading = Reading(
        number=number,
        policy=policy.digest,
        answers=classify_split(candidate, split, kinds, probabilities=keep),
        champion=classify_split(champion, split, kinds, probabilities=keep) if champion is not None else None,
        linear_probe=values(baselines.linear_probe(data, split)),
        majority=values(baselines.majority(data, split)),
    )
    make_folder(path.parent)
    write_whole(path, json.dumps(reading.to_dict()))
    return reading


def unfit_corruptions(policy: Policy, config: TrialConfig) -> list[str]:
    """The corruptions of a policy that the images of a model cannot have."""
    return [kind for kind in policy.robustness.kinds if not fits(kind, config.model.in_channels, config.data.bits)]


def kept_reading(path: Path) -> Reading | None:
    """The reading that an earlier promotion kept in a file; None if there is no readable one."""
    try:
        return Reading.from_dict(parse(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def reading_path(retrained: Retrained, candidate: Candidate, champion: Any) -> Path:
    """The file for the reading of a candidate against a champion.

    Args:
        champion: its version, an object of MLflow; None if there is no champion.
    """
    against = champion.tags.get("weights_sha256", f"version {champion.version}") if champion is not None else "nobody"
    key = hashlib.sha256(f"{candidate.promotion_id} {against}".encode()).hexdigest()[:16]
    return retrained.folder / "readings" / f"{key}.json"


def _readings_tag(data_hash: str) -> str:
    return f"test_readings.{data_hash[:16]}"
