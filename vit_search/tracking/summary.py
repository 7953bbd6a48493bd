"""What the parent run of a search shows in MLflow: the state while the search runs, and a summary at its end."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mlflow.entities import LoggedModelStatus, Metric, RunTag

from vit_search.errors import CheckpointError
from vit_search.ledger import search_state, searches
from vit_search.ledger.events import Ended, Event
from vit_search.ledger.search_state import SearchState
from vit_search.ledger.searches import Hindsight
from vit_search.ledger.trials import Progress, Spent, Trial, best_trial, ranked
from vit_search.text import in_words
from vit_search.tracking import overview
from vit_search.tracking.mlflow_client import in_short
from vit_search.tracking.mlflow_errors import ignore_missing
from vit_search.tracking.search_runs import STATUS, SearchRuns

_log = logging.getLogger(__name__)


def describe(runs: SearchRuns, progress: Progress, events: list[Event], wanted: int, count: int, *, driven: bool) -> None:
    """Update the parent run's description, and the ranks of the first `count` trials, which are tags of their runs.

    Args:
        wanted: number of trials that the search will run.
        driven: whether a driver runs it now.
    """
    spec = runs.spec
    state = search_state.of_events(events, progress.trials.values(), wanted, driven=driven)
    trials = search_state.as_they_stand(progress.trials, events, state)
    ranking = ranked(trials.values(), spec.metric, spec.mode)
    text = overview.described(
        spec,
        runs.facts,
        ranking,
        progress.spent,
        wanted=wanted,
        state=f"{state.word} ({state.reason})" if state.reason else state.word,
        experiment_id=runs.experiment_id,
        runs=runs.by_trial,
    )
    runs.client.log_batch(runs.parent_run, tags=[RunTag("mlflow.note.content", text), RunTag("state", state.word)])
    sound = [t for t in ranking if t.value(spec.metric) is not None and t.outcome not in ("diverged", "failed")]
    ranks = {trial.number: rank for rank, trial in enumerate(sound[:count], 1)}
    for number in runs.ranks.keys() - ranks.keys():
        with runs.forgets_if_deleted(number), ignore_missing():
            runs.client.delete_tag(runs.by_trial[number], "rank")
        runs.ranks.pop(number, None)
    for number, rank in ranks.items():
        if number in runs.by_trial and runs.ranks.get(number) != rank:
            with runs.forgets_if_deleted(number):
                runs.client.set_tag(runs.by_trial[number], "rank", str(rank))
                runs.ranks[number] = rank


def steps_for_left_trials(runs: SearchRuns, progress: Progress) -> Iterator[Callable[[], object]]:
    """One step for each trial that a dead driver left without an end."""
    for number, trial in search_state.as_they_stand(progress.trials, (), SearchState("interrupted")).items():
        if trial is not progress.trials[number]:
            yield partial(_end_left_trial, runs, trial)


def _end_left_trial(runs: SearchRuns, trial: Trial) -> None:
    """End the run of a trial without an end in the ledger. A resume will open the run again."""
    if trial.number in runs.by_trial:
        run = runs.by_trial[trial.number]
        runs.client.log_batch(run, tags=[RunTag("outcome", trial.outcome), RunTag("reason", trial.reason)])
        runs.client.set_terminated(run, STATUS["interrupted"])


def last_steps(
    runs: SearchRuns, progress: Progress, events: list[Event], status: str, hindsight: Hindsight | None, best: float | None
) -> Iterator[Callable[[], object]]:
    """The steps at the end of a search. Each adds one thing: leaderboard, counts, ledger, report, best models, status.

    Repeating a step is harmless. A step raises CheckpointError if models cannot be read; all other steps still make sense then.

    Args:
        best: metric of the best full-length trial; None if there is none.
    """
    client, parent, spec, folder, facts = runs.client, runs.parent_run, runs.spec, runs.folder, runs.facts
    trials = search_state.as_they_stand(progress.trials, (), SearchState("interrupted"))
    ranking = ranked(trials.values(), spec.metric, spec.mode)
    # not MLflow's log_table, which appends to an older table
    yield partial(client.log_dict, parent, overview.leaderboard(spec, ranking, runs.by_trial), "leaderboard.json")
    tags = {"mlflow.loggedArtifacts": '[{"path": "leaderboard.json", "type": "table"}]'}
    winner = best_trial(ranking, spec.metric, spec.mode)
    if winner is not None:
        tags["best_trial"] = str(winner.number)
    now = int(time.time() * 1000)
    figures = [Metric(name, float(value), now, 0) for name, value in _counts(progress.spent, ranking, hindsight).items()]
    if best is not None:  # last point of the best trial's curve
        last = max(int(event.at * 1000) for event in events if isinstance(event, Ended))
        figures.append(Metric(f"best/{spec.metric}", best, last, sum(trial.over for trial in ranking)))
    yield partial(client.log_batch, parent, metrics=figures, tags=[RunTag(name, value) for name, value in tags.items()])
    if hindsight is not None and hindsight.plan is not None:
        yield partial(client.log_dict, parent, hindsight.plan, "plan.json")
    for path in (folder / "ledger.jsonl", *(() if facts.promotes else write_report(folder))):
        yield partial(client.log_artifact, parent, str(path))
    if status == "FINISHED" and not facts.promotes:  # a promotion logs only the model that it has chosen
        unreadable: dict[int, str] = {}
        for trial in [trial for trial in ranking if trial.outcome == "completed"][: spec.keep_checkpoints]:
            yield partial(_log_model, runs, trial, unreadable)
        yield partial(_name_unreadable, unreadable)
    yield partial(client.set_terminated, parent, status)


def _counts(spent: Spent, ranking: list[Trial], hindsight: Hindsight | None) -> dict[str, float]:
    outcomes = Counter(trial.outcome for trial in ranking)
    audits = {"audits_to_be_stopped": hindsight.doomed, "audits_wrongly": hindsight.wrongly} if hindsight else {}
    return {
        "trials": len(ranking),
        **{name: outcomes[name] for name in STATUS if name != "interrupted"},
        "breakdowns": sum(len(trial.breakdowns) for trial in ranking),
        "epochs_trained": spent.epochs,
        "trial_hours": spent.trial_seconds / 3600,
        "trial_hours_stopped": spent.stopped_seconds / 3600,
        "trial_hours_saved": spent.saved_seconds / 3600,
        "wall_hours": spent.wall_seconds / 3600,
        **audits,
    }


def write_report(folder: Path) -> tuple[Path, ...]:
    """Write the report into the search's folder. If a figure cannot be drawn, the rest of the record must still be sent."""
    try:
        from vit_search.report import report  # imports plotly and optuna: only here, and not for each command

        return report.write(folder, driven=False)
    except Exception as error:
        _log.warning("the report could not be made (%s: %s).", type(error).__name__, in_short(error))
        return ()


def _log_model(runs: SearchRuns, trial: Trial, unreadable: dict[int, str]) -> None:
    """Log a trial's model, unless it is logged already or its checkpoint is gone.

    Args:
        unreadable: gets the reason if the checkpoint is damaged, or the pretrained weights that it needs are lost.
    """
    from vit_search.tracking.model_package import link_to_parent, log_model  # imports torch
    from vit_search.vit import checkpoint

    run, folder = runs.by_trial.get(trial.number), searches.trial_folder(runs.folder, trial.number) / "checkpoint"
    if run is None:
        return
    models = runs.client.search_logged_models([runs.experiment_id], filter_string=f"source_run_id = '{run}'")
    model_id = next((model.model_id for model in models if model.status == LoggedModelStatus.READY), None)
    if model_id is None and checkpoint.exists(folder):
        name = f"{runs.facts.search}-trial-{trial.number}".replace(".", "-")
        step = len(trial.results)
        try:
            uri = log_model(folder, run_id=run, name=name, step=step, end_status=STATUS["completed"], pt2=runs.spec.log_pt2)
        except CheckpointError as error:
            unreadable[trial.number] = str(error).removeprefix(f"{folder}: ").rstrip(".")
            return
        model_id = uri.rpartition("/")[2]
        tags = {"search": runs.facts.search, "trial": str(trial.number), runs.spec.metric: str(trial.value(runs.spec.metric))}
        runs.client.set_logged_model_tags(model_id, tags)
    if model_id is not None:
        link_to_parent(runs.client, run, model_id)


def _name_unreadable(unreadable: dict[int, str]) -> None:
    """Raises: CheckpointError that names the trials whose models could not be logged, by reason."""
    by_reason: dict[str, list[int]] = {}
    for number, reason in sorted(unreadable.items()):
        by_reason.setdefault(reason, []).append(number)
    if by_reason:
        parts = [f"no model of {in_words([f'trial {number}' for number in numbers])}: {reason}" for reason, numbers in by_reason.items()]
        raise CheckpointError("; ".join(parts))
