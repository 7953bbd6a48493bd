"""What is done about a trial that broke down: whose fault it was, whether it is tried again, and where.

| cause | what it is | tried again |
|---|---|---|
| own | its process died, or hung and was ended | MAX_RETRIES times |
| memory | its process was ended for lack of memory | counted with the above, with half the micro-batch |
| node | its node was lost, preempted, or cut off | MAX_LOSSES times: nobody's fault, but a trial may kill its node |
| storage | its node could not write the search's folder, or does not see it | MAX_MOVES times; then the search ends, to be resumed |

Who hung, or could not write, is tried on another node, where there is one that is fit for it. Who is on a node that is about to be
taken away goes to another one after its epoch.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
from ray.tune import PlacementGroupFactory

from vit_search.errors import ClusterError, SearchError, VitSearchError
from vit_search.spec.numbers import counted
from vit_search.tracking.ledger import Broke

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

WAIT_S = 900.0
"""Seconds that a trial waits for another node where there is none any more."""

NODE_ID = "ray.io/node-id"
"""Ray's label of a node."""

Cause = Literal["own", "memory", "node", "storage"]


def cause_of(error: str) -> Cause:
    """What broke a trial down, from what Ray says of it."""
    if STORAGE_SIGN in error:
        return "storage"
    if any(sign in error for sign in MEMORY_SIGNS):
        return "memory"
    return "node" if any(sign in error for sign in NODE_SIGNS) else "own"


def last_error(trial: Any) -> str:
    """What Tune wrote down when a trial's process failed; its own `get_error` looks where the file is put later."""
    path = Path(trial.error_file or "")
    return path.read_text(encoding="utf-8", errors="replace").rpartition("Failure #")[2].strip() if path.is_file() else ""


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


def nodes() -> dict[str, Mapping[str, float]]:
    """What each living node has, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


@dataclass
class _Past:
    """How often a trial broke down, and which nodes it is kept off."""

    counts: Counter[str] = field(default_factory=Counter)
    avoided: set[str] = field(default_factory=set)
    silent_s: float = 0.0


class Recovery:
    """Decides about each breakdown; Tune itself retries for ever.

    Args:
        give_up: told the number of a trial that is not tried again, and why.
        end: ends the search with an error, so that it can be resumed.
        record: told of each breakdown.
        living: the cluster's nodes.
    """

    def __init__(
        self,
        give_up: Callable[[int, str], None],
        end: Callable[[VitSearchError], None],
        record: Callable[[Broke], None],
        living: Callable[[], Mapping[str, Mapping[str, float]]] = nodes,
    ) -> None:
        self._give_up, self._end, self._record, self._living = give_up, end, record, living
        self._pasts: dict[int, _Past] = {}
        self._waiting: dict[int, tuple[float, PlacementGroupFactory]] = {}

    def started(self, number: int) -> None:
        """A trial's process begins."""
        self._waiting.pop(number, None)

    def look(self, now: float) -> None:
        """End the search where a trial waits in vain for another node than those it is kept off; a resume lets it go anywhere."""
        for number, (since, asked) in self._waiting.items():
            if now - since > WAIT_S and elsewhere(asked, self._past(number).avoided, self._living()) is None:
                kept_off = (
                    f"no node has come for {WAIT_S / 60:.0f} minutes but those that it is kept off, since it hung or could not write there"
                )
                self._end(ClusterError(f"trial {number}: {kept_off}; mend or add a node, then resume the search."))

    def hung(self, number: int, silent_s: float) -> None:
        """A trial's process is about to be ended because nothing was heard of it for so long."""
        self._past(number).silent_s = silent_s

    def broke(self, trial: Any) -> None:
        """Take in a breakdown of Tune's trial and say where it is to be tried next; called before it is queued again."""
        number, error = trial.config["trial"], last_error(trial)
        past, cause, reason = self._past(number), cause_of(error), in_words(error)
        hung, past.silent_s = past.silent_s, 0.0
        if hung and cause != "node":
            cause, reason = "own", f"it hung: not heard of for {hung:.0f} s"
        past.counts[cause] += 1
        if cause == "memory" and trial.config["halvings"] == 0:
            trial.config["halvings"] = 1
        if hung or cause == "storage":
            past.avoided.add(node_of(Path(trial.config["folder"])))
        worn_out, lost = past.counts["own"] + past.counts["memory"] > MAX_RETRIES, past.counts["node"] > MAX_LOSSES
        nowhere = past.counts["storage"] > MAX_MOVES
        self._record(Broke(trial=number, reason=reason, again=not (worn_out or lost or nowhere)))
        if worn_out:
            self._give_up(number, f"{reason} (after {MAX_RETRIES} retries)")
        elif lost:
            self._give_up(number, f"{reason}, {counted(past.counts['node'], 'time')}")
        elif nowhere:
            self._end(SearchError(f"trial {number}: {reason}"))
        asked = trial.placement_group_factory
        other = elsewhere(asked, past.avoided, self._living())
        trial.placement_group_factory = other or PlacementGroupFactory(asked.bundles, asked.strategy)
        if other:
            self._waiting[number] = time.monotonic(), other

    def moves(self, trial: Any, leaving: Collection[str]) -> PlacementGroupFactory | None:
        """Where a trial that has just saved an epoch goes, if its node is one of those that are leaving; None to stay.

        It stays where no other node is fit for it: so it loses an epoch at most.
        """
        if not leaving or node_of(Path(trial.config["folder"])) not in leaving:
            return None
        return elsewhere(trial.placement_group_factory, self._past(trial.config["trial"]).avoided | set(leaving), self._living())

    def _past(self, number: int) -> _Past:
        return self._pasts.setdefault(number, _Past())


def elsewhere(
    asked: PlacementGroupFactory, avoided: Collection[str], living: Mapping[str, Mapping[str, float]]
) -> PlacementGroupFactory | None:
    """The same resources on any other node; None where no node is to be avoided, or no other one has as much."""
    needed, named = asked.required_resources, sorted(set(avoided) - {""})
    fit = [node for node, has in living.items() if all(has.get(name, 0) >= amount for name, amount in needed.items())]
    if not named or all(node in named for node in fit):
        return None
    selector = [{NODE_ID: f"!in({', '.join(named)})"}] * len(asked.bundles)
    return PlacementGroupFactory(asked.bundles, asked.strategy, bundle_label_selector=selector)


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
