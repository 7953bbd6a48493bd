"""What happened in a search, in order: an append-only file from which the search is rebuilt after any death.

One event per line as JSON, each with a checksum. A line that a crash cut off at the end is dropped; a damaged line in
the middle is refused, never skipped. Proposals, rungs, MLflow's record and the leaderboard all follow from these events.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from vit_search.errors import SearchError
from vit_search.spec.config import EpochResult
from vit_search.spec.space import Value

Outcome = Literal["completed", "stopped", "diverged", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A trial got its number and its parameters."""

    trial: int
    params: dict[str, Value]
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """A proposal that cannot be built; it was never run and has no trial number."""

    params: dict[str, Value]
    reason: str
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A trial finished an epoch."""

    trial: int
    result: EpochResult
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial came to an end; `interrupted` is the one outcome that `resume` takes up again."""

    trial: int
    outcome: Outcome
    reason: str = ""
    at: float = field(default_factory=time.time)


Event = Proposed | Infeasible | Reported | Ended
_KINDS: dict[str, Any] = {"proposed": Proposed, "infeasible": Infeasible, "reported": Reported, "ended": Ended}


@dataclass
class Trial:
    """One trial as the ledger knows it."""

    number: int
    params: dict[str, Value]
    results: list[EpochResult] = field(default_factory=list)
    outcome: Outcome | Literal["running"] = "running"
    reason: str = ""
    began: float = 0.0
    ended: float | None = None

    @property
    def over(self) -> bool:
        """Whether no resume will go on with it."""
        return self.outcome not in ("running", "interrupted")

    def value(self, metric: str) -> float | None:
        """The metric at the last epoch; None before the first, or where it is not a number."""
        value = getattr(self.results[-1], metric) if self.results else None
        return None if value is None or not math.isfinite(value) else float(value)


class Ledger:
    """The file `ledger.jsonl` of one search, held by one driver at a time.

    Raises: SearchError when another driver holds it, or it is damaged before its end.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise SearchError(f"{path.parent}: another vit-search is running this search; wait for it or stop it.") from None
        self.events: list[Event] = []
        self.trials: dict[int, Trial] = {}
        self.listeners: list[Callable[[Event], None]] = []
        sound = 0
        for event, end in _events(path):
            self._take(event)
            sound = end
        self._file.truncate(sound)  # a line cut off by a crash

    def append(self, event: Event) -> None:
        """Write an event and tell the listeners. An epoch that is already known is dropped: retries report it again."""
        if isinstance(event, Reported) and event.result.epoch <= len(self.trials[event.trial].results):
            return
        self._file.write(_encode(event))
        self._file.flush()
        if not isinstance(event, Reported):
            os.fsync(self._file.fileno())
        self._take(event)
        for listener in self.listeners:
            listener(event)

    def close(self) -> None:
        """Let go of the file, so that another driver may take it."""
        self._file.close()

    def _take(self, event: Event) -> None:
        self.events.append(event)
        fold(self.trials, event)


def fold(trials: dict[int, Trial], event: Event) -> None:
    """Bring the trials up to date with one more event."""
    if isinstance(event, Proposed):
        trials[event.trial] = Trial(event.trial, event.params, began=event.at)
    elif isinstance(event, Reported):
        trial = trials[event.trial]
        trial.results.append(event.result)
        trial.outcome = "running"
    elif isinstance(event, Ended):
        trial = trials[event.trial]
        trial.outcome, trial.reason, trial.ended = event.outcome, event.reason, event.at


def read_trials(path: Path) -> list[Trial]:
    """The trials of a search, running or over, in the order of their numbers. Any process may ask at any time.

    Raises: SearchError when the file is missing or damaged before its end.
    """
    trials: dict[int, Trial] = {}
    for event, _ in _events(path):
        fold(trials, event)
    return list(trials.values())


def trial_folder(search: Path, number: int) -> Path:
    """Where a trial leaves its checkpoint."""
    return search / "trials" / f"{number:04d}"


def ranked(trials: Iterable[Trial], metric: str, mode: str) -> list[Trial]:
    """The leaderboard: trials of full length first, then the others, each by the metric at the last epoch, then by number."""
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: Trial) -> tuple[bool, float, int]:
        value = trial.value(metric)
        lost = value is None or trial.outcome in ("diverged", "failed")
        return trial.outcome != "completed", math.inf if lost else sign * (value or 0.0), trial.number

    return sorted(trials, key=key)


def best(trials: Iterable[Trial], metric: str, mode: str) -> Trial | None:
    """The first of the leaderboard, where it has a value at all and did not fail."""
    first = next(iter(ranked(trials, metric, mode)), None)
    return first if first and first.value(metric) is not None and first.outcome not in ("diverged", "failed") else None


def _encode(event: Event) -> bytes:
    kind = next(name for name, made in _KINDS.items() if isinstance(event, made))
    body = json.dumps({"event": kind, **asdict(event)}, separators=(",", ":"))
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def _events(path: Path) -> Iterator[tuple[Event, int]]:
    """Each sound event with the offset at which its line ends."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        raise SearchError(f"{path}: missing; {path.parent} is not the folder of a search.") from None
    end = 0
    for number, line in enumerate(lines, start=1):
        checksum, _, body = line.partition(b" ")
        if not line.endswith(b"\n") or b"%08x" % zlib.crc32(body[:-1]) != checksum:
            if number == len(lines):
                return
            raise SearchError(f"{path}:{number}: this line is damaged and others follow it; restore the file from a copy.")
        values = json.loads(body)
        kind = _KINDS[values.pop("event")]
        if kind is Reported:
            values["result"] = EpochResult(**values["result"])
        end += len(line)
        yield kind(**values), end
