"""The learning rate of each step."""

from __future__ import annotations

import math

from vit_search.config.training_config import TrainingConfig


def lr_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Learning rate of a step, counted from 0: linear warm-up to the peak, then half a cosine to 0 at `steps`."""
    warmup = round(steps * config.warmup_fraction)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
