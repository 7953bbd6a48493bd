"""What a search will cost, before anything is trained: trials at each rung, epochs, FLOPs, memory, disk and seconds.

The search is simulated many times (simulation.py). Seconds need a Speed (speed.py): measured by vit/calibrate.py, or stated.
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
from vit_search.stopping import rungs_of


@dataclass(frozen=True)
class Rung:
    """One length at which trials are parted."""

    epoch: int
    trials: float
    """How many are expected to train so long."""


@dataclass(frozen=True)
class Share:
    """How much of a GPU some trials take."""

    gpus: float
    trials: float
    """Share of the trials."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search is expected to cost."""

    name: str
    trials: int
    epochs: int
    """Of a full training."""
    stopping: str
    concurrency: int
    """Trials at once."""
    images: Images
    valid_share: float
    """Share of random proposals that can be run."""
    rungs: tuple[Rung, ...]
    """Each rung, and at last the full length."""
    trained_epochs: float
    """Of all trials."""
    trained_epochs_range: tuple[float, float]
    """Between which four of five searches lie."""
    saved_share: float
    """Epochs not trained, of those that no stopping would have trained."""
    flops: float
    """Of training and evaluation."""
    params: tuple[int, int]
    """Median and largest."""
    train_bytes: tuple[int, int]
    """Memory of a trial, median and largest, as config/cost.py has it, or config/gpu_share.py where a GPU is shared."""
    disk_bytes: int
    """The most that checkpoints take."""
    speed: Speed | None
    trial_seconds: float | None
    """Of training and evaluation, all trials together; None without a speed, as the three below."""
    device_seconds: float | None
    """The same times the GPUs that a trial holds, or its CPU cores where it has none."""
    wall_seconds: float | None
    """From the first trial's start to the last one's end; Ray's and MLflow's own time is not in it."""
    wall_seconds_range: tuple[float, float] | None
    epoch_seconds: tuple[float, float] | None
    """An epoch of one trial: median and longest."""
    limit: str | None
    """The limit of time that is expected to end the search before its last trial."""
    shares: tuple[Share, ...] = ()
    """What trials take of a GPU, the smallest first, where each takes what it needs."""
    gpu_bytes: int = 0
    """Memory of the GPU that they are shares of."""
    borrowed: str = ""
    """What the speed was measured for, where that is not this search."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SearchPlan:
        """The inverse, also after a way through JSON."""
        parts = {
            "images": Images(**values["images"]),
            "rungs": tuple(Rung(**rung) for rung in values["rungs"]),
            "shares": tuple(Share(**share) for share in values.get("shares", ())),
            "speed": Speed(**values["speed"]) if values["speed"] else None,
        }
        pairs = {name: tuple(value) for name, value in values.items() if isinstance(value, list) and name not in parts}
        return SearchPlan(**{**values, **parts, **pairs})


def plan(spec: SearchSpec, speed: Speed | None = None, *, concurrency: int | None = None) -> SearchPlan:
    """What a search is expected to cost.

    Args:
        spec: a checked search file.
        speed: of the machine; without one there are no seconds.
        concurrency: trials at once; the file's by default.
    Raises: SpecError when no random proposal can be run; DataError when an image folder cannot be counted.
    """
    concurrency = concurrency or spec.concurrency
    images = images_of(spec.data_config)
    draws, share = draw_proposals(spec, speed, images)
    trials, size = spec.trials, spec.space.grid_size() if spec.sampler == "grid" else None
    if size is not None:
        trials = min(trials, math.ceil(size * share))  # a grid is over when each combination was tried
    searches = simulate(spec, draws, trials, concurrency, speed.start_s if speed else 0.0)
    lengths = sorted({*rungs_of(spec), spec.epochs})
    epochs = [sum(search.epochs) for search in searches]
    seconds = statistics.fmean(search.seconds for search in searches)
    wall = statistics.fmean(search.wall for search in searches)
    device_seconds = statistics.fmean(search.device_seconds for search in searches)
    params = sorted(draw.cost.params for draw in draws)
    memory = sorted(draw.bytes for draw in draws)
    held = Counter(draw.devices for draw in draws) if spec.resources.gpus == "auto" else Counter()
    lasting = sorted(draw.seconds for draw in draws)
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
        disk_bytes=(spec.keep_checkpoints + concurrency) * params[-1] * 4 * 3 * 2,  # weights and two moments, and the generation before
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
    """What was foretold beside what came, in plain JSON values.

    Args:
        trials_by_epochs: how many trials trained so many epochs.
        device_seconds: of training and evaluation, each trial's times its GPUs or cores. wall_seconds: of the whole search.
    Returns: `trials`, `trials_at` (each rung's epoch), `epochs`, `device_seconds`, `wall_seconds`: {predicted, actual, ratio},
        where ratio is actual to predicted, and None where one of them is unknown or 0; `speed`: where the seconds came from.
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
    """The bounds of the middle four fifths."""
    ordered = sorted(values)
    return ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]


def _limit(spec: SearchSpec, wall: float, device_seconds: float) -> str | None:
    for name, allowed, needed in (("hours", spec.limits.hours, wall), ("device_hours", spec.limits.device_hours, device_seconds)):
        if allowed is not None and 3600 * allowed < needed:
            return f"limits.{name}: {allowed:g} h are over after about {3600 * allowed / needed:.0%} of the search"
    return None
