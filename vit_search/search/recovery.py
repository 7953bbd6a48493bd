"""What is done about a trial that broke down: whose fault it was, whether it is tried again, and where.

| cause | what it is | tried again |
|---|---|---|
| own | its process died, or hung and was ended | MAX_RETRIES times |
| memory | its process was ended for lack of memory | counted with the above, with half the micro-batch |
| node | its node was lost, preempted, or cut off | MAX_LOSSES times: nobody's fault, but a trial may kill its node |
| storage | its node could not write the search's folder, or does not see it | MAX_MOVES times; then the search ends, to be resumed |

A trial that hung, or could not write, is tried on another node, where there is one that is fit for it. A trial on a node that is about
to be taken away goes to another one after its epoch. The driver does both (driver.py).
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
"""How often a trial whose process dies is taken up from its checkpoint."""

MAX_LOSSES = 20
"""The same for one that loses its node."""

MAX_MOVES = 2
"""The same for one whose storage fails it: where three nodes cannot write, it is not the nodes."""

MEMORY_SIGNS = ("OutOfMemoryError", "low on memory")
"""By which Ray's message tells that its memory monitor has ended a worker."""

NODE_SIGNS = ("node has died", "node was terminated", "by preemption", "node preemption", "is unavailable", "node is dead")
"""By which it tells that a node is lost, or out of reach, with all that ran there."""

STORAGE_SIGN = "StorageError: "
"""By which a trial's own message tells that its node's storage failed it."""

START_S = 600.0
"""Seconds that a trial may take to its first report at least: it imports torch, and may be the first to read its images."""

SILENT_S = 60.0
"""Seconds that it may be silent at least after that, however short its epochs are."""

Cause = Literal["own", "memory", "node", "storage"]


def cause_of(error: str) -> Cause:
    """What broke a trial down, from what Ray says of it."""
    if STORAGE_SIGN in error:
        return "storage"
    if any(sign in error for sign in MEMORY_SIGNS):
        return "memory"
    return "node" if any(sign in error for sign in NODE_SIGNS) else "own"


def in_words(error: str) -> str:
    """Why a trial broke down, for a person."""
    cause = cause_of(error)
    if cause == "storage":
        return error.rpartition(STORAGE_SIGN)[2].splitlines()[0]
    if cause == "memory":
        return "its worker process was ended for lack of memory"
    if cause == "node":
        return "its node was lost"
    return "its worker process died" if not error or "actor died" in error or "actor is dead" in error else error.splitlines()[-1]


class Recovery:
    """How often each trial broke down, and whether it is tried once more."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}

    def apply(self, event: Event) -> None:
        """Take in one more event. With a new driver, storage that failed counts no more: somebody has mended it."""
        if isinstance(event, Broke):
            self._counts.setdefault(event.trial, Counter())[event.cause] += 1
        elif isinstance(event, Launched):
            for counts in self._counts.values():
                counts["storage"] = 0

    def halvings(self, trial: int) -> int:
        """How often a trial's micro-batch is halved: once, where a lack of memory ended it."""
        return min(1, self._counts.get(trial, Counter())["memory"])

    def tries_again(self, trial: int, cause: Cause) -> bool:
        """Whether a trial that breaks down for this cause now is tried again."""
        counts = self._counts.get(trial, Counter()) + Counter([cause])
        if cause == "storage":
            return counts["storage"] <= MAX_MOVES
        return counts["own"] + counts["memory"] <= MAX_RETRIES and counts["node"] <= MAX_LOSSES

    def given_up_because(self, trial: int, reason: str) -> str:
        """Why a trial that broke down is not tried again, for a person; empty where its storage failed, which ends the search instead."""
        counts = self._counts.get(trial, Counter())
        if counts["own"] + counts["memory"] > MAX_RETRIES:
            return f"{reason} (after {MAX_RETRIES} retries)"
        return f"{reason}, {counted(counts['node'], 'time')}" if counts["node"] > MAX_LOSSES else ""


def nodes_to_avoid(needed: Mapping[str, float], avoided: Collection[str], living: Mapping[str, Mapping[str, float]]) -> frozenset[str]:
    """The nodes of `avoided` that a trial is to be kept off; none where no other node has what it needs.

    Args:
        needed: amounts by the names of Ray's resources. living: the same of each node, by its id.
    """
    fit = [node for node, has in living.items() if all(has.get(name, 0) >= amount for name, amount in needed.items())]
    named = frozenset(avoided) - {""}
    return named if any(node not in named for node in fit) else frozenset()


class Patience:
    """How long a trial may be silent before it is taken for hung.

    Args:
        most_s: seconds that no trial may exceed.
        epochs: how many of its own longest epochs it may be silent for; before its first report, of the longest that is to be
            expected for its FLOPs from the trials so far.
    """

    def __init__(self, most_s: float, epochs: int) -> None:
        self._most_s, self._epochs = most_s, epochs
        self._heard: dict[int, float] = {}
        self._reported: set[int] = set()
        self._flops: dict[int, float] = {}
        self._longest: dict[int, float] = {}
        self._most_took = self._most_per_flop = 0.0

    def start(self, number: int, flops: float, now: float) -> None:
        """A trial's process begins; `flops` are those of its training, in whatever unit."""
        self._heard[number], self._flops[number] = now, flops
        self._reported.discard(number)

    def hear(self, number: int, now: float, seconds: float | None) -> None:
        """It has reported an epoch that took so many seconds by its own clock; None for any other sign of life."""
        if seconds is not None:
            since = now - self._heard[number] if number in self._reported and number in self._heard else 0.0
            took = self._longest[number] = max(self._longest.get(number, 0.0), seconds, since)
            self._most_took = max(self._most_took, took)
            self._most_per_flop = max(self._most_per_flop, took / self._flops[number])
            self._reported.add(number)
        self._heard[number] = now

    def forget(self, number: int) -> None:
        """It is over, held, or waits for its next try."""
        self._heard.pop(number, None)

    def limit(self, number: int) -> float:
        """Seconds of silence that are too many."""
        if number in self._reported:
            return min(self._most_s, max(SILENT_S, self._epochs * self._longest[number]))
        expected = max(self._most_took, self._most_per_flop * self._flops[number])
        return min(self._most_s, max(START_S, self._epochs * expected))

    def silent(self, now: float) -> dict[int, float]:
        """Who has been silent for too long, and for how many seconds."""
        return {number: now - heard for number, heard in self._heard.items() if now - heard > self.limit(number)}


def node_of(folder: Path) -> str:
    """Ray's id of the node that took a trial up last; empty where that cannot be read."""
    with contextlib.suppress(OSError):
        return (folder / "owner").read_text().rpartition(" ")[2]
    return ""
