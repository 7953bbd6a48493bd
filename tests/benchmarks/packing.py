"""Trials an hour where they share GPUs by predicted memory, against one trial for each GPU: whole searches, simulated.

    python tests/benchmarks/packing.py [--space FILE] [--memory 80] [--gpus 1 8] [--trials 400] [--concurrency N] [--measured FILE]

The shipped driver (search/driver.py) leads each search: it proposes, by chance, so that only the placing is compared; gives each trial
its devices; and decides after each epoch, by the rungs of the file, whether the trial goes on. "by memory" is `gpus: auto`, "one for
each GPU" is `gpus: 1`. The benchmark keeps the world: which order runs on which GPU, how fast, and the clock.
- Ray fills one GPU before it begins another. An order that does not fit holds up none of those behind it.
- An epoch reports the trial's worth, which is drawn, with noise. The peak of memory is the predicted one, so the driver learns nothing.

How fast a trial is on its GPU:
- Alone, a step takes `host` (Python, launches, waits; by the block) and a part, `apart`, of what its kernels take, `device`: some
  of both happens at once. `busy` is device over that sum.
- Together, all of a GPU run at min(1, efficiency / sum of their busy) of their speed alone: without MPS, kernels of different
  processes take turns. A process has a core of its own at least.
The prices are an H100's: fitted to what gpu_sharing.py measured there (docs/results/gpu.md), or to a file of its `--json`.
TrivialAugment and RandAugment are taken to cost nothing, start of trials, checkpoints and validation likewise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the tests

from gpu_sharing import BATCH, SHAPES
from helpers.simulation import Cluster, MemoryLedger, driver_of, result
from rounds import table

from vit_search.config import gpu_share, search_file
from vit_search.config.search_file import SearchSpec
from vit_search.config.search_file_blocks import Limits, Resources
from vit_search.config.trial import TrialConfig
from vit_search.planning.image_counts import images_of
from vit_search.planning.simulation import NOISE
from vit_search.planning.speed import work
from vit_search.search.components import ImageFacts, components_of
from vit_search.search.gpu_sharing import GpuSharing, Nodes
from vit_search.search.messages import Continue, Epoch, Finished, TrialOrder

SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "cifar10.yaml"

CORES = 8
"""For each GPU: one for each of the smallest shares, so that no trial waits for a core."""


@dataclass(frozen=True)
class Prices:
    """Seconds of a training step, by the kinds of work of planning/speed.py."""

    host: Mapping[str, float]
    apart: float
    device: Mapping[str, float]
    efficiency: float
    """Of a GPU that is asked for more than it can do."""

    def of(self, config: TrialConfig) -> tuple[float, float]:
        """Seconds of a step alone, and the share of them that the GPU works."""
        amounts = work(config)
        host, device = (sum(price * amounts[kind] for kind, price in prices.items()) for prices in (self.host, self.device))
        alone = host + self.apart * device
        return alone, min(1.0, device / alone)


H100 = Prices(
    host={"step_s": 0.01, "block_s": 9.7e-4},
    apart=0.79,
    device={"step_s": 1.36e-3, "block_s": 1.43e-4, "mvalue_s": 3.98e-5},
    efficiency=0.82,
)
"""From `--measured`, 2026-11-26: three shapes, three prices of a whole step and three of the device, so each is met exactly."""


def fitted(measured: Mapping[str, Any]) -> Prices:
    """From a file of gpu_sharing.py; shapes with CUDA graphs or a policy of augmentation are left out of all but the efficiency."""
    from vit_search.vit.calibrate import least

    plain = [one for one in measured["shapes"] if not SHAPES[one["shape"]].cuda_graphs and SHAPES[one["shape"]].auto_augment == "none"]
    amounts = [work(SHAPES[one["shape"]].config()) for one in plain]
    steps = [BATCH / one["images_per_s"]["1"] for one in plain]
    worked = [one["busy"] * step for one, step in zip(plain, steps, strict=True)]
    kinds = ("step_s", "block_s", "mvalue_s", "gflop_s")
    device = least([{kind: amount[kind] for kind in kinds} for amount in amounts], worked)
    rows = [{"step_s": 1.0, "block_s": amount["block_s"], "apart": seconds} for amount, seconds in zip(amounts, worked, strict=True)]
    whole = least(rows, steps)
    crowded = []
    for one in measured["shapes"]:
        most = max(map(int, one["images_per_s"]))
        gain = one["images_per_s"][str(most)] / one["images_per_s"]["1"]
        if most * one["busy"] > 1:
            crowded.append(gain * one["busy"])
    return Prices(
        host={kind: whole[kind] for kind in ("step_s", "block_s")},
        apart=whole["apart"],
        device=device,
        efficiency=math.prod(crowded) ** (1 / len(crowded)),
    )


@dataclass
class Running:
    """A trial on a GPU."""

    number: int
    share: float
    epoch_s: float
    """Alone."""
    busy: float
    peak: int
    """Bytes of the GPU: what was predicted, so that the driver learns nothing from it."""
    left: float
    """Seconds alone up to the end of its epoch."""
    began: float
    """When its epoch did."""


class Gpu:
    """What runs on one GPU, and what ran there up to a moment."""

    def __init__(self, efficiency: float) -> None:
        self.efficiency = efficiency
        self.trials: list[Running] = []
        self.clock = self.working = self.held = self.running = 0.0
        """Of the GPU's seconds up to the clock: those in which kernels ran; times the share that trials held; times trials."""
        self._changed()

    def add(self, trial: Running, clock: float) -> None:
        """A trial begins."""
        self.advance(clock)
        self.trials.append(trial)
        self._changed()

    def remove(self, trial: Running, clock: float) -> None:
        """A trial ends."""
        self.advance(clock)
        self.trials.remove(trial)
        self._changed()

    def _changed(self) -> None:
        asked = sum(trial.busy for trial in self.trials)
        self.free = 1 - sum(trial.share for trial in self.trials)
        """Share that nobody holds."""
        self._speed = 1.0 if len(self.trials) < 2 else min(1.0, self.efficiency / asked)  # of each trial, to the same alone
        self._busy = min(1.0, asked * self._speed)

    @property
    def next_at(self) -> float:
        """When the first of its trials ends its epoch."""
        return self.clock + min([trial.left for trial in self.trials], default=math.inf) / self._speed

    def advance(self, clock: float) -> None:
        """Let time pass, in which no trial comes or goes."""
        passed = clock - self.clock
        self.clock = clock
        self.working += passed * self._busy
        self.held += passed * (1 - self.free)
        self.running += passed * len(self.trials)
        for trial in self.trials:
            trial.left -= passed * self._speed


@dataclass(frozen=True)
class Outcome:
    """One simulated search."""

    hours: float
    trials: int
    working: float
    """Share of the GPUs' time that kernels run."""
    held: float
    """Share of the GPUs that trials hold, by their shares."""
    at_once: float


def spec_of(file: SearchSpec, trials: int, concurrency: int, memory: float | None, seed: int) -> SearchSpec:
    """A search of a file's space by its rungs, with proposals by chance.

    Args:
        memory: GiB of a GPU, which trials share by it; None for a GPU for each.
    """
    resources = Resources(cpus="auto", gpus=1.0) if memory is None else Resources(cpus="auto", gpus="auto", gpu_memory=f"{memory:g}GiB")
    same = {"sampler": "random", "metric": "val_accuracy", "mode": "max", "objectives": [], "limits": Limits()}
    return file.model_copy(update=same | {"trials": trials, "concurrency": concurrency, "resources": resources, "seed": seed})


class World:
    """A node with GPUs, and the shipped driver of a search that runs there."""

    def __init__(self, spec: SearchSpec, prices: Prices, gpus: int) -> None:
        self.spec, self.prices, self.clock = spec, prices, 0.0
        self.gpus = [Gpu(prices.efficiency) for _ in range(gpus)]
        self.waiting: list[TrialOrder] = []
        self.chances = [random.Random(f"{spec.seed}/{number}") for number in range(spec.trials)]  # a trial is as good wherever it runs
        self.worths = [chance.gauss(0, 1) for chance in self.chances]
        self.images = images_of(spec.data_config)
        space = spec.space
        pixels = space.in_channels * math.prod(spec.image_size)
        self.facts = ImageFacts(space.in_channels, space.num_classes, (self.images.train + self.images.val) * pixels)
        nodes = Nodes(gpu_memory=spec.resources.gpu_bytes, gpus=gpus, cores_per_gpu=CORES, cores=CORES * gpus, count=1)
        # components_of would try 2,000 proposals against the nodes' memory, a third of the time here; the spec's space does it for each one
        components = components_of(spec, self.facts)
        channels, classes, resident = self.facts.channels, self.facts.classes, self.facts.resident_bytes
        sharing = GpuSharing(spec, components.commands, channels=channels, classes=classes, images=resident, nodes=nodes)
        components = replace(components, sharing=sharing)
        cluster = Cluster(places=CORES * gpus, gpus=gpus)
        self.driver = driver_of(spec, MemoryLedger(), components=components, cluster=cluster, clock=lambda: self.clock)

    def run(self) -> Outcome:
        """The whole search."""
        freed, may_hold = True, self.driver.state.stopping.may_hold  # a report then may let another trial go on
        while True:
            while (freed or may_hold) and (self.take_orders() | freed):
                freed = self.place_one()
            gpu = min(self.gpus, key=lambda gpu: gpu.next_at)
            if not gpu.trials:
                break
            self.clock = gpu.next_at
            gpu.advance(self.clock)
            freed = self.report(gpu, min(gpu.trials, key=lambda trial: trial.left))
        assert not self.waiting and self.driver.propose() == Finished(), "nothing runs, and something is left to run"
        assert self.driver.state.sharing.factor == 1, "the driver has learnt something of memory"
        for gpu in self.gpus:
            gpu.advance(self.clock)
        time = self.clock * len(self.gpus)
        working, held, running = (sum(getattr(gpu, name) for gpu in self.gpus) / time for name in ("working", "held", "running"))
        return Outcome(self.clock / 3600, len(self.driver.trials), working, held, running)

    def take_orders(self) -> bool:
        """Of those that the driver gives in a row. Returns: whether there were any."""
        assert not self.driver.tick(), "no trial hangs here"
        before = len(self.waiting)
        while isinstance(order := self.driver.propose(), TrialOrder):
            self.waiting.append(order)
        return len(self.waiting) > before

    def place_one(self) -> bool:
        """Place the first order that fits: Ray fills one GPU before it begins another, and an order that does not fit holds up none.

        Returns: whether one fitted.
        """
        for i, order in enumerate(self.waiting):
            fits = [gpu for gpu in self.gpus if gpu.free >= order.gpus]
            if fits:
                min(fits, key=lambda gpu: gpu.free).add(self.running(self.waiting.pop(i)), self.clock)
                self.driver.started(order.trial)
                return True
        return False

    def running(self, order: TrialOrder) -> Running:
        """A trial as it begins."""
        config = self.spec.trial_config(order.config, in_channels=self.facts.channels, num_classes=self.facts.classes, trial=0)
        step, busy = self.prices.of(config)
        epoch_s = step * math.ceil(self.images.train / config.training.batch_size)
        room = gpu_share.allowed(order.gpus, self.spec.resources.gpu_bytes)
        peak = gpu_share.training_bytes(config.model, config.training) + gpu_share.resident(self.facts.resident_bytes, room)
        return Running(order.trial, order.gpus, epoch_s, busy, peak, left=epoch_s, began=self.clock)

    def report(self, gpu: Gpu, trial: Running) -> bool:
        """A trial has ended an epoch. Returns: whether it frees its share, which the driver decides."""
        epoch = len(self.driver.trials[trial.number].results) + 1
        value = self.worths[trial.number] + self.chances[trial.number].gauss(0, NOISE)
        seconds, trial.began, trial.left = self.clock - trial.began, self.clock, trial.epoch_s
        if self.driver.report(trial.number, Epoch(result(epoch, value, seconds=seconds, peak=trial.peak))) == Continue():
            return False
        gpu.remove(trial, self.clock)
        self.driver.released(trial.number)
        return True


def main() -> None:
    """Print the tables."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--space", type=Path, default=SPACE)
    ask.add_argument("--memory", type=float, nargs="+", default=[80.0, 24.0], help="GiB of a GPU")
    ask.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    ask.add_argument("--trials", type=int, nargs="+", help="of a search; the file's own and 400 by default")
    ask.add_argument("--concurrency", type=int, default=10_000, help="trials at once; as many as find a place by default")
    ask.add_argument("--searches", type=int, default=5, help="simulated, of which the mean is printed")
    ask.add_argument("--measured", type=Path, help="what gpu_sharing.py --json kept")
    told = ask.parse_args()
    prices = fitted(json.loads(told.measured.read_text())) if told.measured else H100
    spec = search_file.load(told.space)
    print(f"{spec.name}; {prices}\n")
    rows = []
    alone: dict[tuple[int, int], list[Outcome]] = {}
    for memory, gpus, trials in itertools.product(told.memory, told.gpus, told.trials or [spec.trials, 400]):

        def searches(memory: float | None, gpus: int = gpus, trials: int = trials) -> list[Outcome]:
            specs = (spec_of(spec, trials, told.concurrency, memory, seed) for seed in range(told.searches))
            return [World(asked, prices, gpus).run() for asked in specs]

        if (gpus, trials) not in alone:
            alone[gpus, trials] = searches(None)
        found = {False: alone[gpus, trials], True: searches(memory)}
        rates = {packed: statistics.fmean(o.trials / o.hours for o in outcomes) for packed, outcomes in found.items()}
        for packed, outcomes in found.items():
            means = [statistics.fmean(getattr(o, name) for o in outcomes) for name in ("working", "held", "at_once")]
            rows.append(
                [
                    f"{memory:g} GiB",
                    str(gpus),
                    str(trials),
                    "by memory" if packed else "one for each GPU",
                    f"{rates[packed]:.1f}",
                    f"{rates[packed] / rates[False]:.2f}",
                    f"{means[0]:.0%}",
                    f"{means[1]:.0%}",
                    f"{means[2]:.1f}",
                ]
            )
    head = ["GPU", "GPUs", "trials", "placed", "trials an hour", "times", "kernels run", "memory held", "at once on a GPU"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
