"""The state file: which version the replicas serve. The process that follows the registry writes it, the replicas read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

STATE = "state.json"


@dataclass(frozen=True)
class Version:
    """A version that has passed, as the cache holds it."""

    name: str
    """`NAME/3`."""
    weights_sha256: str
    golden: str
    folder: str
    """Of its checkpoint."""
    created: int
    """When it was registered: a registry that was created again may use a number again."""
    files_sha256: str = ""
    """As the registry records it; see tracking/model_files.py. Empty where it does not."""

    @property
    def tags(self) -> dict[str, str]:
        """What model_files.check holds its files against."""
        recorded = {"weights_sha256": self.weights_sha256, "files_sha256": self.files_sha256}
        return {key: value for key, value in recorded.items() if value}


@dataclass(frozen=True)
class ServingState:
    """What the state file holds."""

    version: Version
    alias: str
    alias_names: str | None
    """`NAME/4` where the alias names another version than the one served; None where it names none."""
    seen: float
    """Unix time at which the registry last told what the alias names."""
    stale_since: float | None = None
    """Unix time since when the registry has been away; None while it answers."""
    failed: str = ""
    """Why the version that the alias names was not taken."""
    failures: int = 0
    """How often a version was not taken."""
    draining: bool = False


def read_state(path: Path) -> ServingState:
    """Read what alias_follower.AliasFollower wrote."""
    content = json.loads(path.read_text())
    return ServingState(**content | {"version": Version(**content["version"])})


def moment(seconds: float | None) -> str | None:
    """A Unix time as ISO 8601, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
