"""What a search will cost, told before anything is trained: trials at each rung, epochs, FLOPs, memory, disk, and seconds.

A search is played through many times with trials of random worth, by its own stopping rule. Seconds need a Speed: measured by
vit/calibrate.py, or stated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_search.config import shares
from vit_search.config.cost import Cost, cost_of
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.search_file import SearchSpec
from vit_search.config.strict_json import parse
from vit_search.config.trial import DataConfig, TrialConfig
from vit_search.data.sources import open_source
from vit_search.errors import DataError, SpecError
from vit_search.files import write_whole
from vit_search.stopping import rule_of, rungs_of

DRAWS = 1_000
"""Proposals that stand for all that a search may try."""

EVENTS = 60_000
"""About as many looks at trials are played through, in as many whole searches as that makes."""

NOISE = 0.5
"""Deviation of what an epoch shows of a trial's worth; the worth of random proposals has 1."""

LEARNING = 1.0
"""How the mean worth of proposals grows with ln(1 + trial / 10), where the sampler learns. Between what single searches with TPE
ask for: search_spaces/digits.yaml trained 342 epochs without audits (README.md), here 307, and 296 with them (2026-11-24), here
335; of fashion_mnist.yaml's 24 trials 7 reached full length, here 5.6. Without learning it is 241 and 266."""

LEARNERS = ("auto", "tpe", "gp", "cmaes")
"""Samplers that propose better as they go."""

BORROWED = 7.0
"""By how much a mean epoch may be wrong that is foretold by another search's calibration: over five files of search_spaces/ it was 0.54
to 6.46 of what its own said, where its own of another round was 0.70 to 1.43 (2026-11-29, tests/benchmarks/borrowed_speed.py)."""

EVALUATED_AT_ONCE = 128
"""Images of a batch in evaluation; vit/training.py has the number for a CPU."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the parts of a training cost on one machine while as many trials run as a search runs at once; all in seconds."""

    gflop_s: float
    """1e9 floating-point operations of matrix products in a training step."""
    step_s: float = 0.0
    """A step whatever its size: the optimiser, clipping, Python."""
    block_s: float = 0.0
    """A block in a step, whatever its width."""
    image_s: float = 0.0
    """An image's way into a batch."""
    policy_s: float = 0.0
    """What TrivialAugment or RandAugment add to it."""
    mscore_s: float = 0.0
    """1e6 attention scores."""
    mvalue_s: float = 0.0
    """1e6 values that are normalised, activated or added."""
    evaluation: float = 1 / 3
    """An image's evaluation, as a share of its training."""
    save_s: float = 0.0
    """A checkpoint, of which each epoch writes one."""
    mparam_save_s: float = 0.0
    """1e6 parameters more in a checkpoint."""
    start_s: float = 0.0
    """A trial's model before its first epoch."""
    device: str = "as stated"
    measured: str = ""
    """Date; empty where the speed is stated."""
    name: str = ""
    """Search file that it was measured for."""
    key: str = ""
    """The same as `speed_key`; empty in speeds of versions before 0.2."""
    processes: int = 1
    """Trainings at once while it was measured."""
    room: int = 1
    """How many it has room for, by its cores or GPUs and what a trial takes."""

    @property
    def flops_per_s(self) -> float:
        """Of matrix products alone, everything else left out; infinite where they were too small to be seen."""
        return 1e9 / self.gflop_s if self.gflop_s else math.inf


def speed_key(spec: SearchSpec) -> str:
    """SHA-256, in hex, of what a calibration measures: the space, and what a trial takes of the machine."""
    return hashlib.sha256(f"{spec.space.space_hash} {spec.resources.cpus} {spec.resources.gpus}".encode()).hexdigest()


def borrowed(speed: Speed | None, spec: SearchSpec) -> str:
    """What a speed was measured for, where that is not this search; else empty."""
    if speed is None or not speed.measured:
        return ""
    if speed.name != spec.name:
        return speed.name
    return f"an earlier {spec.name}" if speed.key and speed.key != speed_key(spec) else ""


def stated_speed(flops_per_s: float) -> Speed:
    """A speed by what a training step sustains, all of its parts included.

    Raises: SpecError unless it is positive and finite.
    """
    if not 0 < flops_per_s < math.inf:
        raise SpecError(f"--flops-per-s is {flops_per_s:g}; give what a training step sustains, e.g. 5e10.")
    return Speed(gflop_s=1e9 / flops_per_s)


def save_speed(speed: Speed, path: Path) -> None:
    """Keep a measured speed.

    Raises: DataError when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(dataclasses.asdict(speed), indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); set VIT_SEARCH_CACHE to a folder that can.") from None


def load_speed(path: Path) -> Speed | None:
    """The speed kept at a path; None where there is none.

    Raises: SpecError when the file is damaged or of another version.
    """
    try:
        speed = Speed(**parse(path.read_text()))
        figures = [getattr(speed, f.name) for f in dataclasses.fields(Speed) if f.type == "float"]
        if not all(isinstance(figure, (int, float)) and math.isfinite(figure) and figure >= 0 for figure in figures):
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise SpecError(f"{path}: no speed that this version can read; measure anew: vit-search plan --calibrate.") from None
    return speed


@dataclass(frozen=True)
class Images:
    """How many images there are, without those of the test split."""

    train: int
    val: int
    holdout: int = 0


def images_of(config: DataConfig) -> Images:
    """Images of all splits but the test split, before any is read.

    Raises: DataError where they must be counted, and are missing.
    """
    facts = DATA_SETS[config.name]
    counts = open_source(config).counts if facts.labelled is None else Counter({"": facts.labelled, "test": facts.test})
    if not counts[""]:
        return _images_as_given(config, counts)
    labelled, own_test = counts[""], counts["test"]
    test = 0 if own_test else math.floor(labelled * config.test_fraction + 0.5)
    looked_at = config.val_fraction + config.holdout_fraction
    both = math.floor((labelled - test) * looked_at / (1 if own_test else 1 - config.test_fraction) + 0.5)  # as data/split.py carves
    train, holdout = max(1, labelled - test - both), math.floor(both * config.holdout_fraction / looked_at + 0.5)
    val = both - holdout
    return Images(train=min(train, config.train_limit or train), val=val, holdout=holdout)


def _images_as_given(config: DataConfig, counts: Mapping[str, int]) -> Images:
    """Images of the splits of a source that has its own; what it lacks comes from its training images, as data/split.py carves."""
    all_train, left = counts["train"], 1.0
    test = 0 if counts["test"] else math.floor(all_train * config.test_fraction + 0.5)
    left -= config.test_fraction if test else 0.0
    val = 0 if counts["val"] else math.floor((all_train - test) * config.val_fraction / left + 0.5)
    left -= config.val_fraction if val else 0.0
    holdout = math.floor((all_train - test - val) * config.holdout_fraction / left + 0.5)
    train = max(1, all_train - test - val - holdout)
    return Images(train=min(train, config.train_limit or train), val=counts["val"] or val, holdout=holdout)


def work(config: TrialConfig) -> dict[str, float]:
    """What one training step consists of, by the field of Speed that prices it."""
    model, training = config.model, config.training
    batch, tokens = training.batch_size, model.tokens
    cost = cost_of(model, math.ceil(batch / training.accumulation), training.optimizer)
    return {
        "step_s": 1.0,
        "block_s": model.depth * training.accumulation,
        "image_s": batch,
        "policy_s": batch * (training.auto_augment != "none"),
        "gflop_s": batch * cost.train_flops / 1e9,
        "mscore_s": batch * model.depth * model.heads * tokens**2 / 1e6,
        "mvalue_s": batch * model.depth * tokens * (2 * model.dim + model.mlp_width) / 1e6,
    }


def train_seconds(speed: Speed, config: TrialConfig, images: int) -> float:
    """Training on so many images."""
    batch = config.training.batch_size
    steps = math.ceil(images / batch)
    prices: dict[str, float] = vars(speed)
    return sum(
        prices[name] * amount * (steps if name in ("step_s", "block_s") else images / batch) for name, amount in work(config).items()
    )


def evaluation_seconds(speed: Speed, config: TrialConfig, images: int) -> float:
    """Evaluation of so many images."""
    training = dataclasses.replace(config.training, batch_size=EVALUATED_AT_ONCE, accumulation=1, auto_augment="none")
    return speed.evaluation * train_seconds(speed, dataclasses.replace(config, training=training), images)


def epoch_seconds(speed: Speed, config: TrialConfig, images: Images) -> float:
    """An epoch of one trial: training, evaluation and its checkpoint."""
    save = speed.save_s + speed.mparam_save_s * cost_of(config.model, 1).params / 1e6
    return train_seconds(speed, config, images.train) + evaluation_seconds(speed, config, images.val) + save


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
class Plan:
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
    """Memory of a trial, median and largest, as config/cost.py has it, or config/shares.py where a GPU is shared."""
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
    def from_dict(values: Mapping[str, Any]) -> Plan:
        """The inverse, also after a way through JSON."""
        parts = {
            "images": Images(**values["images"]),
            "rungs": tuple(Rung(**rung) for rung in values["rungs"]),
            "shares": tuple(Share(**share) for share in values.get("shares", ())),
            "speed": Speed(**values["speed"]) if values["speed"] else None,
        }
        pairs = {name: tuple(value) for name, value in values.items() if isinstance(value, list) and name not in parts}
        return Plan(**{**values, **parts, **pairs})


@dataclass(frozen=True)
class _Draw:
    """A proposal and what an epoch of it takes."""

    cost: Cost
    epoch_flops: float
    seconds: float
    """Of an epoch; FLOPs where no speed is known, which is enough for the order of events."""
    devices: float
    """GPUs, or cores where it has none, that a trial holds."""
    bytes: int
    """Memory of a training."""


def plan(spec: SearchSpec, speed: Speed | None = None, *, concurrency: int | None = None) -> Plan:
    """What a search is expected to cost.

    Args:
        spec: a checked search file.
        speed: of the machine; without one there are no seconds.
        concurrency: trials at once; the file's by default.
    Raises: SpecError when no random proposal can be run; DataError when an image folder cannot be counted.
    """
    concurrency = concurrency or spec.concurrency
    images = images_of(spec.data_config)
    draws, share = _drawn(spec, speed, images)
    trials, size = spec.trials, spec.space.grid_size() if spec.sampler == "grid" else None
    if size is not None:
        trials = min(trials, math.ceil(size * share))  # a grid is over when each combination was tried
    searches = _played(spec, draws, trials, concurrency, speed.start_s if speed else 0.0)
    lengths = sorted({*rungs_of(spec), spec.epochs})
    epochs = [sum(search.epochs) for search in searches]
    seconds = statistics.fmean(search.seconds for search in searches)
    wall = statistics.fmean(search.wall for search in searches)
    device_seconds = statistics.fmean(search.device_seconds for search in searches)
    params = sorted(draw.cost.params for draw in draws)
    memory = sorted(draw.bytes for draw in draws)
    held = Counter(draw.devices for draw in draws) if spec.resources.gpus == "auto" else Counter()
    lasting = sorted(draw.seconds for draw in draws)
    return Plan(
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
        gpu_bytes=_gpu_bytes(spec) if held else 0,
        borrowed=borrowed(speed, spec),
    )


def compare(plan: Plan, trials_by_epochs: Mapping[int, int], *, device_seconds: float, wall_seconds: float) -> dict[str, Any]:
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


def _drawn(spec: SearchSpec, speed: Speed | None, images: Images) -> tuple[list[_Draw], float]:
    """Proposals that can be run, from a fixed seed, and their share of all."""
    rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
    space = spec.space
    draws: list[_Draw] = []
    tried = 0
    while len(draws) < DRAWS and (tried < 2 * DRAWS or (len(draws) < 100 and tried < 50 * DRAWS)):
        tried += 1
        params = space.draw(rng)
        if space.problem(params) is not None:
            continue
        config = spec.trial_config(params, in_channels=space.in_channels, num_classes=space.num_classes, trial=0)
        cost = space.cost(params)
        flops = images.train * cost.train_flops + images.val * cost.forward_flops
        share = share_of_gpu(spec, config, images)
        devices = share or spec.resources.devices or 1.0  # cores that depend on the cluster count as one
        memory = shares.training_bytes(config.model, config.training) if share else cost.train_bytes
        draws.append(_Draw(cost, flops, epoch_seconds(speed, config, images) if speed else float(flops), devices, memory))
    if not draws:
        raise SpecError(f"none of {tried:,} random proposals can be run; see why: vit-search lint.")
    return draws, len(draws) / tried


def share_of_gpu(spec: SearchSpec, config: TrialConfig, images: Images) -> float | None:
    """What a trial takes of a GPU where the file says auto, before anything is learnt; None where it says a number."""
    if spec.resources.gpus != "auto":
        return None
    need = shares.Need(shares.training_bytes(config.model, config.training), images_bytes(config, images))
    return shares.share_of(need, _gpu_bytes(spec)) or 1.0


def images_bytes(config: TrialConfig, images: Images) -> int:
    """The images that a search trains and validates on, a byte for each value of a pixel."""
    return (images.train + images.val) * config.model.in_channels * math.prod(config.model.image_size)


def _gpu_bytes(spec: SearchSpec) -> int:
    return spec.resources.gpu_bytes or shares.USUAL_MEMORY


@dataclass(frozen=True)
class _Search:
    """One search, played through."""

    epochs: list[int]
    """Of each trial."""
    flops: float
    seconds: float
    device_seconds: float
    wall: float


def _played(spec: SearchSpec, draws: Sequence[_Draw], trials: int, concurrency: int, start_s: float) -> list[_Search]:
    """Whole searches; of a very long one a part, as often as makes the whole."""
    rng = random.Random(0)  # noqa: S311 -- chance of a simulation, not a secret
    looks = len(rule_of(spec, parts=()).looks) + 1
    part = max(1, min(trials, EVENTS // looks))
    times = max(1, min(300, EVENTS // (looks * part)))
    searches = [_play(spec, draws, part, concurrency, start_s, rng) for _ in range(times)]
    if part == trials:
        return searches
    more = trials / part
    return [
        _Search(
            [n for n in s.epochs for _ in range(math.ceil(more))][:trials],
            s.flops * more,
            s.seconds * more,
            s.device_seconds * more,
            s.wall * more,
        )
        for s in searches
    ]


def _play(spec: SearchSpec, draws: Sequence[_Draw], trials: int, concurrency: int, start_s: float, rng: random.Random) -> _Search:
    """One search: whoever is free takes the next trial, and each look decides on what was seen before it."""
    rule = rule_of(spec, parts=_boundaries(spec, draws), seed=rng.randrange(2**31))
    looks = [*rule.looks, spec.epochs]
    learns = LEARNING if spec.sampler in LEARNERS else 0.0
    chosen = [rng.choice(draws) for _ in range(trials)]
    worth = [rng.gauss(0, 1) + learns * math.log1p(i / 10) for i in range(trials)]
    audits = [rng.random() < spec.stopping.audit_share for _ in range(trials)]
    epochs, clock = [0] * trials, 0.0
    running: list[tuple[float, int, int]] = []
    """(when its next look is, trial, which look that is), the soonest first."""
    for i in range(min(concurrency, trials)):
        heapq.heappush(running, (start_s + looks[0] * chosen[i].seconds, i, 0))
    waiting = len(running)
    while running:
        clock, i, look = heapq.heappop(running)
        epochs[i] = epoch = looks[look]
        stops = epoch >= spec.epochs
        if not stops:
            score = worth[i] + rng.gauss(0, NOISE)
            stops = rule.falls_short(i, epoch, score, rule.group(chosen[i].cost.train_flops)) and not audits[i]
        if not stops:
            heapq.heappush(running, (clock + (looks[look + 1] - epoch) * chosen[i].seconds, i, look + 1))
        elif waiting < trials:
            heapq.heappush(running, (clock + start_s + looks[0] * chosen[waiting].seconds, waiting, 0))
            waiting += 1
    return _Search(
        epochs,
        sum(n * draw.epoch_flops for n, draw in zip(epochs, chosen, strict=True)),
        sum(n * draw.seconds for n, draw in zip(epochs, chosen, strict=True)),
        sum(n * draw.seconds * draw.devices for n, draw in zip(epochs, chosen, strict=True)),
        clock,
    )


def _boundaries(spec: SearchSpec, draws: Sequence[_Draw]) -> list[float]:
    strata = spec.stopping.strata
    if strata == 1 or len(draws) < 2:
        return []
    return statistics.quantiles((float(draw.cost.train_flops) for draw in draws), n=strata, method="inclusive")
