"""The best trials of a search once more, from scratch and with fresh seeds: what promotion chooses among.

The winner of many trials looks better than it is, by its luck with the validation images and with its seed. So the best few
are trained anew at full length, each with several seeds, on training and validation images together, and seen on the
holdout, which no trial of the search has met. The trainings are a search of their own in `SEARCH/promotions/N`, with a
ledger and MLflow runs, so that a killed promotion goes on where it stood.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vit_search.errors import SearchError
from vit_search.search import launch
from vit_search.spec import search_file
from vit_search.spec.files import write_whole
from vit_search.spec.search_file import SearchSpec
from vit_search.spec.space import Value
from vit_search.tracking import ledger, searches
from vit_search.tracking.ledger import Trial
from vit_search.tracking.recorder import Recorder
from vit_search.tracking.store import with_password
from vit_search.vit.data import prepare
from vit_search.vit.seeds import derive_seed

PLANNED = "planned.json"


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained anew with several seeds."""

    trial: int
    """Its number in the search."""
    params: dict[str, Value]
    searched_value: float
    """Of the metric, as the search saw it."""
    seeds: tuple[int, ...]
    """As a search file's `seed`."""
    values: tuple[float, ...]
    """Of the metric, by seed."""
    checkpoints: tuple[Path, ...]
    """By seed."""
    numbers: tuple[int, ...]
    """By seed: the trial's number among the promotion's."""


@dataclass(frozen=True)
class Retrained:
    """The trainings of a promotion, all ended."""

    folder: Path
    search: str
    """As MLflow names its run, e.g. digits-1-promotion-1."""
    search_id: str
    train_on: str
    """As in a search file."""
    metric: str
    mode: str
    finalists: tuple[Finalist, ...]
    """Those of which every seed came to full length; in the order of the search's leaderboard."""
    lost: dict[int, str]
    """The others by their number in the search, and why."""
    seconds: float
    """Wall time of this launch."""


def finalists_of(folder: Path, top: int) -> list[Trial]:
    """The first `top` trials of a search that came to full length with a metric, no two of the same parameters.

    Raises: SearchError where there is none.
    """
    spec, _ = searches.read(folder)
    found: list[Trial] = []
    for trial in ledger.ranked(ledger.read_trials(folder / "ledger.jsonl"), spec.metric, spec.mode):
        if trial.outcome == "completed" and trial.value(spec.metric) is not None and all(trial.params != other.params for other in found):
            found.append(trial)
    if not found:
        raise SearchError(f"{folder}: no trial has reached full length yet; let the search end or `vit-search resume {folder.name}`.")
    return found[:top]


def planned(folder: Path, *, top: int, seeds: int, train_on: str) -> tuple[SearchSpec, list[Trial], list[int]]:
    """The search that retraining is, its finalists and their seeds.

    Args:
        train_on: as in a search file; where there is no holdout, the training images alone, seen on the search's validation images.
    """
    spec, facts = searches.read(folder)
    finalists = finalists_of(folder, top)
    data = prepare(spec.data_config)
    values = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for key in ("start_with", "learn_from", "objectives", "limits"):
        values.pop(key, None)
    trials = len(finalists) * seeds
    values |= {"trials": trials, "keep_checkpoints": trials, "stopping": {"kind": "none"}, "sampler": "random"}
    values |= {"train_on": train_on if data.counts["holdout"] else "train"}
    fresh = [derive_seed(facts.search_id, "promotion", i) % 2**31 for i in range(seeds)]  # one for all, so that they are held against like
    return search_file.parse(yaml.safe_dump(values, sort_keys=False)), finalists, fresh


def retrain(
    folder: Path,
    *,
    top: int,
    seeds: int,
    train_on: str = "train+val",
    tracking_uri: str | None = None,
    watch: Callable[..., Any] | None = None,
) -> Retrained:
    """Train the best trials of a search anew, or go on with that, or find it done.

    Args:
        folder: of the search. top: how many trials. seeds: how many times each. train_on: see `planned`.
    Raises: SearchError when the search has no trial to promote, another process is at it, it was interrupted, or none came
        to full length; DataError; TrackingError.
    """
    spec, finalists, fresh = planned(folder, top=top, seeds=seeds, train_on=train_on)
    _, facts = searches.read(folder)
    data = launch.check_untouched(folder, *searches.read(folder))
    plan = [(trial.params, seed) for trial in finalists for seed in fresh]
    told = json.dumps({"trials": [t.number for t in finalists], "plan": plan, "file": spec.text, "data": data.data_hash}, sort_keys=True)
    place = _place(folder, told)
    uri = tracking_uri or with_password(facts.tracking_uri)
    if place is None:
        recorder = Recorder.connect(uri, spec.name)
        place = _new_place(folder)
        write_whole(place / PLANNED, told)
        searches.write(place, launch.facts_of(spec, f"{folder.name}-promotion-{place.name}", data, recorder, promotes=folder.name))
    spec, own = searches.read(place)
    seconds = 0.0
    if not _done(place, spec):
        result = launch.drive(spec, place, data, Recorder.connect(uri, spec.name), own, watch, planned=plan)
        if result.interrupted:
            raise KeyboardInterrupt
        seconds = result.seconds
    return _told(place, own.search, own.search_id, spec, finalists, fresh, seconds)


def _told(
    place: Path, search: str, search_id: str, spec: SearchSpec, finalists: list[Trial], seeds: list[int], seconds: float
) -> Retrained:
    trials = {trial.number: trial for trial in ledger.read_trials(place / "ledger.jsonl")}
    sound: list[Finalist] = []
    lost: dict[int, str] = {}
    for i, finalist in enumerate(finalists):
        numbers = tuple(range(i * len(seeds), (i + 1) * len(seeds)))
        own = [trials[number] for number in numbers]
        values = tuple(value for trial in own if trial.outcome == "completed" and (value := trial.value(spec.metric)) is not None)
        if len(values) < len(seeds):
            lost[finalist.number] = next(trial.reason or trial.outcome for trial in own if trial.outcome != "completed")
            continue
        checkpoints = tuple(ledger.trial_folder(place, number) / "checkpoint" for number in numbers)
        searched = finalist.value(spec.metric)
        assert searched is not None
        sound.append(Finalist(finalist.number, finalist.params, searched, tuple(seeds), values, checkpoints, numbers))
    if not sound:
        raise SearchError(f"{place}: none of the retrained trials came to full length; the first reason: {next(iter(lost.values()))}")
    return Retrained(place, search, search_id, spec.train_on, spec.metric, spec.mode, tuple(sound), lost, seconds)


def _place(folder: Path, told: str) -> Path | None:
    """Where these very trainings were begun."""
    for path in (folder / "promotions").glob(f"*/{PLANNED}"):
        if path.read_text(encoding="utf-8") == told and (path.parent / "search.json").exists():
            return path.parent
    return None


def _new_place(folder: Path) -> Path:
    """The next free number below the search's folder."""
    (folder / "promotions").mkdir(exist_ok=True)
    number = 1
    while True:
        try:
            (folder / "promotions" / str(number)).mkdir(mode=0o700)
            return folder / "promotions" / str(number)
        except FileExistsError:
            number += 1


def _done(place: Path, spec: SearchSpec) -> bool:
    if not (place / "ledger.jsonl").exists() or ledger.held(place / "ledger.jsonl"):
        return False  # where another process is at it, its ledger says so
    trials = ledger.read_trials(place / "ledger.jsonl")
    return len(trials) == spec.trials and all(trial.over for trial in trials)
