"""PASHA: ASHA with a low last rung, which rises only while longer training changes the ranking (Bohdal et al. 2023).

https://openreview.net/forum?id=syfgJE6nFRW
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping

from vit_search.ledger.events import Ended, Event
from vit_search.stopping.asha import Asha
from vit_search.stopping.rule import StoppingOptions, TrainFlops, no_flops

NOISE_PERCENTILE = 0.9
"""Percentile of the score differences between trials that overtook each other at least twice.

It is the paper's value. The paper found little effect between 0.8 and 1.
"""


class Pasha(Asha):
    """Below the last rung it is ASHA. At the last rung trials wait, and their ranking there is compared with the ranking one rung earlier.

    If both rankings agree, longer training would show nothing new, and the last rung stays. If they differ, the last rung moves up by one:
    the best 1 / reduction_factor of the waiting trials continue, the others end. The first last rung is the search's second rung. When the
    last rung has reached the full length, the rule is ASHA.

    Trials whose scores differ by less than the noise count as equal. The noise is estimated from pairs of trials that overtook each other
    at least twice.

    The paper trains its winner again from the start. Here the best waiting trial continues to full length at the end; see `leader`.
    """

    may_hold = True

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        super().__init__(options, train_flops)
        self.last_rung = 1
        """Index in `levels` of the rung at which trials wait. Beyond the end of `levels`, no trial waits."""
        self.noise = 0.0
        """Scores that differ by at most this much count as equal."""
        self._differences: list[float] = []
        """Score differences at the last rung of the pairs from which the noise is estimated, ascending."""
        self._curves: dict[int, dict[int, float]] = {}
        """Scores of a trial by epoch."""
        self._ranked: dict[int, int] = {}
        """Group by trial, of the trials that have reached the last rung."""
        self._held: set[int] = set()
        self._turns: dict[int, int] = {}
        """For each trial that was held: the last rung at which it waited."""

    @property
    def looks(self) -> list[int]:
        """Every epoch up to the highest rung, because the noise is estimated from all of them."""
        return list(range(1, self.levels[-1] + 1)) if self.levels else []

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class."""
        self._curves.setdefault(trial, {})[epoch] = score
        self._held.discard(trial)
        falls_short = super().falls_short(trial, epoch, score, group)
        if self.last_rung >= len(self.levels) or epoch != self.levels[self.last_rung]:
            return falls_short
        self._update_noise(trial)
        self._ranked[trial] = group
        if not self.is_audit(trial):
            self._held.add(trial)
        if self._is_stable():
            return False
        turn = self.turn(trial)
        below = self._raise_last_rung()
        self._turns[trial] = turn  # this trial has not waited
        return trial in below

    def holds(self, trial: int) -> bool:
        """See the base class."""
        return trial in self._held

    def turn(self, trial: int) -> int:
        """See the base class."""
        return self._turns.get(trial, 0)

    @property
    def leader(self) -> int | None:
        """See the base class."""
        level = self.levels[self.last_rung] if self._ranked else 0
        return max(self._ranked, key=lambda trial: (self._curves[trial][level], trial not in self._held, -trial), default=None)

    def apply(self, event: Event) -> None:
        """See the base class."""
        super().apply(event)
        if isinstance(event, Ended) and event.outcome not in ("completed", "interrupted"):
            self._held.discard(event.trial)
            self._ranked.pop(event.trial, None)

    def audits(self) -> list[tuple[int, int | None]]:
        """See the base class. An audit that is not the best at the last rung would have ended there."""
        leader = self.leader
        return [
            (trial, self.levels[self.last_rung] if epoch is None and trial in self._ranked and trial != leader else epoch)
            for trial, epoch in super().audits()
        ]

    def _is_stable(self) -> bool:
        """Whether the ranking at the last rung is the same as one rung earlier. Trials within the noise count as equal."""
        level, before = self.levels[self.last_rung], self.levels[self.last_rung - 1]
        ranking = sorted(self._ranked, key=lambda trial: -self._curves[trial][level])
        earlier = sorted((self._curves[trial][before] for trial in self._ranked), reverse=True)
        return all(abs(self._curves[trial][before] - score) <= self.noise for trial, score in zip(ranking, earlier, strict=True))

    def _update_noise(self, trial: int) -> None:
        """Compare the curve of a trial that has reached the last rung with those of the trials there, and update the noise."""
        level, curve = self.levels[self.last_rung], self._curves[trial]
        for other in self._ranked:
            if _overtakes_twice(curve, self._curves[other], level):
                bisect.insort(self._differences, abs(curve[level] - self._curves[other][level]))
        if self._differences:
            self.noise = self._differences[math.ceil(NOISE_PERCENTILE * len(self._differences)) - 1]

    def _raise_last_rung(self) -> set[int]:
        """Raise the last rung by one and let the best waiting trials continue.

        Returns: the other waiting trials, which must end.
        """
        level = self.levels[self.last_rung]
        below = {t for t in self._held if self.is_below_cutoff(t, level, self._curves[t][level], self._ranked[t])}
        for trial in self._ranked.keys() - self._held:  # audits, which are never stopped
            if self.is_below_cutoff(trial, level, self._curves[trial][level], self._ranked[trial]):
                self.would_end(trial, level)
        self.ending |= below
        self._turns |= dict.fromkeys(self._held, self.last_rung)
        self._held.clear()
        self.last_rung += 1
        self._differences.clear()
        beyond = self.last_rung >= len(self.levels)
        reached = {t: g for t, g in self._ranked.items() if not beyond and self.levels[self.last_rung] in self._curves[t]}
        self._ranked = reached
        return below


def _overtakes_twice(curve: Mapping[int, float], other: Mapping[int, float], epochs: int) -> bool:
    """Whether one curve is ahead, then behind, then ahead again, in the first `epochs` epochs."""
    both = [(curve[epoch], other[epoch]) for epoch in range(1, epochs + 1) if epoch in curve and epoch in other]
    ahead = [a > b for a, b in both if a != b]
    return sum(now != before for before, now in itertools.pairwise(ahead)) >= 2
