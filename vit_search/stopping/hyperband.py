"""HyperBand: several ASHAs side by side, each with a later first rung (Li et al. 2018, https://arxiv.org/abs/1603.06560)."""

from __future__ import annotations

from vit_search.stopping.asha import Asha
from vit_search.stopping.rule import chance


class Hyperband(Asha):
    """A trial is compared only with trials of its own bracket. Brackets run at the same time, and each gets about as many epochs."""

    def first_rung(self, trial: int) -> int:
        """The trial's bracket: how many of the first rungs it skips. Drawn from the seed and the trial's number."""
        factor, count = self.options.reduction_factor, len(self.levels) + 1
        shares = [factor ** (count - 1 - bracket) / (count - bracket) for bracket in range(count)]
        drawn = chance(self.options.seed, "bracket", trial) * sum(shares)
        return next((bracket for bracket in range(count) if drawn < sum(shares[: bracket + 1])), count - 1)
