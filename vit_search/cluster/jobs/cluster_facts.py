"""What is measured of a cluster: its nodes, their versions, its storage and its MLflow."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vit_search.runtime.ray_session import Shape

PACKAGES = ("vit_search", "ray", "torch", "mlflow", "optuna")
"""Whose versions decide what a trial computes, or whether nodes understand each other."""


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
    """Bytes that Ray may hand out."""
    trouble: str = ""
    """Why it told nothing of itself; what follows is then unknown."""
    free_memory: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    """What is wrong with the shared storage as this node sees it."""
    cache: str = ""
    """What is wrong with the data cache."""
    data: str = ""
    """What is wrong with the images that a search file names."""
    skew_s: float = 0.0
    """How far its clock is ahead of the head's."""
    skew_error_s: float = 0.0
    """Half of the time that asking took."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was measured of a cluster."""

    storage: str
    cache: str
    mlflow: str
    """The tracking URI of drivers, without a password."""
    mlflow_problem: str
    nodes: list[Node]
    types: list[Shape]
    """What an autoscaler may add."""
    kept_s: float | None
    """Seconds since the keeper last looked after the searches; None where it never has."""
    search: dict[str, Any] | None = None
    """How a search that is in the storage stands; None where it is not."""

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Facts:
        """The inverse of `dataclasses.asdict`."""
        nodes = [Node(**node) for node in values["nodes"]]
        return Facts(**{**values, "nodes": nodes, "types": [Shape(**shape) for shape in values["types"]]})

    @property
    def head(self) -> Node:
        """The node that drivers run on."""
        return next(node for node in self.nodes if node.head)


def own_versions() -> dict[str, str]:
    """Of Python and of what a search is made of, in this process's environment."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions
