"""A search at a glance, for the page of its run in MLflow: a description in Markdown, and the leaderboard as a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from vit_search.config.cost import in_time
from vit_search.config.search_file import SearchSpec
from vit_search.ledger import searches
from vit_search.ledger.searches import SearchFacts
from vit_search.ledger.trials import Spent, Trial, best_trial
from vit_search.planning.space_findings import with_effect
from vit_search.text import counted, markdown
from vit_search.tracking import saved_views

FILTERS = {
    "completed": "tags.outcome = 'completed'",
    "stopped early": "tags.outcome = 'stopped'",
    "diverged or failed": "attributes.status = 'FAILED'",
    "the nine best": "tags.rank LIKE '_'",
}
"""Filters of a search's trials in MLflow's own language. It cannot compare a tag with a list of values."""


def described(
    spec: SearchSpec,
    facts: SearchFacts,
    ranking: Sequence[Trial],
    spent: Spent,
    *,
    wanted: int,
    state: str,
    experiment_id: str,
    runs: dict[int, str],
) -> str:
    """The description of the parent run.

    Args:
        ranking: trials, best first.
        wanted: number of trials that the search will run.
        state: in a word or two.
        runs: MLflow run of each trial, for links.
    """
    counts = Counter(trial.outcome for trial in ranking)
    over = sum(trial.over for trial in ranking)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none yet"
    lines = [
        f"**{markdown(state)}**: {over} of {counted(wanted, 'trial')} over ({outcomes}); seen at {time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
        "",
        "Trials: "
        + " · ".join(f"[{name}]({_link(experiment_id, facts.search, rule, spec.metric, spec.mode)})" for name, rule in FILTERS.items()),
        "",
        f"{in_time(spent.wall_seconds)} of wall time, {in_time(spent.trial_seconds)} of training in {counted(spent.epochs, 'epoch')}, "
        f"{in_time(spent.stopped_seconds)} of it in stopped trials; stopping saved {in_time(spent.saved_seconds)}.",
        "",
    ]
    winner = best_trial(ranking, spec.metric, spec.mode)
    if winner is not None:
        space = spec.space
        names = list(space.searched)
        lines += [
            f"| # | trial | {spec.metric} | outcome | epochs | {' | '.join(names)} |",
            f"| --- | --- | --- | --- | --- |{' --- |' * len(names)}",
        ]
        for rank, trial in enumerate(ranking[:10], 1):
            value = trial.value(spec.metric)
            link = (
                f"[{trial.number}](#/experiments/{experiment_id}/runs/{runs[trial.number]})" if trial.number in runs else str(trial.number)
            )
            cells = [str(rank), link, "–" if value is None else f"{value:.4f}", trial.outcome, str(len(trial.results))]
            params = with_effect(space, trial.params)
            lines.append(f"| {' | '.join(cells + [_short(params[name]) if name in params else '–' for name in names])} |")
    return "\n".join(lines)


def leaderboard(spec: SearchSpec, ranking: Sequence[Trial], runs: dict[int, str]) -> dict[str, Any]:
    """All trials, best first, in the form of MLflow's tables."""
    ahead = searches.pareto(spec, ranking)
    space, rows = spec.space, []
    for rank, trial in enumerate(ranking, 1):
        row: dict[str, Any] = {"rank": rank, "trial": trial.number, spec.metric: trial.value(spec.metric)}
        if spec.objectives:
            values = searches.objective_values(spec, trial) or []
            row |= {goal.metric: value for goal, value in zip(spec.objectives, values[1:], strict=False)}
            row["pareto_front"] = trial.number in ahead
        row |= {"outcome": trial.outcome, "epochs": len(trial.results), **space.trained(trial.params)}
        rows.append(row | {"reason": trial.reason, "run_id": runs.get(trial.number)})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}


def _link(experiment_id: str, search: str, rule: str, metric: str, mode: str) -> str:
    """Link to MLflow's list of runs with a filter. It is sorted, because MLflow would otherwise fold the trials into the search's run."""
    condition, key = quote(f"tags.search = '{search}' and {rule}", safe=""), quote(saved_views.column("metrics", metric), safe="")
    return f"#/experiments/{experiment_id}/runs?searchFilter={condition}&orderByKey={key}&orderByAsc={str(mode == 'min').lower()}"


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)
    return markdown(text)
