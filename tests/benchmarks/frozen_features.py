"""How many trials a minute a search over heads makes, with the output of the frozen backbone kept and without.

    python tests/benchmarks/frozen_features.py                    # ViT-S/16 at 224 pixels, on the CPU
    python tests/benchmarks/frozen_features.py --device cuda --images 2000 --rounds 5
    python tests/benchmarks/frozen_features.py --tune last_blocks

Goal: with `tune: head`, a trial that finds the features in the cache is at least 50 times as fast as one that runs the backbone in every
epoch (`training.feature_views: 0`).

Every contender trains whole trials as a worker of a search does, without Ray: it reads the weights if it has not got them from the trial
before, trains, validates and writes a checkpoint in each epoch. No augmentation, and the learning rate and the seed of the head differ
from trial to trial. The backbone has random weights and the images are noise in a brightness of their class, since only the time counts.
`first` is the trial that computes the features; `later` is each trial after it. `of 50 trials` is a whole search of 50 trials one after
another: one `first` and 49 `later`. What Ray and the driver add is in head_search.py.

Wall time, in turns. The accuracy of all contenders is printed: they train the same head on the same features.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rounds import in_turns, ratios, spread, surroundings, table
from torch import Tensor

from vit_search.config import search_file
from vit_search.config.backbone import read_backbone
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import TrialConfig
from vit_search.data import backbones
from vit_search.data.batches import load_split
from vit_search.data.cache import DataSet, prepare
from vit_search.data.weight_files import local_file
from vit_search.vit import checkpoint, features, training
from vit_search.vit.checkpoint_files import sha256_of
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.pretrained import Pretrained, load
from vit_search.vit.shared_blocks import SharedBlocks

TRIALS = 50
"""Of the search that the last column is about."""

SPLITS = (("train",), ("val",))
CLASSES = ("dark", "grey", "light", "white")


def write_images(folder: Path, count: int, size: int) -> None:
    """PNG files in a folder for each class, no two alike."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / CLASSES[i % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        brightness = 40 + 50 * (i % len(CLASSES))
        pixels = rng.integers(0, 40, (size // 8, size // 8, 3)) + brightness
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1).astype(np.uint8)).save(place / f"{i}.png")


def search_of(images: Path, weights: str, args: argparse.Namespace, training: str) -> SearchSpec:
    """A search file of one configuration, with the weights pinned as a launch does it."""
    model = f"pretrained: {weights}" if weights else f"dim: {args.dim}, depth: {args.depth}, heads: {args.heads}, patch_size: {args.patch}"
    text = (
        f"name: heads\ntrials: 1\nepochs: {args.epochs}\n"
        f"data: {{name: image_folder, path: {images}, image_size: {args.size}, val_fraction: 0.2, holdout_fraction: 0}}\n"
        f"model: {{{model}, pool: cls}}\ntraining: {{{training}}}\n"
        f"resources: {{cpus: {torch.get_num_threads()}, gpus: {int(args.device == 'cuda')}}}\n"
    )
    spec = search_file.parse(text)
    return backbones.pinned(spec, backbones.find_all(spec))


def config_of(spec: SearchSpec) -> TrialConfig:
    """Its configuration."""
    return spec.trial_config({}, in_channels=3, num_classes=len(CLASSES), trial=0)


def backbone_of(spec: SearchSpec, data: DataSet, folder: Path) -> str:
    """A file of random weights. Returns: its path."""
    state = training.start(config_of(spec), Normalisation.of(data.mean, data.std))
    checkpoint.save(folder, state, classes=("other", "classes"), data_hash="none")
    return str(folder / checkpoint.MODEL)


def trials_of(spec: SearchSpec, data: DataSet, folder: Path, accuracies: list[float]) -> Callable[[], None]:
    """A function that trains the next trial: another seed and another learning rate."""
    numbers, config, shared = itertools.count(), config_of(spec), SharedBlocks()
    device = "cuda" if spec.resources.on_gpu else "cpu"
    images = [load_split(data, *names, device=device) for names in SPLITS]
    weights = local_file(config.model.pretrained).path

    def read() -> Mapping[str, Tensor]:
        sha256_of(weights)  # as each trial that reads them
        return load(weights)[1]

    def train() -> None:
        number = next(numbers)
        own = replace(config, seed=number, training=replace(config.training, lr=config.training.lr * (1 + 0.01 * number)))
        pretrained = Pretrained(read_backbone(weights), read, data.classes, shared)
        state = training.start(own, Normalisation.of(data.mean, data.std, device), device, pretrained)
        for _ in training.fit(state, *features.in_place_of_images(state, data, SPLITS, images)):
            checkpoint.save(folder / str(number) / "checkpoint", state, classes=data.classes, data_hash=data.data_hash)
        accuracies.append(state.history[-1].val_accuracy)
        shutil.rmtree(folder / str(number))

    return train


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tune", default="head", choices=("head", "last_blocks"))
    for name, default in (
        ("images", 500),
        ("size", 224),
        ("patch", 16),
        ("dim", 384),
        ("depth", 12),
        ("heads", 6),
        ("epochs", 5),
        ("rounds", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "images", args.images, args.size)
        plain = search_of(folder / "images", "", args, "batch_size: 32")
        data = prepare(plain.data_config, cache=folder / "cache")
        weights = backbone_of(plain, data, folder / "backbone")
        way = f"tune: {args.tune}, batch_size: 32, lr: 0.003"
        behind, kept = (search_of(folder / "images", weights, args, way + extra) for extra in (", feature_views: 0", ""))
        accuracies: dict[str, list[float]] = {"through the backbone": [], "first": [], "later": []}
        through = trials_of(behind, data, folder / "through", accuracies["through the backbone"])
        later = trials_of(kept, data, folder / "later", accuracies["later"])
        later()  # the warm-up; it computes what the later ones read

        def first() -> None:
            computed = folder / "cache" / "features"
            computed.rename(folder / "aside")
            trials_of(kept, data, folder / "first", accuracies["first"])()
            shutil.rmtree(computed)
            (folder / "aside").rename(computed)

        seconds = in_turns({"through the backbone": through, "first": first, "later": later}, args.rounds, time.perf_counter, warm_up=0)
        counts = {name: data.counts[name] for name in ("train", "val")}
    print(surroundings(torch.device(args.device)))
    shape = f"dim {args.dim}, depth {args.depth}, patch {args.patch}, {args.size} pixels"
    sizes = f"{counts['train']} images to train on, {counts['val']} to validate on, {args.epochs} epochs, {args.rounds} rounds"
    print(f"tune: {args.tune}; {shape}; {sizes}\n")
    once, each = (statistics.median(seconds[name]) for name in ("first", "later"))
    whole = (once + (TRIALS - 1) * each) / TRIALS
    rows = [
        [
            name,
            f"{statistics.median(times):.2f}",
            f"{60 / statistics.median(times):.1f}",
            spread(ratios(times, seconds["through the backbone"]), 1),
        ]
        for name, times in seconds.items()
    ]
    speed = statistics.median(seconds["through the backbone"]) / whole
    rows.append([f"of {TRIALS} trials", f"{whole:.2f}", f"{60 / whole:.1f}", f"{speed:.1f}"])
    print(table(["", "seconds a trial", "trials a minute", "speed to through the backbone"], rows))
    print("\nvalidation accuracy of the last trial: " + ", ".join(f"{name} {values[-1]:.3f}" for name, values in accuracies.items()))


if __name__ == "__main__":
    main()
