"""The events of a search, and how each is written as one line of its ledger.

Every line is JSON behind a checksum. Field names and the names in `_KINDS` are the file's format: never rename them.
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
    """What it took of the machine, by MLflow's names, where the search file asks for it; see search/resource_usage.py."""
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


def changed_settings(events: Iterable[Event]) -> dict[str, Any]:
    """What commands have set since a search began, by the names of search/control.py's Settings."""
    settings: dict[str, Any] = {}
    for event in events:
        if isinstance(event, Commanded) and event.name == "set":
            settings |= event.arguments
    return settings


def encode(event: Event) -> bytes:
    """One line of the ledger: the checksum, a space, JSON, a newline."""
    name = next(name for name, kind in _KINDS.items() if isinstance(event, kind))
    body = json.dumps({"event": name, **asdict(event)}, separators=(",", ":"))
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def decode(line: bytes) -> Event:
    """The event of a line that `encode` wrote.

    Raises: ValueError when this version knows no such event.
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
    """What the command `set` may name; search/control.py's Settings."""

    trials: Annotated[int, (1, 10**9)] = 1
    concurrency: Annotated[int, (1, 10**6)] = 1
    hours: Annotated[float, (0, 1e9)] = 1
    device_hours: Annotated[float, (0, 1e9)] = 1
    target: Annotated[float, (-LARGEST, LARGEST)] = 1
    patience: Annotated[int, (1, 10**9)] = 1
