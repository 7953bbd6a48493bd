"""The finalists of a promotion: the best trials of a search, trained again with new seeds.

This module plans these trainings, and reads them when they are finished. promotion/retrain.py runs them.

The winner of many trials looks better than it is: it was lucky with the validation images and with its seed. So the best few trials are
trained again at full length, each with several seeds, on training and validation images together. They are evaluated on the holdout, which
no trial of the search has seen. These trainings are a search of their own in `SEARCH/promotions/N`, with a ledger and MLflow runs.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from vit_search.config import search_file
from vit_search.config.distributions import Value
from vit_search.config.search_file import SearchSpec
from vit_search.data.cache import absent_classes, prepare
from vit_search.data.split import TRAINED_AND_VALIDATED_ON
from vit_search.errors import SearchError
from vit_search.ledger import searches
from vit_search.ledger.file import read_trials
from vit_search.ledger.searches import trial_folder
from vit_search.ledger.trials import Trial, ranked
from vit_search.seeds import derive_seed

PLANNED = "planned.json"


@dataclass(frozen=True)
class FinalistPlan:
    """The trainings of a promotion, before they are run."""

    search: Path
    spec: SearchSpec
    """Of the trainings: a search that proposes nothing and stops nothing."""
    finalists: tuple[Trial, ...]
    seeds: tuple[int, ...]
    """Seeds as in a search file. Each finalist gets the same ones, so that they can be compared."""
    text: str
    """Everything that decides the trainings, as in `planned.json`. The same text means the same trainings."""

    @property
    def trainings(self) -> list[tuple[dict[str, Value], int]]:
        """Parameters and seed of each training, by its trial number."""
        return [(trial.params, seed) for trial in self.finalists for seed in self.seeds]

    @property
    def folder(self) -> Path | None:
        """The folder in which exactly these trainings were begun; None if they were not."""
        for path in sorted((self.search / "promotions").glob(f"*/{PLANNED}")):
            if path.read_text(encoding="utf-8") == self.text and (path.parent / "search.json").exists():
                return path.parent
        return None

    @property
    def left(self) -> int:
        """Number of trainings that are not over."""
        if self.folder is None or not (self.folder / "ledger.jsonl").exists():
            return self.spec.trials
        return self.spec.trials - sum(trial.over for trial in read_trials(self.folder / "ledger.jsonl"))


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained again with several seeds."""

    trial: int
    """Its number in the search."""
    params: dict[str, Value]
    searched_value: float
    """The metric in the search."""
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    """The metric, by seed."""
    checkpoints: tuple[Path, ...]
    """By seed."""
    numbers: tuple[int, ...]
    """The trial's number in the promotion's trainings, by seed."""
    accuracies: tuple[float, ...]
    """The accuracy on the same images, by seed, whatever the metric is."""

    @property
    def mean(self) -> float:
        """Mean of the metric over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of the metric over the seeds; 0 with one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def middle(self) -> int:
        """Index of the seed with the middle value. To take the best one would be a second selection by luck."""
        return sorted(range(len(self.values)), key=lambda i: (self.values[i], i))[(len(self.values) - 1) // 2]


@dataclass(frozen=True)
class Retrained:
    """The finished trainings of a promotion."""

    folder: Path
    search: str
    """Name of the search whose best trials they are."""
    run_name: str
    """Their name in MLflow, e.g. digits-1-promotion-1."""
    search_id: str
    """MLflow's runs of these trainings are found by it."""
    spec: SearchSpec
    finalists: tuple[Finalist, ...]
    """Finalists whose every seed reached full length, in the order of the search's leaderboard."""
    lost: dict[int, str]
    """The reason for each other finalist, by its number in the search."""


def plan(folder: Path, *, top: int, seeds: int, train_on: str = "train+val") -> FinalistPlan:
    """Plan the trainings for the promotion of a search.

    Args:
        folder: of the search. top: the most trials. seeds: trainings of each.
        train_on: as in a search file. Without a holdout, it is the training images only, and the validation images are used to evaluate.
    Raises: SearchError if no trial has reached full length, or others can change the search; DataError; SpecError if the holdout images
        cannot give the metric.
    """
    spec, facts = searches.read(folder)
    searches.check_own(folder)
    finalists = _best(folder, spec, top)
    values = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for key in ("start_with", "learn_from", "objectives", "limits"):
        values.pop(key, None)
    trials = len(finalists) * seeds
    values |= {"trials": trials, "keep_checkpoints": trials, "stopping": {"kind": "none"}, "sampler": "random"}
    data = prepare(spec.data_config)
    values |= {"train_on": train_on if data.counts["holdout"] else "train"}
    retraining = search_file.parse(yaml.safe_dump(values, sort_keys=False))
    retraining.check_data(data.classes, absent_classes(data, *TRAINED_AND_VALIDATED_ON[retraining.train_on][1]))
    fresh = tuple(derive_seed(spec.seed, "promotion", i) % 2**31 for i in range(seeds))
    choice = {"trials": [t.number for t in finalists], "params": [t.params for t in finalists], "seeds": fresh}
    text = json.dumps(choice | {"file": retraining.text, "data": facts.data_hash}, sort_keys=True)
    return FinalistPlan(folder, retraining, finalists, fresh, text)


def read(plan: FinalistPlan) -> Retrained:
    """Read the finished trainings of a plan.

    Raises: SearchError if some are not finished, or if none reached full length.
    """
    folder = plan.folder
    if folder is None or plan.left:
        raise SearchError(
            f"{plan.search}: {plan.left} of {plan.spec.trials} training runs are left; `vit-search promote {plan.search.name}`."
        )
    spec, facts = searches.read(folder)
    searches.check_own(folder)
    trials = {trial.number: trial for trial in read_trials(folder / "ledger.jsonl")}
    sound: list[Finalist] = []
    lost: dict[int, str] = {}
    for i, finalist in enumerate(plan.finalists):
        numbers = tuple(range(i * len(plan.seeds), (i + 1) * len(plan.seeds)))
        seed_trials = [trials[number] for number in numbers]
        values = tuple(value for trial in seed_trials if trial.outcome == "completed" and (value := trial.value(spec.metric)) is not None)
        if len(values) < len(plan.seeds):
            lost[finalist.number] = next((trial.reason for trial in seed_trials if trial.reason), "a training did not come to full length")
            continue
        checkpoints = tuple(trial_folder(folder, number) / "checkpoint" for number in numbers)
        searched, accuracies = finalist.value(spec.metric) or 0.0, tuple(trial.results[-1].val_accuracy for trial in seed_trials)
        sound.append(Finalist(finalist.number, finalist.params, searched, plan.seeds, values, checkpoints, numbers, accuracies))
    if not sound:
        raise SearchError(f"{folder}: no finalist came to full length with every seed; the first reason: {next(iter(lost.values()))}")
    return Retrained(folder, plan.search.name, facts.search, facts.search_id, spec, tuple(sound), lost)


def choose(finalists: tuple[Finalist, ...], mode: str, params: Callable[[Finalist], float]) -> Finalist:
    """The cheapest of the finalists within one standard error of the best mean (Breiman et al. 1984, the rule of one standard error).

    Args:
        mode: "min" or "max" of the metric. params: the cost of a finalist.
    """
    sign = 1.0 if mode == "max" else -1.0
    first = max(finalists, key=lambda one: sign * one.mean)
    error = first.deviation / len(first.values) ** 0.5
    near = [one for one in finalists if sign * (first.mean - one.mean) <= error]
    return min(near, key=lambda one: (params(one), -sign * one.mean))


def _best(folder: Path, spec: SearchSpec, top: int) -> tuple[Trial, ...]:
    """The first trials of the leaderboard that reached full length and have a value of the metric, no two with the same parameters."""
    best: list[Trial] = []
    trials = read_trials(folder / "ledger.jsonl")
    searches.check_trials(folder, spec, trials)
    for trial in ranked(trials, spec.metric, spec.mode):
        if trial.outcome == "completed" and trial.value(spec.metric) is not None and all(trial.params != other.params for other in best):
            best.append(trial)
    if not best:
        raise SearchError(f"{folder}: no trial has reached full length yet; let the search end or `vit-search resume {folder.name}`.")
    return tuple(best[:top])
