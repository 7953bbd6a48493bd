"""Seconds that `vit-search plan --calibrate` foretells beside those of real epochs of the same proposals.

    python tests/benchmarks/foretold.py [FILE] [--rounds 3] [--trials 12] [--concurrency 1]

Each round calibrates, then trains every proposal for an epoch after a first one that is not counted, through vit/training.py
on the real images of the file, with its checkpoint. The machine's other load falls on both; the rounds show how much.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from vit_search.config import search_file
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import DataSet, prepare
from vit_search.planning.image_counts import images_of
from vit_search.planning.speed import epoch_seconds
from vit_search.runtime.worker_env import WORKER_ENV
from vit_search.vit import calibrate, checkpoint, evaluation, training


def drawn(spec: SearchSpec, data: DataSet, count: int, seed: int) -> list[TrialConfig]:
    """Proposals of another seed than the calibration's."""
    rng, space = random.Random(seed), spec.space
    found: list[TrialConfig] = []
    while len(found) < count:
        params = space.draw(rng)
        if space.problem(params) is None:
            found.append(spec.trial_config(params, in_channels=data.channels, num_classes=len(data.classes), trial=len(found)))
    return found


def epoch_of(config: TrialConfig, data: DataSet) -> float:
    """Wall seconds of the second epoch, its checkpoint included."""
    train, val = load_split(data, "train"), load_split(data, "val")
    state = training.start(config, evaluation.Normalisation.of(data.mean, data.std))
    run = training.fit(state, train, val)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            began = time.perf_counter()
            next(run)
            checkpoint.save(Path(folder) / "checkpoint", state, classes=data.classes, data_hash=data.data_hash)
    return time.perf_counter() - began


def main() -> None:
    """Print a table a round."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("file", nargs="?", default="search_spaces/digits.yaml", type=Path)
    ask.add_argument("--rounds", default=3, type=int)
    ask.add_argument("--trials", default=12, type=int)
    ask.add_argument("--concurrency", default=1, type=int)
    told = ask.parse_args()
    if not os.environ.keys() >= WORKER_ENV.keys():  # a process reads it as it starts, and a trial has it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER_ENV)
    torch.set_num_threads(1)
    spec = search_file.load(told.file)
    data = prepare(spec.data_config)
    images = images_of(spec.data_config)
    for number in range(told.rounds):
        began = time.perf_counter()
        speed = calibrate.calibrate(spec, concurrency=told.concurrency)
        print(f"round {number + 1}: calibrated in {time.perf_counter() - began:.1f} s on {speed.device}: {speed}")
        sums = [0.0, 0.0]
        for config in drawn(spec, data, told.trials, number + 100):
            foretold, took = epoch_seconds(speed, config, images), epoch_of(config, data)
            sums = [sums[0] + foretold, sums[1] + took]
            model = f"patch {config.model.patch_size} dim {config.model.dim} depth {config.model.depth} heads {config.model.heads}"
            print(f"  {model:36s} foretold {foretold:6.2f} s, took {took:6.2f} s, ratio {foretold / took:.2f}", flush=True)
        print(f"  total: foretold {sums[0]:.2f} s, took {sums[1]:.2f} s, ratio {sums[0] / sums[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
