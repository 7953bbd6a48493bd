"""What happens to a trial that broke down: is it tried again, how often, and where?

| Cause | What happened | Retries |
|---|---|---|
| own | its process died, or hung and was killed | MAX_RETRIES |
| memory | its process was killed for lack of memory | counted together with `own`; the retry uses half the micro-batch |
| node | its node was lost, preempted or cut off | MAX_LOSSES. It is rarely the trial's fault, but a trial can crash its node |
| storage | its node could not write the search's folder, or does not see it | MAX_MOVES. Then the search ends and can be resumed |

A trial that hung, or could not write, is retried on another node if another one fits. A trial whose node is about to be removed moves after
its current epoch. The driver does both (driver.py).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from vit_search.ledger.events import Broke, Event, Launched
from vit_search.text import counted

MAX_RETRIES = 3
"""Retries after a trial's process died."""

MAX_LOSSES = 20
"""Retries after a trial's node was lost."""

MAX_MOVES = 2
"""Retries on another node after a trial could not write. If three nodes cannot write, the storage is broken, not the nodes."""

MEMORY_SIGNS = ("OutOfMemoryError", "low on memory")
"""Parts of Ray's message if its memory monitor killed the worker."""

NODE_SIGNS = ("node has died", "node was terminated", "by preemption", "node preemption", "is unavailable", "node is dead")
"""Parts of Ray's message if the node was lost or cut off."""

STORAGE_SIGN = "StorageError: "
"""Part of a trial's own message if its node could not use the storage."""

START_S = 600.0
"""Seconds for which every trial may be silent before its first report. It must import torch, and perhaps read its images."""

SILENT_S = 60.0
"""Seconds for which every trial may be silent after its first report, even if its epochs are short."""

Cause = Literal["own", "memory", "node", "storage"]


def cause_of(error: str) -> Cause:
    """Why a trial broke down, according to Ray's message."""
    if STORAGE_SIGN in error:
        return "storage"
    if any(sign in error for sign in MEMORY_SIGNS):
        return "memory"
    return "node" if any(sign in error for sign in NODE_SIGNS) else "own"


def in_words(error: str) -> str:
    """Why a trial broke down, in words for people."""
    cause = cause_of(error)
    if cause == "storage":
        return error.rpartition(STORAGE_SIGN)[2].splitlines()[0]
    if cause == "memory":
        return "its worker process was ended for lack of memory"
    if cause == "node":
        return "its node was lost"
    return "its worker process died" if not error or "actor died" in error or "actor is dead" in error else error.splitlines()[-1]


class Recovery:
    """Counts how often each trial broke down, and decides whether it is tried again."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}

    def apply(self, event: Event) -> None:
        """Apply one event. A new driver forgets the failures of storage: somebody has repaired it."""
        if isinstance(event, Broke):
            self._counts.setdefault(event.trial, Counter())[event.cause] += 1
        elif isinstance(event, Launched):
            for counts in self._counts.values():
                counts["storage"] = 0

    def halvings(self, trial: int) -> int:
        """How often to halve a trial's micro-batch: once, if its process was killed for lack of memory."""
        return min(1, self._counts.get(trial, Counter())["memory"])

    def tries_again(self, trial: int, cause: Cause) -> bool:
        """Whether a trial that now breaks down for this cause is tried again."""
        counts = self._counts.get(trial, Counter()) + Counter([cause])
        if cause == "storage":
            return counts["storage"] <= MAX_MOVES
        return counts["own"] + counts["memory"] <= MAX_RETRIES and counts["node"] <= MAX_LOSSES

    def given_up_because(self, trial: int, reason: str) -> str:
        """Why a trial is not tried again, in words. Empty if its storage failed: then the search ends instead."""
        counts = self._counts.get(trial, Counter())
        if counts["own"] + counts["memory"] > MAX_RETRIES:
            return f"{reason} (after {MAX_RETRIES} retries)"
        return f"{reason}, {counted(counts['node'], 'time')}" if counts["node"] > MAX_LOSSES else ""


def nodes_to_avoid(needed: Mapping[str, float], avoided: Collection[str], living: Mapping[str, Mapping[str, float]]) -> frozenset[str]:
    """The nodes of `avoided` that a trial must not use. Empty if no other node has the resources.

    Args:
        needed: amounts by Ray's resource names. living: the same for each living node, by node id.
    """
    fit = [node for node, has in living.items() if all(has.get(name, 0) >= amount for name, amount in needed.items())]
    named = frozenset(avoided) - {""}
    return named if any(node not in named for node in fit) else frozenset()


class Patience:
    """Decides how long a trial may be silent before it counts as hanging.

    Args:
        most_s: the limit for every trial, in seconds.
        epochs: how many of its own longest epochs a trial may be silent. Before its first report, an epoch is estimated from its FLOPs and
            the other trials.
    """

    def __init__(self, most_s: float, epochs: int) -> None:
        self._most_s, self._epochs = most_s, epochs
        self._heard: dict[int, float] = {}
        self._reported: set[int] = set()
        self._flops: dict[int, float] = {}
        self._longest: dict[int, float] = {}
        self._most_took = self._most_per_flop = 0.0

    def start(self, number: int, flops: float, now: float) -> None:
        """A trial's process starts. `flops`: of its training, in any unit."""
        self._heard[number], self._flops[number] = now, flops
        self._reported.discard(number)

    def hear(self, number: int, now: float, seconds: float | None) -> None:
        """A trial has reported.

        Args:
            seconds: duration of the epoch by the trial's own clock; None if the report is no epoch.
        """
        if seconds is not None:
            since = now - self._heard[number] if number in self._reported and number in self._heard else 0.0
            took = self._longest[number] = max(self._longest.get(number, 0.0), seconds, since)
            self._most_took = max(self._most_took, took)
            self._most_per_flop = max(self._most_per_flop, took / self._flops[number])
            self._reported.add(number)
        self._heard[number] = now

    def forget(self, number: int) -> None:
        """The trial is over or held, or waits for its next try."""
        self._heard.pop(number, None)

    def limit(self, number: int) -> float:
        """How many seconds a trial may be silent."""
        if number in self._reported:
            return min(self._most_s, max(SILENT_S, self._epochs * self._longest[number]))
        expected = max(self._most_took, self._most_per_flop * self._flops[number])
        return min(self._most_s, max(START_S, self._epochs * expected))

    def silent(self, now: float) -> dict[int, float]:
        """The trials that have been silent for too long, and for how many seconds."""
        return {number: now - heard for number, heard in self._heard.items() if now - heard > self.limit(number)}


def node_of(folder: Path) -> str:
    """Ray's id of the last node that ran a trial; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return (folder / "owner").read_text().rpartition(" ")[2]
    return ""
