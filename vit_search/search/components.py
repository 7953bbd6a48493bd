"""The state of a search. Each component holds one part of it and changes only by `apply(event)`.

The driver (driver.py) applies each event of the ledger to all components, in the order of `Components.apply`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from vit_search.config.distributions import Value
from vit_search.config.search_file import SearchSpec
from vit_search.config.space import Space
from vit_search.errors import SpecError
from vit_search.ledger.events import Broke, Ended, Event, Outcome, Reported
from vit_search.ledger.trials import Progress
from vit_search.search.commands import Commands, Settings
from vit_search.search.gpu_sharing import GpuSharing, Nodes
from vit_search.search.limits import SearchLimits
from vit_search.search.proposals.proposals import Lesson, ProposalOptions, Proposals
from vit_search.search.recovery import Recovery
from vit_search.stopping import rule_of
from vit_search.stopping.rule import StoppingRule


class Verdicts:
    """The trials that must end after their latest event, with outcome and reason. It asks other components, so it applies an event last."""

    def __init__(
        self, epochs: int, metric: str, commands: Commands, limits: SearchLimits, stopping: StoppingRule, recovery: Recovery
    ) -> None:
        self.due: dict[int, tuple[Outcome, str]] = {}
        """Outcome and reason by trial number."""
        self._epochs, self._metric, self._commands, self._limits = epochs, metric, commands, limits
        self._stopping, self._recovery = stopping, recovery

    def apply(self, event: Event) -> None:
        """Apply one event."""
        if isinstance(event, Ended):
            self.due.pop(event.trial, None)
        elif isinstance(event, Broke) and not event.again and (reason := self._recovery.given_up_because(event.trial, event.reason)):
            self.due[event.trial] = "failed", reason
        elif isinstance(event, Reported):
            reason = self._commands.stop_reason(event.trial) or self._limits.ending
            value = event.result.value(self._metric)
            if value is None:
                self.due[event.trial] = "stopped", f"epoch {event.result.epoch} has no {self._metric}"
            elif not math.isfinite(value):
                self.due[event.trial] = "diverged", f"{self._metric} is {value} after epoch {event.result.epoch}"
            elif event.result.epoch >= self._epochs:
                self.due[event.trial] = "completed", ""
            elif reason:
                self.due[event.trial] = "stopped", reason
            for trial in sorted(self._stopping.ending - self.due.keys()):
                self.due[trial] = "stopped", ""


@dataclass(frozen=True, kw_only=True)
class Components:
    """All components of one search."""

    progress: Progress
    commands: Commands
    proposals: Proposals
    stopping: StoppingRule
    limits: SearchLimits
    sharing: GpuSharing
    recovery: Recovery
    verdicts: Verdicts

    def apply(self, event: Event) -> None:
        """Apply one event to every component. A component comes after those that it asks."""
        self.progress.apply(event)
        self.commands.apply(event)
        self.proposals.apply(event)
        self.stopping.apply(event)
        if self.stopping.may_hold:
            self.proposals.hold(trial for trial in self.progress.unfinished if self.stopping.holds(trial))
        self.limits.apply(event)
        self.sharing.apply(event)
        self.recovery.apply(event)
        self.verdicts.apply(event)


@dataclass(frozen=True)
class ImageFacts:
    """The properties of the images that the state depends on."""

    channels: int
    classes: int
    resident_bytes: int = 0
    """Bytes of the splits that a trial keeps on its GPU. Streamed splits do not count."""
    count: int = 0
    """Images in these splits, streamed or not."""


def components_of(
    spec: SearchSpec,
    images: ImageFacts,
    *,
    nodes: Nodes | None = None,
    first: Sequence[Mapping[str, Value]] = (),
    lessons: Sequence[Lesson] = (),
) -> Components:
    """The state of a search before its first event.

    Args:
        nodes: of the cluster. None if no trial will run, or if the search file gives fixed devices.
        first: points to propose first.
        lessons: trials of earlier searches.
    Raises: SpecError if hardly any configuration fits into the cluster's GPUs.
    """
    progress, commands, recovery, stopping = Progress(spec.epochs), Commands(Settings.of(spec), spec.metric), Recovery(), rule_of(spec)
    limits = SearchLimits(commands, progress, metric=spec.metric, mode=spec.mode, devices=spec.resources.devices)
    options = ProposalOptions(
        metric=spec.metric,
        mode=spec.mode,
        epochs=spec.epochs,
        seed=spec.seed,
        sampler=spec.sampler,
        levels=stopping.levels,
        goals=spec.objectives,
        first=first,
        lessons=lessons,
    )
    space = spec.space if nodes is None or not nodes.gpu_memory else within(spec.space, nodes.gpu_memory)
    sharing = GpuSharing(
        spec,
        commands,
        channels=images.channels,
        classes=images.classes,
        images=images.resident_bytes,
        nodes=nodes,
        count=images.count,
    )
    return Components(
        progress=progress,
        commands=commands,
        proposals=Proposals(space, options),
        stopping=stopping,
        limits=limits,
        sharing=sharing,
        recovery=recovery,
        verdicts=Verdicts(spec.epochs, spec.metric, commands, limits, stopping, recovery),
    )


def within(space: Space, gpu_memory: int) -> Space:
    """The space without the configurations whose predicted memory exceeds `gpu_memory` bytes.

    Raises: SpecError if hardly any configuration is left.
    """
    smaller = replace(space, gpu_memory=gpu_memory)
    if smaller.feasible_share() == 0:
        problem = smaller.problem(smaller.draw(Random(0)))  # noqa: S311 -- a sample of the space, not a secret
        raise SpecError(f"none of 2000 random proposals can be run, the first because: {problem} Lower model.dim or batch_size.")
    return smaller
