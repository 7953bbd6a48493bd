"""Trials an hour where they share GPUs by predicted memory, against one trial for each GPU: whole searches, simulated.

    python tests/benchmarks/packing.py [--space FILE] [--memory 80] [--gpus 1 8] [--trials 400] [--concurrency N] [--measured FILE]

Proposals are drawn at random from the space and stopped by its rungs (stopping/) by a worth that is drawn, too. Shares are
those of search/gpu_sharing.py before it has learnt anything; a few trials wait for theirs to come free (search/driver.py, AHEAD), and
those that fit go first. One for each GPU: the same with whole ones.

How fast a trial is on its GPU:
- Alone, a step takes `host` (Python, launches, waits; by the block) and a part, `apart`, of what its kernels take, `device`: some
  of both happens at once. `busy` is device over that sum.
- Together, all of a GPU run at min(1, efficiency / sum of their busy) of their speed alone: without MPS, kernels of different
  processes take turns. A process has a core of its own at least.
The prices are an H100's: fitted to what gpu_sharing.py measured there (RESULTS.md), or to a file of its `--json`.
TrivialAugment and RandAugment are taken to cost nothing, start of trials, checkpoints and validation likewise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_sharing import BATCH, SHAPES
from rounds import table

from vit_search.config import gpu_share, search_file
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import TrialConfig
from vit_search.planning.auto_gpu_share import images_bytes
from vit_search.planning.image_counts import Images, images_of
from vit_search.planning.simulation import NOISE
from vit_search.planning.speed import work
from vit_search.search.driver import AHEAD
from vit_search.stopping import rule_of
from vit_search.stopping.rule import StoppingRule

SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "cifar10.yaml"


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
class Trial:
    """One trial on its way through a simulated search."""

    share: float
    epoch_s: float
    """Alone."""
    busy: float
    worth: float
    audit: bool
    look: int = 0
    left: float = 0.0
    """Seconds alone up to its next look."""
    epochs: int = 0


@dataclass
class Gpu:
    """What runs on one GPU."""

    trials: list[Trial] = field(default_factory=list)
    efficiency: float = 1.0

    @property
    def free(self) -> float:
        """Share that nobody holds."""
        return 1 - sum(trial.share for trial in self.trials)

    @property
    def speed(self) -> float:
        """Of each of its trials, to the same alone."""
        asked = sum(trial.busy for trial in self.trials)
        return 1.0 if len(self.trials) < 2 else min(1.0, self.efficiency / asked)

    @property
    def working(self) -> float:
        """Share of its time that kernels run."""
        return min(1.0, sum(trial.busy for trial in self.trials) * self.speed) if self.trials else 0.0


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


def drawn(spec: SearchSpec, prices: Prices, trials: int, memory: int, seed: int) -> list[Trial]:
    """Trials of a search, in the order of their proposals."""
    rng, space, images = random.Random(seed), spec.space, images_of(spec.data_config)
    found: list[Trial] = []
    while len(found) < trials:
        params = space.draw(rng)
        if space.problem(params) is None:
            config = spec.trial_config(params, in_channels=space.in_channels, num_classes=space.num_classes, trial=0)
            step, busy = prices.of(config)
            epoch_s = step * math.ceil(images.train / config.training.batch_size)
            found.append(Trial(share_of(config, images, memory), epoch_s, busy, rng.gauss(0, 1), rng.random() < spec.stopping.audit_share))
    return found


def share_of(config: TrialConfig, images: Images, memory: int) -> float:
    """As search/gpu_sharing.py gives it before anything is learnt."""
    need = gpu_share.Need(gpu_share.training_bytes(config.model, config.training), images_bytes(config, images))
    return gpu_share.share_of(need, memory) or 1.0


def play(spec: SearchSpec, trials: Sequence[Trial], gpus: int, concurrency: int, efficiency: float, seed: int) -> Outcome:
    """A whole search."""
    rng, rule = random.Random(seed), rule_of(spec, parts=(), seed=seed)
    looks = [*rule.looks, spec.epochs]
    cards, waiting = [Gpu(efficiency=efficiency) for _ in range(gpus)], list(trials)
    clock = working = held = running = 0.0
    while waiting or any(card.trials for card in cards):
        while (placed := placed_next(waiting, cards, concurrency)) is not None:
            placed.left = looks[0] * placed.epoch_s
        step = min(trial.left / card.speed for card in cards for trial in card.trials)
        clock += step
        for card in cards:
            working += step * card.working
            held += step * (1 - card.free)
            running += step * len(card.trials)
            speed, staying = card.speed, []
            for trial in card.trials:
                trial.left -= step * speed
                if trial.left > 1e-6 or not ended(trial, rule, looks, rng):
                    staying.append(trial)
            card.trials = staying
    time = clock * gpus
    return Outcome(clock / 3600, len(trials), working / time, held / time, running / time)


def placed_next(waiting: list[Trial], cards: Sequence[Gpu], concurrency: int) -> Trial | None:
    """Place the first that fits of those that are proposed by now; None where none does."""
    running = sum(len(card.trials) for card in cards)
    for place, trial in enumerate(waiting[: max(AHEAD, running // 4)] if running < concurrency else ()):
        fits = [card for card in cards if card.free >= trial.share]
        if fits:
            min(fits, key=lambda card: card.free).trials.append(waiting.pop(place))  # Ray fills one GPU before it begins another
            return trial
    return None


def ended(trial: Trial, rule: StoppingRule, looks: Sequence[int], rng: random.Random) -> bool:
    """Whether a trial that has come to a look is over; else it goes on to the next."""
    trial.epochs = looks[trial.look]
    last = trial.look + 1 == len(looks)
    if last or (rule.falls_short(id(trial), trial.epochs, trial.worth + rng.gauss(0, NOISE), 0) and not trial.audit):
        return True
    trial.look += 1
    trial.left = (looks[trial.look] - trial.epochs) * trial.epoch_s
    return False


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
    for memory, gpus, trials in itertools.product(told.memory, told.gpus, told.trials or [spec.trials, 400]):
        found: dict[bool, list[Outcome]] = {False: [], True: []}
        for seed, packed in itertools.product(range(told.searches), found):
            made = drawn(spec, prices, trials, int(memory * 2**30), seed)
            for trial in made:
                trial.share = max(trial.share, gpu_share.spread(gpus, told.concurrency, trials)) if packed else 1.0
            found[packed].append(play(spec, made, gpus, told.concurrency, prices.efficiency, seed))
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
