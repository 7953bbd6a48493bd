"""The median rule: a trial ends if it never was better than half of the others (Golovin et al. 2017, section 3.2.1).

https://dl.acm.org/doi/10.1145/3097983.3098043
"""

from __future__ import annotations

import bisect
import statistics

from vit_search.stopping.rule import StoppingOptions, StoppingRule, TrainFlops, no_flops


class Median(StoppingRule):
    """From grace_epochs on, a trial's best value so far is compared with the median of the others' values at the same epoch."""

    startup = 5
    """Number of other results that an epoch needs before their median stops a trial. Optuna's default."""

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        super().__init__(options, train_flops)
        self._scores: dict[tuple[int, int], list[float]] = {}
        """Ascending scores by (epoch, group)."""
        self._best: dict[int, float] = {}

    @property
    def looks(self) -> list[int]:
        """Every epoch from grace_epochs on."""
        return list(range(self.options.grace_epochs, self.options.epochs))

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class."""
        best = self._best[trial] = max(score, self._best.get(trial, score))
        others = self._scores.setdefault((epoch, group), [])
        looks = len(others) >= self.startup and self.options.grace_epochs <= epoch < self.options.epochs
        below = looks and best < statistics.median(others)
        bisect.insort(others, score)
        return below
