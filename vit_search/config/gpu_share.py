"""Chooses the share of a GPU that a trial gets, from its predicted peak memory.

The constants were measured on an H100 (tests/benchmarks/gpu_memory.py). search/gpu_sharing.py corrects the prediction with the peaks of
the search's own trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vit_search.config import features
from vit_search.config.cost import FLOAT_BYTES, WORKSPACES, cost_of, merged_weights, mlp_layers
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig

STEPS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""The possible shares. Each is half of the next, so trials with different shares fill a GPU without gaps. Smaller shares would gain little
(tests/benchmarks/packing.py), and each process takes a CPU core."""

SMALLEST = STEPS[0]

CONTEXT = 800 * 2**20
"""GPU memory of a process besides its tensors, in bytes: CUDA's context and loaded kernels. Measured: 621 MiB at the first tensor,
770 MiB after training."""

MARGIN = 1.25
"""Memory that the allocator may reserve, as a multiple of the predicted peak of allocated memory.

Measured peaks were 1.02 to 1.06 times the prediction, and a training with 1.06 ran under a limit of 1.2. Without a limit, the allocator
reserved 1.15 to 2.5 times the prediction.
"""

TURNS = 6
"""Least number of trials that each share of a GPU should run, one after another. With fewer, sharing does not pay: the last trials, which
still share their GPU, decide the total time.

Measured for 12 to 400 trials on 1 to 8 GPUs: of 1, 2, 4 or 8 trials per GPU, this rule chose the best number or one close to it
(tests/benchmarks/packing.py).
"""

EVALUATED_AT_ONCE = 512
"""Batch size of evaluation on a GPU. It is reduced if memory runs out."""

COMPUTED_AT_ONCE = 128
"""Batch size for computing features."""

USUAL_MEMORY = 80 * 2**30
"""GPU memory to assume, in bytes, if neither the search file nor a cluster gives it."""


@dataclass(frozen=True)
class Need:
    """GPU memory that a trial needs, in bytes."""

    training: int
    """Predicted peak of allocated memory, without the images of the data set."""
    images: int
    """The images of its splits. They are kept on the GPU if there is room."""
    features: int = 0
    """The features of one version of its splits. They are kept there too, if there is room besides the images; see config/features.py."""


def training_bytes(model: ModelConfig, training: TrainingConfig) -> int:
    """Predicted peak of training and evaluation on a GPU, in bytes, for `Need.training`."""
    pixels = model.in_channels * math.prod(model.image_size)
    micro = math.ceil(training.batch_size / training.accumulation)
    cost = cost_of(model, micro, training.optimizer, training.tuning, device="cuda", half=training.precision != "float32")
    average = FLOAT_BYTES * cost.trained_params * (training.ema_decay is not None)
    held = cost.weight_bytes + FLOAT_BYTES * cost.trained_params + cost.optimizer_bytes + average + WORKSPACES  # includes the gradients
    inputs = 4 * FLOAT_BYTES * training.batch_size * pixels  # copies of the images during augmentation
    graphs = cost.kept_bytes * training.cuda_graphs  # nothing else can use a graph's memory
    inner, width = model.heads * model.head_width, model.mlp_width
    changed = 3 * inner * (model.positions == "rope" or model.qk_norm)  # RoPE and qk_norm make new queries and keys
    layers = mlp_layers(model)
    widest = max(4 * model.dim + 4 * inner + changed, 5 * model.dim + layers * width)  # values per token; evaluation is in float32
    if features.views_of(model, training) and training.tune == "head":  # the whole model runs only while features are computed
        of_head = 4 * FLOAT_BYTES * max(training.batch_size, EVALUATED_AT_ONCE) * (model.dim + model.num_classes)
        return held + FLOAT_BYTES * COMPUTED_AT_ONCE * (model.tokens * widest + 5 * pixels) + of_head
    evaluation = held + FLOAT_BYTES * EVALUATED_AT_ONCE * (model.tokens * widest + pixels)
    evaluation += FLOAT_BYTES * merged_weights(model, training.tuning)
    return max(cost.train_bytes + average + inputs + graphs, evaluation)


def allowed(share: float, gpu_memory: int) -> int:
    """Bytes that the allocator of a trial with this share may reserve. Negative if not even CUDA's context fits."""
    return int(share * gpu_memory) - CONTEXT


def fraction(share: float, gpu_memory: int) -> float:
    """`allowed` as a fraction of the GPU's memory, for torch.cuda.set_per_process_memory_fraction. 1 for a whole GPU."""
    return 1.0 if share >= 1 else max(0.0, allowed(share, gpu_memory) / gpu_memory)


def resident(images: int, room: int) -> int:
    """Bytes of the images that are kept on the GPU if a trial has `room` bytes there: all or none, by the rule of data/batches.py."""
    return images if images < room / 2 else 0


def resident_of(need: Need, room: int) -> int:
    """Bytes of the images and features that are kept on the GPU if a trial has `room` bytes there."""
    images = resident(need.images, room)
    return images + resident(need.features, room - images)


def share_of(need: Need, gpu_memory: int, factor: float = 1.0) -> float | None:
    """The smallest share that is large enough, or None if a whole GPU is too small. A whole GPU needs no margin.

    Args:
        gpu_memory: of one GPU, in bytes.
        factor: measured peaks, as a multiple of the predicted ones.
    """
    for share in STEPS:
        room = allowed(share, gpu_memory)
        if MARGIN * factor * need.training + resident_of(need, room) <= room:
            return share
    return STEPS[-1] if need.training <= allowed(1.0, gpu_memory) else None


def spread(gpus: float, concurrency: int, trials: int) -> float:
    """The smallest share that a trial should get, even if it needs less. With smaller ones, Ray would crowd the trials onto few GPUs.

    Args:
        gpus: number in the cluster. concurrency: most trials at the same time. trials: number in the whole search.
    """
    places = min(concurrency, math.ceil(trials / TURNS))
    return max((step for step in STEPS if step * places <= gpus), default=STEPS[0])


def next_step(share: float) -> float | None:
    """The next larger share; None after a whole GPU."""
    return next((step for step in STEPS if step > share), None)
