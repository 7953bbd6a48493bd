"""The optimizers that a search file may name, with the memory and the settings that each uses. vit/optimizers.py makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OptimizerFacts:
    """What is known about an optimizer without torch."""

    hidden: int
    """float32 values that it keeps for each weight of a matrix in an encoder block."""
    others: int
    """float32 values that it keeps for each other weight."""
    uses: tuple[str, ...]
    """Fields of TrainingConfig that this optimizer uses and others do not. `lint` warns if a search varies a field without effect."""


OPTIMIZERS: dict[str, OptimizerFacts] = {
    "adamw": OptimizerFacts(hidden=2, others=2, uses=("beta2",)),
    "sgd": OptimizerFacts(hidden=1, others=1, uses=("momentum",)),
    "muon": OptimizerFacts(hidden=1, others=2, uses=("momentum", "beta2")),
}
"""Facts by `training.optimizer` of a search file."""


def used_by(field: str) -> list[str]:
    """Optimizers that use a field of TrainingConfig; empty if the field has nothing to do with the optimizer."""
    return [name for name, optimizer in OPTIMIZERS.items() if field in optimizer.uses]
