"""Calculates what a Vision Transformer costs (parameters, FLOPs, memory) from its configuration, without building it.

The formulas follow vit/model.py layer by layer. tests/config/test_model_cost.py compares the results with the real model: parameters
exactly, FLOPs with torch.utils.flop_counter, kept bytes with the tensors that autograd saves.
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
from vit_search.config.tuning import FULL, Tuning

Device = Literal["cpu", "cuda"]
FLOAT_BYTES = 4
WORKSPACES = 72 * 2**20
"""GPU memory for cuBLAS (on Hopper, 32 MiB each for the forward and the backward pass) and for small things, in bytes.

Measured peaks of 13 trainings on an H100 were 1.02 to 1.06 times `train_bytes` (tests/benchmarks/gpu_memory.py).
"""


@dataclass(frozen=True)
class Cost:
    """The cost of one configuration."""

    params: int
    """Parameters of the served model, exact."""
    trained_params: int
    """Trained parameters, exact. With LoRA, its own parameters count, not those that it corrects."""
    tokens: int
    """Length of the encoder's sequence, with class token and registers."""
    forward_flops: int
    """Floating-point operations of matrix products to classify one image. A multiply and an add count as two."""
    train_flops: int
    """Floating-point operations of the forward and the backward pass for one image. A fused attention kernel computes its scores again.
    Pixels and the output of frozen parts need no gradient."""
    kept_bytes: int
    """Activations of a whole batch that are kept for the backward pass. In half precision, also the weights that were cast."""
    weight_bytes: int
    """The weights of the model in training."""
    optimizer_bytes: int
    """The state of the optimizer."""
    train_bytes: int
    """Peak of a training step: weights, optimizer state, and the largest of three: all gradients; the kept activations with the largest
    gradient of an activation; the activations inside a frozen part. On a GPU, also WORKSPACES. It does not include memory that the
    allocator reserves beyond this, or the context of the process."""


def cost_of(
    config: ModelConfig, batch_size: int, optimizer: str = "adamw", tuning: Tuning = FULL, *, device: Device = "cpu", half: bool = False
) -> Cost:
    """The cost of a model and its training.

    Args:
        config: of the model.
        batch_size: images in memory at the same time: those of a micro-batch.
        optimizer: a key of OPTIMIZERS.
        tuning: which weights are trained.
        device: dropout keeps one byte per value on CUDA, and attention dropout keeps no weights. On a CPU, both keep more.
        half: whether the forward pass runs in autocast to bfloat16 or float16. Weights stay float32.
    """
    params = _params(config)
    trained, hidden = _trained(config, tuning)
    weights = FLOAT_BYTES * (params + config.depth * _adapters(config, tuning))
    kept = batch_size * _kept(config, tuning, device, half) + (FLOAT_BYTES // 2) * half * _casts(config, tuning)
    passing = batch_size * config.tokens * config.mlp_width * (2 if half else FLOAT_BYTES)  # the gradient of the widest activation
    passing *= 2 if config.activation == "swiglu" else 1  # of both factors of its product
    through = batch_size * _passing_through(config, device, half) if tuning.frozen_parts(config.depth) else 0
    memory = OPTIMIZERS[optimizer]
    kept_by_optimizer = FLOAT_BYTES * (memory.hidden * hidden + memory.others * (trained - hidden))
    peak = max(FLOAT_BYTES * trained, kept + passing * (tuning.tune != "head"), through)
    return Cost(
        params=params,
        trained_params=trained,
        tokens=config.tokens,
        forward_flops=_forward_flops(config),
        train_flops=_train_flops(config, tuning, _stores_weights(config, device, half)),
        kept_bytes=kept,
        weight_bytes=weights,
        optimizer_bytes=kept_by_optimizer,
        train_bytes=weights + kept_by_optimizer + peak + (WORKSPACES if device == "cuda" else 0),
    )


def _layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of each linear layer of a block, in the order in which they run."""
    dim, inner, width = config.dim, config.heads * config.head_width, config.mlp_width
    gate = {"gate": (dim, width)} if config.activation == "swiglu" else {}
    return {"qkv": (dim, 3 * inner), "projection": (inner, dim), **gate, "up": (dim, width), "down": (width, dim)}


def _matrices(config: ModelConfig) -> int:
    """Number of weights of all linear layers, without biases."""
    return _embedding(config) + config.depth * _block_matrices(config) + config.dim * config.num_classes


def _embedding(config: ModelConfig) -> int:
    """Number of weights of the patch embedding, without biases."""
    return config.in_channels * config.patch_size**2 * config.dim


def _block_matrices(config: ModelConfig) -> int:
    """Number of weights of the linear layers of one block, without biases."""
    return sum(into * out for into, out in _layers(config).values())


def mlp_layers(config: ModelConfig) -> int:
    """Number of linear layers of an MLP."""
    return 3 if config.activation == "swiglu" else 2


def _block_params(config: ModelConfig) -> int:
    dim, inner, width = config.dim, config.heads * config.head_width, config.mlp_width
    block = _block_matrices(config) + 4 * dim  # two LayerNorms
    block += 3 * inner * config.qkv_bias + dim + (mlp_layers(config) - 1) * width + dim  # biases
    return block + 2 * dim * (config.layer_scale is not None) + 4 * config.head_width * config.qk_norm


def _params(config: ModelConfig) -> int:
    dim = config.dim
    params = _embedding(config) + dim + config.depth * _block_params(config)
    params += dim * config.prefix + config.placed * dim * (config.positions == "learned")
    return params + _last_norm(config) + _head(config)


def _last_norm(config: ModelConfig) -> int:
    return 2 * config.dim * (config.norm == "pre")


def _head(config: ModelConfig) -> int:
    return (config.dim + 1) * config.num_classes


def _adapters(config: ModelConfig, tuning: Tuning) -> int:
    """Number of LoRA's own weights in one block."""
    return sum(tuning.lora_rank * sum(shape) for name, shape in _layers(config).items() if tuning.adapts(name))


def merged_weights(config: ModelConfig, tuning: Tuning) -> int:
    """Number of weights of the matrices that LoRA corrects. Evaluation needs memory for a merged copy of them."""
    return config.depth * sum(into * out for name, (into, out) in _layers(config).items() if tuning.adapts(name))


def saved_params(config: ModelConfig, tuning: Tuning) -> int:
    """Number of weights in a checkpoint. It leaves out frozen blocks that come from pretrained weights."""
    if not config.pretrained or tuning.tune == "full":
        return _params(config)
    frozen = config.depth if tuning.tune == "lora" else config.depth - tuning.trained_blocks(config.depth)
    return _params(config) - frozen * _block_params(config) + config.depth * _adapters(config, tuning)


def _trained(config: ModelConfig, tuning: Tuning) -> tuple[int, int]:
    """Number of trained weights, and how many of them are in matrices of the blocks."""
    if tuning.tune == "full":
        return _params(config), config.depth * _block_matrices(config)
    if tuning.tune == "lora":
        hidden = config.depth * _adapters(config, tuning)
        return hidden + _head(config), hidden
    blocks = tuning.trained_blocks(config.depth)
    after = _head(config) + _last_norm(config) * (tuning.tune == "last_blocks")
    return blocks * _block_params(config) + after, blocks * _block_matrices(config)


def _stores_weights(config: ModelConfig, device: Device, half: bool) -> bool:
    """Whether attention weights are stored: on a CPU, in half precision or with their dropout. Else the backward pass recomputes them."""
    return device == "cpu" and (half or bool(config.dropout if config.attention_dropout is None else config.attention_dropout))


def _forward_flops(config: ModelConfig) -> int:
    """FLOPs to classify one image."""
    return _forward_of_first(config, config.depth) + 2 * config.dim * config.num_classes


def _forward_of_first(config: ModelConfig, blocks: int) -> int:
    """FLOPs of the embedding and the first `blocks` blocks for one image."""
    product = 2 * config.tokens**2 * config.heads * config.head_width  # queries and keys, or attention weights and values
    return 2 * math.prod(config.grid) * _embedding(config) + blocks * (2 * config.tokens * _block_matrices(config) + 2 * product)


def frozen_flops(config: ModelConfig, tuning: Tuning) -> int:
    """The part of `Cost.forward_flops` that frozen parts take. A training on features saves it."""
    parts = tuning.frozen_parts(config.depth)
    return _forward_of_first(config, min(parts - 1, config.depth)) if parts else 0


def _train_flops(config: ModelConfig, tuning: Tuning, stored: bool) -> int:
    """FLOPs of the forward and the backward pass for one image."""
    flops = _forward_flops(config) + config.depth * 2 * config.tokens * _adapters(config, tuning)
    if tuning.tune == "full":
        flops += 2 * math.prod(config.grid) * _embedding(config)
    flops += 2 * config.dim * config.num_classes * (1 if tuning.tune == "head" else 2)
    blocks = tuning.trained_blocks(config.depth)
    if blocks:
        flops += _backward_flops(config, tuning, stored, first=tuning.tune != "full")
        flops += (blocks - 1) * _backward_flops(config, tuning, stored, first=False)
    return flops


def _backward_flops(config: ModelConfig, tuning: Tuning, stored: bool, *, first: bool) -> int:
    """FLOPs of the backward pass for one image, in a block with trained weights.

    Args:
        first: whether no weight before this block is trained, so that its input needs no gradient.
    """
    tokens, rank, whole = config.tokens, tuning.lora_rank, tuning.tune != "lora"
    flops, reached = 0, not first or (whole and config.norm == "pre")  # whether the input of the next layer needs a gradient
    mlp_reached = reached or whole or tuning.adapts("qkv")
    for name, (into, out) in _layers(config).items():
        reached = mlp_reached if name in ("gate", "up") else reached
        flops += 2 * tokens * into * out * (whole + reached)
        if tuning.adapts(name):
            flops += 2 * tokens * rank * (into + out + out + into * reached)
        reached = reached or whole or tuning.adapts(name)
        if name == "qkv":
            flops += 2 * tokens**2 * config.heads * config.head_width * (4 if stored else 5) * reached
    return flops


def _casts(config: ModelConfig, tuning: Tuning) -> int:
    """Number of weights whose casts (of autocast) are kept for the backward pass: those of layers whose input needs a gradient."""
    if tuning.tune == "full":
        return _matrices(config) - _embedding(config)
    if tuning.tune == "head":
        return 0
    layers, blocks = _layers(config), tuning.trained_blocks(config.depth)
    casts = blocks * _block_matrices(config) + config.dim * config.num_classes
    if tuning.tune == "last_blocks":
        return casts - math.prod(layers["qkv"]) * (config.norm == "post")
    unreached = ("qkv",) if tuning.adapts("qkv") else ("qkv", "projection", "gate", "up")
    lost = [name for name in layers if name in unreached]
    rank = tuning.lora_rank
    return (
        casts
        + blocks * _adapters(config, tuning)
        - sum(math.prod(layers[name]) + rank * layers[name][0] * tuning.adapts(name) for name in lost)
    )


def _kept(config: ModelConfig, tuning: Tuning, device: Device, half: bool) -> int:
    """Bytes of activations that autograd keeps for one image."""
    size, full = 2 if half else FLOAT_BYTES, tuning.tune == "full"
    dim, tokens = config.dim, config.tokens
    kept = size * math.prod(config.grid) * config.in_channels * config.patch_size**2 * full
    if full and (config.dropout if config.embedding_dropout is None else config.embedding_dropout):
        kept += tokens * dim * (1 if device == "cuda" else FLOAT_BYTES)  # the tokens are float32
    blocks = tuning.trained_blocks(config.depth)
    if blocks:
        kept += _kept_of_block(config, tuning, device, half, first=not full)
        kept += (blocks - 1) * _kept_of_block(config, tuning, device, half, first=False)
        kept += tokens * (FLOAT_BYTES * dim + 2 * FLOAT_BYTES) * (config.norm == "pre")
    if config.num_classes:
        view = config.pool == "cls" and not half and blocks > 0  # the class token is a view, which keeps all tokens
        kept += size * (tokens * dim if view else dim) + FLOAT_BYTES * config.num_classes
    return kept


def _kept_of_block(config: ModelConfig, tuning: Tuning, device: Device, half: bool, *, first: bool) -> int:
    """Bytes of activations that autograd keeps for one image, in a block with trained weights.

    Args:
        first: whether no weight before this block is trained, so that its input needs no gradient.
    """
    size, whole = 2 if half else FLOAT_BYTES, tuning.tune != "lora"
    dim, width, tokens = config.dim, config.mlp_width, config.tokens
    reached = whole or not first  # whether the first norm gets a gradient
    mlp_reached = reached or tuning.adapts("qkv")

    def drop(rate: float | None, values: int) -> int:
        noise = 1 if device == "cuda" else size
        return noise * values * bool(config.dropout if rate is None else rate)

    def used(layer: str) -> bool:  # whether the gradient of its own weights needs its input
        return whole or tuning.adapts(layer)

    norm = tokens * (FLOAT_BYTES * dim + 2 * FLOAT_BYTES)  # its input (the residual stream, float32), mean and deviation
    norms = mlp_reached + (reached if config.norm == "pre" else 1)  # before the branches or after them
    block = norm * norms + size * tokens * dim * (used("qkv") + used("up"))
    if mlp_reached:
        block += _kept_of_attention(config, device, half, used("projection")) + drop(config.projection_dropout, tokens * dim)
    hidden = {"gelu": 1, "relu": 1, "swiglu": 3}[config.activation]  # input of the activation; with swiglu, also both factors
    if used("down") and not (config.activation == "relu" and not drop(config.mlp_dropout, 1)):
        hidden += 1  # output of the activation; that of relu is enough for its derivative
    block += hidden * size * tokens * width
    block += size * tokens * dim * (half and config.activation == "swiglu" and used("gate"))  # the input is cast for each of two layers
    block += drop(config.mlp_dropout, tokens * (width + dim))
    if config.layer_scale is not None and whole:
        block += 2 * size * tokens * dim
    return block + sum(size * tokens * tuning.lora_rank for name in _layers(config) if tuning.adapts(name))


def _kept_of_attention(config: ModelConfig, device: Device, half: bool, projected: bool) -> int:
    """Bytes that autograd keeps for one image in the attention of a block.

    Args:
        projected: whether the input of the projection is needed.
    """
    size = 2 if half else FLOAT_BYTES
    inner, tokens = config.heads * config.head_width, config.tokens
    attention_dropped = bool(config.dropout if config.attention_dropout is None else config.attention_dropout)
    changed = config.positions == "rope" or config.qk_norm  # RoPE and qk_norm make new queries and keys
    attention = size * tokens * (3 * inner + inner)  # queries, keys and values; the output
    if config.qk_norm:
        attention += 2 * 2 * FLOAT_BYTES * config.heads * tokens  # means and deviations
        attention += 2 * FLOAT_BYTES * tokens * inner * (half and device == "cuda")  # the inputs of the norms, cast
    if not _stores_weights(config, device, half):
        attention += FLOAT_BYTES * config.heads * tokens  # the log-sum-exp of each row
        return attention + 2 * size * tokens * inner * changed
    beside = 2 * size if attention_dropped else size * half  # noise and output of dropout, or the cast
    attention += (FLOAT_BYTES + beside) * config.heads * tokens * tokens  # softmax is float32
    # with one head, queries, keys and values keep the tensor of which they are a part, besides their scaled copies
    attention += size * tokens * inner * (config.heads == 1) * (1 if half and not changed else 2)
    attention += 3 * size * tokens * inner * (config.qk_norm and config.heads > 1)  # the norms keep their inputs
    return attention - size * tokens * inner * (not projected)


def _passing_through(config: ModelConfig, device: Device, half: bool) -> int:
    """Bytes that a frozen block needs for one image: in its attention or in its MLP, whichever needs more."""
    size, tokens, dim = 2 if half else FLOAT_BYTES, config.tokens, config.dim
    inner = config.heads * config.head_width
    changed = 2 * inner * (config.positions == "rope" or config.qk_norm)
    scores = (size + FLOAT_BYTES + size) * config.heads * tokens**2 * (half and device == "cpu")
    attention = tokens * (2 * FLOAT_BYTES * dim + size * (4 * inner + changed + dim)) + scores
    mlp = tokens * (3 * FLOAT_BYTES * dim + size * (mlp_layers(config) * config.mlp_width + dim * half))
    return max(attention, mlp)


def memory_of_this_machine() -> int:
    """Main memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpus_of_this_machine() -> int:
    """Number of CPU cores that our own Ray finds on this machine."""
    return os.cpu_count() or 1


def gpus_of_this_machine(devices: Path = Path("/dev")) -> int | None:
    """Number of NVIDIA GPUs that this process can use, from their device files. None if there may be GPUs without such files."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len([path for path in devices.glob("nvidia*") if re.fullmatch("nvidia[0-9]+", path.name)])
    if not there and any((devices / name).exists() for name in ("kfd", "dxg")):  # AMD GPUs, and GPUs in WSL (Linux inside Windows)
        return None
    return there if shown is None else min(there, len([name for name in shown.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]))


def in_time(seconds: float) -> str:
    """Format seconds: `2 h 05 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def in_rounded_time(seconds: float) -> str:
    """Format an estimate in seconds with two digits: `2,800 h`, `4.3 min` or `0.52 s`."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        value = float(f"{seconds / size:.2g}")
        if value >= 1 or unit == "s":
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    raise AssertionError


def in_units(count: int) -> str:
    """Format bytes in GiB, or in MiB below 1 GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
