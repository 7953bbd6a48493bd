"""All proposals of a search with their results, and the part that a sampler sees (`History.view`).

optuna_study.py makes an Optuna study of it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from optuna.trial import TrialState

from vit_search.config.distributions import Value

Params = dict[str, Value]

State = Literal["running", "waiting", "completed", "stopped", "diverged", "failed", "infeasible"]

ACTIVE: tuple[State, ...] = ("running", "waiting")
"""The states of a trial that has not ended."""

ENOUGH = 10
"""Observations before a sampler takes over from random draws (Optuna's default). Also the trials that must have reached a rung before the
sampler sees their values there: docs/results/search-quality.md."""

SHOWN = 150
"""The most observations that a sampler sees, so that the cost of a proposal stays flat."""

BEST_SHOWN = 75
"""How many of them are the best ones; the others are the newest. TPE counts at most 25 as good."""


class Goal(Protocol):
    """A further objective beside the metric; Objective of the search file."""

    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102


@dataclass
class Past:
    """One proposal and its result."""

    params: Mapping[str, Value]
    state: State = "running"
    values: dict[int, float] = field(default_factory=dict)
    """Finite values of the first metric by epoch."""
    others: dict[str, float] = field(default_factory=dict)
    """The other objectives as last reported, and the model's cost."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """State that a sampler (CMA-ES) stores with this trial."""


Shown = tuple[Past, TrialState, list[float] | None]
"""A trial as a sampler sees it: its state and values may differ from the real ones."""


class History:
    """All proposals in order, kept so that a view of 10,000 costs no more than a view of 1,000.

    Args:
        levels: epochs at which trials are compared, ascending, the full length last.
        modes: "min" or "max" of the first metric and of each of `goals`.
    """

    def __init__(self, levels: Sequence[int], modes: Sequence[str], goals: Sequence[Goal] = ()) -> None:
        self.pasts: list[Past] = []
        self.levels, self._goals = levels, goals
        self._signs = [-1.0 if mode == "max" else 1.0 for mode in modes]
        self._reached: dict[int, list[int]] = {epoch: [] for epoch in levels}
        """Indices of the trials with a value at a level that have not failed, ascending."""
        self._by_score: dict[int, list[tuple[float, int]]] = {epoch: [] for epoch in levels}
        """The same trials with their signed values, best first."""
        self._of_state: dict[State, list[int]] = {"running": [], "waiting": [], "diverged": [], "infeasible": []}

    def add(self, past: Past) -> int:
        """Add a proposal. Returns: its index."""
        index = len(self.pasts)
        self.pasts.append(Past(past.params, "running", {}, past.others, past.attributes))
        self._of_state["running"].append(index)
        for epoch, value in past.values.items():
            self.report(index, epoch, value)
        if past.state != "running":
            self.end(index, past.state)
        return index

    def report(self, index: int, epoch: int, value: float) -> None:
        """Record an active trial's value. A second value for an epoch is dropped."""
        past = self.pasts[index]
        if past.state in ACTIVE and epoch not in past.values:
            past.values[epoch] = value
            if epoch in self._reached:
                bisect.insort(self._reached[epoch], index)
                bisect.insort(self._by_score[epoch], (self._signs[0] * value, index))

    def end(self, index: int, state: State) -> None:
        """Record how an active trial ended."""
        past = self.pasts[index]
        if past.state not in ACTIVE:
            return
        self._of_state[past.state].remove(index)
        past.state = state
        if state in self._of_state:
            bisect.insort(self._of_state[state], index)
        if state in ("diverged", "failed"):
            for epoch in past.values.keys() & self._reached.keys():
                self._reached[epoch].remove(index)
                self._by_score[epoch].remove((self._signs[0] * past.values[epoch], index))

    def hold(self, waiting: Set[int]) -> None:
        """Record which of the active trials wait, by index. The others run. A trial that waits is shown like one that was stopped."""
        for index in waiting ^ frozenset(self._of_state["waiting"]):
            past = self.pasts[index]
            if past.state in ACTIVE:
                self._of_state[past.state].remove(index)
                past.state = "waiting" if index in waiting else "running"
                bisect.insort(self._of_state[past.state], index)

    @property
    def level(self) -> int:
        """The epoch whose values are compared: the highest level that at least ENOUGH trials have reached, or the first one."""
        return next((epoch for epoch in reversed(self.levels) if len(self._reached[epoch]) >= ENOUGH), self.levels[0])

    @property
    def observations(self) -> int:
        """Trials that have reached the level."""
        return len(self._reached[self.level])

    def view(self, most: int = SHOWN) -> list[Shown]:
        """What a sampler sees, in the order of the proposals: (trial, state, values).

        - Trials that have reached the level are COMPLETE with their value there, whether they still run or not.
        - Trials that were stopped before the level, or wait there, are left out: a value after few epochs says little about one after many
          (docs/results/search-quality.md says how firmly that is shown).
        - Trials that run and have not reached the level are RUNNING, so that the next proposal keeps its distance; at most `most` of them.
        - Diverged trials have the worst value of those shown; the newest, at most a third as many as the observations.
        - Infeasible proposals are PRUNED and violate a constraint; the newest, at most a third as many as the observations. They are shown
          once there are ENOUGH observations.
        - Failed trials say nothing about their parameters and are left out.
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

    def curves(self, most: int = SHOWN) -> list[Past]:
        """The trials whose curves a sampler sees, in the order of the proposals: at most `most` with values, and at most `most` that run.

        - The levels share the trials, the highest first; a level leaves what it does not need to the lower ones. Each gives its best
          trials and the newest of the others.
        - Diverged trials are shown as in `view`. Failed trials and infeasible proposals are left out.
        """
        chosen: set[int] = set()
        for below, epoch in reversed(list(enumerate(self.levels))):
            share = (most - len(chosen)) // (below + 1)
            best = itertools.islice((index for _, index in self._by_score[epoch] if index not in chosen), share // 2)
            chosen |= set(best)
            newest = (index for index in reversed(self._reached[epoch]) if index not in chosen)
            chosen |= set(itertools.islice(newest, share - share // 2))
        third = math.ceil(len(chosen) / 3)
        diverged = self._of_state["diverged"][-third:] if third else []
        return [self.pasts[index] for index in sorted({*chosen, *diverged, *self._of_state["running"][-most:]})]

    def _bounded(self, epoch: int, most: int) -> Iterable[int]:
        """At most `most` trials that have reached an epoch: the best, and the newest of the others."""
        reached = self._reached[epoch]
        if len(reached) <= most:
            return reached
        best = {index for _, index in self._by_score[epoch][: min(BEST_SHOWN, most // 2)]}
        newest = itertools.islice((index for index in reversed(reached) if index not in best), most - len(best))
        return [*best, *newest]


def values_at(past: Past, epoch: int, goals: Sequence[Goal]) -> list[float] | None:
    """The metric at an epoch and the further objectives; None if one is not known."""
    values = [past.values.get(epoch), *(past.others.get(goal.metric) for goal in goals)]
    return [value for value in values if value is not None] if None not in values else None


def params_key(params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """A key by which equal parameters are recognised."""
    return tuple(sorted(params.items()))
