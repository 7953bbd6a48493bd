"""Sends one trial to MLflow: makes the metrics, parameters and tags of its run from its events."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from dataclasses import fields

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import EpochResult
from vit_search.ledger.events import Broke, Ended, Proposed, Reported
from vit_search.ledger.searches import COST_FIELDS
from vit_search.ledger.trials import Trial
from vit_search.stopping.rungs import levels
from vit_search.tracking import datasets
from vit_search.tracking.mlflow_client import in_short
from vit_search.tracking.mlflow_errors import is_refused
from vit_search.tracking.search_runs import STATUS, SearchRuns

_log = logging.getLogger(__name__)

GROWING = ("rung", "epochs", "device_seconds")
"""Metrics of a trial that start at 0 and get their value at its end."""

TrialEvent = Proposed | Reported | Broke | Ended


def send_trial(runs: SearchRuns, trial: Trial, news: list[TrialEvent]) -> None:
    """Update a trial's run with its latest events. Makes the run if it is missing. Repeating this changes nothing."""
    number, last = trial.number, news[-1]
    fresh = runs.make_trial_run(trial)
    run_id = runs.by_trial[number]
    sent_again = isinstance(news[0], Proposed) and not fresh
    if (number in runs.to_reopen or sent_again) and not isinstance(last, Ended):
        runs.client.update_run(run_id, status="RUNNING")
        runs.to_reopen.discard(number)
    reports = [event for event in news if isinstance(event, Reported)]
    metrics = _best_points(runs.spec, trial, reports) + [point for event in reports for point in _epoch_points(event)]
    if isinstance(last, Ended) or any(
        report.result.epoch == 1 for report in reports
    ):  # at the end again, in case they are missing: MLflow stores a point only once
        metrics += _first_points(runs.spec, trial)
    tags = [RunTag("outcome", trial.outcome)]
    if trial.breakdowns:
        reasons = "\n".join(f"{'once' if times == 1 else f'{times} times'}: {why}" for why, times in Counter(trial.breakdowns).items())
        tags += [RunTag("breakdowns", str(len(trial.breakdowns))), RunTag("breakdown_reasons", reasons[:5000])]
    if isinstance(last, Ended):
        metrics += _end_points(runs.spec, trial, last)
        tags.append(RunTag("rung", str(_last_rung(runs.spec, trial))))
        if last.reason:
            tags.append(RunTag("reason", last.reason[:5000]))
    params: list[Param] = []
    if isinstance(news[0], Proposed):
        log_inputs(runs, run_id, datasets.splits_of_a_trial(runs.facts))
        params = _params(runs, trial)
    try:
        log_points(runs.client, run_id, metrics, params, tags)
    except MlflowException as error:
        if not is_refused(error) or not runs.is_there(run_id):
            raise
        _log.warning("MLflow refuses a record of trial %d (%s); the rest of it is sent.", number, in_short(error))
        for some_metrics, some_params, some_tags in ((metrics, [], []), ([], params, []), ([], [], tags)):
            with contextlib.suppress(MlflowException):
                log_points(runs.client, run_id, some_metrics, some_params, some_tags)
    if isinstance(last, Ended):
        runs.client.set_terminated(run_id, STATUS[last.outcome], int(last.at * 1000))
        if last.outcome == "interrupted":
            runs.to_reopen.add(number)


def log_points(client: MlflowClient, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
    """Send metrics, parameters and tags of a run, in several calls because MLflow accepts at most 1,000 items in one."""
    for start in range(0, max(len(metrics), 1), 800):
        first = start == 0
        client.log_batch(run_id, metrics[start : start + 800], params if first else [], tags if first else [])


def log_inputs(runs: SearchRuns, run_id: str, splits: tuple[str, ...]) -> None:
    """Log the data set, split by split. MLflow ignores what the run already has. If MLflow refuses, only a warning is logged."""
    try:
        runs.client.log_inputs(run_id, datasets.inputs(runs.facts, splits))
    except MlflowException as error:
        if not is_refused(error):
            raise
        _log.warning("MLflow refuses the data set of run %s (%s).", run_id, in_short(error))


def _params(runs: SearchRuns, trial: Trial) -> list[Param]:
    fixed = runs.facts.resolved["model"] | runs.facts.resolved["training"]
    params = {name: value for name, value in fixed.items() if not isinstance(value, dict)} | runs.spec.space.trained(trial.params)
    # MLflow refuses longer texts, e.g. weights of 300 classes; some of its stores refuse an empty one
    return [Param(name, str(value)[:6000] or "none") for name, value in params.items()]


def _last_rung(spec: SearchSpec, trial: Trial) -> int:
    """The last rung that a trial has reached, in epochs; 0 before the first."""
    rule = spec.stopping
    rungs = levels(grace_epochs=rule.grace_epochs, reduction_factor=rule.reduction_factor, epochs=spec.epochs)
    return max((rung for rung in rungs if rung <= len(trial.results)), default=0)


# How MLflow shows metrics: one whose last step is 0 is a bar, any other is a curve. So a value that grows has points
# at both ends of the trial, and a value that is known from the start has step 0. MLflow lists metrics in the order in
# which they come, and compares trials by the first.


def _first_points(spec: SearchSpec, trial: Trial) -> list[Metric]:
    cost, at = spec.space.cost(trial.params), int(trial.began * 1000)
    constants = {name: float(getattr(cost, COST_FIELDS[name])) for name in ("params", "train_flops")}
    return [Metric(name, value, at, 0) for name, value in (constants | dict.fromkeys(GROWING, 0.0)).items()]


def _best_points(spec: SearchSpec, trial: Trial, reports: list[Reported]) -> list[Metric]:
    """A point for each reported epoch at which the trial was better than ever before."""
    metric, sign = spec.metric, 1 if spec.mode == "max" else -1
    at = {report.result.epoch: int(report.at * 1000) for report in reports}
    best_yet, points = -math.inf, []
    for result in trial.results:
        value = result.value(metric)
        if value is not None and math.isfinite(value) and sign * value > best_yet:
            best_yet = sign * value
            if result.epoch in at:
                points.append(Metric(f"best/{metric}", float(value), at[result.epoch], result.epoch))
    return points


def _end_points(spec: SearchSpec, trial: Trial, event: Ended) -> list[Metric]:
    """Final values of a trial, for sorting on MLflow's pages."""
    epochs = len(trial.results)
    grown = (_last_rung(spec, trial), epochs, trial.device_seconds(spec.resources.devices))
    values: dict[str, float | None] = {f"best/{spec.metric}": trial.best_value(spec.metric, spec.mode)}
    values |= dict(zip(GROWING, map(float, grown), strict=True))
    return [Metric(name, value, int(event.at * 1000), epochs) for name, value in values.items() if value is not None]


def _epoch_points(event: Reported) -> list[Metric]:
    at = int(event.at * 1000)
    values = {f.name: getattr(event.result, f.name) for f in fields(EpochResult) if f.name not in ("epoch", "scores")}
    values |= event.result.scores | event.system
    return [Metric(name, float(value), at, event.result.epoch) for name, value in values.items() if value is not None]
