"""Test accuracy of stated recipes, ours against timm's model of the same shape trained by the same loop, over three seeds.

    python tests/benchmarks/accuracy.py [--recipes digits fashion_20k fashion_60k] [--models vit_search timm paper_init paper] [--seeds 3]

All models go through vit_search.vit.training.fit: same images, order, augmentation, optimiser and schedule. timm's has its own class
token and initialisation (0.02 for both weights and positions), ours mean pooling and xavier with positions of 0.3: that is what
differs, and what the table shows. `paper_init` is ours with the paper's initialisation, `paper` with its class token besides. timm's
trains in float32, which is its own default and, on a CPU, its faster way. A recipe is chosen beforehand and evaluated once, at its
last epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fashion import BESIDE, fashion_mnist
from peers import timm
from rounds import cpu_seconds, surroundings, table
from torch import Tensor, nn

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.training import Training, fit, start


@dataclass(frozen=True)
class Recipe:
    """What is trained, and what it should reach on the test images."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    aim: float


SHAPE = {"in_channels": 1, "num_classes": 10, "heads": 4, "mlp_ratio": 2.0}
RECIPES = {
    "digits": Recipe(
        DataConfig(name="digits"),
        ModelConfig(image_size=(8, 8), patch_size=2, dim=64, depth=3, **SHAPE),
        TrainingConfig(epochs=25, batch_size=32, lr=2e-3),
        0.975,
    ),
    "fashion_20k": Recipe(
        DataConfig(name="fashion_mnist", train_limit=20_000, val_fraction=0.1, holdout_fraction=0),
        ModelConfig(image_size=(28, 28), patch_size=7, dim=64, depth=3, **SHAPE),
        TrainingConfig(epochs=5, batch_size=64, lr=2e-3, flip=True, shift=1),
        0.845,
    ),
    "fashion_60k": Recipe(
        DataConfig(name="fashion_mnist", val_fraction=0.001, holdout_fraction=0),
        ModelConfig(image_size=(28, 28), patch_size=4, dim=64, depth=4, **SHAPE),
        TrainingConfig(epochs=12, batch_size=128, lr=2e-3, flip=True, shift=1),
        0.90,
    ),
}


PAPER_INIT = {"init": "trunc_normal_02", "pos_init_std": 0.02}
CHANGES: dict[str, dict[str, Any]] = {"vit_search": {}, "timm": {}, "paper_init": PAPER_INIT, "paper": PAPER_INIT | {"pool": "cls"}}
"""By contender: what differs from the recipe's model."""


class Theirs(nn.Module):
    """timm's model in the place of ours."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = timm(replace(config, pool="cls"))
        self.embed = self.inner.patch_embed.proj

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.inner(images)


def with_timm(state: Training) -> Training:
    """A training at its first step whose model is timm's, with the same two groups of weights."""
    torch.manual_seed(state.config.seed)
    model = Theirs(state.config.model).to(state.device)
    tables = ("cls_token", "pos_embed")
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith(tables)]
    chosen = {id(p) for p in matrices}
    options = state.config.training
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in chosen], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, options.beta2), fused=True)
    return replace(state, model=model, optimiser=optimiser, history=[])


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    ask.add_argument("--models", nargs="+", default=["vit_search", "timm"], choices=list(CHANGES))
    ask.add_argument("--seeds", default=3, type=int)
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    ask.add_argument("--device", default="cpu", type=torch.device)
    ask.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    told = ask.parse_args()
    torch.set_num_threads(1)
    print(surroundings(told.device, "timm"), f"precision {told.precision}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name in told.recipes:
            recipe = RECIPES[name]
            where = recipe.data if recipe.data.name == "digits" else replace(recipe.data, path=str(fashion_mnist(told.data)))
            data = prepare(where, cache=Path(cache))
            train, val, test = (load_split(data, split, device=told.device) for split in ("train", "val", "test"))
            plain = Normalisation.of(data.mean, data.std, told.device)
            for contender in told.models:
                reached, processor, wall = [], [], []
                for seed in range(told.seeds):
                    training = replace(recipe.training, precision="float32" if contender == "timm" else told.precision)
                    model = replace(recipe.model, **CHANGES[contender])
                    state = start(TrialConfig(data=where, model=model, training=training, seed=seed), plain, told.device)
                    state = with_timm(state) if contender == "timm" else state
                    began, clock = time.perf_counter(), cpu_seconds()
                    for _ in fit(state, train, val):
                        pass
                    processor.append(cpu_seconds() - clock)
                    wall.append(time.perf_counter() - began)
                    reached.append(evaluate(state.outcome, test, plain).accuracy)
                    print(f"{name} {contender} seed {seed}: {reached[-1]:.4f}, {processor[-1]:.0f} CPU s", flush=True)
                rows.append(
                    [
                        name,
                        contender,
                        f"{len(train):,} x {recipe.training.epochs}",
                        f"{statistics.mean(reached):.2%}",
                        f"{min(reached):.2%} to {max(reached):.2%}",
                        f"{recipe.aim:.1%}",
                        f"{statistics.median(processor):.0f}",
                        f"{statistics.median(wall):.0f}",
                    ]
                )
    print(table(["recipe", "model", "images x epochs", "test accuracy", "spread", "aim", "CPU s", "wall s"], rows))


if __name__ == "__main__":
    main()
