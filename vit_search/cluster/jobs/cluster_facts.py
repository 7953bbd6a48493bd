"""The facts that are measured about a cluster: its nodes, their versions, its storage and its MLflow."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vit_search.runtime.ray_session import Shape

PACKAGES = ("vit_search", "ray", "torch", "mlflow", "optuna")
"""Packages whose versions must agree. They decide what a trial computes, or whether nodes understand each other."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a cluster."""

    name: str
    address: str
    head: bool
    cpus: float
    gpus: float
    accelerator: str
    memory: int
    """Bytes of memory that Ray may use."""
    trouble: str = ""
    """Why the node could not be measured, or empty. If not empty, the fields below are unknown."""
    free_memory: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    """What is wrong with the shared storage, as seen from this node, or empty."""
    cache: str = ""
    """What is wrong with the data cache, or empty."""
    data: str = ""
    """What is wrong with the images that a search file names, or empty."""
    skew_s: float = 0.0
    """How far this node's clock is ahead of the head's."""
    skew_error_s: float = 0.0
    """Uncertainty of `skew_s`: half of the request's time."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that was measured about a cluster."""

    storage: str
    cache: str
    mlflow: str
    """The drivers' tracking URI, without a password."""
    mlflow_problem: str
    nodes: list[Node]
    types: list[Shape]
    """Node types that an autoscaler may add."""
    kept_s: float | None
    """Seconds since the keeper last checked the searches; None if it never has."""
    weights: list[str] = field(default_factory=list)
    """What is wrong with the files of pretrained weights that a search file names, as seen from the head."""
    search: dict[str, Any] | None = None
    """Record and state of the search that was asked for; None if it is not in the storage."""

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Facts:
        """The inverse of `dataclasses.asdict`."""
        nodes = [Node(**node) for node in values["nodes"]]
        return Facts(**{**values, "nodes": nodes, "types": [Shape(**shape) for shape in values["types"]]})

    @property
    def head(self) -> Node:
        """The head, where drivers run."""
        return next(node for node in self.nodes if node.head)


def own_versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES` in this process."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions
