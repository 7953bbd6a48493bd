"""How trainings of one shape share a GPU: k processes side by side against one alone, and what each takes of its memory.

    python tests/benchmarks/gpu_sharing.py [--at-once 1 2 4 8] [--seconds 4] [--shapes NAME …] [--json FILE] [--device cpu]

Needs torch, numpy, einops, torchvision and safetensors alone; about 3 minutes. Images are random bytes that lie on the GPU, as a
search has them; the optimiser and the evaluation of one batch in each epoch of 10 steps are included; a process has one thread.

First table: images a second in all for each number of processes, against one alone, and what tests/benchmarks/packing.py
foretells from `busy`, the share of its time that the GPU works for one alone (its kernels by torch's profiler, over the time of
an epoch without it): k processes in all are worth min(k, 1 / busy) alone. Second table, memory of one: as config/cost.py predicts
it, the peak that the allocator gave out, the peak that it holds, and what the GPU lacks besides the context.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rounds import surroundings, table

from vit_search.config.cost import cost_of
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.data.batches import Split
from vit_search.runtime.machine import autocast_type
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.training import fit, start

STEPS, BATCH = 10, 128


@dataclass(frozen=True)
class Shape:
    """A proposal of search_spaces/cifar10.yaml."""

    patch: int
    dim: int
    depth: int
    mlp: float
    auto_augment: str = "none"
    cuda_graphs: bool = False

    def config(self) -> TrialConfig:
        """All that a worker would be told."""
        model = ModelConfig(
            image_size=(32, 32),
            in_channels=3,
            num_classes=10,
            patch_size=self.patch,
            dim=self.dim,
            depth=self.depth,
            heads=8,
            mlp_ratio=self.mlp,
            dropout=0.1,
            drop_path=0.1,
        )
        training = TrainingConfig(
            epochs=100_000,
            batch_size=BATCH,
            warmup_fraction=0.0,
            flip=True,
            shift=4,
            cutmix=1.0,
            auto_augment=self.auto_augment,  # type: ignore[arg-type]
            cuda_graphs=self.cuda_graphs,
        )
        return TrialConfig(data=DataConfig(name="cifar10"), model=model, training=training, seed=0)


SHAPES = {
    "smallest": Shape(4, 128, 4, 1),
    "usual": Shape(4, 256, 6, 2),
    "usual, trivial_augment": Shape(4, 256, 6, 2, auto_augment="trivial_augment"),
    "usual, cuda_graphs": Shape(4, 256, 6, 2, cuda_graphs=True),
    "largest": Shape(4, 384, 9, 4),
    "usual, patch 2": Shape(2, 256, 6, 2),
    "largest, patch 2": Shape(2, 384, 9, 4),
}


@dataclass(frozen=True)
class Alone:
    """What one process says of its training; memory in bytes, 0 on a CPU."""

    busy: float
    """Share of its time that the device works."""
    predicted: int
    allocated: int
    reserved: int


def trained(config: TrialConfig, device: torch.device) -> Iterator[EpochResult]:
    """Epochs without end."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (STEPS * BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8).to(device)
    labels = torch.randint(10, (STEPS * BATCH,), generator=generator).to(device)
    normalisation = Normalisation.of((0.5,) * 3, (0.25,) * 3, device)
    return fit(start(config, normalisation, device), Split(images, labels), Split(images[:BATCH], labels[:BATCH]))


def rate(run: Iterator[EpochResult], seconds: float) -> float:
    """Images a second until the time is over, whole epochs."""
    began, epochs = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(run)
        epochs += 1
    return epochs * STEPS * BATCH / (time.perf_counter() - began)


def alone(run: Iterator[EpochResult], config: TrialConfig, images_per_s: float, device: torch.device) -> Alone:
    """Figures of a training that runs at this speed."""
    cuda = device.type == "cuda"
    predicted = cost_of(config.model, BATCH, device="cuda" if cuda else "cpu", half=autocast_type(config, device) is not None).train_bytes
    if not cuda:
        return Alone(1.0, predicted, 0, 0)
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        next(run)
        torch.cuda.synchronize()
    kernels = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    return Alone(min(1.0, kernels * images_per_s / (STEPS * BATCH)), predicted, *peaks)


def obey(pipe: Connection, device_name: str) -> None:
    """One process: does what it is told until that is None."""
    device, config = torch.device(device_name), SHAPES["smallest"].config()
    torch.set_num_threads(1)
    run: Iterator[EpochResult] = iter(())
    answer: Any = None
    while (told := pipe.recv()) is not None:
        if told[0] == "begin":  # the context, and what matrix products need
            float(torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device))[0, 0])
        elif told[0] == "free":
            run = iter(())
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        elif told[0] == "build":
            config = SHAPES[told[1]].config()
            run = trained(config, device)
            next(run)
        elif told[0] == "rate":
            answer = rate(run, told[1])
        elif told[0] == "alone":
            answer = alone(run, config, told[1], device)
        pipe.send(answer)


def used(device: torch.device) -> int:
    """Bytes of the GPU that are not free, whoever has them."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def ask_all(pipes: list[Connection], *words: Any) -> list[Any]:
    """The answers of all processes to one command."""
    for pipe in pipes:
        pipe.send(words)
    return [pipe.recv() for pipe in pipes]


def measured(pipes: list[Connection], name: str, at_once: list[int], seconds: float, device: torch.device) -> dict[str, Any]:
    """One shape."""
    ask_all(pipes, "free")
    before = used(device)
    ask_all(pipes[:1], "build", name)
    single = ask_all(pipes[:1], "rate", seconds)[0]
    taken = used(device) - before
    told: Alone = ask_all(pipes[:1], "alone", single)[0]
    if max(at_once) > 1:
        ask_all(pipes[1 : max(at_once)], "build", name)
    together = {k: sum(ask_all(pipes[:k], "rate", seconds)) for k in sorted(at_once)}
    return {"shape": name, "images_per_s": together, "taken": taken, **asdict(told)}


def main() -> None:
    """Print the tables."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--at-once", nargs="+", type=int, default=[1, 2, 4, 8])
    ask.add_argument("--seconds", type=float, default=4.0)
    ask.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="NAME", help=", ".join(SHAPES))
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--json", type=Path, help="where to keep the figures, too")
    told = ask.parse_args()
    device, at_once = torch.device(told.device), sorted({1, *told.at_once})
    spawn, pipes = multiprocessing.get_context("spawn"), []
    for _ in range(max(at_once)):
        ours, theirs = spawn.Pipe()
        spawn.Process(target=obey, args=(theirs, told.device), daemon=True).start()
        pipes.append(ours)
    before = used(device)  # with this process's own context
    ask_all(pipes[:1], "begin")
    context = used(device) - before
    ask_all(pipes, "begin")
    print(surroundings(device), flush=True)
    shapes = []
    for name in told.shapes:
        shapes.append(measured(pipes, name, at_once, told.seconds, device))
        print(json.dumps(shapes[-1]), flush=True)
        if told.json:
            told.json.write_text(json.dumps({"device": surroundings(device), "context": context, "shapes": shapes}, indent=1))
    for pipe in pipes:
        pipe.send(None)
    rows, memory, mib = [], [], 2**20
    for one in shapes:
        single = one["images_per_s"][1]
        foretold = [min(k, 1 / max(one["busy"], 1e-9)) for k in at_once]
        seen = [f"{one['images_per_s'][k] / single:.2f} ({f:.2f})" for k, f in zip(at_once[1:], foretold[1:], strict=True)]
        rows.append([one["shape"], f"{single:,.0f}", f"{one['busy']:.2f}", *seen])
        figures = (one["predicted"], one["allocated"], one["reserved"], one["taken"])
        memory.append([one["shape"], *(f"{value / mib:,.0f}" for value in figures), f"{one['reserved'] / one['predicted']:.2f}"])
    print("\nimages a second in all, against one alone (foretold from busy)\n")
    print(table(["shape", "alone, images/s", "busy", *(f"{k} at once" for k in at_once[1:])], rows))
    print(f"\nmemory of one, MiB; a context takes {context / mib:,.0f} besides\n")
    print(table(["shape", "predicted", "allocated", "held", "taken of the GPU", "held to predicted"], memory))


if __name__ == "__main__":
    main()
