"""What the end of a search shows: how often stopping was wrong, and how good the plan was."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_search.config.search_file import SearchSpec
from vit_search.config.strict_json import parse
from vit_search.ledger.searches import Hindsight
from vit_search.ledger.trials import Progress, Trial
from vit_search.planning import plan as planning
from vit_search.stats import wilson

PLAN = "plan.json"


def look_back(folder: Path, spec: SearchSpec, progress: Progress, audits: Iterable[tuple[int, int | None]]) -> Hindsight:
    """Compare stopping with its audits, and the plan with what happened.

    Args:
        audits: see StoppingRule.audits.
    """
    trials = list(progress.trials.values())
    finals = {trial.number: value for trial in trials if trial.outcome == "completed" and (value := trial.value(spec.metric)) is not None}
    doomed, wrongly, low, high = false_kills(audits, finals, spec.mode)
    return Hindsight(doomed, wrongly, (low, high), _beside_plan(folder, spec, trials, progress))


def false_kills(audits: Iterable[tuple[int, int | None]], finals: Mapping[int, float], mode: str) -> tuple[int, int, float, float]:
    """How often stopping was wrong, measured with audits: trials that are never stopped.

    Stopping an audit would have been wrong if its final value is better than the median of the trials that the rule let through.

    Args:
        audits: (trial, epoch at which it would have been stopped, or None), from `StoppingRule.audits`.
        finals: value at full length of each completed trial, including audits.
        mode: "min" or "max".
    Returns: completed audits that would have been stopped, how many of these stops were wrong, and the 95 % interval (Wilson 1927) of the
        share of wrong ones, which is 0 to 1 if there are none.
    """
    sign = 1.0 if mode == "max" else -1.0
    stopped = {trial for trial, epoch in audits if epoch is not None and trial in finals}
    through = [sign * value for trial, value in finals.items() if trial not in stopped]
    wrong = sum(sign * finals[trial] > statistics.median(through) for trial in stopped) if through else 0
    return len(stopped), wrong, *wilson(wrong, len(stopped))


def _beside_plan(folder: Path, spec: SearchSpec, trials: Sequence[Trial], progress: Progress) -> dict[str, Any] | None:
    """The plan and what happened, side by side; None if the plan is missing or damaged, because nothing depends on it."""
    try:
        plan = planning.SearchPlan.from_dict(parse((folder / PLAN).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    lengths = Counter(len(trial.results) for trial in trials)
    device_seconds = progress.spent.device_seconds(spec.resources.devices)
    return planning.compare(plan, lengths, device_seconds=device_seconds, wall_seconds=progress.spent.wall_seconds)
