"""Trains one model. `fit` yields one EpochResult per epoch. To stop the training, stop the iteration."""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vit_search.config import features, gpu_share
from vit_search.config.cost import Device, cost_of, in_units
from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.config.weight_sources import parse
from vit_search.data.batches import FeatureSplit, Split, StreamedSplit
from vit_search.data.epoch_order import epoch_order
from vit_search.errors import OutOfMemoryError
from vit_search.runtime import machine
from vit_search.seeds import derive_seed
from vit_search.text import counted
from vit_search.vit import augment, tuning
from vit_search.vit.augment import Targets
from vit_search.vit.checkpoint_files import LeftOut
from vit_search.vit.evaluation import EVALUATED_AT_ONCE, Evaluation, Normalisation, evaluate
from vit_search.vit.loss import Loss, loss_of
from vit_search.vit.model import ViT
from vit_search.vit.optimizers import fill_state, make_optimizer
from vit_search.vit.schedule import lr_at
from vit_search.vit.shared_blocks import model_from

if TYPE_CHECKING:
    from vit_search.vit.pretrained import Pretrained

_log = logging.getLogger(__name__)

CHECK_EVERY = 16
"""Steps between checks of the loss on a GPU, where a check waits for all queued work. On a CPU, each step is checked."""


Forward = Callable[[Tensor], Tensor]


class DivergedError(RuntimeError):
    """The training or validation loss became NaN or infinite. The message says in which epoch."""


@dataclass
class Training:
    """The state of a training: all that `fit` changes and a checkpoint saves."""

    config: TrialConfig
    normalisation: Normalisation
    model: ViT
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Scales the loss so that float16 gradients do not underflow. Does nothing in other precisions."""
    average: ViT | None
    """Moving average of the model's weights; None without `ema_decay`."""
    accumulation: int
    """Micro-batches per step: as in the config, or twice as many after a step that did not fit into memory."""
    loss: Loss
    """The function that a step minimises. `fit` replaces it with one that has the weights and shares of the classes."""
    halves: bool = True
    """Whether to halve the micro-batch if memory runs out. If not, the training ends with OutOfMemoryError."""
    on_features: bool = False
    """Whether steps get features (the output of the frozen parts) instead of images. `fit` sets it."""
    forwards: dict[int, Forward] = field(default_factory=dict)
    """The compiled model or CUDA graph for each micro-batch size, made at first use."""
    history: list[EpochResult] = field(default_factory=list)
    left_out: LeftOut | None = None
    """Frozen blocks that checkpoints leave out, because they can be restored from the pretrained weights."""

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return len(self.history)

    @property
    def outcome(self) -> ViT:
        """The model that is validated and served: the average, if there is one, with LoRA's corrections merged into its weights."""
        return tuning.merged(self.model if self.average is None else self.average)

    @property
    def device(self) -> torch.device:
        """The device on which the model trains."""
        return self.model.embed.weight.device


def start(
    config: TrialConfig, normalisation: Normalisation, device: torch.device | str = "cpu", pretrained: Pretrained | None = None
) -> Training:
    """Set up a training before its first step.

    Args:
        config: its seed decides all random initial weights.
        normalisation: of the data. If the pretrained weights have their own, it is used instead.
        pretrained: weights to start from; None: random weights.
    Raises: SpecError if the model does not fit the pretrained weights.
    """
    blocks_sha256 = ""
    if pretrained is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "init"))
            model = ViT(config.model)
    else:
        model, blocks_sha256 = model_from(config, pretrained, device)
        theirs = pretrained.backbone.normalisation(config.model.in_channels)
        normalisation = normalisation if theirs is None else Normalisation.of(*theirs, device)
    model.to(device)
    tuning.prepare(model, config.training, config.seed)
    half = machine.autocast_type(config, torch.device(device))
    return Training(
        config=config,
        normalisation=normalisation,
        model=model,
        optimiser=make_optimizer(model, config.training),
        scaler=torch.amp.GradScaler(torch.device(device).type, enabled=half == torch.float16),
        average=None if config.training.ema_decay is None else tuning.averaged(model),
        accumulation=config.training.accumulation,
        loss=Loss(config.training.label_smoothing),
        left_out=None if pretrained is None else left_out(model, config, blocks_sha256),
    )


def left_out(model: ViT, config: TrialConfig, blocks_sha256: str = "") -> LeftOut | None:
    """The frozen blocks that checkpoints leave out: all, if they come from pretrained weights with a sha256. Otherwise None.

    Args:
        blocks_sha256: of the frozen blocks; empty: it is computed.
    """
    blocks, source = tuning.frozen_blocks(model), config.model.pretrained
    backbone = parse(source).sha256 if source else ""
    return LeftOut(backbone, blocks_sha256 or tuning.sha256_of(blocks)) if blocks and backbone else None


AnySplit = Split | StreamedSplit | FeatureSplit


def fit(training: Training, train: AnySplit, val: AnySplit) -> Iterator[EpochResult]:
    """Train up to the configured number of epochs and yield the result of each. Continue after the last epoch of `training`.

    The order of the images, the augmentation and the dropout of an epoch depend on (seed, epoch) alone. So a training that was saved and
    loaded gives the same results as one without interruption. Each epoch sets the global seed of torch.

    Raises: DivergedError if the loss is not finite: at once on a CPU, within CHECK_EVERY steps on a GPU.
        OutOfMemoryError if a step does not fit into memory. If `training.halves`, half the micro-batch is tried first.
        SpecError if the config has a weight for a class that the images do not have.
    """
    config = training.config.training
    training.on_features = isinstance(train, FeatureSplit)
    training.loss = loss_of(config, train.labels, train.classes, training.config.model.num_classes, train.weights)
    if training.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    while training.epoch < config.epochs:
        try:
            result = _train_epoch(training, train, val)
        except RuntimeError as error:
            if not machine.out_of_memory(error):
                raise
            raise OutOfMemoryError(f"an epoch did not fit into memory: {_memory_in_use(training)}; lower batch_size or dim.") from None
        training.history.append(result)
        yield result


def _train_epoch(training: Training, train: AnySplit, val: AnySplit) -> EpochResult:
    config, device = training.config.training, training.device
    epoch = training.epoch + 1
    seed = derive_seed(training.config.seed, "epoch", epoch)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    order = epoch_order(train.labels, train.weights, generator, balanced=config.sampling == "balanced")
    count, parts = len(order), order.split(config.batch_size)
    weights = None if train.weights is None else train.weights[order.to(device)].split(config.batch_size)  # copied once per epoch
    first_step, steps = (epoch - 1) * len(parts), config.epochs * len(parts)
    losses, correct = torch.zeros(len(parts), device=device), torch.zeros((), device=device)
    look_every = CHECK_EVERY if device.type == "cuda" else 1
    lr = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    training.model.train()
    for i, (inputs, targets) in enumerate(_inputs(training, train, parts, seed, generator)):
        targets = targets if weights is None else targets.weighted(weights[i])
        lr = lr_at(first_step + i, steps, config)
        losses[i], hits = train_step(training, inputs, targets, lr, first_step + i)
        if (i + 1) % look_every == 0 or i + 1 == len(parts):
            since = i - i % look_every
            _check_finite(losses[since : i + 1], since, epoch, len(parts))
        losses[i] *= len(inputs)
        correct += hits
    loss_sum = float(losses.sum())
    trained = time.perf_counter()
    evaluation = _evaluate_in_memory(training, val)
    if not math.isfinite(evaluation.loss):
        raise DivergedError(f"the validation loss is {evaluation.loss} after epoch {epoch}")
    return EpochResult(
        epoch=epoch,
        train_loss=loss_sum / count,
        train_accuracy=float(correct) / count,
        val_loss=evaluation.loss,
        val_accuracy=evaluation.accuracy,
        val_top5_accuracy=evaluation.top5_accuracy,
        lr=lr,
        images_per_s=count / (trained - began),
        seconds=time.perf_counter() - began,
        peak_memory_bytes=machine.peak_memory(device),
        scores=evaluation.scores,
    )


def _inputs(
    training: Training, train: AnySplit, parts: Sequence[Tensor], seed: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Targets]]:
    """The inputs and targets of each step of the next epoch. Inputs are augmented, normalised images, or features."""
    if isinstance(train, FeatureSplit):
        for batch, labels in train.batches(parts, features.view_of_epoch(training.epoch + 1, train.views)):
            yield batch, Targets(labels)
        return
    config, normalisation = training.config.training, training.normalisation
    moves = features.moves_of(config, cropped=train.cropped)
    for raw, labels in train.batches(parts, seed, config.crop_scale):
        images = augment.moved(raw, moves, generator)
        images = augment.normalise(images, normalisation.mean, normalisation.std)
        yield augment.mixed(images, labels, config, generator)


def _check_finite(losses: Tensor, since: int, epoch: int, steps: int) -> None:
    finite = losses.isfinite()
    if not finite.all():
        first = int(finite.int().argmin())
        raise DivergedError(f"the loss is {float(losses[first])} in epoch {epoch}, step {since + first + 1} of {steps}")


def train_step(training: Training, images: Tensor, targets: Targets, lr: float, step: int) -> tuple[Tensor, Tensor]:
    """Train on one batch: forward, backward and one step of the optimizer. The model must be in training mode.

    Args:
        images: (batch, channels, height, width), normalised. If the training is on features, the output of `ViT.frozen_output`.
        step: number of earlier steps in the whole training, for the moving average.
    Returns: the mean loss of the batch, and how many images were classified correctly.
    Raises: OutOfMemoryError if the step does not fit into memory. If `training.halves`, half the micro-batch is tried first.
    """
    loss, hits = _gradients_in_memory(training, images, targets)
    _update(training, lr, step)
    return loss, hits


def _forward(training: Training) -> Forward:
    """The function that runs the model on a micro-batch: the plain model, a compiled one, or a CUDA graph.

    Compiled code and graphs are made for one batch size, so a smaller last batch uses the plain model. Features use it too: the rest of
    the model is small.
    """
    config, model, device = training.config.training, training.model, training.device
    graphs = config.cuda_graphs and device.type == "cuda"
    compiling = config.compile and machine.compiling_pays(device)
    if training.on_features or not (graphs or compiling):
        return _plain(training)
    size = math.ceil(config.batch_size / training.accumulation)
    if size not in training.forwards:
        made = functools.partial(compiled("reduce-overhead" if graphs else "default"), model) if compiling else _graphed(training, size)
        training.forwards[size] = made
    fast = training.forwards[size]
    return lambda images: fast(images) if len(images) == size else model(images)


def _plain(training: Training) -> Forward:
    return training.model.after_frozen if training.on_features else training.model


@functools.cache
def compiled(mode: str) -> Callable[..., Tensor]:
    """`ViT.forward`, compiled. Call it with a model and its images.

    The function is compiled, not one model. So all models of the same shape in this process share the code: a worker that trains many
    trials compiles once per shape.
    """
    torch._dynamo.config.recompile_limit = 256  # one per shape in a search; with the default, torch stops compiling after 8
    forward: Callable[..., Tensor] = torch.compile(ViT.forward, mode=mode, dynamic=False)
    return forward


def _graphed(training: Training, size: int) -> Forward:
    """Capture the forward and the backward pass of one batch size as CUDA graphs.

    Nothing else can use the memory of a graph, so the optimizer's state is allocated first.
    """
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # gradients come from the stream of the capture, as intended
    for weight in training.model.parameters():
        if weight.requires_grad:
            fill_state(training.optimiser, weight)
    model = training.config.model
    sample = torch.zeros(size, model.in_channels, *model.image_size, device=training.device)
    twin = copy.copy(training.model)  # shares the weights; make_graphed_callables replaces the forward of its module
    with _autocast(training, cache=False):
        return cast(Forward, torch.cuda.make_graphed_callables(twin, (sample,)))


def _autocast(training: Training, cache: bool = True) -> torch.autocast:
    half = machine.autocast_type(training.config, training.device)
    return torch.autocast(training.device.type, dtype=half, enabled=half is not None, cache_enabled=cache)


def _gradients_in_memory(training: Training, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Call `_gradients`. If memory runs out and `training.halves`, try once more with micro-batches of half the size."""
    try:
        return _gradients(training, _forward(training), images, targets)
    except RuntimeError as error:
        if not machine.out_of_memory(error):
            raise
        memory = _memory_in_use(training)
        if not training.halves:
            raise OutOfMemoryError(f"a training step did not fit into memory: {memory}.") from None
        if training.accumulation > training.config.training.accumulation or training.accumulation >= len(images):
            raise OutOfMemoryError(f"a training step did not fit into memory: {memory}; lower batch_size or dim.") from None
    training.accumulation *= 2
    training.forwards.clear()  # frees the memory of the graphs of the larger size
    _log.warning("a training step did not fit into memory: %s; going on with %d micro-batches a step.", memory, training.accumulation)
    if images.is_cuda:
        torch.cuda.empty_cache()
    try:
        return _gradients(training, _plain(training), images, targets)
    except RuntimeError as error:
        if not machine.out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"a training step did not fit into memory, nor did it at half the size: {_memory_in_use(training)}; lower batch_size or dim."
        ) from None


def _memory_in_use(training: Training) -> str:
    config, device = training.config, training.device
    half = machine.autocast_type(config, device) is not None
    size = math.ceil(config.training.batch_size / training.accumulation)
    where: Device = "cuda" if device.type == "cuda" else "cpu"
    need = cost_of(config.model, size, config.training.optimizer, config.training.tuning, device=where, half=half).train_bytes
    return f"{in_units(need)} predicted for {counted(size, 'image')}, {in_units(machine.free_bytes(device))} free"


def _gradients(training: Training, forward: Forward, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Compute the gradients of one step.

    Returns: the mean loss of the batch, and how many images were classified correctly.
    """
    count = len(images)
    training.optimiser.zero_grad(set_to_none=True)
    total, hits = torch.zeros((), device=images.device), torch.zeros((), dtype=torch.int64, device=images.device)
    size = math.ceil(count / training.accumulation)
    for i, (part, wanted) in enumerate(zip(images.split(size), targets.split(size), strict=True)):
        if i == 1 and forward != _plain(training):  # the graph's next run overwrites the gradients, so copy them
            for weight in training.model.parameters():
                weight.grad = None if weight.grad is None else weight.grad.clone()
        with _autocast(training):
            logits = forward(part)
        loss = training.loss(logits.float(), wanted)
        if len(part) < count:
            loss = loss * (len(part) / count)
        training.scaler.scale(loss).backward()
        total += loss.detach()
        hits += (logits.detach().argmax(1) == wanted.labels).sum()
    return total, hits


def _update(training: Training, lr: float, step: int) -> None:
    """Update the weights with the optimizer, then their moving average."""
    config, optimiser = training.config.training, training.optimiser
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)  # some optimizers make groups without this factor
    training.scaler.unscale_(optimiser)
    if config.clip_norm is not None:
        weights = [p for group in optimiser.param_groups for p in group["params"]]  # model.parameters() takes 60 times as long
        nn.utils.clip_grad_norm_(weights, config.clip_norm)
    training.scaler.step(optimiser)
    training.scaler.update()
    if training.average is not None and config.ema_decay is not None:
        decay = min(config.ema_decay, (1 + step) / (10 + step))  # smaller at first, so that the average forgets the initial weights
        both = zip(training.average.parameters(), training.model.parameters(), strict=True)
        pairs = [(average.detach(), p.detach()) for average, p in both if p.requires_grad]
        torch._foreach_lerp_([average for average, _ in pairs], [p for _, p in pairs], 1 - decay)


def _evaluate_in_memory(training: Training, val: AnySplit) -> Evaluation:
    """Call `evaluate`. If memory runs out, halve the batch size and try again."""
    size = gpu_share.EVALUATED_AT_ONCE if training.device.type == "cuda" else EVALUATED_AT_ONCE
    while True:
        try:
            return evaluate(training.outcome, val, training.normalisation, size)
        except RuntimeError as error:
            if not machine.out_of_memory(error):
                raise
            if size == 1:
                raise OutOfMemoryError(f"validation did not fit into memory: {_memory_in_use(training)}; lower dim.") from None
        size //= 2


@torch.inference_mode()
def latency_ms(model: ViT, calls: int = 30) -> float:
    """Median time to classify one image, in milliseconds, in eval mode and float32, on the model's device."""
    model.eval()
    config, device = model.config, next(model.parameters()).device
    image = torch.zeros(1, config.in_channels, *config.image_size, device=device)
    times = []
    for _ in range(calls + 5):  # 5 calls to warm up
        began = time.perf_counter()
        model(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times[5:])[calls // 2]
