"""The trials of a search as tables: rows for JSON and CSV, data frames for Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_search.config.trial import EpochResult
from vit_search.ledger.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

    from vit_search.config.search_file import SearchSpec
    from vit_search.config.space import Space


def trial_row(trial: Trial, metric: str, space: Space, rank: int) -> dict[str, Any]:
    """One row of the leaderboard, for JSON and CSV."""
    facts: dict[str, Any] = {"rank": rank, "trial": trial.number, "outcome": trial.outcome, "epochs": len(trial.results)}
    facts[metric] = trial.value(metric)
    broke = {"breakdowns": len(trial.breakdowns)} if trial.breakdowns else {}
    return facts | space.trained(trial.params) | broke | ({"reason": trial.reason} if trial.reason else {})


def leaderboard_frame(trials: Sequence[Trial], spec: SearchSpec) -> pd.DataFrame:
    """One row for each trial, with the columns of `vit-search show --csv`. The index is the rank.

    Args:
        trials: best first.
    """
    import pandas as pd

    rows = [trial_row(trial, spec.metric, spec.space, rank) for rank, trial in enumerate(trials, 1)]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["rank"]
    return pd.DataFrame(rows, columns=columns).set_index("rank")


def epochs_frame(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row for each trained epoch: `trial`, `epoch` and all metrics of that epoch."""
    import pandas as pd

    rows = [{"trial": trial.number} | _flat(result) for trial in sorted(trials, key=lambda one: one.number) for result in trial.results]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)) or ["trial", "epoch"])


def _flat(result: EpochResult) -> dict[str, Any]:
    values: dict[str, Any] = dataclasses.asdict(result)
    scores: dict[str, float] = values.pop("scores")
    return values | scores
