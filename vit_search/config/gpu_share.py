"""What share of a GPU a trial needs, from its predicted peak memory: shares of which every mix fills a GPU.

The constants are an H100's (tests/benchmarks/gpu_memory.py); search/gpu_sharing.py learns from
each search's own trials what they leave out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vit_search.config import features
from vit_search.config.cost import FLOAT_BYTES, WORKSPACES, cost_of, merged_weights, mlp_layers
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig

STEPS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""The shares. Each is half of the next, so whatever fits leaves no piece that nothing fits into; below the first, what is gained by
one more process is little (tests/benchmarks/packing.py), and each takes a CPU core."""

SMALLEST = STEPS[0]

CONTEXT = 800 * 2**20
"""Bytes of a GPU that a process takes beside its tensors: CUDA's context and the kernels that it has loaded; 621 MiB at the first
tensor, 770 MiB once it has trained."""

MARGIN = 1.25
"""What the allocator may hold, as a multiple of the predicted peak of what it gives out. Peaks were 1.02 to 1.06 of the predicted,
and a training that peaked at 1.06 went through under a limit of 1.2; without one it would hold 1.15 to 2.5."""

TURNS = 6
"""Trials for each place on a GPU, one after another, below which sharing stops to pay: the last ones, beside which others still run,
set the time. Of 1, 2, 4 or 8 to a GPU the best or near it for 12 to 400 trials on 1 to 8 GPUs (tests/benchmarks/packing.py)."""

EVALUATED_AT_ONCE = 512
"""Images of a batch in evaluation on a GPU, unless memory is short."""

COMPUTED_AT_ONCE = 128
"""Images of a batch while features are computed."""

USUAL_MEMORY = 80 * 2**30
"""Bytes of the GPU that is assumed where neither the file nor a cluster says."""


@dataclass(frozen=True)
class Need:
    """Bytes that a trial wants to have of a GPU."""

    training: int
    """Predicted peak of what the allocator gives out, the images of the data set left out."""
    images: int
    """The splits, which lie on the GPU where there is room."""
    features: int = 0
    """The features of a version of the splits, which lie there, too, if there is room beside the images; see config/features.py."""


def training_bytes(model: ModelConfig, training: TrainingConfig) -> int:
    """Peak of training and evaluating on a GPU, as `Need.training`."""
    pixels = model.in_channels * math.prod(model.image_size)
    micro = math.ceil(training.batch_size / training.accumulation)
    cost = cost_of(model, micro, training.optimizer, training.tuning, device="cuda", half=training.precision != "float32")
    average = FLOAT_BYTES * cost.trained_params * (training.ema_decay is not None)
    held = cost.weight_bytes + FLOAT_BYTES * cost.trained_params + cost.optimizer_bytes + average + WORKSPACES  # with gradients
    inputs = 4 * FLOAT_BYTES * training.batch_size * pixels  # the images on their way through augmentation
    graphs = cost.kept_bytes * training.cuda_graphs  # a graph's memory is its own
    inner, width = model.heads * model.head_width, model.mlp_width
    changed = 3 * inner * (model.positions == "rope" or model.qk_norm)  # queries and keys beside those that they are made of
    layers = mlp_layers(model)
    widest = max(4 * model.dim + 4 * inner + changed, 5 * model.dim + layers * width)  # of a token, in the float32 of evaluation
    if features.views_of(model, training) and training.tune == "head":  # the whole model runs while features are computed, and only then
        of_head = 4 * FLOAT_BYTES * max(training.batch_size, EVALUATED_AT_ONCE) * (model.dim + model.num_classes)
        return held + FLOAT_BYTES * COMPUTED_AT_ONCE * (model.tokens * widest + 5 * pixels) + of_head
    evaluation = held + FLOAT_BYTES * EVALUATED_AT_ONCE * (model.tokens * widest + pixels)
    evaluation += FLOAT_BYTES * merged_weights(model, training.tuning)
    return max(cost.train_bytes + average + inputs + graphs, evaluation)


def allowed(share: float, gpu_memory: int) -> int:
    """Bytes that the allocator of a trial with this share may hold; below 0 where even the context does not fit."""
    return int(share * gpu_memory) - CONTEXT


def fraction(share: float, gpu_memory: int) -> float:
    """The same as a part of the GPU's memory, as torch.cuda.set_per_process_memory_fraction wants it; 1 for a whole GPU."""
    return 1.0 if share >= 1 else max(0.0, allowed(share, gpu_memory) / gpu_memory)


def resident(images: int, room: int) -> int:
    """Bytes of the splits that lie on the GPU where a trial has so much room there: all or, as data/batches.py has it, none."""
    return images if images < room / 2 else 0


def resident_of(need: Need, room: int) -> int:
    """The same of the splits and of their features."""
    images = resident(need.images, room)
    return images + resident(need.features, room - images)


def share_of(need: Need, gpu_memory: int, factor: float = 1.0) -> float | None:
    """The smallest share that will do, or None where one GPU is too small.

    Args:
        gpu_memory: bytes of one GPU.
        factor: what peaks were found to be, as a multiple of what is predicted.
    """
    for share in STEPS:
        room = allowed(share, gpu_memory)
        if MARGIN * factor * need.training + resident_of(need, room) <= room:
            return share
    return STEPS[-1] if need.training <= allowed(1.0, gpu_memory) else None


def spread(gpus: float, concurrency: int, trials: int) -> float:
    """The least that a trial should hold, whatever it needs: with more places than will be filled, and filled again, Ray crowds few GPUs.

    Args:
        gpus: in all. concurrency: trials at once, at most. trials: of the whole search.
    """
    places = min(concurrency, math.ceil(trials / TURNS))
    return max((step for step in STEPS if step * places <= gpus), default=STEPS[0])


def next_step(share: float) -> float | None:
    """The next larger share; None after a whole GPU."""
    return next((step for step in STEPS if step > share), None)
