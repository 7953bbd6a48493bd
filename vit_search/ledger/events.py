"""The events of a search, and how each becomes one line of the ledger.

A line is a checksum followed by JSON. The fields' names and the names in `_KINDS` are the file format: never rename them.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from vit_search.config.distributions import Value
from vit_search.config.strict_json import LARGEST, Count, Moment, build, parse
from vit_search.config.trial import EpochResult

Outcome = Literal["completed", "stopped", "diverged", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A driver started with the search, for the first time or again."""

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
    """A proposal that cannot be built. It is never run and gets no trial number."""

    params: dict[str, Value]
    reason: str
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A trial finished an epoch."""

    trial: Count
    result: EpochResult
    system: dict[str, float] = field(default_factory=dict)
    """Its use of the machine, by MLflow's names, if the search file asks for it; see search/resource_usage.py."""
    devices: Annotated[float, (0, 1e6)] = 0.0
    """With `auto` resources: the GPUs it held, or its cores if it had no GPU. Otherwise 0."""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class OutgrewShare:
    """A trial did not fit into its share of a GPU. It continues from its checkpoint with the next larger share."""

    trial: Count
    gpus: Annotated[float, (0, 1e6)]
    """The share that was too small."""
    memory: Annotated[int, (0, 2**63)]
    """Bytes that the share allowed."""
    reason: str = ""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Broke:
    """A trial's process died, hung, or lost its node or its storage. search/recovery.py decides what happens next."""

    trial: Count
    reason: str
    again: bool
    """Whether it is tried again from its last checkpoint."""
    cause: str = ""
    """A key of the table in search/recovery.py. Empty in ledgers of versions before 0.3."""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial has ended. `resume` continues it only if the outcome is `interrupted`."""

    trial: Count
    outcome: Outcome
    reason: str = ""
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Commanded:
    """A person's command and the driver's answer; search/commands.py lists the commands."""

    name: str
    arguments: dict[str, Value]
    answer: str
    by: str
    at: Moment = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Left:
    """A driver ended by itself. A driver that was killed leaves no such event."""

    state: Literal["finished", "stopped", "interrupted", "failed"]
    """A key of WORDS in ledger/search_state.py."""
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


def changed_settings(events: Iterable[Event]) -> dict[str, Any]:
    """All settings that the command `set` has changed, by the names in Settings of search/commands.py."""
    settings: dict[str, Any] = {}
    for event in events:
        if isinstance(event, Commanded) and event.name == "set":
            settings |= event.arguments
    return settings


def encode(event: Event) -> bytes:
    """An event as one line of the ledger: checksum, space, JSON, newline."""
    name = next(name for name, kind in _KINDS.items() if isinstance(event, kind))
    body = json.dumps({"event": name, **asdict(event)}, separators=(",", ":"))
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def decode(line: bytes) -> Event:
    """The inverse of `encode`: the event in a line.

    Raises: ValueError if this version does not know the event.
    """
    values = parse(line.partition(b" ")[2])
    name = values.pop("event", None) if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"event {name!r:.60}: unknown here; use the version of vit_search that wrote it")
    event: Event = build(_KINDS[name], values)
    if isinstance(event, Commanded) and event.name == "set":
        build(ChangedSettings, event.arguments, "arguments")
    return event


@dataclass(frozen=True)
class ChangedSettings:
    """The values that the command `set` may have; see Settings of search/commands.py."""

    trials: Annotated[int, (1, 10**9)] = 1
    concurrency: Annotated[int, (1, 10**6)] = 1
    hours: Annotated[float, (0, 1e9)] = 1
    device_hours: Annotated[float, (0, 1e9)] = 1
    target: Annotated[float, (-LARGEST, LARGEST)] = 1
    patience: Annotated[int, (1, 10**9)] = 1
