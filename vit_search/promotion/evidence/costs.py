"""Measures what a model costs: parameters, bytes, latency and memory. Two models are measured in alternation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vit_search.config.cost import cost_of
from vit_search.config.model_config import ModelConfig
from vit_search.tracking.model_package import RawPixels
from vit_search.vit import checkpoint
from vit_search.vit.checkpoint import ServedModel

Pixels = npt.NDArray[np.unsignedinteger]

BATCHES = {1: (50, 300), 32: (5, 40)}
"""Batch sizes at which latency is measured, each with its number of warm-up calls and timed calls."""

LEAST_CALLS = 3
"""Timed calls that are made even if they are slow."""

BLOCK = 10
"""Consecutive calls that the bootstrap draws together, because a busy machine stays busy for some calls."""


@dataclass(frozen=True)
class Latency:
    """Time from pixels to logits, in milliseconds."""

    p50_ms: float
    p95_ms: float
    calls: int
    cut: bool
    """Whether the time limit ended the measurement before all calls were made."""


@dataclass(frozen=True)
class Costs:
    """The costs of a model."""

    params: int
    file_bytes: int
    """Size of model.safetensors."""
    flops: int
    """FLOPs of the forward pass of one image."""
    latency: Mapping[str, Latency]
    """By device and batch: `cpu_batch_1`, `cpu_batch_32`, and with a GPU `cuda_batch_1`, `cuda_batch_32`."""
    peak_memory_bytes: Mapping[str, int]
    """By device: weights, and the peak of the activations of 32 images."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Costs:
        """The inverse of `to_dict`."""
        return Costs(**{**values, "latency": {name: Latency(**value) for name, value in values["latency"].items()}})


@dataclass(frozen=True)
class Ratio:
    """The candidate's figure divided by the champion's, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SideBySide:
    """Two models, measured in alternation on one machine."""

    candidate: Costs
    champion: Costs
    ratios: Mapping[str, Ratio]
    """Ratios of latency: `cpu_batch_1_p50`, `cpu_batch_1_p95` and so on."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SideBySide:
        """The inverse of `to_dict`."""
        ratios = {name: Ratio(**value) for name, value in values["ratios"].items()}
        return SideBySide(Costs.from_dict(values["candidate"]), Costs.from_dict(values["champion"]), ratios)


def measure_costs(served: ServedModel, folder: Path, *, limit_s: float = 20) -> Costs:
    """Measure one model. Its latency holds for this machine at this moment; `measure_side_by_side` compares two models.

    Args:
        folder: of its checkpoint. limit_s: time limit for each device and batch size, in seconds.
    """
    return _measure([(served, folder)], limit_s)[0][0]


def measure_side_by_side(
    candidate: ServedModel, folder: Path, champion: ServedModel, champion_folder: Path, *, limit_s: float = 20
) -> SideBySide:
    """Measure two models in alternation, call by call, so that other work of the machine slows both.

    Each model gets images of its own size. The number of threads is torch's current one. The interval of a ratio comes from a bootstrap
    over pairs of calls, in blocks of consecutive calls.

    Args:
        folder, champion_folder: of their checkpoints.
        limit_s: time limit for each device and batch size, in seconds; see `Latency.cut`.
    """
    (ours, theirs), times = _measure([(candidate, folder), (champion, champion_folder)], limit_s)
    ratios = {}
    for name, pair in times.items():
        for word, share in (("p50", 50), ("p95", 95)):
            ratios[f"{name}_{word}"] = ratio_of_percentiles(pair, share)
    return SideBySide(ours, theirs, ratios)


def _measure(models: Sequence[tuple[ServedModel, Path]], limit_s: float) -> tuple[list[Costs], dict[str, npt.NDArray[np.float64]]]:
    """The costs of each model; and all times in seconds, (calls, models), by device and batch size."""
    times: dict[str, npt.NDArray[np.float64]] = {}
    cut: dict[str, bool] = {}
    memory: list[dict[str, int]] = [{} for _ in models]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        raws = [RawPixels(_copy_of(served)).eval().to(device) for served, _ in models]
        for i, raw in enumerate(raws):
            memory[i][device] = _peak_memory(raw)
        for batch, (warm_up, timed) in BATCHES.items():
            name = f"{device}_batch_{batch}"
            times[name], cut[name] = _time_calls(raws, batch, warm_up, timed, limit_s)
    measured = []
    for i, (served, folder) in enumerate(models):
        cost = cost_of(served.config.model, 1)
        latency = {
            name: Latency(_percentile_ms(every[:, i], 50), _percentile_ms(every[:, i], 95), len(every), cut[name])
            for name, every in times.items()
        }
        file_bytes = checkpoint.model_bytes(folder)
        measured.append(Costs(cost.params, file_bytes, cost.forward_flops, latency, memory[i]))
    return measured, times


def _percentile_ms(seconds: npt.NDArray[np.float64], share: float) -> float:
    return 1000 * float(np.percentile(seconds, share))


def _copy_of(served: ServedModel) -> ServedModel:
    return ServedModel(copy.deepcopy(served.model), served.config, served.normalisation, served.classes, served.data_hash)


def noise_images(config: ModelConfig, bits: int, batch: int) -> Pixels:
    """Random images that are always the same: (batch, height, width, channels), uint8 or uint16."""
    kind = np.dtype(f"uint{bits}").type
    return np.random.default_rng(0).integers(0, 2**bits, (batch, *config.image_size, config.in_channels), kind)


@torch.inference_mode()
def _time_calls(raws: Sequence[RawPixels], batch: int, warm_up: int, timed: int, limit_s: float) -> tuple[npt.NDArray[np.float64], bool]:
    """Seconds of each call, (calls, models), and whether the time limit came first. The models take turns in going first."""
    images = [torch.from_numpy(noise_images(raw.model.config, raw.bits, batch)).to(raw.mean.device) for raw in raws]
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


def ratio_of_percentiles(times: npt.NDArray[np.float64], share: float, draws: int = 2000) -> Ratio:
    """The first model's percentile divided by the second's.

    Args:
        times: (calls, 2).
    """
    calls = len(times)
    block = min(BLOCK, max(1, calls // 5))
    blocks = math.ceil(calls / block)
    starts = np.random.default_rng(0).integers(0, calls - block + 1, (draws, blocks))
    chosen = (starts[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :calls]
    ours, theirs = (np.percentile(times[:, i][chosen], share, axis=1) for i in (0, 1))
    low, high = np.quantile(ours / theirs, [0.025, 0.975])
    value = float(np.percentile(times[:, 0], share) / np.percentile(times[:, 1], share))
    return Ratio(value, float(low), float(high))


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that exist at the same time, except those of `ignored`."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._living: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._ignored:
                    self._living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._living = {key: entry for key, entry in self._living.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._living.values()))
        return out


@torch.no_grad()
def _peak_memory(raw: RawPixels, batch: int = 32) -> int:
    """Bytes of the weights, and of the tensors that exist at once in a forward pass. On a CPU without the memory inside kernels."""
    images = torch.from_numpy(noise_images(raw.model.config, raw.bits, batch)).to(raw.mean.device)
    weights: int = sum(tensor.nbytes for tensor in raw.state_dict().values())
    if raw.mean.is_cuda:
        raw(images)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        raw(images)
        torch.cuda.synchronize()
        return weights + int(torch.cuda.max_memory_allocated()) - before
    live = _LiveTensors(raw.state_dict().values())
    with live:
        raw(images)
    return weights + live.peak
