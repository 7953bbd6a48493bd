"""What happened in a search, in order: an append-only file from which the search is rebuilt after any death.

One event per line as JSON, each with a checksum, written twice: to `ledger.jsonl` and then to `ledger.copy.jsonl`. A line
that a crash cut off at the end is dropped; a file damaged before its end is mended from the other, and where both are,
the search is refused, never begun anew. Proposals, rungs, MLflow's record and the leaderboard all follow from these events.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from vit_search.config.distributions import Value
from vit_search.config.strict_json import LARGEST, Count, Moment, build, parse
from vit_search.config.trial import EpochResult
from vit_search.errors import SearchError
from vit_search.files import open_to_write, write_whole

Outcome = Literal["completed", "stopped", "diverged", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A driver took the search up, for the first time or again."""

    host: str
    pid: int
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A trial got its number and its parameters."""

    trial: Count
    params: dict[str, Value]
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """A proposal that cannot be built; it was never run and has no trial number."""

    params: dict[str, Value]
    reason: str
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A trial finished an epoch."""

    trial: Count
    result: EpochResult
    system: dict[str, float] = field(default_factory=dict)
    """What it took of the machine, by MLflow's names, where the search file asks for it; see search/usage.py."""
    devices: Annotated[float, (0, 1e6)] = 0.0
    """GPUs, or cores where it had none, that it held, where the file leaves that to us; else 0."""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class OutgrewShare:
    """A trial did not fit into its share of a GPU; it goes on from its checkpoint with the next larger one."""

    trial: Count
    gpus: Annotated[float, (0, 1e6)]
    """The share."""
    memory: Annotated[int, (0, 2**63)]
    """Bytes that it was allowed."""
    reason: str = ""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Broke:
    """A trial's process died, hung, or lost its node or its storage; search/recovery.py says what is done about it."""

    trial: Count
    reason: str
    again: bool
    """Whether it is tried again, from its last checkpoint."""
    cause: str = ""
    """A key of the table in search/recovery.py; empty in ledgers of versions before 0.3."""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial came to an end; `interrupted` is the one outcome that `resume` takes up again."""

    trial: Count
    outcome: Outcome
    reason: str = ""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Commanded:
    """A person asked for something, and what the driver answered; search/control.py lists them."""

    name: str
    arguments: dict[str, Value]
    answer: str
    by: str
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Left:
    """A driver that came to its own end let the search go; one that was killed leaves none."""

    state: Literal["finished", "stopped", "interrupted", "failed"]
    """As ledger/search_state.py has it."""
    reason: str = ""
    at: Moment = field(default_factory=time.time)


Event = Launched | Proposed | Infeasible | Reported | OutgrewShare | Broke | Ended | Commanded | Left
_KINDS: dict[str, Any] = {
    "launched": Launched,
    "proposed": Proposed,
    "infeasible": Infeasible,
    "reported": Reported,
    "outgrown": OutgrewShare,
    "broke": Broke,
    "ended": Ended,
    "commanded": Commanded,
    "left": Left,
}


@dataclass
class Trial:
    """One trial as the ledger knows it."""

    number: int
    params: dict[str, Value]
    results: list[EpochResult] = field(default_factory=list)
    outcome: Outcome | Literal["running", "held", "waiting"] = "running"
    """While it has no end, the ledger says running; search_state.py tells whether it is held by a pause, or waits for a place."""
    reason: str = ""
    breakdowns: list[str] = field(default_factory=list)
    """Why its process broke down, each time."""
    began: float = 0.0
    ended: float | None = None
    weighed_seconds: float = 0.0
    """Of training and evaluation, each epoch's times the devices that it held, as far as its events say so."""

    def device_seconds(self, devices: float | None) -> float:
        """Of training and evaluation, times the devices: as many as every trial holds, or None where each has its own."""
        return self.weighed_seconds if devices is None else devices * sum(result.seconds for result in self.results)

    @property
    def over(self) -> bool:
        """Whether no resume will go on with it."""
        return self.outcome not in ("running", "held", "waiting", "interrupted")

    def best_value(self, metric: str, mode: str) -> float | None:
        """The metric at its best epoch; None where it never was a number."""
        values = [value for result in self.results if (value := result.value(metric)) is not None and math.isfinite(value)]
        return (max(values) if mode == "max" else min(values)) if values else None

    def value(self, metric: str) -> float | None:
        """The metric at the last epoch; None before the first, or where it is not a number."""
        value = self.results[-1].value(metric) if self.results else None
        return None if value is None or not math.isfinite(value) else float(value)


@dataclass
class Spent:
    """What a search has cost so far, folded from its events."""

    epochs: int = 0
    """Trained, of all trials."""
    trial_seconds: float = 0.0
    """Of training and evaluation, all trials together."""
    stopped_seconds: float = 0.0
    """The part of it that went into trials stopped early."""
    saved_seconds: float = 0.0
    """What those of them that a stopping rule ended would have taken on top, at their own pace."""
    saved_epochs: int = 0
    """Epochs that those trials did not train. What a person or a limit cut short saves nothing."""
    wall_seconds: float = 0.0
    """While a driver was at work; the time between a death and a resume does not count."""
    weighed_seconds: float = 0.0
    """As a trial's, of all trials together."""
    _last: float | None = None

    @property
    def saved_share(self) -> float:
        """Of all epochs that would have been trained without stopping, those saved; in [0, 1]."""
        whole = self.epochs + self.saved_epochs
        return self.saved_epochs / whole if whole else 0.0

    def device_seconds(self, devices: float | None) -> float:
        """As a trial's, of all trials together."""
        return self.weighed_seconds if devices is None else devices * self.trial_seconds

    def take(self, event: Event, trials: Mapping[int, Trial], full: int) -> None:
        """Add one more event, after `trials` has taken it; `full` is the number of epochs of a full training."""
        if self._last is not None and not isinstance(event, Launched):
            self.wall_seconds += max(0.0, event.at - self._last)  # a clock may be set back
        self._last = event.at
        if isinstance(event, Reported):
            self.epochs += 1
            self.trial_seconds += event.result.seconds
            self.weighed_seconds += event.result.seconds * event.devices
        elif isinstance(event, Ended) and event.outcome == "stopped":
            results = trials[event.trial].results
            own = sum(result.seconds for result in results)
            self.stopped_seconds += own
            if not event.reason:  # by a rule; a person's word and a limit come with a reason
                self.saved_seconds += own / max(len(results), 1) * (full - len(results))
                self.saved_epochs += full - len(results)


@dataclass
class Progress:
    """What the events of a ledger come to: its trials by their numbers, and what they cost."""

    epochs: int
    """Of a full training, to count what stopping saved."""
    trials: dict[int, Trial] = field(default_factory=dict)
    unfinished: dict[int, None] = field(default_factory=dict)
    """Numbers of those that are not over, ascending."""
    spent: Spent = field(default_factory=Spent)

    @staticmethod
    def of(events: Iterable[Event], epochs: int) -> Progress:
        """Of all of them."""
        progress = Progress(epochs)
        for event in events:
            progress.apply(event)
        return progress

    def apply(self, event: Event) -> None:
        """Take in one more event."""
        if isinstance(event, Proposed):
            self.trials[event.trial] = Trial(event.trial, event.params, began=event.at)
            self.unfinished[event.trial] = None
        elif isinstance(event, Reported):
            trial = self.trials[event.trial]
            trial.results.append(event.result)
            trial.weighed_seconds += event.result.seconds * event.devices
            trial.outcome = "running"
        elif isinstance(event, Broke):
            self.trials[event.trial].breakdowns.append(event.reason)
        elif isinstance(event, Ended):
            trial = self.trials[event.trial]
            trial.outcome, trial.reason, trial.ended = event.outcome, event.reason, event.at
            if trial.over:
                self.unfinished.pop(event.trial, None)
        self.spent.take(event, self.trials, self.epochs)


class Ledger:
    """The file `ledger.jsonl` of one search and its copy, held by one driver at a time; any thread may append.

    Args:
        path: of the file; made where it is missing.
    Raises: SearchError when another driver holds it, or both files are damaged before their end.
    """

    def __init__(self, path: Path) -> None:
        self.folder, self._path = path.parent, path
        self._file: IO[bytes] = open_to_write(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise _taken(path) from None
        self.listeners: list[Callable[[Event], None]] = []
        """Told of each event, in this order, once it is written."""
        self._lock = threading.RLock()
        lines = _sound_lines(path)
        self.events = _decoded(path, lines)
        whole = b"".join(lines)
        if not _holds(_copy_of(path), whole):
            write_whole(_copy_of(path), whole)
        if not _holds(path, whole):  # after the copy is whole: a crash in here loses nothing
            self._file.truncate(0)
            self._file.write(whole)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._copy: IO[bytes] = open_to_write(_copy_of(path), "ab")

    def append(self, event: Event) -> None:
        """Write an event and tell the listeners.

        Raises: SearchError when the disk is full or the file cannot be written.
        """
        with self._lock:
            line = _encode(event)
            try:
                self._file.write(line)
                self._file.flush()
                if not isinstance(event, Reported):
                    os.fsync(self._file.fileno())
                self._copy.write(line)
                self._copy.flush()
            except OSError as error:
                raise SearchError(
                    f"{self._path}: cannot be written ({error.strerror}); make room, then `vit-search resume {self._path.parent.name}`."
                ) from None
            self.events.append(event)
            for listener in self.listeners:
                listener(event)

    def sync(self) -> None:
        """Have the disk hold all that was appended: what others are told next, a loss of power must not take back."""
        for file in (self._file, self._copy):
            with contextlib.suppress(OSError, ValueError):  # of a full disk, which `append` says; of a ledger just closed
                os.fsync(file.fileno())

    def close(self) -> None:
        """Let go of the file, so that another driver may take it."""
        for file in (self._file, self._copy):
            with contextlib.suppress(OSError):  # of a full disk: what could not be written was said when it happened
                file.close()


def read_events(path: Path) -> list[Event]:
    """All that is known of a search. Any process may ask at any time.

    Raises: SearchError when the file is missing, or damaged before its end like its copy.
    """
    if not path.exists() and not _copy_of(path).exists():
        raise SearchError(f"{path}: missing; {path.parent} is not the folder of a search.")
    return _decoded(path, _sound_lines(path))


def changed(events: Iterable[Event]) -> dict[str, Any]:
    """What commands have set since a search began, by the names of search/control.py's Settings."""
    found: dict[str, Any] = {}
    for event in events:
        if isinstance(event, Commanded) and event.name == "set":
            found |= event.arguments
    return found


def read_trials(path: Path) -> list[Trial]:
    """The trials of a search, running or over, in the order of their numbers; otherwise as `read_events`."""
    return list(Progress.of(read_events(path), epochs=0).trials.values())


def held(path: Path) -> bool:
    """Whether a driver runs this search at this moment."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def check_free(path: Path) -> None:
    """Raises: SearchError when a driver runs this search at this moment."""
    if held(path):
        raise _taken(path)


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


def kept(trials: Iterable[Trial], metric: str, mode: str, count: int) -> set[int]:
    """Of trials that are over, those whose checkpoints are worth their disk: the first `count` of the leaderboard."""
    sound = [trial for trial in trials if trial.outcome not in ("diverged", "failed")]
    return {trial.number for trial in ranked(sound, metric, mode)[:count]}


def front(points: Mapping[int, Sequence[float]], modes: Sequence[str]) -> set[int]:
    """The Pareto front: those points that no other beats in one respect without losing in another."""
    signs = [1.0 if mode == "max" else -1.0 for mode in modes]
    scores = {number: [sign * value for sign, value in zip(signs, point, strict=True)] for number, point in points.items()}
    found: dict[int, list[float]] = {}
    for number, own in sorted(scores.items(), key=lambda item: item[1], reverse=True):  # whoever beats a point comes before it
        if not any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in found.values()):
            found[number] = own
    return set(found)


def best(trials: Iterable[Trial], metric: str, mode: str) -> Trial | None:
    """The first of the leaderboard, where it has a value at all and did not fail."""
    first = next(iter(ranked(trials, metric, mode)), None)
    return first if first and first.value(metric) is not None and first.outcome not in ("diverged", "failed") else None


def _encode(event: Event) -> bytes:
    kind = next(name for name, made in _KINDS.items() if isinstance(event, made))
    body = json.dumps({"event": kind, **asdict(event)}, separators=(",", ":"))
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def _decoded(path: Path, lines: Sequence[bytes]) -> list[Event]:
    """The events of a ledger's lines, each of which can follow those before.

    Raises: SearchError that names the line.
    """
    events: list[Event] = []
    proposed: set[int] = set()
    for number, line in enumerate(lines, 1):
        try:
            event = _decode(line)
            if isinstance(event, Proposed):
                proposed.add(event.trial)
            elif isinstance(event, Reported | OutgrewShare | Broke | Ended) and event.trial not in proposed:
                raise ValueError(f"trial: {event.trial} was not proposed before")
        except (ValueError, RecursionError) as error:
            raise SearchError(f"{path}:{number}: {error or 'too many brackets'}; restore the file from a copy.") from None
        events.append(event)
    return events


def _decode(line: bytes) -> Event:
    """Raises: ValueError for what is no event of this version."""
    values = parse(line.partition(b" ")[2])
    name = values.pop("event", None) if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"event {name!r:.60}: unknown here; use the version of vit_search that wrote it")
    event: Event = build(_KINDS[name], values)
    if isinstance(event, Commanded) and event.name == "set":
        build(_Changes, event.arguments, "arguments")
    return event


@dataclass(frozen=True)
class _Changes:
    """What the command `set` may name; search/control.py's Settings."""

    trials: Annotated[int, (1, 10**9)] = 1
    concurrency: Annotated[int, (1, 10**6)] = 1
    hours: Annotated[float, (0, 1e9)] = 1
    device_hours: Annotated[float, (0, 1e9)] = 1
    target: Annotated[float, (-LARGEST, LARGEST)] = 1
    patience: Annotated[int, (1, 10**9)] = 1


def _copy_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.copy{path.suffix}")


def _sound_lines(path: Path) -> list[bytes]:
    """The lines of the ledger, or of its copy where that has more of them."""
    lines, damaged = _prefix(path)
    more, other = _prefix(_copy_of(path))
    if len(more) > len(lines):
        lines, damaged = more, other and damaged
    if damaged:
        raise SearchError(f"{path}:{damaged}: this line is damaged and others follow it; restore the file from a copy.")
    return lines


def _prefix(path: Path) -> tuple[list[bytes], int]:
    """The sound lines up to the first that is not, and the number of that one where others follow it, else 0."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines):
        checksum, _, body = line.partition(b" ")
        if not line.endswith(b"\n") or b"%08x" % zlib.crc32(body[:-1]) != checksum:
            return lines[:number], number + 1 if number + 1 < len(lines) else 0
    return lines, 0


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.stat().st_size == len(content) and path.read_bytes() == content


def _taken(path: Path) -> SearchError:
    return SearchError(f"{path.parent}: {_holder(path)} is running this search; wait for it or stop it.")


def _holder(path: Path) -> str:
    """Who runs this search."""
    last = [event for event in read_events(path) if isinstance(event, Launched)][-1:]
    return f"process {last[0].pid} on {last[0].host}" if last else "another vit-search"
