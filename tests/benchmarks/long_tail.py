"""FashionMNIST made long-tailed, and what each way of training for it is worth, over three seeds.

    python tests/benchmarks/long_tail.py [--recipes plain balanced_weights …] [--seeds 3] [--images 1500] [--epochs 12]

The largest class keeps `--images` training images and the smallest a hundredth of them, the others lie between on a geometric scale (as
CIFAR-LT of Cui et al. 2019). A seed chooses which images are kept, the first weights, and the order. Which class is how rare changes with
the seed, too, so that no recipe gains from a rare class that is easy. The test images are all 10,000, as many of each class, so accuracy
and balanced accuracy are one number on them. The last accuracy weighs their classes as they occur among the training images. All
recipes see the same images, for the same number of steps; each is evaluated once, at its last epoch. Nothing was tuned: gamma and tau
are the defaults.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from fashion import BESIDE, fashion_mnist
from rounds import cpu_seconds, surroundings, table

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, StreamedSplit, load_split
from vit_search.data.cache import prepare
from vit_search.vit.evaluation import Evaluation, Normalisation, evaluate
from vit_search.vit.training import fit, start

RARITY = 100
"""Images of the largest class for one of the smallest."""

MODEL = ModelConfig(image_size=(28, 28), in_channels=1, num_classes=10, patch_size=7, dim=64, depth=3, heads=4, mlp_ratio=2.0)
RECIPE = TrainingConfig(batch_size=64, lr=2e-3, flip=True, shift=1)
RECIPES = {
    "plain": RECIPE,
    "balanced_weights": replace(RECIPE, class_weights="balanced"),
    "balanced_sampling": replace(RECIPE, sampling="balanced"),
    "focal": replace(RECIPE, loss="focal"),
    "logit_adjusted": replace(RECIPE, loss="logit_adjusted"),
}
HEAD = ["recipe", "macro-F1", "accuracy, balanced accuracy", "accuracy, classes as in training", "macro-F1 to plain, by seed", "CPU s"]
SCORES = ("val_macro_f1", "val_balanced_accuracy")


def long_tail(split: Split, most: int, seed: int) -> Split:
    """The images of a split that are kept.

    Args:
        most: images of the largest class.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = int(split.labels.max()) + 1
    kept = []
    for rank, label in enumerate(torch.randperm(classes, generator=generator).tolist()):
        images = (split.labels == label).nonzero()[:, 0]
        count = round(most * RARITY ** (-rank / (classes - 1)))
        kept.append(images[torch.randperm(len(images), generator=generator)[:count]])
    chosen = torch.cat(kept).sort().values
    return Split(split.images[chosen], split.labels[chosen])


def _as_they_occur(result: Evaluation, test: Split | StreamedSplit, train: Split) -> float:
    """The accuracy if the classes of the test images had the shares that they have among the training images."""
    right = (result.predictions == test.labels).double()
    recalls = torch.bincount(test.labels, right) / torch.bincount(test.labels)
    return float((recalls * torch.bincount(train.labels)).sum() / len(train))


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    ask.add_argument("--seeds", default=3, type=int)
    ask.add_argument("--images", default=1500, type=int, help="training images of the largest class")
    ask.add_argument("--epochs", default=12, type=int)
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    told = ask.parse_args()
    torch.set_num_threads(1)
    print(surroundings(torch.device("cpu")), flush=True)
    where = DataConfig(name="fashion_mnist", path=str(fashion_mnist(told.data)), val_fraction=0.01, holdout_fraction=0)
    reached: dict[str, list[tuple[float, ...]]] = {name: [] for name in told.recipes}
    seconds: dict[str, list[float]] = {name: [] for name in told.recipes}
    with tempfile.TemporaryDirectory() as cache:
        data = prepare(where, cache=Path(cache))
        whole, val, test = (load_split(data, split) for split in ("train", "val", "test"))
        assert isinstance(whole, Split)
        assert isinstance(val, Split)
        few = Split(val.images[:10], val.labels[:10])  # nothing is chosen by validation, so it costs nothing
        plain = Normalisation.of(data.mean, data.std)
        for seed in range(told.seeds):
            train = long_tail(whole, told.images, seed)
            counts = sorted(torch.bincount(train.labels).tolist(), reverse=True)
            print(f"seed {seed}: {len(train):,} training images, by class {counts}", flush=True)
            for name in told.recipes:
                config = TrialConfig(data=where, model=MODEL, training=replace(RECIPES[name], epochs=told.epochs), seed=seed)
                state, clock = start(config, plain), cpu_seconds()
                for _ in fit(state, train, few):
                    pass
                seconds[name].append(cpu_seconds() - clock)
                result = evaluate(state.outcome, test, plain)
                reached[name].append((*(result.scores[score] for score in SCORES), _as_they_occur(result, test, train)))
                figures = ", ".join(f"{value:.4f}" for value in reached[name][-1])
                print(
                    f"{name} seed {seed}: macro-F1, accuracy, accuracy as they occur {figures}; {seconds[name][-1]:.0f} CPU s",
                    flush=True,
                )
    rows = []
    for name, values in reached.items():
        columns = [list(column) for column in zip(*values, strict=True)]
        gains = [100 * (one[0] - base[0]) for one, base in zip(values, reached.get("plain", values), strict=True)]
        rows.append([name, *map(_mean, columns), f"{min(gains):+.1f} to {max(gains):+.1f}", f"{statistics.median(seconds[name]):.0f}"])
    print(table(HEAD, rows))


def _mean(values: list[float]) -> str:
    """Mean ± standard deviation, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    main()
