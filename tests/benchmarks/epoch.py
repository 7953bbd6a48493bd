"""One whole epoch on FashionMNIST with its evaluation: ours as a search's worker runs it, against a competent user's loop.

    python tests/benchmarks/epoch.py [--device cuda] [--rounds 5] [--images 10000] [--data DIR]

Ours: `training.start` and one epoch of `training.fit`, mean pooling. The usual loop: torchvision's dataset with crop, flip,
ToTensor and Normalize in a DataLoader, timm's Vision Transformer at the same configuration with its class token, float32,
AdamW and a cosine schedule with their defaults, `loss.item()` at each step, evaluation under no_grad. Same learning rate,
label smoothing, batch size, number of images and number of validation images for all. `usual loop, our model` has our model
in that loop, so the step from it to `vit_search, float32` is data, optimiser and loop alone.

Speed is ours (`vit_search`) against each contender, round by round. The accuracy is that of the last round's epoch, of one
epoch and one seed: it shows that all of them learn, no more.

Learned by profiling on two busy cores with AVX512 (2026-11-24; torch 2.15):
- Processor time is least for the usual loop without workers, so that is the peer to beat.
- With validation in batches of 512 and softmax in bfloat16 ours was 1.76 (patch 7) and 1.56 (patch 4) times as fast as it,
  with what follows 2.03 and 1.73.
- Validation was a quarter of our epoch: in batches of 128 instead of 512 it takes 1/1.24 (patch 7) and 1/1.09 (patch 4).
- At 16 tokens softmax and its backward take 4.3 times as long in bfloat16 as in float32 with the casts (809 against 187 µs),
  at 49 tokens 1.2 times, at 65 tokens 0.77 times: a step of patch 7 is 1.10 times as fast with softmax in float32, one of
  patch 4 the same.
- The allocator's settings of a search's workers (runtime/worker_env.py) are not set here; for a whole epoch they were not measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from fashion import BESIDE, fashion_mnist
from input_pipeline import SHIFT, apart, both_clocks, usual_transforms
from peers import ours, timm
from rounds import in_turns, installed, ratios, spread, surroundings, table
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import DataSet, prepare
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.training import fit, start

SHAPES = {
    f"p{patch_size}": ModelConfig(image_size=(28, 28), in_channels=1, num_classes=10, patch_size=patch_size, dim=64, depth=3, heads=4)
    for patch_size in (7, 4)
}
TRAINING = TrainingConfig(epochs=1, batch_size=64, lr=1e-3, shift=SHIFT, flip=True)
USUALLY_EVALUATED = 256
"""Images of a batch in the usual loop's evaluation; of its own, so that a change of ours leaves the peer as it was."""


def usual_epoch(
    build: Callable[[], nn.Module], train_set: Subset, val_set: Subset, workers: int, device: torch.device, training: TrainingConfig
) -> float:
    """Train one epoch and evaluate, as a competent user writes it.

    Returns: the accuracy on the validation images.
    """
    pinned = device.type == "cuda"
    train = DataLoader(train_set, training.batch_size, shuffle=True, num_workers=workers, pin_memory=pinned)
    val = DataLoader(val_set, USUALLY_EVALUATED, num_workers=workers, pin_memory=pinned)
    model = build().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=len(train))
    criterion = nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
    model.train()
    total = 0.0
    for images, labels in train:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimiser.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item() * len(labels)
    model.eval()
    correct, val_loss = 0, 0.0
    with torch.no_grad():
        for images, labels in val:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = model(images)
            val_loss += nn.functional.cross_entropy(logits, labels).item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
    return correct / len(val_set)


def contenders(
    data: DataSet, root: Path, shape: ModelConfig, device: torch.device, accuracy: dict[str, float]
) -> dict[str, Callable[[], None]]:
    """Name to a turn of one epoch, which leaves the accuracy that it reached in `accuracy`."""
    train, val = load_split(data, "train", device=device), load_split(data, "val", device=device)
    plain = Normalisation.of(data.mean, data.std, device)
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0)).tolist()
    only_scaled = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])
    usual, unmoved = (
        torchvision.datasets.FashionMNIST(str(root), transform=transform)
        for transform in (usual_transforms(28, data.mean, data.std), only_scaled)
    )
    train_set, val_set = Subset(usual, order[: len(train)]), Subset(unmoved, order[len(train) :][: len(val)])

    def as_searched(name: str, precision: str) -> Callable[[], None]:
        told = replace(TRAINING, precision=precision)

        def turn() -> None:
            state = start(TrialConfig(data=DataConfig(name="fashion_mnist"), model=shape, training=told, seed=0), plain, device)
            accuracy[name] = next(fit(state, train, val)).val_accuracy

        return turn

    def as_usual(name: str, build: Callable[[], nn.Module], workers: int) -> Callable[[], None]:
        def turn() -> None:
            accuracy[name] = usual_epoch(build, train_set, val_set, workers, device, TRAINING)

        return turn

    turns = {name: as_searched(name, precision) for name, precision in (("vit_search", "auto"), ("vit_search, float32", "float32"))}
    if installed("timm"):
        for workers in (0, 2):
            name = f"usual loop, {workers} workers"
            turns[name] = as_usual(name, lambda: timm(replace(shape, pool="cls")), workers)
    turns["usual loop, our model"] = as_usual("usual loop, our model", lambda: ours(shape), 0)
    return turns


def main() -> None:
    """Print the tables."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", default="cpu", type=torch.device)
    ask.add_argument("--rounds", default=5, type=int)
    ask.add_argument("--images", default=10_000, type=int, help="trained on in an epoch; 9,000 more are validated on")
    ask.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    told = ask.parse_args()
    torch.set_num_threads(1)
    root = fashion_mnist(told.data)
    print(surroundings(told.device, "timm", "torchvision"), flush=True)
    with tempfile.TemporaryDirectory() as cache:
        data = prepare(DataConfig(name="fashion_mnist", path=str(root), train_limit=told.images), cache=Path(cache))
        for name in told.shapes:
            shape, accuracy = SHAPES[name], dict[str, float]()
            turns = contenders(data, root, shape, told.device, accuracy)
            cpu, wall = apart(in_turns(turns, told.rounds, both_clocks(told.device)))
            rows = [
                [
                    turn,
                    f"{statistics.median(cpu[turn]):.2f}",
                    f"{statistics.median(wall[turn]):.2f}",
                    spread(ratios(cpu["vit_search"], cpu[turn])),
                    spread(ratios(wall["vit_search"], wall[turn])),
                    f"{accuracy[turn]:.3f}",
                ]
                for turn in turns
            ]
            counts = f"{data.counts['train']:,} training and {data.counts['val']:,} validation images"
            print(f"\n28x28 {name} dim {shape.dim} depth {shape.depth}, batch {TRAINING.batch_size}, {counts}")
            head = ["contender", "CPU s", "wall s", "speed of ours, CPU", "speed of ours, wall", "accuracy"]
            print(table(head, rows), flush=True)


if __name__ == "__main__":
    main()
