"""The ways of tuning that a search file can choose: which weights of a model are trained. No torch here; vit/tuning.py applies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IN_WORDS = {
    "head": "the head alone",
    "last_blocks": "the last blocks, the last norm and the head",
    "lora": "the head, and LoRA's corrections of the blocks",
    "full": "all weights",
}
"""The trained weights in words, for each value of `training.tune`."""

WAYS = tuple(IN_WORDS)
"""Values of `training.tune`, from the cheapest to the most expensive."""

LORA_LAYERS: dict[str, tuple[str, ...]] = {
    "attention": ("qkv", "projection"),
    "mlp": ("up", "gate", "down"),
    "all": ("qkv", "projection", "up", "gate", "down"),
}
"""The linear layers of each block that LoRA corrects, for each value of `training.lora_layers`."""

OF_ONE_WAY = {"tuned_blocks": "last_blocks", "lora_rank": "lora", "lora_alpha": "lora", "lora_layers": "lora"}
"""Keys that have an effect with one value of `tune` only, and this value."""

RATES = ("layer_decay", "head_lr_factor")
"""Keys that make some parts learn faster than others. With 1, all parts learn with lr."""

FIELDS = ("tune", "tuned_blocks", "lora_rank", "lora_layers")
"""Fields of TrainingConfig that decide which weights are trained. They change the cost of a training."""


@dataclass(frozen=True)
class Tuning:
    """Which weights of a model are trained. TrainingConfig describes the fields."""

    tune: str = "full"
    tuned_blocks: int = 1
    lora_rank: int = 8
    lora_layers: str = "attention"

    @staticmethod
    def of(values: Mapping[str, Any]) -> Tuning:
        """Make one from the values of a proposal. Other values in it are ignored."""
        return Tuning(**{name: values[name] for name in FIELDS})

    def frozen_parts(self, depth: int) -> int:
        """How many parts at the start of a model are frozen. The embedding, each block and the last norm are one part each."""
        return {"full": 0, "lora": 1, "last_blocks": 1 + depth - self.tuned_blocks, "head": depth + 2}[self.tune]

    def trained_blocks(self, depth: int) -> int:
        """How many blocks have trained weights."""
        return {"full": depth, "lora": depth, "last_blocks": self.tuned_blocks, "head": 0}[self.tune]

    def adapts(self, layer: str) -> bool:
        """Whether LoRA corrects the linear layer of this name in each block."""
        return self.tune == "lora" and layer in LORA_LAYERS[self.lora_layers]


FULL = Tuning()


def tuning_tags(values: Mapping[str, Any]) -> dict[str, str]:
    """MLflow tags that say which weights of a model were trained, and how fast each part learned. Their names are keys of a search file.

    Keys without effect are left out. There are no tags if a model starts from random weights and all of it learns with lr.

    Args:
        values: of all keys of `model` and `training`.
    """
    tune = values["tune"]
    names = [name for name in OF_ONE_WAY if OF_ONE_WAY[name] == tune]
    names += [name for name in RATES if values[name] != 1 and (name, tune) != ("layer_decay", "head")]
    if tune == "full" and not names and not values["pretrained"]:
        return {}
    return {name: f"{values[name]:g}" if isinstance(values[name], float) else str(values[name]) for name in ("tune", *names)}


def tuning_problem(tuning: Tuning, depth: int, dim: int) -> str | None:
    """Why a model of this shape cannot be tuned in this way, in one line. None if it can."""
    if tuning.tune == "last_blocks" and tuning.tuned_blocks > depth:
        return f"tuned_blocks: {tuning.tuned_blocks} is more than depth={depth}; choose at most {depth}, or tune: full."
    if tuning.tune == "lora" and tuning.lora_rank > dim:
        return f"lora_rank: {tuning.lora_rank} is more than dim={dim}; choose at most {dim}."
    return None
