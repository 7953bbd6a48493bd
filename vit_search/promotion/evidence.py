"""What is measured of a model before it may be promoted: its costs, its exported files, its answers on images. Nothing is judged here."""

from __future__ import annotations

import copy
import hashlib
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vit_search.config.cost import cost_of
from vit_search.config.trial import ModelConfig
from vit_search.data.batches import Split, StreamedSplit, load_split
from vit_search.data.cache import DataSet
from vit_search.promotion.corruptions import corrupted
from vit_search.promotion.policy import Corruption
from vit_search.stats import wilson
from vit_search.tracking.model_package import RawPixels, exported
from vit_search.vit import augment, checkpoint
from vit_search.vit.checkpoint import ServedModel
from vit_search.vit.evaluation import EVALUATED_AT_ONCE

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Call = Callable[[Pixels], Logits]
"""uint8 (batch, height, width, channels) of the trained size to logits (batch, classes)."""
Exporter = Callable[[ServedModel, Path], Call]
"""Writes a model's files into an empty folder, reads them again, and gives the model that they hold."""

# --- costs ---------------------------------------------------------------------------------------------------------------

BATCHES = {1: (50, 300), 32: (5, 40)}
"""Batch sizes at which latency is measured, each with its warm-up and its timed calls."""
LEAST_CALLS = 3
"""Timed calls that are made however slow they are."""
BLOCK = 10
"""Neighbouring calls that the bootstrap draws together, since a busy machine is busy for some calls in a row."""


@dataclass(frozen=True)
class Latency:
    """Time from pixels to logits, in milliseconds."""

    p50_ms: float
    p95_ms: float
    calls: int
    """Timed ones."""
    cut: bool
    """Whether the time limit ended the measurement before all calls were made."""


@dataclass(frozen=True)
class Costs:
    """What a model costs."""

    params: int
    file_bytes: int
    """Of model.safetensors."""
    flops: int
    """Forward, one image."""
    latency: Mapping[str, Latency]
    """By device and batch: `cpu_batch_1`, `cpu_batch_32`, and with a GPU `cuda_batch_1`, `cuda_batch_32`."""
    peak_memory_bytes: Mapping[str, int]
    """By device: weights, and activations of 32 images at their peak."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Costs:
        """The inverse of `to_dict`."""
        return Costs(**{**values, "latency": {name: Latency(**value) for name, value in values["latency"].items()}})


@dataclass(frozen=True)
class Ratio:
    """Candidate's figure over champion's, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SideBySide:
    """Two models measured in alternation on one machine."""

    candidate: Costs
    champion: Costs
    ratios: Mapping[str, Ratio]
    """Of latency: `cpu_batch_1_p50`, `cpu_batch_1_p95` and so on."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SideBySide:
        """The inverse of `to_dict`."""
        ratios = {name: Ratio(**value) for name, value in values["ratios"].items()}
        return SideBySide(Costs.from_dict(values["candidate"]), Costs.from_dict(values["champion"]), ratios)


def costs(served: ServedModel, folder: Path, *, limit_s: float = 20) -> Costs:
    """Measure one model. Its latency holds for this machine at this moment; only `costs_side_by_side` compares.

    Args:
        folder: its checkpoint. limit_s: seconds after which the timing of a device and batch ends.
    """
    return _measured([(served, folder)], limit_s)[0][0]


def costs_side_by_side(
    candidate: ServedModel, folder: Path, champion: ServedModel, champion_folder: Path, *, limit_s: float = 20
) -> SideBySide:
    """Measure two models call by call in turn, so that what else the machine does slows both.

    Images of each model's own size; the number of threads is torch's as it stands. Of the ratios of p50 and p95 the interval
    is a bootstrap over pairs of calls, in blocks of neighbours.

    Args:
        folder, champion_folder: their checkpoints.
        limit_s: seconds after which the timing of a device and batch ends; `Latency.cut` says so.
    """
    (ours, theirs), times = _measured([(candidate, folder), (champion, champion_folder)], limit_s)
    ratios = {}
    for name, pair in times.items():
        for word, share in (("p50", 50), ("p95", 95)):
            ratios[f"{name}_{word}"] = _ratio(pair, share)
    return SideBySide(ours, theirs, ratios)


def _measured(models: Sequence[tuple[ServedModel, Path]], limit_s: float) -> tuple[list[Costs], dict[str, npt.NDArray[np.float64]]]:
    """Costs of each model, and by device and batch all times in seconds, (calls, models)."""
    times: dict[str, npt.NDArray[np.float64]] = {}
    cut: dict[str, bool] = {}
    memory: list[dict[str, int]] = [{} for _ in models]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        raws = [RawPixels(_own(served)).eval().to(device) for served, _ in models]
        for i, raw in enumerate(raws):
            memory[i][device] = _peak_memory(raw)
        for batch, (warm_up, timed) in BATCHES.items():
            name = f"{device}_batch_{batch}"
            times[name], cut[name] = _timed(raws, batch, warm_up, timed, limit_s)
    found = []
    for i, (served, folder) in enumerate(models):
        cost = cost_of(served.config.model, 1)
        latency = {
            name: Latency(_percentile_ms(every[:, i], 50), _percentile_ms(every[:, i], 95), len(every), cut[name])
            for name, every in times.items()
        }
        file_bytes = (folder / checkpoint.MODEL).stat().st_size
        found.append(Costs(cost.params, file_bytes, cost.forward_flops, latency, memory[i]))
    return found, times


def _percentile_ms(seconds: npt.NDArray[np.float64], share: float) -> float:
    return 1000 * float(np.percentile(seconds, share))


def _own(served: ServedModel) -> ServedModel:
    """A copy that may be moved."""
    return ServedModel(copy.deepcopy(served.model), served.config, served.normalisation, served.classes, served.data_hash)


def _pixels(config: ModelConfig, batch: int) -> Pixels:
    """The same images each time, (batch, height, width, channels)."""
    return np.random.default_rng(0).integers(0, 256, (batch, *config.image_size, config.in_channels), np.uint8)


@torch.inference_mode()
def _timed(raws: Sequence[RawPixels], batch: int, warm_up: int, timed: int, limit_s: float) -> tuple[npt.NDArray[np.float64], bool]:
    """Seconds of each call, (calls, models), and whether the limit came first. Which model begins alternates."""
    images = [torch.from_numpy(_pixels(raw.model.config, batch)).to(raw.mean.device) for raw in raws]
    rows: list[list[float]] = []
    cuda = raws[0].mean.is_cuda
    began = time.perf_counter()
    for call in range(warm_up + timed):
        late = time.perf_counter() - began
        if call < warm_up and call > 0 and late > limit_s / 4:
            continue
        if len(rows) >= LEAST_CALLS and late > limit_s:
            break
        row = [0.0] * len(raws)
        for i in range(len(raws)) if call % 2 else reversed(range(len(raws))):
            start = time.perf_counter()
            raws[i](images[i])
            if cuda:
                torch.cuda.synchronize()
            row[i] = time.perf_counter() - start
        if call >= warm_up:
            rows.append(row)
    return np.array(rows), len(rows) < timed


def _ratio(times: npt.NDArray[np.float64], share: float, draws: int = 2000) -> Ratio:
    """The first model's percentile over the second's; times (calls, 2)."""
    calls = len(times)
    block = min(BLOCK, max(1, calls // 5))
    blocks = math.ceil(calls / block)
    starts = np.random.default_rng(0).integers(0, calls - block + 1, (draws, blocks))
    chosen = (starts[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :calls]
    ours, theirs = (np.percentile(times[:, i][chosen], share, axis=1) for i in (0, 1))
    low, high = np.quantile(ours / theirs, [0.025, 0.975])
    value = float(np.percentile(times[:, 0], share) / np.percentile(times[:, 1], share))
    return Ratio(value, float(low), float(high))


class _Living(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once, those of `known` left out."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._living: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._living = {key: entry for key, entry in self._living.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._living.values()))
        return out


@torch.no_grad()
def _peak_memory(raw: RawPixels, batch: int = 32) -> int:
    """Bytes of weights and of the tensors that live at once while a batch passes; on a CPU without the scratch space inside a kernel."""
    images = torch.from_numpy(_pixels(raw.model.config, batch)).to(raw.mean.device)
    weights: int = sum(tensor.nbytes for tensor in raw.state_dict().values())
    if raw.mean.is_cuda:
        raw(images)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        raw(images)
        torch.cuda.synchronize()
        return weights + int(torch.cuda.max_memory_allocated()) - before
    living = _Living(raw.state_dict().values())
    with living:
        raw(images)
    return weights + living.peak


# --- exported files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from the model that was trained."""

    format: str
    difference: float
    """Largest absolute difference of a logit, over fixed images in batches of 1 and of 8; infinite where the file cannot answer."""
    file_bytes: int
    problem: str = ""
    """Why the file cannot answer; empty where it can."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite difference is null."""
        return asdict(self) | {"difference": self.difference if math.isfinite(self.difference) else None}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Parity:
        """The inverse of `to_dict`."""
        return Parity(**{**values, "difference": math.inf if values["difference"] is None else values["difference"]})


def parity(served: ServedModel, folder: Path, exporters: Mapping[str, Exporter]) -> list[Parity]:
    """Export a model and hold each file against the model in eager mode, in batches of 1 and of 8: a file may have one fixed batch.

    Args:
        folder: its checkpoint, of which safetensors is a copy; that format is always measured.
        exporters: of other formats, as `{"pt2": pt2}`.
    """
    copied: Exporter = lambda _, place: _copied(folder, place)  # noqa: E731
    eager = _call(RawPixels(served).eval())
    images = _pixels(served.config.model, 8)
    expected = {1: np.concatenate([eager(images[i : i + 1]) for i in range(8)]), 8: eager(images)}
    return [_held(name, exporter, served, images, expected) for name, exporter in {"safetensors": copied, **exporters}.items()]


def _held(name: str, exporter: Exporter, served: ServedModel, images: Pixels, expected: Mapping[int, Logits]) -> Parity:
    with tempfile.TemporaryDirectory() as place:
        size, doing = 0, "export"
        try:
            call = exporter(served, Path(place))
            size = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
            worst = 0.0
            for batch, logits in expected.items():
                doing = f"a batch of {batch}"
                found = np.concatenate([call(images[i : i + batch]) for i in range(0, 8, batch)])
                if found.shape != logits.shape:
                    return Parity(name, math.inf, size, f"{doing}: logits of shape {found.shape} for {logits.shape}")
                difference = float(np.abs(found.astype(np.float64) - logits).max())
                worst = max(worst, difference if math.isfinite(difference) else math.inf)
            return Parity(name, worst, size)
        except Exception as error:  # of whatever kind the exporter or the file's runtime raises
            return Parity(name, math.inf, size, f"{doing}: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}")


def _call(module: Callable[[Tensor], Tensor]) -> Call:
    @torch.inference_mode()
    def call(images: Pixels) -> Logits:
        return np.asarray(module(torch.from_numpy(images)).numpy(), np.float32)

    return call


def _copied(folder: Path, place: Path) -> Call:
    """A copy of a checkpoint's weights, verified and read again."""
    checkpoint.copy_for_serving(folder, place / "checkpoint")
    return _call(RawPixels(checkpoint.load_model(place / "checkpoint")).eval())


def pt2(served: ServedModel, place: Path) -> Call:
    """A torch.export archive for any batch, written and read again."""
    torch.export.save(exported(served), place / "model.pt2")
    return _call(torch.export.load(place / "model.pt2").module())


def weights_sha256(served: ServedModel) -> str:
    """Of the weights in memory as model.safetensors holds them: equal to the file's, where they are the file's."""
    return hashlib.sha256(to_bytes({name: tensor.contiguous() for name, tensor in served.model.state_dict().items()})).hexdigest()


# --- answers on images ---------------------------------------------------------------------------------------------------

BINS = 15
"""Of the calibration error: equal in width over 0 to 1 (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""


@dataclass(frozen=True, eq=False)
class OnImages:
    """A model's answers on the images of a split, image by image, so that two models can be compared on each."""

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """(images,)."""
    predictions: npt.NDArray[np.int64]
    """(images,)."""
    label_nll: npt.NDArray[np.float64]
    """(images,), the negative log of the probability that the label was given, in nats."""
    confidence: npt.NDArray[np.float64]
    """(images,), the probability of the predicted class."""
    loss: float
    """Mean of `label_nll`, to the digit as training.evaluate gives it."""
    brier: float
    """Mean over the images of the squared distance between the probabilities and the truth, 0 to 2."""
    corrupted: Mapping[str, npt.NDArray[np.int64]]
    """By corruption: predictions (images,)."""

    @property
    def images(self) -> int:
        """How many."""
        return len(self.labels)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(images,), whether an image was recognised."""
        return np.equal(self.predictions, self.labels)

    @property
    def accuracy(self) -> float:
        """Fraction in [0, 1], in double precision: 9 of 10 is 0.9. training.evaluate gives the nearest float32."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 % (Wilson)."""
        return wilson(int(self.correct.sum()), self.images)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes): images of the row's class that were taken for the column's."""
        count = len(self.classes)
        return np.bincount(self.labels * count + self.predictions, minlength=count * count).reshape(count, count)

    @property
    def recalls(self) -> list[float | None]:
        """For each class the share of its images that were recognised; None for a class without images."""
        return [float(row[i] / row.sum()) if row.sum() else None for i, row in enumerate(self.confusion)]

    @property
    def macro_f1(self) -> float:
        """Mean over the classes with images of 2 · hits / (images of the class + images taken for it)."""
        confusion = self.confusion
        rows, columns, hits = confusion.sum(1), confusion.sum(0), np.diag(confusion)
        return float(np.mean([2 * h / (r + c) for h, r, c in zip(hits, rows, columns, strict=True) if r]))

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy over 15 equal bins, each weighed by its images."""
        return float(_ece(self.confidence[None], self.correct[None])[0])

    @property
    def corrupted_accuracies(self) -> dict[str, float]:
        """By corruption."""
        return {name: float((found == self.labels).mean()) for name, found in self.corrupted.items()}

    @property
    def corrupted_accuracy(self) -> float | None:
        """Their mean; None where no corruption was tried."""
        return float(np.mean(list(self.corrupted_accuracies.values()))) if self.corrupted else None

    def summary(self) -> dict[str, Any]:
        """The figures for people to read, as plain JSON values."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            "recall": dict(zip(self.classes, self.recalls, strict=True)),
            "macro_f1": self.macro_f1,
            "loss": self.loss,
            "ece": self.ece,
            "brier": self.brier,
            "corrupted_accuracy": self.corrupted_accuracy,
            "corrupted_accuracies": self.corrupted_accuracies,
            "confusion": self.confusion.tolist(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, image by image; all figures follow from them."""
        return {
            "classes": list(self.classes),
            "labels": self.labels.tolist(),
            "predictions": self.predictions.tolist(),
            "label_nll": self.label_nll.tolist(),
            "confidence": self.confidence.tolist(),
            "loss": self.loss,
            "brier": self.brier,
            "corrupted": {name: found.tolist() for name, found in self.corrupted.items()},
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> OnImages:
        """The inverse of `to_dict`."""
        return OnImages(
            classes=tuple(values["classes"]),
            labels=np.array(values["labels"], np.int64),
            predictions=np.array(values["predictions"], np.int64),
            label_nll=np.array(values["label_nll"], np.float64),
            confidence=np.array(values["confidence"], np.float64),
            loss=values["loss"],
            brier=values["brier"],
            corrupted={name: np.array(found, np.int64) for name, found in values["corrupted"].items()},
        )


def _ece(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(draws,) of (draws, images); a bin holds its upper edge and not its lower one."""
    draws, images = confidence.shape
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    keys = (bins + BINS * np.arange(draws)[:, None]).ravel()
    gaps = np.bincount(keys, weights=(correct - confidence).ravel(), minlength=draws * BINS).reshape(draws, BINS)
    return np.asarray(np.abs(gaps).sum(1) / images)


def ece_gap(candidate: OnImages, champion: OnImages, draws: int = 2000) -> tuple[float, float, float]:
    """The candidate's calibration error less the champion's, and its 90 % interval by a bootstrap over the images they share.

    Drawing images anew adds to an error, and most where it is small, so what is drawn is mirrored about what was seen (the basic
    bootstrap). Of models that differ by 0.01 in truth the lower end lay above 0.01 in 1 to 9 of 100 simulations with 270 images.
    """
    assert candidate.images == champion.images
    rng = np.random.default_rng(0)
    gap = candidate.ece - champion.ece
    drawn: list[float] = []
    for _ in range(math.ceil(draws / 100)):
        chosen = rng.integers(0, candidate.images, (100, candidate.images))
        ours, theirs = (_ece(seen.confidence[chosen], seen.correct[chosen]) for seen in (candidate, champion))
        drawn += (ours - theirs).tolist()
    low, high = np.quantile(drawn, [0.05, 0.95])
    return gap, 2 * gap - float(high), 2 * gap - float(low)


def corruption_drop(candidate: OnImages, champion: OnImages) -> tuple[float, float, float]:
    """The champion's mean corrupted accuracy less the candidate's, and its 90 % interval over the images they share.

    Over the corruptions that both were tried on. An image's corruptions are no independent trials, so each image counts once, with the
    share of its corruptions that it was recognised in.
    """
    shared = [name for name in candidate.corrupted if name in champion.corrupted]
    assert shared and candidate.images == champion.images
    ours, theirs = (np.mean([seen.corrupted[name] == seen.labels for name in shared], axis=0) for seen in (candidate, champion))
    drops = theirs - ours
    half = 1.645 * float(drops.std(ddof=1)) / math.sqrt(len(drops)) if len(drops) > 1 else math.inf
    return float(drops.mean()), float(drops.mean()) - half, float(drops.mean()) + half


@torch.inference_mode()
def on_images(
    served: ServedModel, split: Split | StreamedSplit, corruptions: Sequence[Corruption] = (), batch_size: int = EVALUATED_AT_ONCE
) -> OnImages:
    """Classify a split, as it is and once more for each corruption; in eval mode and in float32, in batches as training.evaluate has them.

    Args:
        served: on the split's device.
    """
    model, normalisation = served.model.eval(), served.normalisation
    parts = torch.arange(len(split)).split(batch_size)

    def logits(kind: Corruption | None) -> tuple[Tensor, Tensor]:
        found, labels = [], []
        for part, (images, own) in zip(parts, split.batches(parts), strict=True):
            images = images if kind is None else corrupted(images, kind, part)
            found.append(model(augment.normalise(images, normalisation.mean, normalisation.std)))
            labels.append(own)
        return torch.cat(found), torch.cat(labels)

    seen, labels = logits(None)
    chances = seen.double().softmax(1)
    truth = F.one_hot(labels, seen.shape[1])
    return OnImages(
        classes=served.classes,
        labels=labels.cpu().numpy(),
        predictions=seen.argmax(1).cpu().numpy(),
        label_nll=F.cross_entropy(seen.double(), labels, reduction="none").cpu().numpy(),
        confidence=chances.amax(1).cpu().numpy(),
        loss=float(F.cross_entropy(seen, labels)),
        brier=float(((chances - truth) ** 2).sum(1).mean()),
        corrupted={kind: logits(kind)[0].argmax(1).cpu().numpy() for kind in corruptions},
    )


# --- the data ------------------------------------------------------------------------------------------------------------


def leaks(data: DataSet) -> int:
    """Test images that stand, byte for byte, among the images that training or selection sees."""
    return data.test_duplicates


def majority(data: DataSet, split: Split | StreamedSplit) -> float:
    """Accuracy on a split of always naming the class that is commonest in training."""
    commonest = torch.bincount(load_split(data, "train").labels.cpu(), minlength=len(data.classes)).argmax()
    return float((split.labels.cpu() == commonest).double().mean())


PROBE_IMAGES = 5_000
PROBE_WEIGHTS = 200_000
"""Images and weights of the linear probe; images are averaged down to fit. Both keep it to about 10 s."""


def linear_probe(data: DataSet, split: Split | StreamedSplit, seed: int = 0) -> float:
    """Accuracy on a split of multinomial logistic regression on the pixels, fitted to at most 5,000 training images.

    They are drawn with every class's share. Larger images are averaged down to 32, 16 or 8 pixels a side.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train = load_split(data, "train")
    labels = train.labels.cpu().numpy()
    rng = np.random.default_rng(seed)
    share = min(1.0, PROBE_IMAGES / len(labels))
    own = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    chosen = np.sort(np.concatenate([indices[: max(1, int(len(indices) * share))] for indices in own]))
    side = next((s for s in (32, 16) if data.channels * s * s * len(data.classes) <= PROBE_WEIGHTS), 8)
    size = min(side, data.image_size[0]), min(side, data.image_size[1])

    def features(of: Split | StreamedSplit, indices: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        rows, classes = [], []
        for images, found in of.batches(indices.split(EVALUATED_AT_ONCE)):
            rows.append(F.adaptive_avg_pool2d(images.float() / 255, size).flatten(1).cpu())
            classes.append(found.cpu())
        return torch.cat(rows).numpy(), torch.cat(classes).numpy()

    inputs, targets = features(train, torch.from_numpy(chosen))
    if len(np.unique(targets)) < 2:
        return majority(data, split)
    mean = inputs.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 steps are enough for a baseline, and bounded
        probe = LogisticRegression(max_iter=100).fit(inputs - mean, targets)
    images, truth = features(split, torch.arange(len(split)))
    return float((probe.predict(images - mean) == truth).mean())
