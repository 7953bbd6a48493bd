"""The settings of a server: what the user of `vit-search serve` chooses."""

from __future__ import annotations

from dataclasses import dataclass, field

from vit_search.serving.limits import ReplicaLimits

TOKEN = "VIT_SEARCH_SERVE_TOKEN"  # noqa: S105 -- the name of the variable


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """How a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 chooses a free port."""
    replicas: int = 1
    gpus: bool = False
    allow_hosts: tuple[str, ...] = ()
    """Further host names that requests may use; see host_header.py."""
    limits: ReplicaLimits = field(default_factory=ReplicaLimits)
    poll_s: float = 2.0
    """Seconds between two requests to the registry."""
