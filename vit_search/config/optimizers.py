"""The optimizers that a search file may name, and the memory that each keeps. vit/optimizers.py makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerMemory:
    """float32 values that an optimizer keeps."""

    hidden: int
    """For each weight of a matrix inside an encoder block."""
    others: int
    """For each other weight."""


OPTIMIZERS: dict[str, OptimizerMemory] = {
    "adamw": OptimizerMemory(hidden=2, others=2),
    "sgd": OptimizerMemory(hidden=1, others=1),
    "muon": OptimizerMemory(hidden=1, others=2),
}
"""By `training.optimizer` of a search file."""
