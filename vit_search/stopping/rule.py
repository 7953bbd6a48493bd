"""What all stopping rules have in common: metric and direction, audits, groups of models of similar size."""

from __future__ import annotations

import bisect
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vit_search.config.distributions import Value
from vit_search.ledger.events import Ended, Event, Proposed, Reported
from vit_search.stopping.rungs import levels


@dataclass(frozen=True, kw_only=True)
class StoppingOptions:
    """What a search file says of stopping, and what it depends on besides."""

    metric: str
    """That trials are compared by."""
    mode: str
    """"min" or "max"."""
    epochs: int
    """Length of a full training."""
    grace_epochs: int = 3
    """Epochs that each trial may train."""
    reduction_factor: int = 3
    """The best 1 / reduction_factor of a rung go on; the next rung is so many times as long."""
    audit_share: float = 0.0
    """Share of the trials that are never stopped, in [0, 1). What they reach counts like any other value."""
    boundaries: Sequence[float] = ()
    """Training FLOPs that part the trials into groups which are compared among themselves alone; see `rungs.boundaries`."""
    seed: int = 0
    """With a trial's number decides its bracket and whether it is an audit."""


TrainFlops = Callable[[Mapping[str, Value]], float]
"""Training FLOPs of a trial's parameters."""


def no_flops(params: Mapping[str, Value]) -> float:
    """Where no trials are parted by their size."""
    return 0.0


class StoppingRule(ABC):
    """Decides after each epoch whether a trial ends early. The decisions follow from the events alone.

    Args:
        options: see there.
        train_flops: training FLOPs of a trial's parameters; asked where `options.boundaries` part the trials.
    """

    stops: ClassVar[bool] = True
    """Whether the rule stops anything at all."""
    may_hold: ClassVar[bool] = False
    """Whether trials may have to wait; see `holds`."""
    startup: ClassVar[int] = 0
    """Trials that must have come before one is stopped."""

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        self.options = options
        self.levels = levels(grace_epochs=options.grace_epochs, reduction_factor=options.reduction_factor, epochs=options.epochs)
        """The rungs: epochs at which trials are compared, ascending. Samplers compare them there, too."""
        self._sign, self._train_flops = 1.0 if options.mode == "max" else -1.0, train_flops
        self._groups: dict[int, int] = {}
        self.ending: set[int] = set()
        """Trials that are to end after the epoch that they last reported; most rules name only the one that has just reported."""
        self._would: dict[int, int | None] = {}

    @abstractmethod
    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """Whether a trial is to end after an epoch, by its score there; more is better. `record` asks it for each epoch, in order."""

    @property
    def looks(self) -> list[int]:
        """Epochs after which a trial may be stopped, ascending."""
        return self.levels

    def group(self, train_flops: float) -> int:
        """The group of a trial, by its training FLOPs."""
        return bisect.bisect_right(self.options.boundaries, train_flops)

    def apply(self, event: Event) -> None:
        """Take in one more event."""
        if isinstance(event, Proposed) and self.options.boundaries:
            self._groups[event.trial] = self.group(self._train_flops(event.params))
        elif isinstance(event, Reported):
            value = event.result.value(self.options.metric)
            if value is None or not math.isfinite(value):
                self.ending.add(event.trial)  # even an audit; it leaves no trace
            else:
                self.record(event.trial, event.result.epoch, self._sign * value, self._groups.get(event.trial, 0))
        elif isinstance(event, Ended):
            self.ending.discard(event.trial)

    def holds(self, trial: int) -> bool:
        """Whether a trial waits without a process until the rule lets it go on or ends it. Most rules hold none; see `may_hold`."""
        return False

    def turn(self, trial: int) -> int:
        """Of two trials that can start, the one with the smaller turn does: one that was held comes after those that ran meanwhile."""
        return 0

    @property
    def leader(self) -> int | None:
        """The best of the trials that wait or have waited, if any.

        Once nothing else is left to train, it goes on to full length, unless it has got there; the others that wait end.
        """
        return None

    def audits(self) -> list[tuple[int, int | None]]:
        """Trials that nothing stops, each with the epoch at which it would have been stopped, or None."""
        return list(self._would.items())

    def is_audit(self, trial: int) -> bool:
        """Whether a trial is one that nothing stops."""
        return self.stops and chance(self.options.seed, "audit", trial) < self.options.audit_share

    def record(self, trial: int, epoch: int, score: float, group: int) -> None:
        """Take in a trial's score at an epoch, more is better. `ending` then has the trials that end because of it."""
        audit = self.is_audit(trial)
        if audit:
            self._would.setdefault(trial, None)
        ends = self.falls_short(trial, epoch, score, group)
        if ends and audit:
            self.would_end(trial, epoch)
        elif ends:
            self.ending.add(trial)

    def would_end(self, trial: int, epoch: int) -> None:
        """Remember when an audit would have been stopped first."""
        if self._would[trial] is None:
            self._would[trial] = epoch


def chance(*words: object) -> float:
    """A number in [0, 1) that follows from the words alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big") / 2**64
