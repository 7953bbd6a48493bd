"""Writes the candidate to MLflow: its logged model, its version with the evidence, and the artifacts of the promotion's run.

Each step can be repeated after a crash: it finds and uses what an earlier promotion has written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

from vit_search.data.cache import DataSet
from vit_search.errors import PromotionError
from vit_search.ledger import searches
from vit_search.promotion import gates
from vit_search.promotion.candidate import Candidate, lineage_of
from vit_search.promotion.decision import Decision, PromotionRequest
from vit_search.promotion.evidence.duplicates import Duplicates, as_csv, sheet
from vit_search.promotion.evidence.weighted_metrics import value_of
from vit_search.promotion.finalists import Retrained
from vit_search.promotion.policy import Policy
from vit_search.promotion.readings import Reading
from vit_search.registry import smoke
from vit_search.registry.lock import locked
from vit_search.tracking import model_files
from vit_search.tracking.model_package import link_to_parent, log_model
from vit_search.vit import checkpoint


@dataclass(frozen=True)
class LoggedCandidate:
    """The candidate's model as it is logged in its run."""

    uri: str
    record: str
    """The sha256 of its files; see model_files.py."""

    @property
    def model_id(self) -> str:
        """MLflow's id of the logged model."""
        return self.uri.rpartition("/")[2]


def create_registered_model(client: mlflow.MlflowClient, name: str) -> Any:
    """Get the registered model; create it if it does not exist.

    Raises: PromotionError if MLflow rejects the name.
    """
    try:
        return client.create_registered_model(
            name, description="Vision Transformers that `vit-search promote` has judged. The alias champion names the one in production."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise PromotionError(f"{name}: MLflow refuses this model name ({error.message}).") from None
    return client.get_registered_model(name)


def find_version_of(client: mlflow.MlflowClient, name: str, candidate: Candidate) -> Any:
    """The version that an earlier promotion made of this candidate; None if there is none."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.tags.get("promotion_id") == candidate.promotion_id), None)


def log_candidate(client: mlflow.MlflowClient, candidate: Candidate, retrained: Retrained) -> LoggedCandidate:
    """Log the model and the record of its files in the candidate's run, if an earlier promotion has not done it.

    The smoke test runs the model's code, so the files of an earlier promotion are checked against their record.

    Raises: PromotionError if these files have changed.
    """
    experiment = client.get_run(candidate.run_id).info.experiment_id
    models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{candidate.run_id}'")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.copy_for_serving(candidate.folder, Path(folder) / "checkpoint")
        digests = model_files.digests(Path(folder) / "checkpoint", model_files.CHECKPOINT)
        for model in models:
            record, uri = model.tags.get(model_files.RECORD, ""), str(model.model_uri)
            if model.status == LoggedModelStatus.READY and record and digests.items() <= model_files.read(record, uri).items():
                home = mlflow.artifacts.download_artifacts(uri, dst_path=f"{folder}/model", tracking_uri=client.tracking_uri)
                model_files.check(Path(home), model.tags, uri, inside="")
                break
        else:
            name = f"{retrained.run_name}-trial-{candidate.finalist.numbers[candidate.index]}".replace(".", "-")
            spec = retrained.spec
            uri = log_model(candidate.folder, run_id=candidate.run_id, name=name, step=spec.epochs, pt2=spec.log_pt2)
            record = client.get_logged_model(uri.rpartition("/")[2]).tags[model_files.RECORD]
    logged = LoggedCandidate(uri, record)
    link_to_parent(client, candidate.run_id, logged.model_id)
    return logged


def smoke_problem(client: mlflow.MlflowClient, logged: LoggedCandidate) -> str:
    """What a fresh process finds wrong with a logged model; empty if nothing. It runs once per set of library versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("vit_search", "mlflow", "torch"))
    if client.get_logged_model(logged.model_id).tags.get("smoke_passed") == versions:
        return ""
    problem = smoke.in_fresh_process(logged.uri, client.tracking_uri)
    if not problem:
        client.set_logged_model_tags(logged.model_id, {"smoke_passed": versions})
    return problem


def version_tags(
    retrained: Retrained, candidate: Candidate, policy: Policy, request: PromotionRequest, decision: Decision
) -> dict[str, str]:
    """The tags of a candidate's version: its origin, the verdict, and the figures behind it."""
    finalist, spec = candidate.finalist, retrained.spec
    sign = 1.0 if spec.mode == "max" else -1.0
    better = next((gate.said for gate in decision.gates if gate.id == "G4"), "")
    return {
        **lineage_of(candidate, searches.read(retrained.folder)[1]),
        "search": retrained.search,
        "promotion": retrained.run_name,
        "promotion_id": candidate.promotion_id,
        "verdict": decision.verdict,
        "gate": "; ".join(gates.reasons(decision.gates))[:4000] or better,
        "gate_report": f"runs:/{candidate.parent_run}/{_evidence_folder(candidate)}/gates.json",
        "policy_sha256": policy.digest,
        "weights_sha256": candidate.weights_sha256,
        "golden": smoke.golden(candidate.served),
        "seed": str(finalist.seeds[candidate.index]),
        "metric": spec.metric,
        "searched_value": f"{finalist.searched_value:.6f}",
        "retrained_mean": f"{finalist.mean:.6f}",
        "retrained_deviation": f"{finalist.deviation:.6f}",
        "optimism": f"{sign * (finalist.searched_value - finalist.mean):.6f}",
        "params": str(decision.measured.costs.params),
        "created_by": request.by,
        **(_test_tags(decision.reading, spec.metric) if decision.reading is not None else {}),
        **({"forced": request.force} if decision.verdict == "forced" else {}),
        **({"approved_by": request.approve_by} if request.approve_by else {}),
    }


def _test_tags(reading: Reading, metric: str) -> dict[str, str]:
    low, high = reading.answers.interval
    value = value_of(reading.answers, metric)
    return {
        **({f"test_{metric.removeprefix('val_')}": str(value)} if value is not None else {}),
        "test_accuracy": str(reading.answers.accuracy),
        "test_accuracy_interval": f"{low:.4f} to {high:.4f}",
        "test_images": str(reading.answers.images),
        "test_reading": str(reading.number),
        "ece": f"{reading.answers.ece:.4f}",
    }


def _evidence_folder(candidate: Candidate) -> str:
    return f"promotion/{candidate.promotion_id[:12]}"


def keep_evidence(
    client: mlflow.MlflowClient, candidate: Candidate, decision: Decision, card: str, tags: Mapping[str, str], files: Sequence[Path] = ()
) -> None:
    """Keep the evidence of the decision as artifacts of the promotion's run, whose page in MLflow shows the card.

    Args:
        files: the page of the candidate's mistakes, and its tables.
    """
    parent, folder = candidate.parent_run, _evidence_folder(candidate)
    reading, side_by_side = decision.reading, decision.measured.side_by_side
    client.log_dict(parent, {"verdict": decision.verdict, "gates": [gate.to_dict() for gate in decision.gates]}, f"{folder}/gates.json")
    costs = side_by_side.to_dict() if side_by_side else {"candidate": decision.measured.costs.to_dict()}
    client.log_dict(parent, costs, f"{folder}/costs.json")
    client.log_text(parent, card, f"{folder}/model_card.md")
    if reading is not None:
        champion = reading.champion.to_dict() if reading.champion else None
        answers = {"reading": reading.number, "candidate": reading.answers.to_dict(), "champion": champion}
        client.log_dict(parent, answers, f"{folder}/test_answers.json")
        for metric in {"val_accuracy", tags["metric"]}:
            value = value_of(reading.answers, metric)
            if value is not None:
                client.log_metric(parent, f"test_{metric.removeprefix('val_')}", value)
    for path in files:
        client.log_artifact(parent, str(path), folder)
    client.log_metric(parent, "optimism", float(tags["optimism"]))
    for name in ("verdict", "promotion_id", "gate"):
        client.set_tag(parent, name, tags[name])
    client.set_tag(parent, "mlflow.note.content", card)


def keep_duplicates(client: mlflow.MlflowClient, candidate: Candidate, data: DataSet, duplicates: Duplicates, *, images: bool) -> None:
    """Keep the test images that are also among the others: a table of all, and pictures of the first ten pairs. Nothing if there are none.

    Args:
        images: whether pictures may be kept; the key `report.images` of the search file.
    """
    if duplicates.pairs:
        folder = _evidence_folder(candidate)
        client.log_text(candidate.parent_run, as_csv(duplicates.pairs), f"{folder}/duplicates.csv")
        if images:
            client.log_image(candidate.parent_run, sheet(data, duplicates.pairs), f"{folder}/duplicates.png")


def register_version(
    client: mlflow.MlflowClient, name: str, candidate: Candidate, logged: LoggedCandidate, tags: Mapping[str, str], card: str
) -> str:
    """Register the candidate's version with its evidence and the record of its files. A repeated call makes no second version."""
    with locked(client, name):
        version = find_version_of(client, name, candidate)
        if version is None or version.source == logged.uri:  # a version of vit_search 0.1 may belong to another logged model
            tags = {**tags, model_files.RECORD: logged.record}
        if version is None:
            created = client.create_model_version(
                name, logged.uri, run_id=candidate.run_id, tags=dict(tags), description=card, model_id=logged.model_id
            )
            return str(created.version)
        for key, value in tags.items():
            if version.tags.get(key) != value:
                client.set_model_version_tag(name, version.version, key, value)
        client.update_model_version(name, version.version, card)
        return str(version.version)
