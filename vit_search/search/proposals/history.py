"""What a search has proposed and what came of it, kept so that a sampler can be shown the part that helps it.

`History.view` is what the sampler is shown; optuna_study.py makes a study of it, or of all that is known in its true states.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from optuna.trial import TrialState

from vit_search.config.distributions import Value

Params = dict[str, Value]

State = Literal["running", "completed", "stopped", "diverged", "failed", "infeasible"]

ENOUGH = 10
"""Observations before a sampler takes over from chance (Optuna's own default), and trials that must have reached a rung before
it is shown what they reached there: docs/results/search-quality.md."""

SHOWN = 150
"""Observations that a sampler is shown at most, so that the cost of a proposal stays flat."""

BEST_SHOWN = 75
"""The best ones among them; the others are the newest. TPE takes at most 25 for good."""


class Goal(Protocol):
    """A further metric beside the first; spec's Objective."""

    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102


@dataclass
class Past:
    """One proposal and what became of it."""

    params: Mapping[str, Value]
    state: State = "running"
    values: dict[int, float] = field(default_factory=dict)
    """The first metric by epoch; finite ones."""
    others: dict[str, float] = field(default_factory=dict)
    """Further objectives as last reported, and what the model costs."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What a sampler (CMA-ES) wants to find again at this trial."""


Shown = tuple[Past, TrialState, list[float] | None]
"""A trial as a sampler sees it: with a state and values that need not be its own."""


class History:
    """All proposals, in the order of the asks, kept so that a view of 10,000 costs what one of 1,000 does.

    Args:
        levels: epochs at which trials are compared, ascending, the full length last.
        modes: "min" or "max" of the first metric and of each of `goals`.
    """

    def __init__(self, levels: Sequence[int], modes: Sequence[str], goals: Sequence[Goal] = ()) -> None:
        self.pasts: list[Past] = []
        self._levels, self._goals = levels, goals
        self._signs = [-1.0 if mode == "max" else 1.0 for mode in modes]
        self._reached: dict[int, list[int]] = {epoch: [] for epoch in levels}
        """Who has a value at a level and has not failed, ascending."""
        self._by_score: dict[int, list[tuple[float, int]]] = {epoch: [] for epoch in levels}
        """The same with signed values, best first."""
        self._of_state: dict[State, list[int]] = {"running": [], "diverged": [], "infeasible": []}

    def add(self, past: Past) -> int:
        """Take in a proposal. Returns: its index, by which it is known from here on."""
        index = len(self.pasts)
        self.pasts.append(Past(past.params, "running", {}, past.others, past.attributes))
        self._of_state["running"].append(index)
        for epoch, value in past.values.items():
            self.report(index, epoch, value)
        if past.state != "running":
            self.end(index, past.state)
        return index

    def report(self, index: int, epoch: int, value: float) -> None:
        """Take in a running trial's value; one for an epoch that has one already is dropped."""
        past = self.pasts[index]
        if past.state == "running" and epoch not in past.values:
            past.values[epoch] = value
            if epoch in self._reached:
                bisect.insort(self._reached[epoch], index)
                bisect.insort(self._by_score[epoch], (self._signs[0] * value, index))

    def end(self, index: int, state: State) -> None:
        """Take in how a running trial ended."""
        past = self.pasts[index]
        if past.state != "running":
            return
        past.state = state
        self._of_state["running"].remove(index)
        if state in self._of_state:
            bisect.insort(self._of_state[state], index)
        if state in ("diverged", "failed"):
            for epoch in past.values.keys() & self._reached.keys():
                self._reached[epoch].remove(index)
                self._by_score[epoch].remove((self._signs[0] * past.values[epoch], index))

    @property
    def level(self) -> int:
        """The epoch whose values are compared: the last level that at least ENOUGH trials have reached, or else the first."""
        return next((epoch for epoch in reversed(self._levels) if len(self._reached[epoch]) >= ENOUGH), self._levels[0])

    @property
    def observations(self) -> int:
        """Trials that have reached the level."""
        return len(self._reached[self.level])

    def view(self, most: int = SHOWN) -> list[Shown]:
        """What a sampler is shown, in the order of the asks: (trial, state, values).

        Trials that have reached the level are COMPLETE with their value there, running or not, and those that were stopped before
        it are left out: a value at few epochs says little about one at many. How firmly that is shown stands in
        docs/results/search-quality.md. Running ones before it are RUNNING, so that the next
        proposal keeps its distance. Diverged ones have the worst value of those shown. What cannot be built is PRUNED and
        violates a constraint; it is shown once there are ENOUGH observations, which it must not reindex. Of these two, the
        newest are shown, each at most a third as many as the observations, and of the running ones at most `most`. A crash says
        nothing and is left out.
        """
        epoch = self.level
        observed = {index: values for index in self._bounded(epoch, most) if (values := values_at(self.pasts[index], epoch, self._goals))}
        shown: dict[int, tuple[TrialState, list[float] | None]] = {
            index: (TrialState.COMPLETE, values) for index, values in observed.items()
        }
        third = math.ceil(len(observed) / 3)
        if observed:
            columns = zip(self._signs, zip(*observed.values(), strict=True), strict=True)
            worst = [sign * max(sign * value for value in column) for sign, column in columns]
            shown |= dict.fromkeys(self._of_state["diverged"][-third:], (TrialState.COMPLETE, worst))
        if len(observed) >= ENOUGH:
            shown |= dict.fromkeys(self._of_state["infeasible"][-third:], (TrialState.PRUNED, None))
        early = [index for index in self._of_state["running"] if epoch not in self.pasts[index].values]
        shown |= dict.fromkeys(early[-most:], (TrialState.RUNNING, None))
        return [(self.pasts[index], *shown[index]) for index in sorted(shown)]

    def _bounded(self, epoch: int, most: int) -> Iterable[int]:
        """The best ones and the newest of the others."""
        reached = self._reached[epoch]
        if len(reached) <= most:
            return reached
        best = {index for _, index in self._by_score[epoch][: min(BEST_SHOWN, most // 2)]}
        newest = itertools.islice((index for index in reversed(reached) if index not in best), most - len(best))
        return [*best, *newest]


def values_at(past: Past, epoch: int, goals: Sequence[Goal]) -> list[float] | None:
    """The first metric at an epoch and the further ones; None where one is not known."""
    values = [past.values.get(epoch), *(past.others.get(goal.metric) for goal in goals)]
    return [value for value in values if value is not None] if None not in values else None


def params_key(params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """By which equal parameters are found again."""
    return tuple(sorted(params.items()))
