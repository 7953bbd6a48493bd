"""What a Vision Transformer costs, in closed form, before anything is built."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vit_search.spec.config import ModelConfig

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """Figures of one configuration."""

    params: int
    """Trained parameters, exact."""
    tokens: int
    """Length of the encoder's sequence, class token included."""
    train_bytes: int
    """Memory of one training step in float32: weights, gradients, AdamW's two moments, and what the backward pass keeps of
    a batch. An estimate from the layers' inputs, outputs and dropout masks; it leaves out the allocator's slack."""


def cost_of(config: ModelConfig, batch_size: int) -> Cost:
    """Cost of a model trained with batches of `batch_size` images."""
    dim, inner, width, tokens = config.dim, config.heads * config.head_width, config.mlp_width, config.tokens
    block = 4 * dim  # two LayerNorms
    block += (dim + config.qkv_bias) * 3 * inner + (inner + 1) * dim
    block += (dim + 1) * width + (width + 1) * dim
    block += 2 * dim * (config.layer_scale is not None)
    params = (config.in_channels * config.patch_size**2 + 1) * dim + config.depth * block
    params += dim * (config.pool == "cls") + tokens * dim * (config.positions == "learned")
    params += 2 * dim * (config.norm == "pre") + (dim + 1) * config.num_classes
    kept = config.depth * tokens * (6 * dim + 4 * inner + 2 * width) * FLOAT_BYTES  # per image
    return Cost(params=params, tokens=tokens, train_bytes=4 * FLOAT_BYTES * params + batch_size * kept)


def memory_of_this_machine() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_units(count: int) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
