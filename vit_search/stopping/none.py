"""No stopping: every trial is trained to its end, unless its metric is not a finite number."""

from __future__ import annotations

from vit_search.stopping.rule import StoppingRule


class NoStopping(StoppingRule):
    """Stops nothing. The rungs remain, because samplers compare trials there."""

    stops = False

    @property
    def looks(self) -> list[int]:
        """None."""
        return []

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class."""
        return False
