"""Freeze and thaw: ASHA that pauses trials where ASHA would end them, and continues them once they are among the best of their rung.

This is the promotion of Li et al. 2020 (https://arxiv.org/abs/1810.05934, algorithm 2), with one difference: a trial that is among the best
when it reaches a rung does not pause there.
"""

from __future__ import annotations

from vit_search.ledger.events import Ended, Event
from vit_search.stopping.asha import Asha, Rung
from vit_search.stopping.rule import StoppingOptions, TrainFlops, no_flops


class FreezeThaw(Asha):
    """A trial that falls short at a rung pauses there. It continues as soon as it is among the best 1 / reduction_factor of the rung.

    The more trials have reached a rung, the more of them continue. So a trial that came early, and was compared with few others, is not
    lost. Trials that continue start before new ones, in the order in which they were let go on. So a resumed search starts the same.

    At each rung, the best `options.most_paused` of the paused trials stay. The others end, so that few checkpoints are kept.

    An audit does not pause. It is ranked with the paused trials, so it is known whether it would have continued; see `audits`.
    """

    may_hold = True

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        super().__init__(options, train_flops)
        self._paused: dict[Rung, dict[int, float]] = {}
        """Score by trial of the paused trials of each rung, and of the audits that would be paused there."""
        self._turns: dict[int, int] = {}
        """For each trial that was let go on: the how manieth it was, from 1."""
        self._let_go_on = 0

    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """See the base class. A trial that falls short pauses; those that end are others, which are too many then."""
        if epoch not in self.levels:
            return False
        rung = self.rung(trial, epoch, group)
        if super().falls_short(trial, epoch, score, group):
            self._paused.setdefault(rung, {})[trial] = score
        self._thaw(rung)
        self._end_the_rest(rung)
        return False

    def holds(self, trial: int) -> bool:
        """See the base class."""
        return not self.is_audit(trial) and any(trial in paused for paused in self._paused.values())

    def most_held(self, trials: int) -> int:
        """See the base class. All groups share the last rung."""
        rungs = (len(self.levels) - 1) * (len(self.options.boundaries) + 1) + 1 if self.levels else 0
        return min(trials, rungs * self.options.most_paused)

    def turn(self, trial: int) -> int:
        """See the base class."""
        return self._turns.get(trial, 0)

    def apply(self, event: Event) -> None:
        """See the base class."""
        super().apply(event)
        if isinstance(event, Ended) and event.outcome != "interrupted" and not self.is_audit(event.trial):
            self._turns.pop(event.trial, None)
            for paused in self._paused.values():
                paused.pop(event.trial, None)

    def audits(self) -> list[tuple[int, int | None]]:
        """See the base class. An audit would have ended where it would be paused now, or would have been one too many."""
        paused = {trial: rung[0] for rung in sorted(self._paused, reverse=True) for trial in self._paused[rung]}  # the lowest rung counts
        ends = ((trial, [end for end in (epoch, paused.get(trial)) if end is not None]) for trial, epoch in super().audits())
        return [(trial, min(epochs, default=None)) for trial, epochs in ends]

    def _thaw(self, rung: Rung) -> None:
        """Let the paused trials of a rung that are among its best now continue."""
        paused, cutoff = self._paused.get(rung, {}), self.cutoff(rung)
        for trial in [trial for trial, score in paused.items() if score >= cutoff]:
            del paused[trial]
            if not self.is_audit(trial):
                self._let_go_on += 1
                self._turns[trial] = self._let_go_on

    def _end_the_rest(self, rung: Rung) -> None:
        """End the paused trials of a rung beyond the best few. An audit takes no place among these."""
        paused, kept = self._paused.get(rung, {}), 0
        for trial in sorted(paused, key=lambda trial: -paused[trial]):
            if kept < self.options.most_paused:
                kept += not self.is_audit(trial)
                continue
            del paused[trial]
            if self.is_audit(trial):
                self.would_end(trial, rung[0])
            else:
                self.ending.add(trial)
