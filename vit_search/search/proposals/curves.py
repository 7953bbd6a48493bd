"""A Gaussian process over parameters and epochs, which learns from the whole learning curve of each trial.

- Points: each trial gives one point for each level that it has reached, and one for its newest epoch. A point has the coordinates of the
  trial's parameters and one of the epoch. So trials that were stopped early count, too.
- Scores: the curves rise together over the epochs. This common trend is subtracted, so the process models only how trials differ.
- Next point: the largest expected improvement of the score at the full length, over the best mean that a trial has there.

gaussian.py has the process, candidates.py draws the candidates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vit_search.config.distributions import Value
from vit_search.config.space import Space
from vit_search.search.proposals.candidates import PARENTS, Matrix, axes_of, encoded, most_promising
from vit_search.search.proposals.gaussian import believing, conditioned, fitted, log_improvement, standardised
from vit_search.search.proposals.history import Past

FITTED = 150
"""About the number of points to which length scales and variances are fitted. With more points, only every second (third, ...) trial is
used for that, so that the cost of a proposal stays flat. The mean and the deviation of the process always follow from all points."""


@dataclass(frozen=True)
class Curves:
    """The learning curves of trials. A score is a value, or minus the value if `mode` is "min": more is better."""

    trials: Sequence[Past]
    levels: Sequence[int]
    """Epochs at which trials are compared, ascending, the full length last."""
    mode: str
    """"min" or "max" of the trials' values."""

    @cached_property
    def observed(self) -> list[Past]:
        """The trials with values that have not diverged."""
        return [trial for trial in self.trials if trial.values and trial.state != "diverged"]

    @property
    def running(self) -> list[Past]:
        """The trials that run and have no value at the full length yet."""
        return [trial for trial in self.trials if trial.state == "running" and self.levels[-1] not in trial.values]

    @property
    def diverged(self) -> list[Past]:
        """The trials that have diverged."""
        return [trial for trial in self.trials if trial.state == "diverged"]

    def observations(self) -> tuple[list[int], list[int], Matrix]:
        """The n points that are modelled: index in `observed`, epoch, and score minus the trend of each."""
        rows = [(i, epoch) for i, trial in enumerate(self.observed) for epoch in self.epochs_of(trial)]
        ascending = sorted({epoch for _, epoch in rows})
        trend = dict(zip(ascending, self.trend(ascending), strict=True))
        scores = [self.score(self.observed[i], epoch) - trend[epoch] for i, epoch in rows]
        return [i for i, _ in rows], [epoch for _, epoch in rows], np.array(scores)

    def epochs_of(self, trial: Past) -> list[int]:
        """The epochs of a trial that are modelled, ascending: the levels that it has reached, and its newest epoch."""
        return sorted({level for level in self.levels if level in trial.values} | {max(trial.values)})

    def score(self, trial: Past, epoch: int) -> float:
        """The score of a trial after an epoch; NaN if it has none."""
        return trial.values.get(epoch, math.nan) * (1.0 if self.mode == "max" else -1.0)

    def epoch_coordinates(self, epochs: Sequence[int]) -> Matrix:
        """The coordinates of epochs: log(1 + epoch), scaled to 1 at the full length."""
        return np.asarray(np.log1p(np.array(epochs, float)) / math.log1p(self.levels[-1]))

    def trend(self, epochs: Sequence[int]) -> Matrix:
        """The common trend of the curves after each of the epochs: 0 after the first, then the sum of the median gains.

        A gain is how much a trial's score has risen from one of the epochs to the next. Only trials with a score after both count: the
        mean over all trials would rise too fast, because only good trials reach the late epochs.

        Args:
            epochs: ascending.
        """
        table = np.array([[self.score(trial, epoch) for epoch in epochs] for trial in self.observed])
        gains = [column[~np.isnan(column)] for column in np.diff(table, axis=1).T]
        return np.cumsum([0.0, *(float(np.median(column)) if len(column) else 0.0 for column in gains)])


def propose(
    space: Space, curves: Curves, rng: random.Random, suits: Callable[[Mapping[str, Value]], bool], fixed: Mapping[str, Value] | None = None
) -> dict[str, Value] | None:
    """The suitable candidate with the largest expected improvement at the full length; None if no candidate is suitable.

    Diverged trials count as if they had reached the worst score of all points. Running trials count as if they had reached their mean.

    Args:
        space: the space to propose from.
        curves: of at least two trials with values.
        rng: decides which candidates are drawn.
        suits: whether a point may be proposed. It is called for the most promising candidates only.
        fixed: values that a proposal must have.
    """
    generator = np.random.default_rng(rng.getrandbits(64))
    axes = axes_of(space)

    full_length = float(curves.epoch_coordinates(curves.levels[-1:])[0])

    def at_full_length(coordinates: Matrix) -> Matrix:
        return np.column_stack([coordinates, np.full(len(coordinates), full_length)])

    def encoded_at_full_length(trials: Sequence[Past]) -> Matrix:
        return at_full_length(encoded(axes, [trial.params for trial in trials]))

    # The points and their scores.
    indices, epochs, raw = curves.observations()
    owners, scores = np.array(indices), standardised(raw)
    coordinates = encoded(axes, [trial.params for trial in curves.observed])
    points = np.column_stack([coordinates[owners], curves.epoch_coordinates(epochs)])

    # Length scales and variances, from some of the trials. Diverged trials have no part in them: their scores are made up.
    subset = owners % math.ceil(len(points) / FITTED) == 0
    logs = fitted(points[subset], scores[subset]).logs

    # The process after all points.
    if curves.diverged:
        points = np.vstack([points, encoded_at_full_length(curves.diverged)])
        scores = np.append(scores, np.full(len(curves.diverged), scores.min()))
    process = conditioned(logs, points, scores)
    means = process.at(at_full_length(coordinates))[0]
    if curves.running:
        process = believing(process, scores, encoded_at_full_length(curves.running))

    # The candidates.
    parents = [curves.observed[i].params for i in np.argsort(-means, kind="stable")[:PARENTS]]
    best = float(means.max())

    def promise(candidates: Matrix) -> Matrix:
        return log_improvement(*process.at(at_full_length(candidates)), best)

    return most_promising(space, axes, promise, parents, generator, suits, fixed)
