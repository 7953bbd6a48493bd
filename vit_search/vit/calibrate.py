"""Measure how fast this machine trains the models of one search, for `plan --calibrate`.

Short trainings run side by side. `fitted` turns their times into planning/speed.py's Speed.

How good the prediction is, for other proposals of search_spaces/digits.yaml, one at a time on two cores of an AMD EPYC: predicted time /
measured time was 1.00, 1.04 and 1.03 for 12 epochs in each of three rounds, and 0.77 to 1.27 for single epochs
(tests/benchmarks/foretold.py, 2026-11-24, load 1 to 1.7; at load 4.8 an earlier form gave 1.08, 0.95 and 1.00). The measurement takes 13 to
21 s there, and longer on a busy machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from vit_search.config.cost import cost_of, saved_params
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split
from vit_search.errors import SpecError
from vit_search.planning.auto_gpu_share import share_of_gpu
from vit_search.planning.image_counts import images_of
from vit_search.planning.speed import EVALUATED_AT_ONCE, Speed, evaluation_seconds, speed_key, work
from vit_search.runtime import machine
from vit_search.runtime.worker_env import WORKER_ENV
from vit_search.text import counted
from vit_search.vit import checkpoint, evaluation, training
from vit_search.vit.checkpoint_files import LeftOut

MODELS = 9
"""Proposals to measure."""

STEP_FLOPS = {"cpu": 1e10, "cuda": 1e13}
"""Largest step to measure, in FLOPs by device. A larger step is measured with fewer images."""


@dataclass(frozen=True)
class Measured:
    """Median times of one proposal, in seconds."""

    step: float
    evaluation: float
    """For `evaluated` images."""
    save: float
    start: float
    gflop: float
    """For 1e9 operations of one large matrix product. No step can be faster."""


def calibrate(spec: SearchSpec, *, concurrency: int | None = None, seconds: float = 4.0) -> Speed:
    """Measure this machine for a search.

    Args:
        spec: a checked search file.
        concurrency: trials at once; default: the file's. Limited to those that the machine has room for.
        seconds: time to measure, without the time to start the processes.
    Raises: SpecError if no proposal can be run, or the file asks for a GPU and this machine has none.
    """
    device = "cuda" if spec.resources.on_gpu else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("resources.gpus: this machine has no GPU to measure; run plan --calibrate where the search will run.")
    cores, cpus, gpus = len(os.sched_getaffinity(0)), spec.resources.cpus, _gpus(spec)
    room = cores / (1 if cpus == "auto" else cpus)
    if gpus:
        room = min(room, torch.cuda.device_count() / gpus)
    processes = min(concurrency or spec.concurrency, max(1, int(room)))
    threads = max(1, int(cores / processes if cpus == "auto" else cpus))
    configs = [bounded(config, STEP_FLOPS[device]) for config in proposals(spec)]
    workers = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    with mock.patch.dict(os.environ, WORKER_ENV | {"OMP_NUM_THREADS": str(threads)}), workers as pool:  # read when a process starts
        futures = [pool.submit(measure, configs, device, threads, seconds) for _ in range(processes)]
        each = [future.result() for future in futures]
    return dataclasses.replace(
        fitted(configs, [_mean(parts) for parts in zip(*each, strict=True)]),
        device=f"{torch.cuda.get_device_name() if device == 'cuda' else _processor()}, {counted(threads, 'thread')}",
        measured=date.today().isoformat(),
        name=spec.name,
        key=speed_key(spec),
        processes=processes,
        room=max(1, int(room)),
    )


def _gpus(spec: SearchSpec) -> float:
    """The share of a GPU that most trials get."""
    if spec.resources.gpus != "auto":
        return spec.resources.gpus
    images = images_of(spec.data_config)
    shares = Counter(share_of_gpu(spec, config, images) or 1.0 for config in proposals(spec))
    return shares.most_common(1)[0][0]


def proposals(spec: SearchSpec) -> list[TrialConfig]:
    """Choose MODELS proposals: the least and the most work per step, the largest share of each kind of work, and some in between.

    Raises: SpecError if none of 2,000 can be run.
    """
    rng, space = random.Random(1), spec.space  # noqa: S311 -- a sample of the space, not a secret
    drawn = (space.draw(rng) for _ in range(2_000))
    valid = list(itertools.islice((params for params in drawn if space.problem(params) is None), 200))
    if not valid:
        raise SpecError("none of 2,000 random proposals can be run; see why: vit-search lint.")
    configs = [_whole(spec.trial_config(params, in_channels=space.in_channels, num_classes=space.num_classes, trial=0)) for params in valid]
    configs.sort(key=lambda config: work(config)["gflop_s"])
    amounts = [work(config) for config in configs]
    last = len(configs) - 1
    chosen = {0: None, last: None}  # in this order, each once
    for kind in ("mscore_s", "block_s", "mvalue_s"):
        chosen[max(range(len(configs)), key=lambda i: amounts[i][kind] / amounts[i]["gflop_s"])] = None
    for i in range(1, MODELS):
        chosen[round(i * last / MODELS)] = None
    return [configs[i] for i in list(chosen)[:MODELS]]


def _whole(config: TrialConfig) -> TrialConfig:
    """The same without kept features: the whole model runs in each step."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, feature_views=0))


def measure(configs: Sequence[TrialConfig], device: str, threads: int, seconds: float) -> list[Measured]:
    """Train the proposals in turns on random images, epochs of a few steps, until the time is over.

    Each has one epoch that is not measured, then at least one that is.
    """
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    runs, starts, saves, ceiling = [], [], [], product_seconds(device)
    for config in configs:
        began = time.perf_counter()
        state = training.start(config, _plain(config, device), device)
        if config.model.pretrained and config.training.tune != "full":
            state.left_out = LeftOut("", "")  # random weights take the place of pretrained ones
        starts.append(time.perf_counter() - began)
        train, val = (
            _made_up(config, count, generator, device) for count in (turn(config) * config.training.batch_size, evaluated(config))
        )
        runs.append(training.fit(state, train, val))
        next(runs[-1])  # buffers, kernels, the optimiser's state
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            checkpoint.save(Path(folder) / "checkpoint", state, classes=(), data_hash="")
            saves.append(time.perf_counter() - began)
    steps: list[list[float]] = [[] for _ in configs]
    evaluations: list[list[float]] = [[] for _ in configs]
    end = time.perf_counter() + seconds
    for turns in itertools.count():
        for i, (config, run) in enumerate(zip(configs, runs, strict=True)):
            if turns and time.perf_counter() > end:
                break
            result = next(run)
            trained = turn(config) * config.training.batch_size / result.images_per_s
            steps[i].append(trained / turn(config))
            evaluations[i].append(result.seconds - trained)
        if time.perf_counter() > end:
            break
    return [
        Measured(statistics.median(step), statistics.median(evaluation), save, start, ceiling)
        for step, evaluation, save, start in zip(steps, evaluations, saves, starts, strict=True)
    ]


def fitted(configs: Sequence[TrialConfig], times: Sequence[Measured]) -> Speed:
    """The Speed that explains the times best. No price is below 0, and errors are relative, so small and large models count the same."""
    ceiling = min(m.gflop for m in times)  # without it, the time of small models would be attributed to other work
    prices = least([work(config) for config in configs], [m.step for m in times], {"gflop_s": ceiling})
    speed = dataclasses.replace(Speed(gflop_s=ceiling), **prices)  # type: ignore[arg-type]
    foretold = [evaluation_seconds(dataclasses.replace(speed, evaluation=1.0), config, evaluated(config)) for config in configs]
    saving = least(
        [{"save_s": 1.0, "mparam_save_s": saved_params(config.model, config.training.tuning) / 1e6} for config in configs],
        [m.save for m in times],
    )
    return dataclasses.replace(
        speed,
        evaluation=statistics.median(m.evaluation / one for m, one in zip(times, foretold, strict=True)),
        start_s=statistics.median(m.start for m in times),
        save_s=saving["save_s"],
        mparam_save_s=saving["mparam_save_s"],
    )


def least(
    rows: Sequence[Mapping[str, float]], seconds: Sequence[float], floor: Mapping[str, float] = types.MappingProxyType({})
) -> dict[str, float]:
    """The price of each kind of work that gives the least sum of squared relative errors. No price is below its floor, or 0.

    Every subset of kinds is tried, so the result is exact.

    Args:
        rows: amounts of work by kind, one row per time in `seconds`.
    """
    names = list(rows[0])
    low = np.array([floor.get(name, 0.0) for name in names])
    shares = np.array([[row[name] for name in names] for row in rows]) / np.array(seconds)[:, None]
    wanted = 1 - shares @ low
    best, more = float((wanted**2).sum()), np.zeros(len(names))
    for size in range(1, min(len(names), len(rows)) + 1):
        for chosen in itertools.combinations(range(len(names)), size):
            prices = np.linalg.lstsq(shares[:, chosen], wanted, rcond=None)[0]
            error = float(((shares[:, chosen] @ prices - wanted) ** 2).sum())
            if (prices >= 0).all() and error < best * (1 - 1e-9):
                best, more = error, np.zeros(len(names))
                more[list(chosen)] = prices
    return {name: float(price) for name, price in zip(names, low + more, strict=True)}


def product_seconds(device: str, size: int = 1024) -> float:
    """Time of 1e9 operations of a matrix product, in the fastest number format that trainings use on a device; best of 8."""
    half = machine.native_bfloat16(torch.device(device))
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32) for _ in range(2))
    times = []
    for _ in range(8):
        began = time.perf_counter()
        float(torch.mm(a, b)[0, 0])  # waits for a GPU, too
        times.append(time.perf_counter() - began)
    return min(times) / (2 * size**3 / 1e9)


def turn(config: TrialConfig) -> int:
    """Steps of one turn; fewer for a large model."""
    return max(1, min(6, int(2 / work(config)["gflop_s"])))


def evaluated(config: TrialConfig) -> int:
    """Images in one turn's evaluation."""
    return max(1, min(EVALUATED_AT_ONCE, int(5e9 / cost_of(config.model, 1).forward_flops)))


def bounded(config: TrialConfig, flops: float) -> TrialConfig:
    """The same configuration with at most `flops` per step, without compilation, and without an end."""
    most = max(1, int(flops / cost_of(config.model, 1).train_flops))
    training = dataclasses.replace(
        config.training,
        batch_size=min(config.training.batch_size, most),
        accumulation=1 if most < config.training.batch_size else config.training.accumulation,
        compile=False,
        cuda_graphs=False,
        class_weights="none",  # random images have no class names, and weights take no time
        epochs=100_000,
    )
    return dataclasses.replace(config, training=training)


def _plain(config: TrialConfig, device: str) -> evaluation.Normalisation:
    channels = config.model.in_channels
    return evaluation.Normalisation.of((0.5,) * channels, (0.25,) * channels, device)


def _made_up(config: TrialConfig, count: int, generator: torch.Generator, device: str) -> Split:
    model = config.model
    shape = (count, model.in_channels, *model.image_size)
    deep = config.data.bits == 16
    images = torch.randint(2**config.data.bits, shape, dtype=torch.int32 if deep else torch.uint8, generator=generator)
    images = images.to(torch.uint16) if deep else images
    labels = torch.randint(max(1, model.num_classes), (count,), generator=generator)
    return Split(images.to(device), labels.to(device))


def _mean(parts: Sequence[Measured]) -> Measured:
    return Measured(*(statistics.fmean(values) for values in zip(*map(dataclasses.astuple, parts), strict=True)))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
