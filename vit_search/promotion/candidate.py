"""The candidate of a promotion: the one trained model that may become a version, and its origin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import mlflow

from vit_search.config.cost import cost_of
from vit_search.config.tuning import tuning_tags
from vit_search.errors import PromotionError
from vit_search.ledger import searches
from vit_search.ledger.file import read_trials
from vit_search.ledger.searches import SearchFacts, trial_folder
from vit_search.promotion import finalists
from vit_search.promotion.finalists import Finalist, Retrained
from vit_search.vit import checkpoint
from vit_search.vit.checkpoint import ServedModel
from vit_search.vit.checkpoint_files import describe


@dataclass(frozen=True)
class Candidate:
    """The one trained model that may become a version."""

    finalist: Finalist
    index: int
    """Index of its seed among the finalist's seeds."""
    served: ServedModel
    folder: Path
    weights_sha256: str
    run_id: str
    parent_run: str
    promotion_id: str
    """sha256 of configuration, seed, data, splits and weights. The same training has the same id."""


def choose_candidate(client: mlflow.MlflowClient, retrained: Retrained) -> Candidate:
    """Choose the cheapest of the best finalists, and of its seeds the one with the middle value.

    Raises: PromotionError if MLflow does not have the run of its training.
    """

    def params(finalist: Finalist) -> float:
        return cost_of(describe(finalist.checkpoints[0]).config.model, 1).params

    finalist = finalists.choose(retrained.finalists, retrained.spec.mode, params)
    index = finalist.middle
    folder = finalist.checkpoints[index]
    served, digest = checkpoint.load_model(folder), checkpoint.weights_sha256(folder)
    parent, run = _runs_of(client, retrained, finalist.numbers[index])
    identity = json.dumps([served.config.to_dict(), served.data_hash, list(served.trained_on), digest], sort_keys=True)
    return Candidate(finalist, index, served, folder, digest, run, parent, hashlib.sha256(identity.encode()).hexdigest())


def candidate_of_trial(folder: Path, number: int) -> Candidate:
    """Make a candidate of one trial of a search. It has no run in MLflow. For `vit-search gate`.

    Args:
        folder: of the search. number: of the trial.
    Raises: PromotionError if there is no such trial, or its checkpoint was not kept.
    """
    if number not in {trial.number for trial in read_trials(folder / "ledger.jsonl")}:
        raise PromotionError(f"{folder.name}: there is no trial {number}; `vit-search show {folder.name}` lists its trials.")
    trained = trial_folder(folder, number) / "checkpoint"
    if not checkpoint.exists(trained):
        raise PromotionError(f"{folder}: the checkpoint of trial {number} is not kept; raise keep_checkpoints, or name one of the best.")
    served, digest = checkpoint.read_consistently(trained, lambda now: (checkpoint.load_model(now), checkpoint.weights_sha256(now)))
    finalist = Finalist(number, {}, 0.0, (served.config.seed,), (0.0,), (trained,), (number,), (0.0,))
    return Candidate(finalist, 0, served, trained, digest, "", "", "")


def lineage_of(candidate: Candidate, facts: SearchFacts) -> dict[str, str]:
    """The origin of a candidate, with the names that gates.LINEAGE requires.

    Args:
        facts: of the search that trained it.
    """
    served, environment = candidate.served, facts.environment
    config = json.dumps(served.config.to_dict(), sort_keys=True).encode()
    dirty = facts.code_version.endswith("-dirty")
    return {
        "search": facts.promotes or facts.search,
        "search_id": facts.search_id,
        "trial": str(candidate.finalist.trial),
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "data_hash": served.data_hash,
        "trained_on": "+".join(served.trained_on),
        "git_commit": (facts.git_commit or ("unknown" if dirty else "")) + ("-dirty" if dirty else ""),
        "code_version": facts.code_version,
        "packages_sha256": hashlib.sha256(facts.packages.encode()).hexdigest() if facts.packages else "",
        "seeds": ", ".join(map(str, candidate.finalist.seeds)),
        "hardware": f"{environment.get('machine', '')}, {environment.get('cpus', '')} cores" if environment.get("machine") else "",
        "versions": ", ".join(f"{name} {value}" for name, value in environment.items() if name not in ("machine", "cpus")),
        **searches.tags_of_weights(facts, [served.config.model.pretrained]),
        **tuning_tags(vars(served.config.model) | vars(served.config.training)),
    }


def _runs_of(client: mlflow.MlflowClient, retrained: Retrained, number: int) -> tuple[str, str]:
    """MLflow's run of the promotion's training search, and the run of one of its trials."""
    experiment = client.get_experiment_by_name(retrained.spec.name)
    parents = client.search_runs([experiment.experiment_id], f"tags.search_id = '{retrained.search_id}'") if experiment else []
    for parent in parents:
        condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.trial = '{number}'"
        for run in client.search_runs([parent.info.experiment_id], condition):
            return str(parent.info.run_id), str(run.info.run_id)
    raise PromotionError(
        f"{retrained.run_name}: MLflow has no run of its training {number}; send it with `vit-search sync {retrained.folder}`, "
        "or give the --tracking-uri that it was trained with."
    )
