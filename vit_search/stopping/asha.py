"""ASHA: at each rung, trials that are not among the best third end (Li et al. 2020, https://arxiv.org/abs/1810.05934)."""

from __future__ import annotations

import bisect

from vit_search.stopping.rule import StoppingOptions, StoppingRule, TrainFlops, no_flops


class Asha(StoppingRule):
    """At each rung, a trial is compared with the trials that got there before it. It does not wait for others.

    A trial continues if its score is among the best 1 / reduction_factor. On a tie it continues, too, and so does the first trial at a
    rung. All groups share the last rung.
    """

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        super().__init__(options, train_flops)
        self._scores: dict[tuple[int, int, int], list[float]] = {}
        """Ascending scores by (epoch, group, first rung)."""

    def first_rung(self, trial: int) -> int:
        """Index of the first rung at which a trial is compared."""
        return 0

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class."""
        if epoch not in self.levels[self.first_rung(trial) :]:
            return False
        bisect.insort(self._scores.setdefault(self._key(trial, epoch, group), []), score)
        return self.is_below_cutoff(trial, epoch, score, group)

    def is_below_cutoff(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """Whether a score recorded at a rung is now outside the best 1 / reduction_factor there."""
        scores = self._scores[self._key(trial, epoch, group)]
        return score < scores[-max(1, len(scores) // self.options.reduction_factor)]

    def _key(self, trial: int, epoch: int, group: int) -> tuple[int, int, int]:
        return epoch, 0 if epoch == self.levels[-1] else group, self.first_rung(trial)
