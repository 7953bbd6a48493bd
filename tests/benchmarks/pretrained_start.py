"""What the start of a trial on kept features takes: each step of a first trial, and a later one that shares the frozen blocks.

    python tests/benchmarks/pretrained_start.py                       # ViT-S/16 at 224 pixels
    python tests/benchmarks/pretrained_start.py --dim 1024 --depth 24 --heads 16

Milliseconds of processor time on one thread, the median of the rounds. The weights are random. `checkpoint` is one epoch's, for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from frozen_features import CLASSES
from rounds import surroundings, table
from torch import Tensor

from vit_search.config.backbone import read_backbone
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.vit import checkpoint, features, training, tuning
from vit_search.vit.checkpoint_files import sha256_of
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.inherit import inherit
from vit_search.vit.model import ViT, without_weights
from vit_search.vit.pretrained import Pretrained, load
from vit_search.vit.shared_blocks import SharedBlocks

PLAIN = Normalisation.of((0.5,) * 3, (0.5,) * 3)


class Times:
    """Processor time of named steps, in the order of their first calls."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = {}

    def of(self, label: str, step: Callable[[], Any]) -> Any:
        """Call a step, and note what it took."""
        began = time.process_time()
        result = step()
        self.ms.setdefault(label, []).append(1000 * (time.process_time() - began))
        return result


def config_of(args: argparse.Namespace, pretrained: str = "") -> TrialConfig:
    """A configuration that trains the head alone."""
    shape = {"patch_size": args.patch, "dim": args.dim, "depth": args.depth, "heads": args.heads, "pool": "cls"}
    model = ModelConfig(image_size=(args.size, args.size), in_channels=3, num_classes=len(CLASSES), pretrained=pretrained, **shape)
    data = DataConfig(name="image_folder", path="none", image_size=args.size)
    return TrialConfig(data=data, model=model, training=TrainingConfig(epochs=1, tune="head"), seed=0)


def measure(path: Path, config: TrialConfig, times: Times, folder: Path) -> None:
    """One round: the steps one by one, then a first and a later start."""
    times.of("sha256 of the file", lambda: sha256_of(path))
    backbone = times.of("header", lambda: read_backbone(path))
    weights = times.of("read", lambda: load(path)[1])
    state = times.of("make the model's weights of the backbone's", lambda: inherit(weights, backbone, config.model, CLASSES))
    times.of("a model with random weights (until 2026-11-30)", lambda: ViT(config.model))
    model = times.of("a model without weights", lambda: without_weights(config.model))
    model.load_state_dict(state, assign=True)
    tuning.prepare(model, config.training, config.seed)
    times.of("sha256 of the frozen blocks", lambda: tuning.sha256_of(tuning.frozen_blocks(model)))
    shared = SharedBlocks()

    def read() -> Mapping[str, Tensor]:
        sha256_of(path)
        return load(path)[1]

    def start() -> training.Training:
        state = training.start(config, PLAIN, "cpu", Pretrained(read_backbone(path), read, CLASSES, shared))
        features.frozen_sha256(state)
        return state

    times.of("first start", start)
    begun = times.of("later start", start)
    times.of("checkpoint", lambda: checkpoint.save(folder, begun, classes=CLASSES, data_hash="none"))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 224), ("patch", 16), ("dim", 384), ("depth", 12), ("heads", 6), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    times = Times()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint.save(folder / "backbone", training.start(config_of(args), PLAIN), classes=CLASSES, data_hash="none")
        path = folder / "backbone" / checkpoint.MODEL
        config = config_of(args, f"{path}#sha256={sha256_of(path)}")
        measure(path, config, Times(), folder / "warm-up")
        for number in range(args.rounds):
            measure(path, config, times, folder / str(number))
    print(surroundings(torch.device("cpu")))
    print(f"dim {args.dim}, depth {args.depth}, {args.size} pixels in patches of {args.patch}, {args.rounds} rounds\n")
    print(table(["step", "processor ms"], [[label, f"{statistics.median(ms):.1f}"] for label, ms in times.ms.items()]))


if __name__ == "__main__":
    main()
