"""The state file: which version the replicas serve. The process that follows the registry writes it, and the replicas read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

STATE = "state.json"


@dataclass(frozen=True)
class Version:
    """A verified version in the cache."""

    name: str
    """For example `NAME/3`."""
    weights_sha256: str
    golden: str
    folder: str
    """Folder of the checkpoint."""
    created: int
    """When the version was registered. Needed because a registry that was made anew may use a number again."""
    files_sha256: str = ""
    """Checksum from the registry, see tracking/model_files.py; empty if none is recorded."""

    @property
    def tags(self) -> dict[str, str]:
        """The tags with which model_files.check compares the files."""
        recorded = {"weights_sha256": self.weights_sha256, "files_sha256": self.files_sha256}
        return {key: value for key, value in recorded.items() if value}


@dataclass(frozen=True)
class ServingState:
    """The content of the state file."""

    version: Version
    alias: str
    alias_names: str | None
    """The version that the alias, or the user, names now, for example `NAME/4`; None if the alias is gone."""
    seen: float
    """Unix time of the registry's last answer."""
    stale_since: float | None = None
    """Unix time since when the registry is away; None while it answers."""
    failed: str = ""
    """Why the version that the alias names was rejected, or empty."""
    failures: int = 0
    """Number of rejected versions."""
    draining: bool = False


def read_state(path: Path) -> ServingState:
    """Read the state file that alias_follower.AliasFollower wrote."""
    content = json.loads(path.read_text())
    return ServingState(**content | {"version": Version(**content["version"])})


def moment(seconds: float | None) -> str | None:
    """A Unix time as ISO 8601, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
