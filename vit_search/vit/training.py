"""Training of one model: `fit` yields one EpochResult per epoch; stopping is not asking for the next."""

from __future__ import annotations

import hashlib
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_search.spec.config import EpochResult, TrainingConfig, TrialConfig
from vit_search.vit import augment
from vit_search.vit.model import ViT, decayed


class DivergedError(RuntimeError):
    """The loss or a metric became NaN or infinite; the message says where."""


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, on the training device."""

    images: Tensor
    """(n, channels, height, width), uint8."""
    labels: Tensor
    """(n,), int64."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of the training images per channel, on the scale 0 to 1; each (channels,)."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu") -> Normalisation:
        """From plain numbers; a channel that never changes is divided by 1."""
        return Normalisation(torch.tensor(mean, device=device), torch.tensor([s or 1.0 for s in std], device=device))


@dataclass
class Training:
    """A model in training: all that `fit` changes, and all that a checkpoint must hold."""

    config: TrialConfig
    normalisation: Normalisation
    model: ViT
    optimiser: torch.optim.AdamW
    history: list[EpochResult] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return len(self.history)


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed out of several numbers and words: the same parts, the same seed, on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def start(config: TrialConfig, normalisation: Normalisation, device: torch.device | str = "cpu") -> Training:
    """A model at its first step, initialised from the trial's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "init"))
        model = ViT(config.model).to(device)
    matrices, others = decayed(model)
    groups = [{"params": matrices, "weight_decay": config.training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.training.lr, betas=(0.9, config.training.beta2), fused=True)
    return Training(config, normalisation, model, optimiser)


def lr_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Learning rate of a step counted from 0: linear warm-up to the peak, then half a cosine to 0 at `steps`."""
    warmup = round(steps * config.warmup_fraction)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def fit(training: Training, train: Split, val: Split) -> Iterator[EpochResult]:
    """Train to the configured length, one epoch per result; picks up where `training` stands.

    The order of the images, the augmentation and the dropout of an epoch come from (seed, epoch) alone, so a training
    that was saved and loaded goes on exactly as if it had not been. The global seed of torch is set at each epoch.

    Raises: DivergedError as soon as the loss is not finite.
    """
    config = training.config.training
    while training.epoch < config.epochs:
        result = _train_epoch(training, train, val)
        training.history.append(result)
        yield result


def _train_epoch(training: Training, train: Split, val: Split) -> EpochResult:
    config, model, optimiser = training.config.training, training.model, training.optimiser
    epoch, count, device = training.epoch + 1, len(train.labels), train.images.device
    seed = derive_seed(training.config.seed, "epoch", epoch)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).to(device)
    steps_per_epoch = math.ceil(count / config.batch_size)
    first_step, steps = (epoch - 1) * steps_per_epoch, config.epochs * steps_per_epoch
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    lr = 0.0
    began = time.perf_counter()
    model.train()
    for i, chosen in enumerate(order.split(config.batch_size)):
        images, labels = train.images[chosen], train.labels[chosen]
        if config.shift:
            images = augment.shift(images, config.shift, generator)
        if config.flip:
            images = augment.flip(images, generator)
        lr = lr_at(first_step + i, steps, config)
        for group in optimiser.param_groups:
            group["lr"] = lr
        logits = model(augment.normalise(images, training.normalisation.mean, training.normalisation.std))
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if not math.isfinite(loss.item()):
            raise DivergedError(f"the loss is {loss.item()} in epoch {epoch}, step {i + 1} of {steps_per_epoch}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
    trained = time.perf_counter()
    evaluation = evaluate(model, val, training.normalisation)
    if not math.isfinite(evaluation.loss):
        raise DivergedError(f"the validation loss is {evaluation.loss} after epoch {epoch}")
    return EpochResult(
        epoch=epoch,
        train_loss=float(loss_sum) / count,
        train_accuracy=float(correct) / count,
        val_loss=evaluation.loss,
        val_accuracy=evaluation.accuracy,
        val_top5_accuracy=evaluation.top5_accuracy,
        lr=lr,
        images_per_s=count / (trained - began),
        seconds=time.perf_counter() - began,
        peak_memory_bytes=_peak_memory(device),
    )


@dataclass(frozen=True)
class Evaluation:
    """How a model does on one split."""

    loss: float
    """Mean cross-entropy in nats, without label smoothing."""
    accuracy: float
    top5_accuracy: float | None
    """None with fewer than 5 classes."""
    predictions: Tensor
    """(n,), int64, on the CPU."""


@torch.inference_mode()
def evaluate(model: ViT, split: Split, normalisation: Normalisation, batch_size: int = 512) -> Evaluation:
    """Loss and accuracy of a model on a whole split, in eval mode."""
    model.eval()
    batches = [model(augment.normalise(images, normalisation.mean, normalisation.std)) for images in split.images.split(batch_size)]
    logits = torch.cat(batches).float()
    predictions = logits.argmax(1)
    top5 = None
    if logits.shape[1] >= 5:
        top5 = float((logits.topk(5).indices == split.labels[:, None]).any(1).float().mean())
    return Evaluation(
        loss=float(F.cross_entropy(logits, split.labels)),
        accuracy=float((predictions == split.labels).float().mean()),
        top5_accuracy=top5,
        predictions=predictions.cpu(),
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
