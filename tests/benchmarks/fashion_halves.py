"""FashionMNIST in two halves of its classes: backbones are trained on one half, and what starts from them learns from images of the other.

transfer.py and timm_alone.py share it, and with the same --keep they share the backbones. No test image is used for a choice: a backbone's
recipe is fixed, and its own test images are looked at once, after its last epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fashion import BESIDE, fashion_mnist
from rounds import clock_of
from scipy.stats import t as student

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, load_split
from vit_search.data.cache import DataSet, prepare
from vit_search.files import locked
from vit_search.vit import checkpoint
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.features import in_place_of_images
from vit_search.vit.model import ViT
from vit_search.vit.training import AnySplit, Training, fit, start

TAUGHT, LEARNED = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
"""Classes of the backbones (clothes), and of what starts from them (shoes, shirts and bags)."""

BACKBONE = ModelConfig(
    image_size=(28, 28), in_channels=1, num_classes=5, patch_size=7, dim=96, depth=6, heads=3, mlp_ratio=2.0
)  # heads are 32 wide, so that two thirds of dim are two whole heads

RECIPE = TrainingConfig(batch_size=32, flip=True, shift=1)
EPOCHS = {200: 30, 1000: 15, 5000: 5}
"""By the number of images. Other numbers have those of the next smaller one; below 200, those of 200."""


def epochs_for(images: int) -> int:
    """Length of a training on so many images."""
    return EPOCHS[max((count for count in EPOCHS if count <= images), default=min(EPOCHS))]


def add_options(ask: argparse.ArgumentParser) -> None:
    """The options that both scripts have."""
    ask.add_argument(
        "--keep", required=True, type=Path, help="folder for backbones, finished work and decoded images; go on with the same one"
    )
    ask.add_argument("--images", nargs="+", type=int, help="default: 200 1000 5000 (transfer.py --what blocks: 200 1000)")
    ask.add_argument("--epochs", type=int, help="of a full training; default: by the number of images, see EPOCHS in fashion_halves.py")
    ask.add_argument("--seeds", default=3, type=int)
    ask.add_argument("--backbones", default=3, type=int, help="a seed takes the backbone seed %% backbones")
    ask.add_argument("--pretrain-images", default=16_000, type=int)
    ask.add_argument("--pretrain-epochs", default=8, type=int)
    ask.add_argument("--val-images", default=500, type=int)
    ask.add_argument("--test-images", default=5000, type=int)
    ask.add_argument("--part", default=(1, 1), type=lambda text: tuple(map(int, text.split("/"))), help="1/2: every second piece of work")
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    ask.add_argument("--device", default="cpu", type=torch.device)


DECIDING = ("pretrain_images", "pretrain_epochs", "backbones", "val_images", "test_images", "device")
"""Options that change the outcome of all work."""


class Halves:
    """The images of both halves, and the backbones.

    Args:
        options: of `add_options`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.where = DataConfig(name="fashion_mnist", path=str(fashion_mnist(options.data)), val_fraction=0.01, holdout_fraction=0)

    @cached_property
    def data(self) -> DataSet:
        """FashionMNIST, decoded into the folder."""
        return prepare(self.where, cache=self.options.keep / "cache")

    def split(self, name: str, classes: Sequence[int]) -> Split:
        """The images of some classes."""
        whole = load_split(self.data, name, device=self.device)
        assert isinstance(whole, Split)
        return of_classes(whole, classes)

    @cached_property
    def splits(self) -> tuple[Split, Split, Split]:
        """Of the classes to learn: images to draw from, validation images, test images. No image is in two of them."""
        val, rest = parted(self.split("train", LEARNED), self.options.val_images, seed=0)
        return rest, val, few(self.split("test", LEARNED), self.options.test_images, seed=0)

    def backbone(self, seed: int) -> Path:
        """The weights of the backbone of a seed, trained by the first process that asks for them."""
        folder = self._folder(seed % self.options.backbones)
        with locked(folder.with_suffix(".lock")):
            if not (folder / "test.json").exists():
                self._pretrain(folder, seed % self.options.backbones)
        return folder / "model.safetensors"

    def share_pretraining(self) -> None:
        """Train every second backbone if there are two parts, so that no process waits for the other one's."""
        number, parts = self.options.part
        for i in range(min(self.options.seeds, self.options.backbones))[number - 1 :: parts]:
            self.backbone(i)

    def inputs(self, state: Training, train: Split, val: Split, owner: str) -> list[AnySplit]:
        """What a training reads: where frozen parts run only once, what they gave; otherwise the images.

        Args:
            owner: a text that is the same for trainings that share what frozen parts gave, as the trials of one search do.
        """
        return in_place_of_images(state, self.data, ((f"train of {owner}",), (f"val of {owner}",)), (train, val))

    def pretraining_seconds(self) -> float:
        """Device seconds that the missing backbones will take, estimated."""
        options = self.options
        wanted = range(min(options.seeds, options.backbones))
        missing = sum(not (self._folder(number) / "test.json").exists() for number in wanted)
        train, forward = seconds_per_image(BACKBONE, self.device)
        return missing * (options.pretrain_epochs * options.pretrain_images * train + options.test_images * forward)

    def _folder(self, number: int) -> Path:
        folder: Path = self.options.keep / f"backbone-{number}-{self.options.pretrain_images}-{self.options.pretrain_epochs}"
        return folder

    def _pretrain(self, folder: Path, number: int) -> None:
        training = replace(RECIPE, epochs=self.options.pretrain_epochs, batch_size=64, lr=2e-3)
        config = TrialConfig(data=self.where, model=BACKBONE, training=training, seed=1000 + number)
        train = few(self.split("train", TAUGHT), self.options.pretrain_images, seed=1000 + number)
        plain = Normalisation.of(*mean_and_std(train), self.device)
        there = checkpoint.exists(folder)
        state = checkpoint.load_training(folder, config, self.device) if there else start(config, plain, self.device)
        for result in fit(state, train, few(train, 100, seed=0)):  # a recipe that is fixed needs no validation
            checkpoint.save(folder, state, classes=train.classes, data_hash=self.data.data_hash)
            print(f"backbone {number}, epoch {result.epoch}: training loss {result.train_loss:.3f}, {result.seconds:.0f} s", flush=True)
        test = few(self.split("test", TAUGHT), self.options.test_images, seed=0)
        accuracy = evaluate(state.outcome, test, plain).accuracy
        print(f"backbone {number}: {accuracy:.2%} of the test images of its own classes", flush=True)
        (folder / "test.json").write_text(json.dumps(accuracy))


def of_classes(split: Split, classes: Sequence[int]) -> Split:
    """The images of some classes, which become the classes 0, 1, ... in this order."""
    labels = torch.full_like(split.labels, -1)
    for i, label in enumerate(classes):
        labels[split.labels == label] = i
    chosen = (labels >= 0).nonzero()[:, 0]
    return Split(split.images[chosen.to(split.images.device)], labels[chosen], tuple(split.classes[label] for label in classes))


def parted(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """`count` images, drawn at random with equally many of each class, and the others; all of them and none if there are no more."""
    generator = torch.Generator().manual_seed(seed)
    labels, classes = split.labels.cpu(), len(split.classes)
    each = [(labels == label).nonzero()[:, 0] for label in range(classes)]
    drawn = [images[torch.randperm(len(images), generator=generator)[: count // classes]] for images in each]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(drawn)] = True
    there, here = split.images.device, split.labels.device
    first, others = (Split(split.images[mask.to(there)], split.labels[mask.to(here)], split.classes) for mask in (chosen, ~chosen))
    return first, others


def few(split: Split, count: int, seed: int) -> Split:
    """Equally many images of each class, `count` in all, drawn at random."""
    return parted(split, count, seed)[0]


def mean_and_std(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the pixels of each channel, on the scale 0 to 1."""
    std, mean = torch.std_mean(split.images.double() / 255, dim=(0, 2, 3))
    return tuple(mean.tolist()), tuple(std.tolist())


def interval(differences: Sequence[float]) -> str:
    """Mean of paired differences with its 95 % interval (Student's t), in percentage points."""
    mean = 100 * statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.1f}"
    half = 100 * student.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def new_owner() -> str:
    """A text for `Halves.inputs` that was never used before, so that nobody reads what another one's clock has paid for."""
    return uuid.uuid4().hex


def seconds_per_image(config: ModelConfig, device: torch.device) -> tuple[float, float]:
    """Device seconds of an image in training and in evaluation, from a few batches. It is for estimates only."""
    model, clock = ViT(config).to(device), clock_of(device)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(RECIPE.batch_size, config.in_channels, *config.image_size, device=device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    seconds = []
    for work in (step, forward):
        work()
        began = clock()
        for _ in range(4):
            work()
        seconds.append((clock() - began) / 4 / len(images))
    return seconds[0], seconds[1]


def add_line(file: Path, key: str, outcome: Mapping[str, Any]) -> None:
    """Keep finished work, on the disk when this returns. Several processes may add to a file."""
    with file.open("a") as lines:
        lines.write("\n" + json.dumps({"key": key, **outcome}))
        lines.flush()
        os.fsync(lines.fileno())


def kept_lines(file: Path) -> dict[str, dict[str, Any]]:
    """The work that is finished, by its key."""
    done = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # a killed process may leave half a line
            one = json.loads(line)
            done[one.pop("key")] = one
    return done
