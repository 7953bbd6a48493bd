"""No stopping: every trial is trained to its end, unless its metric is no number any more."""

from __future__ import annotations

from vit_search.stopping.rule import StoppingRule


class NoStopping(StoppingRule):
    """Nothing is compared. The rungs remain: they are where samplers compare trials."""

    stops = False

    @property
    def looks(self) -> list[int]:
        """None."""
        return []

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class."""
        return False
