"""A search without Ray: the real driver, and a world whose every step follows from the ledger alone.

So a search that was cut off anywhere and rebuilt must go on exactly as the one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from vit_search.config.trial import EpochResult
from vit_search.ledger.events import Commanded, Launched, Left
from vit_search.search.components import ImageFacts, components_of
from vit_search.search.driver import Driver
from vit_search.search.gpu_sharing import Nodes
from vit_search.search.messages import Epoch, Outgrown, Stop, TrialOrder
from vit_search.search.recovery import Patience

NODE_LOST = "The actor died unexpectedly before finishing this task.\nThe actor died because its node has died. Node Id: 21ab"


class MemoryLedger:
    """A ledger in memory."""

    def __init__(self, events=()):
        self.events, self.listeners = list(events), []

    def append(self, event):
        self.events.append(event)
        for listener in self.listeners:
            listener(event)


@dataclass
class Shape:
    """A node with so many CPUs and GPUs."""

    name: str
    cpus: float
    gpus: float
    count: int | None = None


@dataclass
class Cluster:
    """One node with as many places, which are its cores, as it is told."""

    places: float = math.inf
    gpus: float = 0
    """Beside them, where the places have a number."""
    leaving: Collection[str] = ()
    lost: Exception | None = None
    living: dict[str, dict[str, float]] = field(default_factory=lambda: {"a": {"CPU": 64, "GPU": 8}, "b": {"CPU": 64, "GPU": 8}})

    def nodes(self):
        return self.living

    @property
    def shapes(self):
        return [Shape("all", self.places, self.gpus if self.places < math.inf else math.inf)]


def order(trial, params, components):
    devices = components.sharing.devices(trial)
    return TrialOrder(
        trial=trial, config=dict(params), folder=Path("trials") / str(trial), cpus=devices.cpus, gpus=devices.gpus,
        threads=devices.threads, halves=components.sharing.halves(trial), halvings=components.recovery.halvings(trial),
    )  # fmt: skip


def driver_of(spec, book=None, *, cluster=None, clock=lambda: 0.0, components=None, **more):
    """A driver that takes a search up; `more` goes to components_of, unless there are components that know the book's events already."""
    book = book or MemoryLedger([Launched(host="here", pid=1)])
    fresh = components_of(spec, ImageFacts(1, 10), **more) if components is None else components
    events, patience = list(book.events), Patience(60 * spec.stall_minutes, spec.stall_epochs)
    if components is not None:
        book.events.clear()
    driver = Driver(book, fresh, order, cluster=cluster or Cluster(), patience=patience, train_flops=lambda params: 1.0, clock=clock)
    if components is not None:
        book.events[:0] = events
    return driver


def result(epoch, value, val_loss=1.0, seconds=1.0, peak=1):
    return EpochResult(
        epoch=epoch, train_loss=1.0, train_accuracy=0.5, val_loss=val_loss, val_accuracy=value, val_top5_accuracy=None,
        lr=1e-3, images_per_s=1.0, seconds=seconds, peak_memory_bytes=peak,
    )  # fmt: skip


def chance(*words):
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:6], "big") / 2**48


def told(events):
    """Events as far as they must not depend on where a search was cut off."""
    return [
        dataclasses.replace(event, at=0.0, **({"answer": ""} if isinstance(event, Commanded) else {}))
        for event in events
        if not isinstance(event, (Launched, Left)) and not (isinstance(event, Commanded) and event.name == "continue")
    ]


@dataclass
class World:
    """What happens to a search.

    Args:
        commands: (epochs before it at least, name, arguments), one after the other.
    """

    driver: Driver
    book: MemoryLedger
    commands: list[tuple[int, str, dict]] = field(default_factory=list)
    losses: float = 0.0
    """Share of the epochs in which a trial loses its node."""
    outgrows: float = 0.0
    """Share of the trials that do not fit into less than a whole GPU."""
    score: str = "val_macro_f1"
    """What is reported beside accuracy and loss."""

    def step(self):
        """One thing happens. Returns: False once nothing is left to happen."""
        driver, before = self.driver, len(self.book.events)
        driver.tick()
        if driver.paused:
            return self._say("continue", {})
        given = sum(isinstance(event, Commanded) for event in told(self.book.events)) if self.commands else 0
        if given < len(self.commands) and driver.progress.spent.epochs >= self.commands[given][0]:
            return self._say(*self.commands[given][1:])
        while isinstance(ordered := driver.propose(), TrialOrder):
            driver.started(ordered.trial)
            driver.tick()
            if len(self.book.events) > before:
                return True
        running = [number for number in driver.progress.unfinished if number in driver.runtime.ordered]
        if running:
            epochs = sum(len(trial.results) for trial in driver.trials.values())
            self._train(running[int(chance("next", epochs) * len(running))])
        return bool(running)

    def _say(self, name, arguments):
        done, answer = self.driver.command(name, arguments, by="me")
        assert done, answer
        return True

    def _train(self, number):
        driver, trial = self.driver, self.driver.trials[number]
        epoch = len(trial.results) + 1
        if not trial.breakdowns and chance("lost", number, epoch) < self.losses:
            driver.broke(number, NODE_LOST)
            return
        devices = driver.state.sharing.devices(number)
        if devices.gpus < 1 and chance("outgrows", number) < self.outgrows and epoch == 2:
            driver.report(number, Outgrown("no room"))
            return
        height = chance("height", sorted(trial.params.items()))
        value = height * (1 - math.exp(-0.4 * epoch)) + 0.01 * chance(number, epoch)
        reported = result(epoch, value, val_loss=2 - value, peak=int(3e8 * (1 + height)))
        if driver.report(number, Epoch(dataclasses.replace(reported, scores={self.score: value}))) == Stop():
            driver.released(number)

    def run(self):
        while self.step():
            pass
        return self.book.events


GPUS = Nodes(gpu_memory=16 * 2**30, gpus=8, cores_per_gpu=6, cores=12, count=2)
