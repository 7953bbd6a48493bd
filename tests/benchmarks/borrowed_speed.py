"""How far off a plan is that borrows another search's calibration: epochs foretold by the other's and by its own.

    python tests/benchmarks/borrowed_speed.py [FILE …] [--rounds 2]

Each round calibrates for every file in turn, one training at a time, in processor time, which leaves out most of the machine's other
load. Then the mean epoch of 200 proposals of each file is foretold by each calibration of each file, on 10,000 training and 1,000
validation images. The ratio to the file's own foretelling of the round is printed; its own of another round shows what of it is chance.
The files' images need not be there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import time
from pathlib import Path
from unittest import mock

from vit_search.config import search_file
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import TrialConfig
from vit_search.planning.image_counts import Images
from vit_search.planning.speed import Speed, epoch_seconds
from vit_search.vit import calibrate

FILES = [Path(f"search_spaces/{name}.yaml") for name in ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")]
IMAGES = Images(train=10_000, val=1_000)


def drawn(spec: SearchSpec, count: int = 200) -> list[TrialConfig]:
    """Proposals that can be run."""
    rng, space = random.Random(7), spec.space
    params = (space.draw(rng) for _ in itertools.count())
    valid = itertools.islice((one for one in params if space.problem(one) is None), count)
    return [spec.trial_config(one, in_channels=space.in_channels, num_classes=space.num_classes, trial=0) for one in valid]


def calibrated(spec: SearchSpec) -> Speed:
    """As `calibrate.calibrate` for one training on one core, by the clock of this process."""
    configs = [calibrate.bounded(config, calibrate.STEP_FLOPS["cpu"]) for config in calibrate.proposals(spec)]
    with mock.patch.object(time, "perf_counter", time.process_time):
        return calibrate.fitted(configs, calibrate.measure(configs, "cpu", 1, 4.0))


def mean_epoch(speed: Speed, configs: list[TrialConfig]) -> float:
    """Seconds of an epoch, over the proposals."""
    return statistics.fmean(epoch_seconds(speed, config, IMAGES) for config in configs)


def main() -> None:
    """Print the ratios, file by file."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("files", nargs="*", default=FILES, type=Path)
    ask.add_argument("--rounds", default=2, type=int)
    asked = ask.parse_args()
    specs = [search_file.load(path) for path in asked.files]
    rounds: list[dict[str, Speed]] = []
    for number in range(asked.rounds):
        rounds.append({spec.name: calibrated(spec) for spec in specs})
        print(f"round {number + 1}: calibrated, load {os.getloadavg()[0]:.1f}", flush=True)
    configs = {spec.name: drawn(spec) for spec in specs}
    own, borrowed = [], []
    for name, proposals in configs.items():
        for other in configs:
            if other == name:
                ratios = [mean_epoch(a[name], proposals) / mean_epoch(b[name], proposals) for a, b in itertools.permutations(rounds, 2)]
            else:
                ratios = [mean_epoch(speeds[other], proposals) / mean_epoch(speeds[name], proposals) for speeds in rounds]
            (own if other == name else borrowed).extend(ratios)
            print(f"  {name:14s} by the speed of {other:14s} {', '.join(f'{ratio:.2f}' for ratio in ratios)}", flush=True)
    for label, ratios in (("its own of another round", own), ("another search's", borrowed)):
        print(f"{label}: {min(ratios):.2f} to {max(ratios):.2f} of what its own says, median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
