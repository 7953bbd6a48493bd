"""What pretrained weights are worth to models of other shapes: one half of FashionMNIST's classes for the backbone, the other for them.

    python tests/benchmarks/transfer.py --keep FOLDER                  # the table of all starts
    python tests/benchmarks/transfer.py --keep FOLDER --what blocks    # which blocks a shallower model takes

Goal of the table: a model that starts from the backbone's weights (`inherited`) is more accurate than one of the same shape, images and
epochs that starts from random weights (`scratch`), for 200, 1,000 and 5,000 images.

Goal of `blocks`: choose BLOCKS of vit_search/vit/inherit.py. `first` takes the first blocks of the backbone, `even` takes blocks in equal
steps. Each pair has the same backbone, images, order and recipe. (In the table, `inherited` takes the first blocks.)

How it works. A backbone is trained by vit_search.vit.training on 16,000 images of the classes 0 to 4, saved as a checkpoint, and read
again as a user's file is. Each seed has a backbone of its own, draws its own few images of the classes 5 to 9, and orders them in its own
way. Every start tries as many learning rates as every other. 500 validation images of the classes 5 to 9 choose the learning rate; the
5,000 test images of these classes are looked at once for each training, after its last epoch. Device seconds are those of one training at
the chosen learning rate (processor time on a CPU, wall time on a GPU), without validation and test. `to scratch` is the difference of the
test accuracies of one seed. `time to scratch` is the share of scratch's device seconds after which the validation accuracy was as good as
scratch's at its end; it is looked at up to ten times in a training.

Each training is printed when it ends, and kept in FOLDER. The same command goes on where it was interrupted, and prints the table at the
end. To use two cores, start it twice, with `--part 1/2` and `--part 2/2`; then once more without, for the table.

Time, estimated and not measured: minutes of one core with AVX2, at the 22 GFLOP/s that accuracy.py's fashion_20k had there. Three
backbones, which both modes share: 15. Table: 35 with one learning rate (`--lrs 1e-3`), 70 with two. Blocks: 12. Add 40 for `--shapes`
with patch 4, for each learning rate.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fashion import BESIDE, fashion_mnist
from rounds import clock_of, surroundings, table
from scipy.stats import t as student

from vit_search.config.backbone import Backbone
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, load_split
from vit_search.data.cache import DataSet, prepare
from vit_search.files import locked
from vit_search.vit import checkpoint, pretrained
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.inherit import Blocks, inherit
from vit_search.vit.training import fit, start

TAUGHT, LEARNED = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
"""Classes of the backbone, and of the models that start from it."""

BACKBONE = ModelConfig(
    image_size=(28, 28), in_channels=1, num_classes=5, patch_size=7, dim=96, depth=6, heads=3, mlp_ratio=2.0
)  # heads are 32 wide, so that two thirds of dim are two whole heads
SMALLER = {"dim": 64, "heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "same": {},
    "dim 64": SMALLER,
    "depth 3": {"depth": 3},
    "dim 64, depth 3": {**SMALLER, "depth": 3},
    "patch 14": {"patch_size": 14},
    "patch 4": {"patch_size": 4},
}
"""By name: what differs from the backbone's shape."""

BLOCK_SHAPES = {
    f"{name}depth {depth}": {**change, "depth": depth} for depth in (4, 3, 2) for name, change in (("", {}), ("dim 64, ", SMALLER))
}

RECIPE = TrainingConfig(batch_size=32, flip=True, shift=1)
EPOCHS = {200: 30, 1000: 15, 5000: 6}
"""By the number of images. Other numbers have those of the next smaller one; below 200, those of 200."""


@dataclass(frozen=True)
class Way:
    """How a training starts, and what differs from RECIPE."""

    blocks: Blocks | None
    """Which blocks a shallower model inherits; None for random weights."""
    lrs: tuple[float, ...] = (5e-4, 2e-3)
    training: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[str, ...] = tuple(SHAPES)

    @property
    def possible(self) -> bool:
        """Whether this version of vit_search has the fields that it needs."""
        return self.training.keys() <= {one.name for one in dataclasses.fields(TrainingConfig)}


WAYS = {
    "scratch": Way(None),
    "inherited": Way("first"),
    "even": Way("even", shapes=("depth 3", "dim 64, depth 3")),
    "head": Way("first", lrs=(2e-3, 1e-2), training={"tune": "head"}, shapes=("same",)),
    "layer decay": Way("first", training={"layer_decay": 0.75}, shapes=("same",)),
}
"""A new way to start or to tune needs a line here, and nothing else."""


@dataclass(frozen=True)
class Task:
    """One training."""

    images: int
    shape: str
    way: str
    lr: float
    seed: int
    epochs: int


@dataclass(frozen=True)
class Outcome:
    """What a training has given."""

    task: Task
    test: float
    """Accuracy on the test images after the last epoch."""
    watched: tuple[tuple[float, float], ...]
    """Device seconds so far, and the accuracy on the validation images."""

    @property
    def seconds(self) -> float:
        """Device seconds of the whole training."""
        return self.watched[-1][0]


class Learner:
    """Trains one task after another on one device.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.where = DataConfig(name="fashion_mnist", path=str(fashion_mnist(options.data)), val_fraction=0.01, holdout_fraction=0)
        self.backbones: dict[int, tuple[Backbone, dict[str, torch.Tensor]]] = {}

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
        """Of the classes to learn: images to draw from, validation images, test images."""
        val, rest = parted(self.split("train", LEARNED), self.options.val_images, seed=0)
        return rest, val, few(self.split("test", LEARNED), self.options.test_images, seed=0)

    def backbone(self, number: int) -> tuple[Backbone, dict[str, torch.Tensor]]:
        """The backbone with this number, trained and saved by the first process that asks for it."""
        if number not in self.backbones:
            folder = self.options.keep / f"backbone-{number}-{self.options.pretrain_images}-{self.options.pretrain_epochs}"
            with locked(folder.with_suffix(".lock")):
                self._pretrain(folder, number)
            self.backbones[number] = pretrained.load(folder / "model.safetensors")
        return self.backbones[number]

    def _pretrain(self, folder: Path, number: int) -> None:
        training = replace(RECIPE, epochs=self.options.pretrain_epochs, batch_size=64, lr=2e-3)
        config = TrialConfig(data=self.where, model=BACKBONE, training=training, seed=1000 + number)
        train = few(self.split("train", TAUGHT), self.options.pretrain_images, seed=number)
        test = few(self.split("test", TAUGHT), self.options.test_images, seed=0)
        plain = Normalisation.of(*mean_and_std(train), self.device)
        there = checkpoint.exists(folder)
        state = checkpoint.load_training(folder, config, self.device) if there else start(config, plain, self.device)
        for result in fit(state, train, test):
            checkpoint.save(folder, state, classes=train.classes, data_hash=self.data.data_hash)
            print(
                f"backbone {number}, epoch {result.epoch}: {result.val_accuracy:.2%} of its own classes, {result.seconds:.0f} s", flush=True
            )

    def train(self, task: Task) -> Outcome:
        """One training, from its start to its test."""
        clock, way = clock_of(self.device), WAYS[task.way]
        source, weights = self.backbone(task.seed % self.options.backbones)
        rest, val, test = self.splits
        train = few(rest, task.images, task.seed)
        model = replace(BACKBONE, **(SHAPES | BLOCK_SHAPES)[task.shape])
        training = replace(RECIPE, epochs=task.epochs, lr=task.lr, **way.training)
        assert source.mean is not None and source.std is not None, "the backbone's checkpoint says them"
        mean, std = (source.mean, source.std) if way.blocks else mean_and_std(train)
        plain = Normalisation.of(mean, std, self.device)
        began = clock()
        state = start(TrialConfig(data=self.where, model=model, training=training, seed=task.seed), plain, self.device)
        if way.blocks:
            state.model.load_state_dict(inherit(weights, source, model, train.classes, blocks=way.blocks))
        spent, watched = 0.0, []
        for result in fit(state, train, few(val, 10, seed=0)):  # ten images: validation must not count
            spent += clock() - began
            if 10 * result.epoch // task.epochs > 10 * (result.epoch - 1) // task.epochs:
                watched.append((spent, evaluate(state.outcome, val, plain).accuracy))
            began = clock()
        return Outcome(task, evaluate(state.outcome, test, plain).accuracy, tuple(watched))


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


def at_best_rate(outcomes: Sequence[Outcome]) -> dict[tuple[int, str, str], dict[int, Outcome]]:
    """By images, shape and way: by seed, the outcomes at the learning rate with the best mean accuracy on the validation images."""
    grouped: dict[tuple[int, str, str], dict[float, dict[int, Outcome]]] = {}
    for one in outcomes:
        task = one.task
        grouped.setdefault((task.images, task.shape, task.way), {}).setdefault(task.lr, {})[task.seed] = one
    return {
        key: max(by_lr.values(), key=lambda by_seed: statistics.mean(one.watched[-1][1] for one in by_seed.values()))
        for key, by_lr in grouped.items()
    }


def time_to(one: Outcome, scratch: Outcome) -> float | None:
    """Share of scratch's seconds after which a training was as good on the validation images as scratch at its end; None: never."""
    aim = scratch.watched[-1][1]
    return next((seconds / scratch.seconds for seconds, accuracy in one.watched if accuracy >= aim), None)


STARTS_HEAD = ["images", "shape", "start", "lr", "test accuracy", "range", "to scratch", "device s", "time to scratch"]


def starts_rows(outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    """The table of all starts."""
    best = at_best_rate(outcomes)
    for (images, shape, way), by_seed in best.items():
        accuracies = [one.test for one in by_seed.values()]
        scratch = best.get((images, shape, "scratch"), {})
        pairs = [(one, scratch[seed]) for seed, one in by_seed.items() if seed in scratch] if way != "scratch" else []
        times = [share for share in (time_to(*pair) for pair in pairs) if share is not None]
        reached = f"{statistics.median(times):.2f}" if times else "never"
        yield [
            f"{images:,}",
            shape,
            way,
            f"{next(iter(by_seed.values())).task.lr:g}",
            f"{statistics.mean(accuracies):.1%}",
            f"{min(accuracies):.1%} to {max(accuracies):.1%}",
            interval([one.test - other.test for one, other in pairs]) if pairs else "",
            f"{statistics.median(one.seconds for one in by_seed.values()):.1f}",
            f"{reached} ({len(times)} of {len(pairs)})" if pairs else "",
        ]


BLOCKS_HEAD = ["images", "shape", "first", "even", "first - even", "first is better"]


def blocks_rows(outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    """First and even blocks, pair by pair; the last row has the mean of each seed as one value, since its pairs share a backbone."""
    best = at_best_rate(outcomes)
    by_seed: dict[int, list[float]] = {}
    for images, shape in dict.fromkeys((images, shape) for images, shape, _ in best):
        first, even = (best.get((images, shape, way), {}) for way in ("inherited", "even"))
        pairs = {seed: (one.test, even[seed].test) for seed, one in first.items() if seed in even}
        if not pairs:
            continue
        differences = {seed: one - other for seed, (one, other) in pairs.items()}
        for seed, difference in differences.items():
            by_seed.setdefault(seed, []).append(difference)
        means = [f"{statistics.mean(values):.1%}" for values in zip(*pairs.values(), strict=True)]
        better = sum(difference > 0 for difference in differences.values())
        yield [f"{images:,}", shape, *means, interval(list(differences.values())), f"{better} of {len(pairs)}"]
    every = [difference for differences in by_seed.values() for difference in differences]
    if every:
        better = sum(difference > 0 for difference in every)
        yield ["all", "all", "", "", interval([statistics.mean(values) for values in by_seed.values()]), f"{better} of {len(every)}"]


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """All trainings that the command line asks for; the small ones and the first seed come first."""
    blocks = options.what == "blocks"
    shapes, ways = (BLOCK_SHAPES, ["inherited", "even"]) if blocks else (options.shapes, options.ways)
    tasks = []
    for images in options.images:
        epochs = options.epochs or EPOCHS[max((count for count in EPOCHS if count <= images), default=min(EPOCHS))]
        for seed in range(options.seeds):
            for shape in shapes:
                for way in ways:
                    fits = blocks or shape in WAYS[way].shapes
                    lrs = options.lrs or ((1e-3,) if blocks else WAYS[way].lrs)
                    tasks += [Task(images, shape, way, lr, seed, epochs) for lr in lrs if fits]
    return tasks


def key_of(task: Task, options: argparse.Namespace) -> str:
    """Names a training by all that its outcome follows from, but the code."""
    way = WAYS[task.way]
    recipe = repr((BACKBONE, RECIPE, (SHAPES | BLOCK_SHAPES)[task.shape], way.blocks, way.training))
    names = ("pretrain_images", "pretrain_epochs", "backbones", "val_images", "test_images", "device")
    chosen = [str(getattr(options, name)) for name in names]
    return json.dumps([*asdict(task).values(), *chosen, hashlib.sha256(recipe.encode()).hexdigest()[:8]])


def kept(file: Path) -> dict[str, Outcome]:
    """The trainings that are done, by their key."""
    done = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # a killed process may leave half a line
            one = json.loads(line)
            done[one["key"]] = Outcome(Task(**one["task"]), one["test"], tuple((seconds, accuracy) for seconds, accuracy in one["watched"]))
    return done


def main() -> None:
    """Train what is not there yet, and print the table."""
    options = parse()
    torch.set_num_threads(1)
    options.keep.mkdir(parents=True, exist_ok=True)
    print(surroundings(options.device), f"options {vars(options)}", flush=True)
    file, learner, tasks = options.keep / "transfer.jsonl", Learner(options), tasks_of(options)
    keys = {key_of(task, options): task for task in tasks}
    number, parts = options.part
    done = kept(file)
    for key, task in list(keys.items())[number - 1 :: parts]:
        if key in done:
            continue
        one = learner.train(task)
        with file.open("a") as lines:
            lines.write("\n" + json.dumps({"key": key, "task": asdict(task), "test": one.test, "watched": one.watched}))
        what = f"{task.images:,} images, {task.shape}, {task.way}, lr {task.lr:g}, seed {task.seed}"
        print(f"{what}: {one.test:.2%} of the test images, {one.seconds:.1f} device s", flush=True)
    outcomes = [one for key, one in kept(file).items() if key in keys]
    order = {key: i for i, key in enumerate(keys.values())}
    outcomes.sort(key=lambda one: order[one.task])
    missing = len(keys) - len(outcomes)
    print(f"\n{missing} trainings are missing" if missing else "", flush=True)
    print(table(BLOCKS_HEAD, list(blocks_rows(outcomes))) if options.what == "blocks" else table(STARTS_HEAD, list(starts_rows(outcomes))))


def parse() -> argparse.Namespace:
    """The options of the command line."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--what", default="starts", choices=["starts", "blocks"])
    ask.add_argument("--keep", required=True, type=Path, help="folder for backbones, finished trainings and decoded images")
    ask.add_argument("--images", nargs="+", type=int, help="default: 200 1000 5000, and for blocks 200 1000")
    ask.add_argument(
        "--shapes", nargs="+", default=list(SHAPES)[:-1], choices=list(SHAPES), help="not for blocks; patch 4 takes as long as all others"
    )
    ask.add_argument("--ways", nargs="+", choices=list(WAYS), help="default: all that this version can do")
    ask.add_argument("--seeds", default=3, type=int)
    ask.add_argument("--backbones", default=3, type=int, help="a seed takes the backbone seed %% backbones")
    ask.add_argument("--lrs", nargs="+", type=float, help="learning rates of every way; default: see WAYS, and for blocks 1e-3")
    ask.add_argument("--epochs", type=int, help="default: by the number of images, see EPOCHS")
    ask.add_argument("--pretrain-images", default=16_000, type=int)
    ask.add_argument("--pretrain-epochs", default=8, type=int)
    ask.add_argument("--val-images", default=500, type=int)
    ask.add_argument("--test-images", default=5000, type=int)
    ask.add_argument("--part", default=(1, 1), type=lambda text: tuple(map(int, text.split("/"))), help="1/2: every second training")
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    ask.add_argument("--device", default="cpu", type=torch.device)
    options = ask.parse_args()
    options.images = options.images or [200, 1000, 5000][: 2 if options.what == "blocks" else 3]
    lacking = [name for name in options.ways or () if not WAYS[name].possible]
    if lacking:
        print(
            f"error: --ways {lacking[0]}: needs training.{next(iter(WAYS[lacking[0]].training))}, which this version lacks.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    options.ways = options.ways or [name for name, way in WAYS.items() if way.possible]
    return options


if __name__ == "__main__":
    main()
