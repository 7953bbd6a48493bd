"""Loading, crop, flip and normalise, ours against a torchvision Dataset and DataLoader; then what of an epoch is not the model.

    python tests/benchmarks/input_pipeline.py [--device cuda] [--rounds 7] [--images 10000] [--data DIR] [--tables input epoch]

First a table per set and batch size. Ours is what `training.fit` does before each step: a batch gathered from memory, moved
and normalised. `torchvision` is torchvision's own dataset class with transforms of the first generation, the faster one on
single images; `v2` the same in the second. Both draw their images from the whole set and bring each batch to the device.
Processor time includes the workers of a DataLoader, which have ended when it is read; `speed` is ours against each.

Then an epoch of `training.fit` against the same steps on one batch that is always the same (`model only`): what a trial pays
for data, augmentation and the bookkeeping of an epoch. The evaluation is left out. `twin` is the model alone a second time,
so its distance from 0 is what this table cannot tell from nothing.

Learned by profiling on two busy cores with AVX512 (2026-11-24; torch 2.15, torchvision 0.29):
- Of 2.9 µs an image at 28x28 and batch 64, the gather is 0.3, shift 1.1, flip 0.8 and normalising 0.7; at batch 128 it is 1.9,
  so what is left is mostly calls, and they are 1 % of an epoch or less.
- Transforms of the second generation take 1.3 times as long as the first on PIL images and 1.6 times on tensors, one by one.
- Workers add processor time (200 to 270 µs an image against 145) and on two cores give fewer images per second than none.
- An epoch of `fit` is 1 to 3 % above the model alone where a twin is within 2 %. One run of 3 rounds said -5 %, which cannot be:
  that is why the twin is there, and why a row whose twin is far from 0 says nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from fashion import BESIDE, fashion_mnist
from rounds import cpu_seconds, in_turns, ratios, spread, surroundings, table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.transforms import v2

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, load_split
from vit_search.data.cache import prepare
from vit_search.vit import augment
from vit_search.vit.augment import Targets
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.schedule import lr_at
from vit_search.vit.training import fit, start, train_step

SHIFT = 2
"""Pixels each way, and pixels of padding: the same thing, said to each side."""


def both_clocks(device: torch.device) -> Callable[[], Any]:
    """A clock of two hands, processor and wall; `in_turns` takes their difference as it does that of plain numbers."""

    def now() -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return np.array([cpu_seconds(), time.perf_counter()])

    return now


def apart(seconds: dict[str, list[Any]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Processor and wall seconds out of what the clock of two hands gave."""
    cpu, wall = ({name: [float(both[hand]) for both in told] for name, told in seconds.items()} for hand in (0, 1))
    return cpu, wall


def usual_transforms(side: int, mean: tuple[float, ...], std: tuple[float, ...], generation: int = 1) -> Callable[[Any], Tensor]:
    """What torchvision's examples do to one training image."""
    if generation == 1:
        return transforms.Compose(
            [
                transforms.RandomCrop(side, padding=SHIFT),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
    return v2.Compose(
        [
            v2.RandomCrop(side, padding=SHIFT),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def like_cifar(images: Tensor, labels: Tensor, transform: Callable[[Any], Tensor]) -> Dataset[Any]:
    """torchvision's CIFAR10 over pixels of our own, since its constructor takes none but the real files."""
    made = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    made.data, made.targets = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
    made.transform, made.target_transform = transform, None
    return made


def our_batches(split: Split, plain: Normalisation, images: int, batch: int, told: TrainingConfig, seed: int) -> Iterator[Tensor]:
    """The batches of `training.fit`, as far as the model's door."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randperm(len(split), generator=generator)[:images].split(batch)
    for raw, labels in split.batches(parts, seed):
        moved = augment.normalise(augment.moved(raw, told, generator), plain.mean, plain.std)
        yield augment.mixed(moved, labels, told, generator)[0]


def loaded(split: Split, plain: Normalisation, usual: dict[int, Dataset[Any]], batch: int, told: argparse.Namespace) -> str:
    """The table of one set and batch size."""
    moves, device = TrainingConfig(shift=SHIFT, flip=True), told.device
    seeds = iter(range(1_000_000))

    def ours() -> None:
        for _ in our_batches(split, plain, told.images, batch, moves, next(seeds)):
            pass

    def theirs(generation: int, workers: int) -> Callable[[], None]:
        def turn() -> None:
            data = usual[generation]
            sampler = RandomSampler(data, num_samples=told.images)  # type: ignore[arg-type]
            pinned = device.type == "cuda"
            for images, labels in DataLoader(data, batch, sampler=sampler, num_workers=workers, pin_memory=pinned):
                images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

        return turn

    turns = {"vit_search": ours} | {f"torchvision, {workers} workers": theirs(1, workers) for workers in (0, 2, 4)}
    turns["torchvision v2, 0 workers"] = theirs(2, 0)
    cpu, wall = apart(in_turns(turns, told.rounds, both_clocks(device)))
    rows = [
        [
            name,
            spread([s / told.images * 1e6 for s in cpu[name]], 1),
            f"{told.images / statistics.median(wall[name]):,.0f}",
            spread(ratios(cpu["vit_search"], cpu[name]), 1),
            spread(ratios(wall["vit_search"], wall[name]), 1),
        ]
        for name in turns
    ]
    return table(["contender", "CPU µs/image", "images/s, wall", "speed of ours, CPU", "speed of ours, wall"], rows)


def epochs(split: Split, plain: Normalisation, shape: ModelConfig, batch: int, told: argparse.Namespace) -> list[str]:
    """The row of one configuration in the table of epochs."""
    device, count = told.device, told.images
    moves = TrainingConfig(epochs=1000, batch_size=batch, lr=1e-4, shift=SHIFT, flip=True)
    config = TrialConfig(data=DataConfig(name="fashion_mnist"), model=shape, training=moves, seed=0)
    part = Split(split.images[:count], split.labels[:count])
    whole = fit(start(config, plain, device), part, Split(split.images[:1], split.labels[:1]))
    steps = -(-count // batch)
    images = augment.normalise(split.images[:batch], plain.mean, plain.std)
    targets = Targets(split.labels[:batch])

    def model_only() -> Callable[[], None]:
        fixed = start(config, plain, device)
        fixed.model.train()

        def turn() -> None:
            for step in range(steps):
                some = count - step * batch  # the last batch of an epoch is not full
                x, y = (images, targets) if some >= batch else (images[:some], Targets(targets.labels[:some]))
                train_step(fixed, x, y, lr_at(step, 1000 * steps, moves), step)

        return turn

    def data_only() -> None:
        for _ in our_batches(part, plain, count, batch, moves, 0):
            pass

    turns = {"fit": lambda: next(whole), "model": model_only(), "twin": model_only(), "data": data_only}
    cpu, wall = apart(in_turns(turns, told.rounds, both_clocks(device)))
    of = wall if device.type == "cuda" else cpu
    return [
        f"28x28 p{shape.patch_size} dim {shape.dim} depth {shape.depth} batch {batch}",
        *(f"{statistics.median(of[name]) / count * 1e6:.1f}" for name in ("fit", "model", "data")),
        spread([100 * (a / b - 1) for a, b in zip(of["fit"], of["model"], strict=True)], 1),
        spread([100 * (a / b - 1) for a, b in zip(of["twin"], of["model"], strict=True)], 1),
        spread([100 * a / b for a, b in zip(of["data"], of["fit"], strict=True)], 1),
    ]


def main() -> None:
    """Print the tables."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", default="cpu", type=torch.device)
    ask.add_argument("--rounds", default=7, type=int)
    ask.add_argument("--images", default=10_000, type=int, help="in a turn")
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    ask.add_argument("--tables", nargs="+", default=["input", "epoch"], choices=["input", "epoch"])
    told = ask.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # 4 workers on a machine of 2 cores
    root = fashion_mnist(told.data)
    print(surroundings(told.device, "torchvision"), flush=True)
    with tempfile.TemporaryDirectory() as cache:
        data = prepare(DataConfig(name="fashion_mnist", path=str(root)), cache=Path(cache))
        fashion = load_split(data, "train", device=told.device)
        plain = Normalisation.of(data.mean, data.std, told.device)
        if "input" in told.tables:
            usual = {
                g: torchvision.datasets.FashionMNIST(str(root), transform=usual_transforms(28, data.mean, data.std, g)) for g in (1, 2)
            }
            draw = torch.Generator().manual_seed(0)
            pixels = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=draw)
            labels = torch.randint(10, (50_000,), generator=draw)
            grey = (0.5,) * 3
            cifar = Split(pixels.to(told.device), labels.to(told.device))
            theirs = {g: like_cifar(pixels, labels, usual_transforms(32, grey, grey, g)) for g in (1, 2)}
            for batch in (64, 128):
                print(f"\nFashionMNIST, 28x28x1, batch {batch}")
                print(loaded(fashion, plain, usual, batch, told), flush=True)
                print(f"\nrandom pixels like CIFAR's, 32x32x3, batch {batch}")
                print(loaded(cifar, Normalisation.of(grey, grey, told.device), theirs, batch, told), flush=True)
        if "epoch" in told.tables:
            rows = []
            for patch_size, batch in ((7, 64), (4, 64)):
                shape = ModelConfig(image_size=(28, 28), in_channels=1, num_classes=10, patch_size=patch_size)
                rows.append(epochs(fashion, plain, shape, batch, told))
            hand = "wall" if told.device.type == "cuda" else "CPU"
            print(f"\nan epoch on FashionMNIST, {hand} µs/image")
            head = ["config", "fit", "model only", "data only", "fit over model, %", "twin over model, %", "data of fit, %"]
            print(table(head, rows))


if __name__ == "__main__":
    main()
