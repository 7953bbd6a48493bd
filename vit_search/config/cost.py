"""What a Vision Transformer costs, in closed form, before anything is built.

Every figure follows the model in vit/model.py layer by layer and is held against it by tests/config/test_model_cost.py: the parameter
count exactly, the FLOPs against torch.utils.flop_counter, the kept bytes against autograd's saved tensors.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit_search.config.model_config import ModelConfig
from vit_search.config.optimizers import OPTIMIZERS

Device = Literal["cpu", "cuda"]
FLOAT_BYTES = 4
WORKSPACES = 72 * 2**20
"""Bytes that cuBLAS takes on a GPU for the forward and for the backward pass, on Hopper 32 MiB each; with what else is small, the
peaks of 13 trainings on an H100 were 1.02 to 1.06 of `train_bytes` (tests/benchmarks/gpu_memory.py)."""


@dataclass(frozen=True)
class Cost:
    """Figures of one configuration."""

    params: int
    """Trained parameters, exact."""
    tokens: int
    """Length of the encoder's sequence, class token and registers included."""
    forward_flops: int
    """Floating-point operations of matrix products for one image, a multiply and an add being two."""
    train_flops: int
    """The same for forward and backward; a fused attention kernel computes its scores again, and pixels need no gradient."""
    kept_bytes: int
    """Activations that the backward pass keeps, of a whole batch, with the casts of the weights where a step is in half precision."""
    optimizer_bytes: int
    """What the optimizer keeps from step to step."""
    train_bytes: int
    """Peak of a training step: weights, what the optimizer keeps, and the larger of all gradients and of what the batch keeps; on a GPU
    with the workspaces of its libraries. The allocator's slack and the process's context are left out."""


def cost_of(config: ModelConfig, batch_size: int, optimizer: str = "adamw", *, device: Device = "cpu", half: bool = False) -> Cost:
    """Cost of a model trained with batches of `batch_size` images.

    Args:
        config: the model.
        batch_size: images in memory at once: a micro-batch where gradients are accumulated.
        optimizer: a key of OPTIMIZERS.
        device: CUDA's dropout keeps a byte per value and drops attention weights without storing them; the CPU's does not.
        half: forward in autocast to bfloat16 or float16, with float32 weights.
    """
    params = _params(config)
    forward, train = _flops(config, _stores_weights(config, device, half))
    kept = batch_size * _kept(config, device, half)
    if half:  # autocast keeps a cast of each matrix but the first, whose input needs no gradient
        kept += (FLOAT_BYTES // 2) * (_matrices(config) - config.in_channels * config.patch_size**2 * config.dim)
    passing = batch_size * config.tokens * config.mlp_width * (2 if half else FLOAT_BYTES)  # the gradient of the widest layer
    passing *= 2 if config.activation == "swiglu" else 1  # of its product's two factors
    weights = gradients = FLOAT_BYTES * params
    memory, hidden = OPTIMIZERS[optimizer], config.depth * _block_matrices(config)
    kept_by_optimizer = FLOAT_BYTES * (memory.hidden * hidden + memory.others * (params - hidden))
    return Cost(
        params=params,
        tokens=config.tokens,
        forward_flops=forward,
        train_flops=train,
        kept_bytes=kept,
        optimizer_bytes=kept_by_optimizer,
        train_bytes=weights + kept_by_optimizer + max(gradients, kept + passing) + (WORKSPACES if device == "cuda" else 0),
    )


def _matrices(config: ModelConfig) -> int:
    """Weights of linear layers, without biases."""
    dim = config.dim
    return config.in_channels * config.patch_size**2 * dim + config.depth * _block_matrices(config) + dim * config.num_classes


def _block_matrices(config: ModelConfig) -> int:
    """The same of one block."""
    return 4 * config.dim * config.heads * config.head_width + mlp_layers(config) * config.dim * config.mlp_width


def mlp_layers(config: ModelConfig) -> int:
    """Linear layers of an MLP."""
    return 3 if config.activation == "swiglu" else 2


def _params(config: ModelConfig) -> int:
    dim, inner, width = config.dim, config.heads * config.head_width, config.mlp_width
    block = 4 * dim  # two LayerNorms
    block += 3 * inner * config.qkv_bias + dim + (mlp_layers(config) - 1) * width + dim  # biases
    block += 2 * dim * (config.layer_scale is not None) + 4 * config.head_width * config.qk_norm
    params = _matrices(config) + dim + config.depth * block
    params += dim * config.prefix + config.placed * dim * (config.positions == "learned")
    return params + 2 * dim * (config.norm == "pre") + config.num_classes


def _stores_weights(config: ModelConfig, device: Device, half: bool) -> bool:
    """Whether attention weights are stored: on a CPU in half precision or with their dropout; else the backward computes them again."""
    return device == "cpu" and (half or bool(config.dropout if config.attention_dropout is None else config.attention_dropout))


def _flops(config: ModelConfig, stored: bool) -> tuple[int, int]:
    """Forward, and forward with backward, for one image."""
    dim, inner, width, tokens = config.dim, config.heads * config.head_width, config.mlp_width, config.tokens
    patches = math.prod(config.grid)
    embed = 2 * patches * config.in_channels * config.patch_size**2 * dim
    linear = config.depth * 2 * tokens * (4 * dim * inner + mlp_layers(config) * dim * width) + 2 * dim * config.num_classes
    product = config.depth * 2 * tokens * tokens * inner  # queries with keys, or weights with values
    return embed + linear + 2 * product, 2 * embed + 3 * linear + (2 + (4 if stored else 5)) * product


def _kept(config: ModelConfig, device: Device, half: bool) -> int:
    """Bytes of activations that autograd keeps for one image."""
    size = 2 if half else FLOAT_BYTES
    noise = 1 if device == "cuda" else size  # of dropout, a value
    dim, inner, width, tokens = config.dim, config.heads * config.head_width, config.mlp_width, config.tokens
    patches = math.prod(config.grid)

    def drop(rate: float | None, values: int) -> int:
        return noise * values * bool(config.dropout if rate is None else rate)

    norm = tokens * (FLOAT_BYTES * dim + 2 * FLOAT_BYTES)  # its input, mean and deviation; the residual stream is float32
    attention_dropped = bool(config.dropout if config.attention_dropout is None else config.attention_dropout)
    attention = size * tokens * (3 * inner + inner)  # queries, keys, values; what they give
    changed = config.positions == "rope" or config.qk_norm  # attention gets other queries and keys than the projection gives
    if config.qk_norm:
        attention += 2 * 2 * FLOAT_BYTES * config.heads * tokens  # means and deviations
        attention += 2 * FLOAT_BYTES * tokens * inner * (half and device == "cuda")  # the norms' inputs, cast
    if _stores_weights(config, device, half):
        beside = 2 * size if attention_dropped else size * half  # what dropout draws and what it leaves, or the cast
        attention += (FLOAT_BYTES + beside) * config.heads * tokens * tokens  # softmax is float32
        # one head's queries, keys and values stay in the tensor they came in, beside those that were scaled
        attention += size * tokens * inner * (config.heads == 1) * (1 if half and not changed else 2)
        attention += 3 * size * tokens * inner * (config.qk_norm and config.heads > 1)  # they stay for the norms
    else:
        attention += FLOAT_BYTES * config.heads * tokens  # the log of each row's sum
        attention += 2 * size * tokens * inner * changed
    hidden = 4 if config.activation == "swiglu" else 2  # before and after the activation; the factor of a gate, and the product
    if config.activation == "relu" and not drop(config.mlp_dropout, 1):
        hidden = 1  # its derivative is read off its own output
    block = 2 * norm + 2 * size * tokens * dim + attention + hidden * size * tokens * width
    block += size * tokens * dim * (half and config.activation == "swiglu")  # the input is cast for each of two layers
    block += drop(config.projection_dropout, tokens * dim) + drop(config.mlp_dropout, tokens * (dim + width))
    if config.layer_scale is not None:
        block += 2 * size * tokens * dim
    kept = size * patches * config.in_channels * config.patch_size**2
    kept += drop(config.embedding_dropout, tokens * dim) * (1 if device == "cuda" else FLOAT_BYTES // size)  # of float32 values
    kept += config.depth * block + norm * (config.norm == "pre")
    if config.num_classes:
        pooled = tokens * dim if config.pool == "cls" and not half else dim  # the class token is a view of all tokens
        kept += size * pooled + FLOAT_BYTES * config.num_classes
    return kept


def memory_of_this_machine() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpus_of_this_machine() -> int:
    """Cores that a Ray of our own counts here."""
    return os.cpu_count() or 1


def gpus_of_this_machine(devices: Path = Path("/dev")) -> int | None:
    """NVIDIA GPUs that a process sees here, told by their device files; None where others may be there that have no such files."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len([path for path in devices.glob("nvidia*") if re.fullmatch("nvidia[0-9]+", path.name)])
    if not there and any((devices / name).exists() for name in ("kfd", "dxg")):  # AMD's, and those of a Linux inside Windows
        return None
    return there if shown is None else min(there, len([name for name in shown.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]))


def in_time(seconds: float) -> str:
    """Seconds in hours and minutes, or in minutes and seconds where they are few."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def in_rounded_time(seconds: float) -> str:
    """An estimate of seconds in two digits, of hours, minutes or seconds: `2,800 h`, `4.3 min`, `0.52 s`."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        value = float(f"{seconds / size:.2g}")
        if value >= 1 or unit == "s":
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    raise AssertionError


def in_units(count: int) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
