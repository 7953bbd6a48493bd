"""Predicts what a search will cost: trials at each rung, epochs, FLOPs, memory, disk and seconds. Nothing is trained.

The search is simulated many times (simulation.py). Seconds need a Speed (speed.py), which vit/calibrate.py measures or the user states.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_search.config.search_file import SearchSpec
from vit_search.planning.auto_gpu_share import gpu_bytes_of
from vit_search.planning.image_counts import Images, images_of
from vit_search.planning.simulation import draw_proposals, simulate
from vit_search.planning.speed import Speed, borrowed
from vit_search.stopping import most_held, rungs_of


@dataclass(frozen=True)
class Rung:
    """A number of epochs at which trials are compared."""

    epoch: int
    trials: float
    """Expected number of trials that train this long."""


@dataclass(frozen=True)
class Share:
    """What part of a GPU some of the trials take."""

    gpus: float
    trials: float
    """Share of the trials."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The expected cost of a search."""

    name: str
    trials: int
    epochs: int
    """Epochs of a full training."""
    stopping: str
    concurrency: int
    images: Images
    valid_share: float
    """Share of random proposals that can be run."""
    rungs: tuple[Rung, ...]
    """Each rung, and the full length last."""
    trained_epochs: float
    """Epochs of all trials together."""
    trained_epochs_range: tuple[float, float]
    """Range that contains four of five searches."""
    saved_share: float
    """Epochs saved, as a share of those without early stopping."""
    flops: float
    """FLOPs of training and evaluation."""
    params: tuple[int, int]
    """Median and largest."""
    train_bytes: tuple[int, int]
    """Memory of a trial, median and largest, by config/cost.py; by config/gpu_share.py if trials share a GPU."""
    disk_bytes: int
    """The most that checkpoints take."""
    speed: Speed | None
    trial_seconds: float | None
    """Training and evaluation of all trials together. Without a speed, this field and those down to `limit` are None."""
    device_seconds: float | None
    """`trial_seconds`, each times the GPUs of the trial, or its CPU cores if it has no GPU."""
    wall_seconds: float | None
    """From the start of the first trial to the end of the last, without the time of Ray and MLflow themselves."""
    wall_seconds_range: tuple[float, float] | None
    epoch_seconds: tuple[float, float] | None
    """One epoch of a trial: median and longest."""
    limit: str | None
    """The time limit that will probably end the search before its last trial."""
    shares: tuple[Share, ...] = ()
    """Parts of a GPU that trials take, smallest first, if each takes what it needs."""
    gpu_bytes: int = 0
    """Memory of the GPU that they share."""
    borrowed: str = ""
    """What the speed was measured for, if not for this search."""

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SearchPlan:
        """The inverse of `to_dict`, also after JSON."""
        parts = {
            "images": Images(**values["images"]),
            "rungs": tuple(Rung(**rung) for rung in values["rungs"]),
            "shares": tuple(Share(**share) for share in values.get("shares", ())),
            "speed": Speed(**values["speed"]) if values["speed"] else None,
        }
        pairs = {name: tuple(value) for name, value in values.items() if isinstance(value, list) and name not in parts}
        return SearchPlan(**{**values, **parts, **pairs})


def plan(spec: SearchSpec, speed: Speed | None = None, *, concurrency: int | None = None) -> SearchPlan:
    """Predict the cost of a search.

    Args:
        spec: a checked search file.
        speed: of the machine. Without it, the plan has no seconds.
        concurrency: trials at once; by default from the file.
    Raises: SpecError if no random proposal can be run; DataError if an image folder cannot be counted.
    """
    concurrency = concurrency or spec.concurrency
    images = images_of(spec.data_config)
    draws, share = draw_proposals(spec, speed, images)
    trials, size = spec.trials, spec.space.grid_size() if spec.sampler == "grid" else None
    if size is not None:
        trials = min(trials, math.ceil(size * share))  # a grid ends when each combination was tried
    searches = simulate(spec, draws, trials, concurrency, speed.start_s if speed else 0.0)
    lengths = sorted({*rungs_of(spec), spec.epochs})
    epochs = [sum(search.epochs) for search in searches]
    seconds = statistics.fmean(search.seconds for search in searches)
    wall = statistics.fmean(search.wall for search in searches)
    device_seconds = statistics.fmean(search.device_seconds for search in searches)
    params = sorted(draw.cost.params for draw in draws)
    memory, saved = sorted(draw.bytes for draw in draws), max(draw.saved_params for draw in draws)
    held = Counter(draw.devices for draw in draws) if spec.resources.gpus == "auto" else Counter()
    lasting = sorted(draw.seconds for draw in draws)
    checkpoints = spec.keep_checkpoints + concurrency
    checkpoints = max(checkpoints, min(trials, checkpoints + most_held(spec, trials)))
    return SearchPlan(
        name=spec.name,
        trials=trials,
        epochs=spec.epochs,
        stopping=spec.stopping.kind,
        concurrency=concurrency,
        images=images,
        valid_share=share,
        rungs=tuple(Rung(n, statistics.fmean(sum(e >= n for e in search.epochs) for search in searches)) for n in lengths),
        trained_epochs=statistics.fmean(epochs),
        trained_epochs_range=_most(epochs),
        saved_share=1 - statistics.fmean(epochs) / (trials * spec.epochs),
        flops=statistics.fmean(search.flops for search in searches),
        params=(params[len(params) // 2], params[-1]),
        train_bytes=(memory[len(memory) // 2], memory[-1]),
        disk_bytes=checkpoints * saved * 4 * 3 * 2,  # weights and two moments, and the previous checkpoint
        speed=speed,
        trial_seconds=seconds if speed else None,
        device_seconds=device_seconds if speed else None,
        wall_seconds=wall if speed else None,
        wall_seconds_range=_most([search.wall for search in searches]) if speed else None,
        epoch_seconds=(lasting[len(lasting) // 2], lasting[-1]) if speed else None,
        limit=_limit(spec, wall, device_seconds) if speed else None,
        shares=tuple(Share(gpus, count / len(draws)) for gpus, count in sorted(held.items())),
        gpu_bytes=gpu_bytes_of(spec) if held else 0,
        borrowed=borrowed(speed, spec),
    )


def compare(plan: SearchPlan, trials_by_epochs: Mapping[int, int], *, device_seconds: float, wall_seconds: float) -> dict[str, Any]:
    """Compare a plan with what happened, in plain JSON values.

    Args:
        trials_by_epochs: number of trials by the epochs that they trained.
        device_seconds: of training and evaluation, each trial's times its GPUs or cores.
        wall_seconds: of the whole search.
    Returns: `trials`, `trials_at` (by the epoch of each rung), `epochs`, `device_seconds`, `wall_seconds`: {predicted, actual, ratio}. The
        ratio is actual / predicted, or None if the prediction is unknown or 0. `speed` says where the seconds came from.
    """
    trained = sum(epochs * trials for epochs, trials in trials_by_epochs.items())
    return {
        "trials": _beside(plan.trials, sum(trials_by_epochs.values())),
        "trials_at": {
            str(rung.epoch): _beside(rung.trials, sum(n for epochs, n in trials_by_epochs.items() if epochs >= rung.epoch))
            for rung in plan.rungs
        },
        "epochs": _beside(plan.trained_epochs, trained),
        "device_seconds": _beside(plan.device_seconds, device_seconds),
        "wall_seconds": _beside(plan.wall_seconds, wall_seconds),
        "speed": None if plan.speed is None else {"device": plan.speed.device, "measured": plan.speed.measured, "borrowed": plan.borrowed},
    }


def _beside(predicted: float | None, actual: float) -> dict[str, float | None]:
    return {"predicted": predicted, "actual": actual, "ratio": actual / predicted if predicted else None}


def _most(values: list[float] | list[int]) -> tuple[float, float]:
    """The range of the middle four fifths."""
    ordered = sorted(values)
    return ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]


def _limit(spec: SearchSpec, wall: float, device_seconds: float) -> str | None:
    for name, allowed, needed in (("hours", spec.limits.hours, wall), ("device_hours", spec.limits.device_hours, device_seconds)):
        if allowed is not None and 3600 * allowed < needed:
            return f"limits.{name}: {allowed:g} h are over after about {3600 * allowed / needed:.0%} of the search"
    return None
