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
from vit_search.config.tuning import FULL, Tuning

Device = Literal["cpu", "cuda"]
FLOAT_BYTES = 4
WORKSPACES = 72 * 2**20
"""Bytes that cuBLAS takes on a GPU for the forward and for the backward pass, on Hopper 32 MiB each; with what else is small, the
peaks of 13 trainings on an H100 were 1.02 to 1.06 of `train_bytes` (tests/benchmarks/gpu_memory.py)."""


@dataclass(frozen=True)
class Cost:
    """Figures of one configuration."""

    params: int
    """Parameters of the model as it is served, exact."""
    trained_params: int
    """Those that are trained, exact; with LoRA its own in the place of those that they are added to."""
    tokens: int
    """Length of the encoder's sequence, class token and registers included."""
    forward_flops: int
    """Floating-point operations of matrix products to classify one image, a multiply and an add being two."""
    train_flops: int
    """The same for forward and backward; a fused attention kernel computes its scores again, and neither pixels nor what comes out of
    frozen parts need a gradient."""
    kept_bytes: int
    """Activations that the backward pass keeps, of a whole batch, with the casts of the weights where a step is in half precision."""
    weight_bytes: int
    """The weights of the model in training."""
    optimizer_bytes: int
    """What the optimizer keeps from step to step."""
    train_bytes: int
    """Peak of a training step: weights, what the optimizer keeps, and the largest of all gradients, of what the batch keeps, and of what
    passes through frozen parts; on a GPU with the workspaces of its libraries. The allocator's slack and the process's context are left
    out."""


def cost_of(
    config: ModelConfig, batch_size: int, optimizer: str = "adamw", tuning: Tuning = FULL, *, device: Device = "cpu", half: bool = False
) -> Cost:
    """Cost of a model trained with batches of `batch_size` images.

    Args:
        config: the model.
        batch_size: images in memory at once: a micro-batch where gradients are accumulated.
        optimizer: a key of OPTIMIZERS.
        tuning: what of the model is trained.
        device: CUDA's dropout keeps a byte per value and drops attention weights without storing them; the CPU's does not.
        half: forward in autocast to bfloat16 or float16, with float32 weights.
    """
    params = _params(config)
    trained, hidden = _trained(config, tuning)
    weights = FLOAT_BYTES * (params + config.depth * _adapters(config, tuning))
    kept = batch_size * _kept(config, tuning, device, half) + (FLOAT_BYTES // 2) * half * _casts(config, tuning)
    passing = batch_size * config.tokens * config.mlp_width * (2 if half else FLOAT_BYTES)  # the gradient of the widest layer
    passing *= 2 if config.activation == "swiglu" else 1  # of its product's two factors
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
    """Inputs and outputs of each linear layer of a block, in the order in which they run."""
    dim, inner, width = config.dim, config.heads * config.head_width, config.mlp_width
    gate = {"gate": (dim, width)} if config.activation == "swiglu" else {}
    return {"qkv": (dim, 3 * inner), "projection": (inner, dim), **gate, "up": (dim, width), "down": (width, dim)}


def _matrices(config: ModelConfig) -> int:
    """Weights of linear layers, without biases."""
    return _embedding(config) + config.depth * _block_matrices(config) + config.dim * config.num_classes


def _embedding(config: ModelConfig) -> int:
    """The same of the first layer."""
    return config.in_channels * config.patch_size**2 * config.dim


def _block_matrices(config: ModelConfig) -> int:
    """The same of one block."""
    return sum(into * out for into, out in _layers(config).values())


def mlp_layers(config: ModelConfig) -> int:
    """Linear layers of an MLP."""
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
    """LoRA's own weights in a block."""
    return sum(tuning.lora_rank * sum(shape) for name, shape in _layers(config).items() if tuning.adapts(name))


def merged_weights(config: ModelConfig, tuning: Tuning) -> int:
    """Weights of the matrices to which LoRA adds something: there is a copy of them while a model is evaluated."""
    return config.depth * sum(into * out for name, (into, out) in _layers(config).items() if tuning.adapts(name))


def saved_params(config: ModelConfig, tuning: Tuning) -> int:
    """Weights in a checkpoint. Of a model that starts from pretrained weights, it leaves the frozen blocks out."""
    if not config.pretrained or tuning.tune == "full":
        return _params(config)
    frozen = config.depth if tuning.tune == "lora" else config.depth - tuning.trained_blocks(config.depth)
    return _params(config) - frozen * _block_params(config) + config.depth * _adapters(config, tuning)


def _trained(config: ModelConfig, tuning: Tuning) -> tuple[int, int]:
    """Weights that are trained, and those of them that are in matrices inside blocks."""
    if tuning.tune == "full":
        return _params(config), config.depth * _block_matrices(config)
    if tuning.tune == "lora":
        hidden = config.depth * _adapters(config, tuning)
        return hidden + _head(config), hidden
    blocks = tuning.trained_blocks(config.depth)
    after = _head(config) + _last_norm(config) * (tuning.tune == "last_blocks")
    return blocks * _block_params(config) + after, blocks * _block_matrices(config)


def _stores_weights(config: ModelConfig, device: Device, half: bool) -> bool:
    """Whether attention weights are stored: on a CPU in half precision or with their dropout; else the backward computes them again."""
    return device == "cpu" and (half or bool(config.dropout if config.attention_dropout is None else config.attention_dropout))


def _forward_flops(config: ModelConfig) -> int:
    """To classify one image."""
    return _forward_of_first(config, config.depth) + 2 * config.dim * config.num_classes


def _forward_of_first(config: ModelConfig, blocks: int) -> int:
    """The same of the embedding and of so many blocks."""
    product = 2 * config.tokens**2 * config.heads * config.head_width  # queries with keys, or weights with values
    return 2 * math.prod(config.grid) * _embedding(config) + blocks * (2 * config.tokens * _block_matrices(config) + 2 * product)


def frozen_flops(config: ModelConfig, tuning: Tuning) -> int:
    """The part of `Cost.forward_flops` that frozen parts take. A training that reads their kept output goes without it."""
    parts = tuning.frozen_parts(config.depth)
    return _forward_of_first(config, min(parts - 1, config.depth)) if parts else 0


def _train_flops(config: ModelConfig, tuning: Tuning, stored: bool) -> int:
    """Forward and backward of one image."""
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
    """Of a block that has something to train, and of one image.

    Args:
        first: whether nothing before it is trained, so that its input needs no gradient.
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
    """Weights of which autocast's casts are kept for the backward pass: those of layers whose input needs a gradient."""
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
        kept += tokens * dim * (1 if device == "cuda" else FLOAT_BYTES)  # of float32 values
    blocks = tuning.trained_blocks(config.depth)
    if blocks:
        kept += _kept_of_block(config, tuning, device, half, first=not full)
        kept += (blocks - 1) * _kept_of_block(config, tuning, device, half, first=False)
        kept += tokens * (FLOAT_BYTES * dim + 2 * FLOAT_BYTES) * (config.norm == "pre")
    if config.num_classes:
        view = config.pool == "cls" and not half and blocks > 0  # the class token is a view of all tokens
        kept += size * (tokens * dim if view else dim) + FLOAT_BYTES * config.num_classes
    return kept


def _kept_of_block(config: ModelConfig, tuning: Tuning, device: Device, half: bool, *, first: bool) -> int:
    """The same of a block that has something to train.

    Args:
        first: whether nothing before it is trained, so that its input needs no gradient.
    """
    size, whole = 2 if half else FLOAT_BYTES, tuning.tune != "lora"
    dim, width, tokens = config.dim, config.mlp_width, config.tokens
    reached = whole or not first  # a gradient comes as far as the first norm
    mlp_reached = reached or tuning.adapts("qkv")

    def drop(rate: float | None, values: int) -> int:
        noise = 1 if device == "cuda" else size
        return noise * values * bool(config.dropout if rate is None else rate)

    def used(layer: str) -> bool:  # its input is needed for the gradient of its own weights
        return whole or tuning.adapts(layer)

    norm = tokens * (FLOAT_BYTES * dim + 2 * FLOAT_BYTES)  # its input, mean and deviation; the residual stream is float32
    norms = mlp_reached + (reached if config.norm == "pre" else 1)  # before the branches or after them
    block = norm * norms + size * tokens * dim * (used("qkv") + used("up"))
    if mlp_reached:
        block += _kept_of_attention(config, device, half, used("projection")) + drop(config.projection_dropout, tokens * dim)
    hidden = {"gelu": 1, "relu": 1, "swiglu": 3}[config.activation]  # what goes in, or the factors of a gate
    if used("down") and not (config.activation == "relu" and not drop(config.mlp_dropout, 1)):
        hidden += 1  # what comes out; the derivative of relu is read off it
    block += hidden * size * tokens * width
    block += size * tokens * dim * (half and config.activation == "swiglu" and used("gate"))  # cast for each of two layers
    block += drop(config.mlp_dropout, tokens * (width + dim))
    if config.layer_scale is not None and whole:
        block += 2 * size * tokens * dim
    return block + sum(size * tokens * tuning.lora_rank for name in _layers(config) if tuning.adapts(name))


def _kept_of_attention(config: ModelConfig, device: Device, half: bool, projected: bool) -> int:
    """The same of its attention, with the input of the projection if that is needed."""
    size = 2 if half else FLOAT_BYTES
    inner, tokens = config.heads * config.head_width, config.tokens
    attention_dropped = bool(config.dropout if config.attention_dropout is None else config.attention_dropout)
    changed = config.positions == "rope" or config.qk_norm  # attention gets other queries and keys than the projection gives
    attention = size * tokens * (3 * inner + inner)  # queries, keys, values; what they give
    if config.qk_norm:
        attention += 2 * 2 * FLOAT_BYTES * config.heads * tokens  # means and deviations
        attention += 2 * FLOAT_BYTES * tokens * inner * (half and device == "cuda")  # the norms' inputs, cast
    if not _stores_weights(config, device, half):
        attention += FLOAT_BYTES * config.heads * tokens  # the log of each row's sum
        return attention + 2 * size * tokens * inner * changed
    beside = 2 * size if attention_dropped else size * half  # what dropout draws and what it leaves, or the cast
    attention += (FLOAT_BYTES + beside) * config.heads * tokens * tokens  # softmax is float32
    # one head's queries, keys and values stay in the tensor they came in, beside those that were scaled
    attention += size * tokens * inner * (config.heads == 1) * (1 if half and not changed else 2)
    attention += 3 * size * tokens * inner * (config.qk_norm and config.heads > 1)  # they stay for the norms
    return attention - size * tokens * inner * (not projected)


def _passing_through(config: ModelConfig, device: Device, half: bool) -> int:
    """Bytes of one image that a frozen part holds at once: of its attention or of its MLP, whichever takes more."""
    size, tokens, dim = 2 if half else FLOAT_BYTES, config.tokens, config.dim
    inner = config.heads * config.head_width
    changed = 2 * inner * (config.positions == "rope" or config.qk_norm)
    scores = (size + FLOAT_BYTES + size) * config.heads * tokens**2 * (half and device == "cpu")
    attention = tokens * (2 * FLOAT_BYTES * dim + size * (4 * inner + changed + dim)) + scores
    mlp = tokens * (3 * FLOAT_BYTES * dim + size * (mlp_layers(config) * config.mlp_width + dim * half))
    return max(attention, mlp)


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
