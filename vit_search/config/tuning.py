"""Which weights of a model are trained: the ways of tuning that a search file may name, without torch. vit/tuning.py does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WAYS = ("head", "last_blocks", "lora", "full")
"""By `training.tune` of a search file, from the cheapest to the most expensive."""

LORA_LAYERS: dict[str, tuple[str, ...]] = {
    "attention": ("qkv", "projection"),
    "mlp": ("up", "gate", "down"),
    "all": ("qkv", "projection", "up", "gate", "down"),
}
"""The linear layers of each block that LoRA adapts, by `training.lora_layers`."""

FIELDS = ("tune", "tuned_blocks", "lora_rank", "lora_layers")
"""Fields of TrainingConfig that decide which weights are trained, and so what a training costs."""


@dataclass(frozen=True)
class Tuning:
    """What of a model is trained. The fields are those of TrainingConfig."""

    tune: str = "full"
    tuned_blocks: int = 1
    lora_rank: int = 8
    lora_layers: str = "attention"

    @staticmethod
    def of(values: Mapping[str, Any]) -> Tuning:
        """From the values of a proposal, which may have others, too."""
        return Tuning(**{name: values[name] for name in FIELDS})

    def frozen_parts(self, depth: int) -> int:
        """How many parts at the start of a model are frozen. The embedding is one, each block is one, and so is the last norm."""
        return {"full": 0, "lora": 1, "last_blocks": 1 + depth - self.tuned_blocks, "head": depth + 2}[self.tune]

    def trained_blocks(self, depth: int) -> int:
        """How many blocks have something to train."""
        return {"full": depth, "lora": depth, "last_blocks": self.tuned_blocks, "head": 0}[self.tune]

    def adapts(self, layer: str) -> bool:
        """Whether LoRA adapts a linear layer of the blocks."""
        return self.tune == "lora" and layer in LORA_LAYERS[self.lora_layers]


FULL = Tuning()


def tuning_problem(tuning: Tuning, depth: int, dim: int) -> str | None:
    """Why a model cannot be tuned so, in one line, or None."""
    if tuning.tune == "last_blocks" and tuning.tuned_blocks > depth:
        return f"tuned_blocks: {tuning.tuned_blocks} is more than depth={depth}; choose at most {depth}, or tune: full."
    if tuning.tune == "lora" and tuning.lora_rank > dim:
        return f"lora_rank: {tuning.lora_rank} is more than dim={dim}; choose at most {dim}."
    return None
