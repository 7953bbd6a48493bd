"""What pretrained weights are worth to models of other shapes: one half of FashionMNIST's classes for the backbone, the other for them.

    python tests/benchmarks/transfer.py --keep FOLDER                  # the table of all starts
    python tests/benchmarks/transfer.py --keep FOLDER --what blocks    # which blocks a shallower model takes

Goal of the table: a model that starts from the backbone's weights (`inherited`) is more accurate than one of the same shape, images and
epochs that starts from random weights (`scratch`), for 200, 1,000 and 5,000 images. With the shape `same`, `inherited` is full tuning.
`head` trains the head alone, on images without augmentation, so that the rest of the model runs once for each image.

Goal of `blocks`: choose BLOCKS of vit_search/vit/inherit.py. `first` takes the first blocks of the backbone, `even` takes blocks in equal
steps. Each pair has the same backbone, images, order and recipe. (In the table, `inherited` takes the first blocks.)

How it works. A backbone is trained by vit_search.vit.training on 16,000 images of the classes 0 to 4, saved as a checkpoint, and read
again as a user's file is. Each seed has a backbone of its own, draws its own few images of the classes 5 to 9, and orders them in its own
way. Every way tries three learning rates, and 500 validation images of the classes 5 to 9 choose one for each number of images, shape and
way. `(edge)` after a learning rate: it is the lowest or the highest of the three, so another one may be better. The 5,000 test images of
these classes choose nothing. They are looked at once for each training, after its last epoch. Device seconds are those of one training at
the chosen learning rate (processor time on a CPU, wall time on a GPU), without validation and test. `to scratch` is the difference of the
test accuracies of one seed. `time to scratch` is the share of scratch's device seconds after which the validation accuracy was as good as
scratch's at its end; it is looked at up to ten times in a training.

The script first prints how long it will take. Each training is printed when it ends, and kept in FOLDER. The same command goes on where
it was interrupted, and prints the table at the end. To use two cores, start it twice, with `--part 1/2` and `--part 2/2`; then once more
without, for the table. With the same FOLDER, timm_alone.py takes the same backbones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from fashion_halves import (
    BACKBONE,
    DECIDING,
    RECIPE,
    Halves,
    add_line,
    add_options,
    epochs_for,
    few,
    interval,
    kept_lines,
    mean_and_std,
    new_owner,
    seconds_per_image,
)
from rounds import clock_of, surroundings, table

from vit_search.config.trial import TrialConfig
from vit_search.vit import pretrained
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.inherit import BLOCKS, Blocks, inherit
from vit_search.vit.pretrained import Pretrained
from vit_search.vit.training import fit, start

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


@dataclass(frozen=True)
class Way:
    """How a training starts, and what differs from RECIPE."""

    blocks: Blocks | None
    """Which blocks a shallower model inherits; None for random weights."""
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    training: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[str, ...] = tuple(SHAPES)


WAYS = {
    "scratch": Way(None),
    "inherited": Way("first"),
    "even": Way("even", shapes=("depth 3", "dim 64, depth 3")),
    "head": Way("first", lrs=(2e-3, 6e-3, 2e-2), training={"tune": "head", "flip": False, "shift": 0}, shapes=("same",)),
    "layer decay": Way("first", training={"layer_decay": 0.75}, shapes=("same",)),
}
"""A new way to start or to tune needs a line here, and nothing else. All have as many learning rates."""

USUAL = [name for name in WAYS if name != "even"]
USUAL_SHAPES = [name for name in SHAPES if name not in ("depth 3", "patch 4")]
"""What the table has by default. Even blocks are compared by `--what blocks`; patch 4 takes as long as all other shapes together."""


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


def train(halves: Halves, task: Task) -> Outcome:
    """One training, from its start to its test."""
    clock, way = clock_of(halves.device), WAYS[task.way]
    file = halves.backbone(task.seed)
    source, weights = pretrained.load(file)
    rest, val, test = halves.splits
    images = few(rest, task.images, task.seed)
    model = replace(BACKBONE, **(SHAPES | BLOCK_SHAPES)[task.shape], pretrained=str(file) if way.blocks else "")
    training = replace(RECIPE, epochs=task.epochs, lr=task.lr, **way.training)
    plain = Normalisation.of(*mean_and_std(images), halves.device)
    given = Pretrained(source, lambda: weights, images.classes) if way.blocks else None
    began = clock()
    state = start(TrialConfig(data=halves.where, model=model, training=training, seed=task.seed), plain, halves.device, given)
    if way.blocks is not None and way.blocks != BLOCKS:
        state.model.load_state_dict(inherit(weights, source, model, images.classes, blocks=way.blocks))
    spent, watched = 0.0, []
    inputs = halves.inputs(state, images, few(val, 10, seed=0), new_owner())  # ten images: validation must not count
    for result in fit(state, *inputs):
        spent += clock() - began
        if 10 * result.epoch // task.epochs > 10 * (result.epoch - 1) // task.epochs:
            watched.append((spent, evaluate(state.outcome, val, state.normalisation).accuracy))
        began = clock()
    return Outcome(task, evaluate(state.outcome, test, state.normalisation).accuracy, tuple(watched))


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
        rates = {one.task.lr for one in outcomes if (one.task.images, one.task.shape, one.task.way) == (images, shape, way)}
        lr = next(iter(by_seed.values())).task.lr
        yield [
            f"{images:,}",
            shape,
            way,
            f"{lr:g} (edge)" if len(rates) > 1 and lr in (min(rates), max(rates)) else f"{lr:g}",
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
        epochs = options.epochs or epochs_for(images)
        for seed in range(options.seeds):
            for shape in shapes:
                for way in ways:
                    fits = blocks or shape in WAYS[way].shapes
                    tasks += [Task(images, shape, way, lr, seed, epochs) for lr in options.lrs or WAYS[way].lrs if fits]
    return tasks


def estimated_seconds(tasks: Sequence[Task], options: argparse.Namespace) -> float:
    """Device seconds that trainings take, from the speed of a few batches of each shape."""
    seconds, speeds = 0.0, {}
    for task in tasks:
        if task.shape not in speeds:
            speeds[task.shape] = seconds_per_image(replace(BACKBONE, **(SHAPES | BLOCK_SHAPES)[task.shape]), options.device)
        train_s, forward_s = speeds[task.shape]
        on_features = WAYS[task.way].training.get("tune") == "head"
        seconds += task.images * (forward_s if on_features else task.epochs * train_s)
        seconds += (min(task.epochs, 10) * options.val_images + options.test_images) * forward_s
    return seconds


def key_of(task: Task, options: argparse.Namespace) -> str:
    """Names a training by all that its outcome follows from, but the code."""
    way = WAYS[task.way]
    recipe = repr((BACKBONE, RECIPE, (SHAPES | BLOCK_SHAPES)[task.shape], way.blocks, way.training))
    chosen = [str(getattr(options, name)) for name in DECIDING]
    return json.dumps([*asdict(task).values(), *chosen, hashlib.sha256(recipe.encode()).hexdigest()[:8]])


def outcome_of(line: dict[str, Any]) -> Outcome:
    """A training that was kept."""
    return Outcome(Task(**line["task"]), line["test"], tuple((seconds, accuracy) for seconds, accuracy in line["watched"]))


def main() -> None:
    """Train what is not there yet, and print the table."""
    options = parse()
    torch.set_num_threads(1)
    options.keep.mkdir(parents=True, exist_ok=True)
    print(surroundings(options.device), f"options {vars(options)}", flush=True)
    file, halves = options.keep / "transfer.jsonl", Halves(options)
    keys = {key_of(task, options): task for task in tasks_of(options)}
    number, parts = options.part
    done = kept_lines(file)
    todo = {key: task for key, task in list(keys.items())[number - 1 :: parts] if key not in done}
    if todo:
        minutes = estimated_seconds(list(todo.values()), options) / 60
        print(f"estimated: {minutes:.0f} core minutes for {len(todo)} trainings of {len(keys)}, and before them ", end="")
        print(f"{halves.pretraining_seconds() / 60:.0f} for backbones, which the parts share", flush=True)
        halves.share_pretraining()
    for key, task in todo.items():
        one = train(halves, task)
        add_line(file, key, {"task": asdict(task), "test": one.test, "watched": one.watched})
        what = f"{task.images:,} images, {task.shape}, {task.way}, lr {task.lr:g}, seed {task.seed}"
        print(f"{what}: {one.test:.2%} of the test images, {one.seconds:.1f} device s", flush=True)
    lines = kept_lines(file)
    outcomes = [outcome_of(lines[key]) for key in keys if key in lines]
    missing = len(keys) - len(outcomes)
    print(f"\n{missing} trainings are missing" if missing else "", flush=True)
    print(table(BLOCKS_HEAD, list(blocks_rows(outcomes))) if options.what == "blocks" else table(STARTS_HEAD, list(starts_rows(outcomes))))


def parse() -> argparse.Namespace:
    """The options of the command line."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(ask)
    ask.add_argument("--what", default="starts", choices=["starts", "blocks"])
    ask.add_argument("--shapes", nargs="+", default=USUAL_SHAPES, choices=list(SHAPES), help="not for blocks")
    ask.add_argument("--ways", nargs="+", default=USUAL, choices=list(WAYS), help="not for blocks")
    ask.add_argument("--lrs", nargs="+", type=float, help="learning rates of every way; default: see WAYS")
    options = ask.parse_args()
    options.images = options.images or [200, 1000, 5000][: 2 if options.what == "blocks" else 3]
    return options


if __name__ == "__main__":
    main()
