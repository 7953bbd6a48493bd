"""The base class of all stopping rules: direction of the metric, audits (trials that are never stopped), groups by training cost."""

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
    """The settings of a stopping rule."""

    metric: str
    mode: str
    """"min" or "max"."""
    epochs: int
    """Length of a full training."""
    grace_epochs: int = 3
    """No trial is stopped before this many epochs."""
    reduction_factor: int = 3
    """At each rung, the best 1 / reduction_factor continue. The next rung is reduction_factor times as long."""
    audit_share: float = 0.0
    """Share of the trials that are never stopped, in [0, 1). Other trials are compared with them as with any trial."""
    most_paused: int = 3
    """With `freeze_thaw`: at each rung, as many of the paused trials stay as this."""
    boundaries: Sequence[float] = ()
    """Training FLOPs that divide the trials into groups. A trial is compared only with its own group; see `rungs.boundaries`."""
    seed: int = 0
    """Together with a trial's number, it decides the trial's bracket and whether it is an audit."""


TrainFlops = Callable[[Mapping[str, Value]], float]


def no_flops(params: Mapping[str, Value]) -> float:
    """For trials that are not grouped by training cost."""
    return 0.0


class StoppingRule(ABC):
    """Decides after each epoch whether a trial ends early. It depends only on the events, so a resumed search decides the same.

    Args:
        options: settings of the rule.
        train_flops: computes the training FLOPs of a trial's parameters. It is called only if `options.boundaries` divides the trials.
    """

    stops: ClassVar[bool] = True
    """Whether the rule stops anything at all."""
    may_hold: ClassVar[bool] = False
    """Whether the rule may let trials wait; see `holds`."""
    startup: ClassVar[int] = 0
    """Number of trials that must have reached an epoch before one is stopped there."""

    def __init__(self, options: StoppingOptions, train_flops: TrainFlops = no_flops) -> None:
        self.options = options
        self.levels = levels(grace_epochs=options.grace_epochs, reduction_factor=options.reduction_factor, epochs=options.epochs)
        """The rungs: epochs at which trials are compared, ascending. Samplers compare trials at these epochs, too."""
        self._sign, self._train_flops = 1.0 if options.mode == "max" else -1.0, train_flops
        self._groups: dict[int, int] = {}
        self.ending: set[int] = set()
        """Trials that must end after their last reported epoch. With most rules, this is only the trial that has just reported."""
        self._would: dict[int, int | None] = {}

    @abstractmethod
    def falls_short(self, trial: int, epoch: int, score: float, group: int) -> bool:
        """Whether a trial must end after an epoch. `record` calls it for each epoch of a trial, in order.

        Args:
            score: more is better.
        """

    @property
    def looks(self) -> list[int]:
        """Epochs after which a trial may be stopped, ascending."""
        return self.levels

    def group(self, train_flops: float) -> int:
        """The group of a trial, by its training FLOPs."""
        return bisect.bisect_right(self.options.boundaries, train_flops)

    def apply(self, event: Event) -> None:
        """Apply one event."""
        if isinstance(event, Proposed) and self.options.boundaries:
            self._groups[event.trial] = self.group(self._train_flops(event.params))
        elif isinstance(event, Reported):
            value = event.result.value(self.options.metric)
            if value is None or not math.isfinite(value):
                self.ending.add(event.trial)  # even an audit; its score is not recorded
            else:
                self.record(event.trial, event.result.epoch, self._sign * value, self._groups.get(event.trial, 0))
        elif isinstance(event, Ended):
            self.ending.discard(event.trial)

    def holds(self, trial: int) -> bool:
        """Whether a trial waits, without a process, until the rule lets it continue or ends it. See `may_hold`."""
        return False

    def most_held(self, trials: int) -> int:
        """The most trials that wait at once, in a search of so many trials. Each keeps a checkpoint."""
        return trials if self.may_hold else 0

    def turn(self, trial: int) -> int:
        """The order in which waiting trials start: the smallest turn first. A trial that was held comes after those that ran meanwhile."""
        return 0

    @property
    def leader(self) -> int | None:
        """The best trial of those that wait or have waited; None if there is none.

        When nothing else is left to train, it continues to full length, and the other waiting trials end.
        """
        return None

    def audits(self) -> list[tuple[int, int | None]]:
        """The trials that are never stopped, each with the epoch at which the rule would have stopped it, or None."""
        return list(self._would.items())

    def is_audit(self, trial: int) -> bool:
        """Whether a trial is never stopped."""
        return self.stops and chance(self.options.seed, "audit", trial) < self.options.audit_share

    def record(self, trial: int, epoch: int, score: float, group: int) -> None:
        """Apply a trial's score at an epoch (more is better). `ending` then contains the trials that must end because of it."""
        audit = self.is_audit(trial)
        if audit:
            self._would.setdefault(trial, None)
        ends = self.falls_short(trial, epoch, score, group)
        if ends and audit:
            self.would_end(trial, epoch)
        elif ends:
            self.ending.add(trial)

    def would_end(self, trial: int, epoch: int) -> None:
        """Remember the first epoch at which an audit would have been stopped."""
        if self._would[trial] is None:
            self._would[trial] = epoch


def chance(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big") / 2**64
