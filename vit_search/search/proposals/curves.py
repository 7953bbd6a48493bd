"""Gaussian processes over the learning curves of a search. They see every trial, however short, and propose for a long training.

- `propose`: one process over parameters and epochs. A curve gives a point at each level that it has reached, and one at its newest epoch.
- `propose_extrapolated`: one process over parameters. A curve gives one point: the score that it is expected to reach, with its variance.

Both propose for the target, the highest level that FEW trials have reached. gaussian.py has the process, candidates.py the candidates.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from vit_search.config.distributions import Value
from vit_search.config.space import Space
from vit_search.search.proposals.candidates import PARENTS, Matrix, axes_of, encoded, most_promising
from vit_search.search.proposals.gaussian import LENGTH, Process, believing, conditioned, fitted, log_improvement, scale_of, standardised
from vit_search.search.proposals.history import Past

FEW = 3
"""Trials that must have reached a level before proposals are made for it."""

FITTED = 150
"""The most points that length scales and variances are fitted to, so that the cost of a proposal stays flat."""

PAIRS = 3
"""As many trials as this are assumed to have kept their score from one level to the next, with an error of half the scores' spread."""

Suits = Callable[[Mapping[str, Value]], bool]


class Propose(Protocol):
    """`propose` or `propose_extrapolated`."""

    def __call__(  # noqa: D102
        self, space: Space, curves: Curves, rng: random.Random, suits: Suits, fixed: Mapping[str, Value] | None = None
    ) -> dict[str, Value] | None: ...


@dataclass(frozen=True)
class Curves:
    """The curves of trials with their levels. Scores: more is better."""

    trials: Sequence[Past]
    levels: Sequence[int]
    """Ascending, the full length last."""
    mode: str
    """"min" or "max" of the trials' values."""
    crossing: tuple[float, float] = LENGTH
    """Prior of the length scale of the epochs, as LENGTH: shorter if curves cross more often."""
    few: int = FEW
    """Trials that must have reached a level before proposals are made for it. With 0, they are made for the full length."""

    @cached_property
    def observed(self) -> list[Past]:
        """The trials with values that have not diverged."""
        return [trial for trial in self.trials if trial.values and trial.state != "diverged"]

    @cached_property
    def target(self) -> int:
        """The epoch that proposals are made for."""
        reached = [sum(level in trial.values for trial in self.observed) for level in self.levels]
        return next(
            (level for level, count in zip(reversed(self.levels), reversed(reached), strict=True) if count >= self.few), self.levels[0]
        )

    @property
    def pending(self) -> list[Past]:
        """The trials that run and have not reached the target."""
        return [trial for trial in self.trials if trial.state == "running" and self.target not in trial.values]

    @property
    def diverged(self) -> list[Past]:
        """The trials that have diverged."""
        return [trial for trial in self.trials if trial.state == "diverged"]

    def epochs_of(self, trial: Past) -> list[int]:
        """The epochs of a trial that are modelled: the levels that it has reached, and its newest epoch."""
        return sorted({level for level in self.levels if level in trial.values} | {max(trial.values)})

    def score(self, trial: Past, epoch: int) -> float:
        """The score of a trial at an epoch; NaN if it has none."""
        return trial.values.get(epoch, math.nan) * (1.0 if self.mode == "max" else -1.0)

    def place(self, epochs: Sequence[int]) -> Matrix:
        """The coordinate of epochs: 0 before the first, 1 at the full length, even in the logarithm."""
        return np.asarray(np.log1p(np.array(epochs, float)) / math.log1p(self.levels[-1]))

    def trend(self, epochs: Sequence[int]) -> Matrix:
        """The course that curves have in common: 0 at the first of the ascending epochs, and at each next one higher by the median gain.

        Only trials with both epochs count, so it is not higher where only good trials have come.
        """
        table = np.array([[self.score(trial, epoch) for epoch in epochs] for trial in self.observed])
        gains = np.diff(table, axis=1).T
        both = ~np.isnan(gains)
        return np.cumsum([0.0, *(float(np.median(row[known])) if known.any() else 0.0 for row, known in zip(gains, both, strict=True))])


def propose(
    space: Space, curves: Curves, rng: random.Random, suits: Suits, fixed: Mapping[str, Value] | None = None
) -> dict[str, Value] | None:
    """The suitable candidate with the largest expected improvement at the target, by one process over parameters and epochs.

    Args:
        space: the space to propose from.
        curves: of at least two trials with values.
        rng: decides which candidates are drawn.
        suits: whether a point may be proposed. It is called for the most promising candidates only.
        fixed: values that a proposal must have.
    Returns: None if no candidate is suitable.
    """
    lots = np.random.default_rng(rng.getrandbits(64))
    axes = axes_of(space)
    trials = curves.observed
    rows = [(i, epoch) for i, trial in enumerate(trials) for epoch in curves.epochs_of(trial)]
    owner, epochs = np.array([i for i, _ in rows]), [epoch for _, epoch in rows]
    ascending = sorted({*epochs})
    course = dict(zip(ascending, curves.trend(ascending), strict=True))
    scores = standardised(np.array([curves.score(trials[i], epoch) - course[epoch] for i, epoch in rows]))
    coordinates = encoded(axes, [trial.params for trial in trials])
    points = np.column_stack([coordinates[owner], curves.place(epochs)])
    place = float(curves.place([curves.target])[0])

    def at_target(some: Matrix) -> Matrix:
        return np.column_stack([some, np.full(len(some), place)])

    few = owner % math.ceil(len(rows) / FITTED) == 0
    process = fitted(points[few], scores[few], last=curves.crossing)
    if curves.diverged:
        points = np.vstack([points, at_target(encoded(axes, [trial.params for trial in curves.diverged]))])
        scores = np.append(scores, np.full(len(curves.diverged), scores.min()))
    process = conditioned(process.logs, points, scores)
    means = process.at(at_target(coordinates))[0]
    if curves.pending:
        process = believing(process, scores, at_target(encoded(axes, [trial.params for trial in curves.pending])))
    parents = [trials[i].params for i in np.argsort(-means, kind="stable")[:PARENTS]]
    return most_promising(space, axes, _improvement(process, float(means.max()), at_target), parents, lots, suits, fixed)


def propose_extrapolated(
    space: Space, curves: Curves, rng: random.Random, suits: Suits, fixed: Mapping[str, Value] | None = None
) -> dict[str, Value] | None:
    """As `propose`, by one process over the scores that the trials are expected to have at the target."""
    lots = np.random.default_rng(rng.getrandbits(64))
    axes = axes_of(space)
    expected, variances, trials = extrapolated(curves)
    if not len(expected):
        return None
    deviation = scale_of(expected)[2]
    scores, variances = standardised(expected), variances / deviation**2
    if curves.diverged:
        trials = [*trials, *curves.diverged]
        scores = np.append(scores, np.full(len(curves.diverged), scores.min()))
        variances = np.append(variances, np.zeros(len(curves.diverged)))
    process = fitted(encoded(axes, [trial.params for trial in trials]), scores, variances)
    means = process.at(process.points)[0]
    if curves.pending:
        process = believing(process, scores, encoded(axes, [trial.params for trial in curves.pending]))
    parents = [trials[i].params for i in np.argsort(-means, kind="stable")[:PARENTS]]
    return most_promising(space, axes, _improvement(process, float(means.max()), lambda some: some), parents, lots, suits, fixed)


def extrapolated(curves: Curves) -> tuple[Matrix, Matrix, list[Past]]:
    """The scores that the trials with a level are expected to have at the target: mean and variance of each, and the trials.

    From each level to the next, the score changes linearly, with an error. Both are estimated from the trials that have reached both levels
    and from PAIRS more that have kept their distance from the mean.
    """
    levels = [level for level in curves.levels if level <= curves.target]
    trials = [trial for trial in curves.observed if any(level in trial.values for level in levels)]
    table = np.array([[curves.score(trial, level) for level in levels] for trial in trials]).reshape(len(trials), len(levels))
    mean, variance = table[:, 0].copy(), np.zeros(len(trials))
    for now, after in itertools.pairwise(range(len(levels))):
        both = ~np.isnan(table[:, now]) & ~np.isnan(table[:, after])
        x, y = table[both, now], table[both, after]
        slope, left = 1.0, 0.25 * scale_of(mean[~np.isnan(mean)])[2] ** 2
        middle, gain = (float(x.mean()), float(y.mean())) if both.any() else (0.0, 0.0)
        if both.any():
            assumed = PAIRS * 4 * left
            slope = (float((x - middle) @ (y - gain)) + assumed) / (float((x - middle) @ (x - middle)) + assumed + 1e-12)
            errors = y - gain - slope * (x - middle)
            left = (float(errors @ errors) + PAIRS * left) / (len(x) + PAIRS)
        known = ~np.isnan(table[:, after])
        mean = np.where(known, table[:, after], gain + slope * (mean - middle))
        variance = np.where(known, 0.0, slope**2 * variance + left)
    return mean, variance, trials


def _improvement(process: Process, best: float, placed: Callable[[Matrix], Matrix]) -> Callable[[Matrix], Matrix]:
    def promise(points: Matrix) -> Matrix:
        return log_improvement(*process.at(placed(points)), best)

    return promise
