"""Simulates whole searches with trials of random quality, using the search's own stopping rule. plan.py averages over them."""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vit_search.config import features, gpu_share
from vit_search.config.cost import Cost, frozen_flops, saved_params
from vit_search.config.search_file import SearchSpec
from vit_search.errors import SpecError
from vit_search.planning.auto_gpu_share import share_of_gpu
from vit_search.planning.image_counts import Images
from vit_search.planning.speed import Speed, epoch_seconds, features_seconds
from vit_search.stopping import rule_of

DRAWS = 1_000
"""Number of random proposals that represent all that a search may try."""

EVENTS = 60_000
"""Approximate number of simulated comparisons. It determines how many whole searches are simulated."""

NOISE = 0.5
"""Standard deviation of the noise when an epoch shows a trial's quality. The quality of random proposals has 1."""

LEARNING = 1.0
"""Growth of the mean quality with ln(1 + trial / 10), if the sampler learns.

Chosen between two searches with TPE. search_spaces/digits.yaml trained 342 epochs without audits (README.md), simulated 307; and 296
with audits (2026-11-24), simulated 335. Of the 24 trials of fashion_mnist.yaml, 7 reached full length, simulated 5.6. Without learning,
the simulation gives 241 and 266 epochs.
"""

LEARNERS = ("auto", "tpe", "gp", "cmaes")
"""Samplers whose proposals get better over time."""


@dataclass(frozen=True)
class PlanDraw:
    """A proposal, and what one epoch of it takes."""

    cost: Cost
    epoch_flops: float
    seconds: float
    """Seconds of an epoch. Without a speed, FLOPs: these give the same order of events."""
    devices: float
    """GPUs that a trial holds, or cores if it has no GPU."""
    bytes: int
    """Memory of a training."""
    saved_params: int
    """Weights in its checkpoint."""
    features: str = ""
    """What features the trial reads; empty if none. The first trial of a search that reads them computes them."""
    features_flops: float = 0.0
    features_seconds: float = 0.0
    """What that takes. Without a speed, FLOPs."""


def draw_proposals(spec: SearchSpec, speed: Speed | None, images: Images) -> tuple[list[PlanDraw], float]:
    """Valid proposals from a fixed seed, and their share of all proposals."""
    rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
    space = spec.space
    draws: list[PlanDraw] = []
    tried = 0
    while len(draws) < DRAWS and (tried < 2 * DRAWS or (len(draws) < 100 and tried < 50 * DRAWS)):
        tried += 1
        params = space.draw(rng)
        if space.problem(params) is not None:
            continue
        config = spec.trial_config(params, in_channels=space.in_channels, num_classes=space.num_classes, trial=0)
        cost = space.cost(params)
        views, saved = features.views_of(config.model, config.training), frozen_flops(config.model, config.training.tuning)
        flops = images.train * cost.train_flops + images.val * cost.forward_flops - (images.train + images.val) * saved * (views > 0)
        of_features = float((views * images.train + images.val) * saved * (views > 0))
        share = share_of_gpu(spec, config, images)
        devices = share or spec.resources.devices or 1.0  # if the number of cores depends on the cluster, count one
        memory = gpu_share.training_bytes(config.model, config.training) if share else cost.train_bytes
        draws.append(
            PlanDraw(
                cost=cost,
                epoch_flops=flops,
                seconds=epoch_seconds(speed, config, images) if speed else float(flops),
                devices=devices,
                bytes=memory,
                saved_params=saved_params(config.model, config.training.tuning),
                features=features.shared_by(config.model, config.training),
                features_flops=of_features,
                features_seconds=features_seconds(speed, config, images) if speed else of_features,
            )
        )
    if not draws:
        raise SpecError(f"none of {tried:,} random proposals can be run; see why: vit-search lint.")
    return draws, len(draws) / tried


@dataclass(frozen=True)
class SimulatedSearch:
    """The result of one simulated search."""

    epochs: list[int]
    """Epochs of each trial."""
    flops: float
    seconds: float
    device_seconds: float
    wall: float


def simulate(spec: SearchSpec, draws: Sequence[PlanDraw], trials: int, concurrency: int, start_s: float) -> list[SimulatedSearch]:
    """Simulate whole searches. Of a very long search, simulate a part and scale it up."""
    rng = random.Random(0)  # noqa: S311 -- chance in a simulation, not a secret
    looks = len(rule_of(spec, parts=()).looks) + 1
    part = max(1, min(trials, EVENTS // looks))
    times = max(1, min(300, EVENTS // (looks * part)))
    searches = [_simulate_one(spec, draws, part, concurrency, start_s, rng) for _ in range(times)]
    if part == trials:
        return searches
    more = trials / part
    return [
        SimulatedSearch(
            [s.epochs[i * part // trials] for i in range(trials)],
            s.flops * more,
            s.seconds * more,
            s.device_seconds * more,
            s.wall * more,
        )
        for s in searches
    ]


def _simulate_one(
    spec: SearchSpec, draws: Sequence[PlanDraw], trials: int, concurrency: int, start_s: float, rng: random.Random
) -> SimulatedSearch:
    """Simulate one search. A free place takes the next trial, and each comparison uses only earlier results."""
    rule = rule_of(spec, parts=_boundaries(spec, draws), seed=rng.randrange(2**31))
    looks = [*rule.looks, spec.epochs]
    learns = LEARNING if spec.sampler in LEARNERS else 0.0
    chosen = [rng.choice(draws) for _ in range(trials)]
    worth = [rng.gauss(0, 1) + learns * math.log1p(i / 10) for i in range(trials)]
    epochs, clock = [0] * trials, 0.0
    running: list[tuple[float, int, int]] = []
    """(time of the next comparison, trial, index of that comparison), earliest first."""
    held: dict[int, int] = {}
    """Index of the next comparison of each waiting trial: the rule holds it, or has released it and it waits for a place."""
    fresh = 0
    """The next trial to start."""
    computing = _first_readers(chosen)

    def next_trial() -> int | None:
        """A trial that the rule has released, or a new one; at the end, the best of those that the rule holds."""
        waiting = min((i for i in held if not rule.holds(i)), key=lambda i: (rule.turn(i), i), default=None)
        if waiting is None and fresh < trials:
            return fresh
        return rule.leader if waiting is None and not running and rule.leader in held else waiting

    while True:
        while len(running) < concurrency and (started := next_trial()) is not None:
            look = held.pop(started, 0)
            before = start_s + (chosen[started].features_seconds if started in computing and look == 0 else 0.0)
            heapq.heappush(running, (clock + before + (looks[look] - epochs[started]) * chosen[started].seconds, started, look))
            fresh = max(fresh, started + 1)
        if not running:
            break
        clock, i, look = heapq.heappop(running)
        epochs[i] = epoch = looks[look]
        if epoch == spec.epochs:
            continue
        rule.record(i, epoch, worth[i] + rng.gauss(0, NOISE), rule.group(chosen[i].cost.train_flops))
        held = {j: next_look for j, next_look in held.items() if j not in rule.ending}
        if rule.holds(i):
            held[i] = look + 1
        elif i not in rule.ending:
            heapq.heappush(running, (clock + (looks[look + 1] - epoch) * chosen[i].seconds, i, look + 1))
        rule.ending.clear()
    seconds = [n * draw.seconds + draw.features_seconds * (i in computing) for i, (n, draw) in enumerate(zip(epochs, chosen, strict=True))]
    return SimulatedSearch(
        epochs,
        sum(n * draw.epoch_flops for n, draw in zip(epochs, chosen, strict=True)) + sum(chosen[i].features_flops for i in computing),
        sum(seconds),
        sum(each * draw.devices for each, draw in zip(seconds, chosen, strict=True)),
        clock,
    )


def _first_readers(chosen: Sequence[PlanDraw]) -> set[int]:
    """The trials that compute features: the first that reads them."""
    first: dict[str, int] = {}
    for i, draw in enumerate(chosen):
        if draw.features:
            first.setdefault(draw.features, i)
    return set(first.values())


def _boundaries(spec: SearchSpec, draws: Sequence[PlanDraw]) -> list[float]:
    strata = spec.stopping.strata
    if strata == 1 or len(draws) < 2:
        return []
    return statistics.quantiles((float(draw.cost.train_flops) for draw in draws), n=strata, method="inclusive")
