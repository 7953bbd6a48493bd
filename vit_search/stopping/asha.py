"""ASHA: at each rung, trials that are not among the best third end (Li et al. 2020, https://arxiv.org/abs/1810.05934)."""

from __future__ import annotations

import bisect

from vit_search.stopping.rule import StoppingOptions, StoppingRule, TrainFlops, no_flops

Rung = tuple[int, int, int]
"""Epoch, group and first rung of trials that are compared with each other."""


class Asha(StoppingRule):
    """At each rung, a trial is compared with the trials that got there before it. It does not wait for others.

    A trial continues if its score is among the best 1 / reduction_factor. On a tie it continues, too, and so does the first trial at a
    rung. All groups share the last rung.
    """

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        super().__init__(options, train_flops)
        self._scores: dict[Rung, list[float]] = {}
        """Ascending scores."""

    def first_rung(self, trial: int) -> int:
        """Index of the first rung at which a trial is compared."""
        return 0

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class."""
        if epoch not in self.levels[self.first_rung(trial) :]:
            return False
        bisect.insort(self._scores.setdefault(self.rung(trial, epoch, group), []), score)
        return self.is_below_cutoff(trial, epoch, score, group)

    def is_below_cutoff(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """Whether a score recorded at a rung is now outside the best 1 / reduction_factor there."""
        return score < self.cutoff(self.rung(trial, epoch, group))

    def cutoff(self, rung: Rung) -> float:
        """The least score of the best 1 / reduction_factor at a rung that a trial has reached."""
        scores = self._scores[rung]
        return scores[-max(1, len(scores) // self.options.reduction_factor)]

    def rung(self, trial: int, epoch: int, group: int) -> Rung:
        """Where a trial is compared at an epoch."""
        return epoch, 0 if epoch == self.levels[-1] else group, self.first_rung(trial)
