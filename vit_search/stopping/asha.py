"""ASHA: at each rung, trials outside the best third end (Li et al. 2020, https://arxiv.org/abs/1810.05934)."""

from __future__ import annotations

import bisect

from vit_search.stopping.rule import StoppingOptions, StoppingRule, TrainFlops, no_flops


class Asha(StoppingRule):
    """Each trial is compared at its rungs with those that have come there before it, without waiting for the others.

    Whoever ties with the cutoff goes on, and so does the first at a rung. All groups share the last rung.
    """

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        super().__init__(options, train_flops)
        self._scores: dict[tuple[int, int, int], list[float]] = {}
        """Ascending, by (epoch, group, first rung)."""

    def first_rung(self, trial: int) -> int:
        """Index of the first rung that a trial is compared at."""
        return 0

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class."""
        first = self.first_rung(trial)
        if epoch not in self.levels[first:]:
            return False
        scores = self._scores.setdefault((epoch, 0 if epoch == self.levels[-1] else group, first), [])
        bisect.insort(scores, score)
        return score < scores[-max(1, len(scores) // self.options.reduction_factor)]
