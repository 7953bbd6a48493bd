"""The speed of a machine: the seconds of each part of a training, stored in a file, and the time of an epoch that follows from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from vit_search.config import features
from vit_search.config.cost import cost_of, frozen_flops, saved_params
from vit_search.config.search_file import SearchSpec
from vit_search.config.strict_json import parse
from vit_search.config.trial import TrialConfig
from vit_search.errors import DataError, SpecError
from vit_search.files import write_whole
from vit_search.planning.image_counts import Images

BORROWED = 7.0
"""Factor by which the predicted mean epoch may be wrong if the speed was measured for another search.

Over five files of search_spaces/, the prediction was 0.54 to 6.46 times that of the file's own calibration; for two calibrations of the
same file, it was 0.70 to 1.43 (2026-11-29, tests/benchmarks/borrowed_speed.py).
"""

EVALUATED_AT_ONCE = 128
"""Images of a batch in evaluation. vit/training.py has the number for a CPU."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The time of the parts of a training on one machine, with as many trials at once as the search has. All in seconds."""

    gflop_s: float
    """For 1e9 floating-point operations of matrix products in a training step."""
    step_s: float = 0.0
    """For a step of any size: the optimizer, clipping, Python."""
    block_s: float = 0.0
    """For a block in a step, of any width."""
    image_s: float = 0.0
    """For putting an image into a batch."""
    policy_s: float = 0.0
    """What TrivialAugment or RandAugment add to `image_s`."""
    mscore_s: float = 0.0
    """For 1e6 attention scores."""
    mvalue_s: float = 0.0
    """For 1e6 values that are normalized, activated or added."""
    evaluation: float = 1 / 3
    """The evaluation of an image, as a share of its training."""
    save_s: float = 0.0
    """For a checkpoint; each epoch writes one."""
    mparam_save_s: float = 0.0
    """For 1e6 more parameters in a checkpoint."""
    start_s: float = 0.0
    """For making a trial's model, before its first epoch."""
    device: str = "as stated"
    measured: str = ""
    """Date of the measurement; empty if the speed was stated."""
    name: str = ""
    """The search file for which it was measured."""
    key: str = ""
    """`speed_key` of that file; empty if a version before 0.2 measured it."""
    processes: int = 1
    """Trainings at once during the measurement."""
    room: int = 1
    """Trainings for which the machine has room, by its cores or GPUs and what a trial takes."""

    @property
    def flops_per_s(self) -> float:
        """Speed of matrix products alone; infinite if they were too small to measure."""
        return 1e9 / self.gflop_s if self.gflop_s else math.inf


def speed_key(spec: SearchSpec) -> str:
    """SHA-256, in hex, of what a calibration depends on: the space, and what a trial takes of the machine."""
    return hashlib.sha256(f"{spec.space.space_hash} {spec.resources.cpus} {spec.resources.gpus}".encode()).hexdigest()


def borrowed(speed: Speed | None, spec: SearchSpec) -> str:
    """What a speed was measured for, if not for this search; else empty."""
    if speed is None or not speed.measured:
        return ""
    if speed.name != spec.name:
        return speed.name
    return f"an earlier {spec.name}" if speed.key and speed.key != speed_key(spec) else ""


def stated_speed(flops_per_s: float) -> Speed:
    """A speed from the FLOPs per second that a training step sustains, with all of its parts.

    Raises: SpecError unless it is positive and finite.
    """
    if not 0 < flops_per_s < math.inf:
        raise SpecError(f"--flops-per-s is {flops_per_s:g}; give what a training step sustains, e.g. 5e10.")
    return Speed(gflop_s=1e9 / flops_per_s)


def save_speed(speed: Speed, path: Path) -> None:
    """Store a measured speed.

    Raises: DataError if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(dataclasses.asdict(speed), indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); set VIT_SEARCH_CACHE to a folder that can.") from None


def load_speed(path: Path) -> Speed | None:
    """Load a stored speed; None if there is none.

    Raises: SpecError if the file is damaged or of another version.
    """
    try:
        speed = Speed(**parse(path.read_text()))
        figures = [getattr(speed, f.name) for f in dataclasses.fields(Speed) if f.type == "float"]
        if not all(isinstance(figure, (int, float)) and math.isfinite(figure) and figure >= 0 for figure in figures):
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise SpecError(f"{path}: no speed that this version can read; measure again: vit-search plan --calibrate.") from None
    return speed


def work(config: TrialConfig) -> dict[str, float]:
    """The amounts of work in one training step, by the field of Speed that is their price."""
    model, training = config.model, config.training
    batch, tokens = training.batch_size, model.tokens
    cost = cost_of(model, math.ceil(batch / training.accumulation), training.optimizer, training.tuning)
    trained = training.tuning.trained_blocks(model.depth)
    on_features = features.views_of(model, training) > 0
    blocks = trained + (0 if on_features else (model.depth - trained) / 3)  # what is frozen goes forward alone, a third of a step
    flops = cost.train_flops - (frozen_flops(model, training.tuning) if on_features else 0)
    return {
        "step_s": 1.0,
        "block_s": blocks * training.accumulation,
        "image_s": batch,
        "policy_s": batch * (training.auto_augment != "none"),
        "gflop_s": batch * flops / 1e9,
        "mscore_s": batch * blocks * model.heads * tokens**2 / 1e6,
        "mvalue_s": batch * blocks * tokens * (2 * model.dim + model.mlp_width) / 1e6,
    }


def train_seconds(speed: Speed, config: TrialConfig, images: int) -> float:
    """Seconds to train on `images` images."""
    batch = config.training.batch_size
    steps = math.ceil(images / batch)
    prices: dict[str, float] = vars(speed)
    return sum(
        prices[name] * amount * (steps if name in ("step_s", "block_s") else images / batch) for name, amount in work(config).items()
    )


def evaluation_seconds(speed: Speed, config: TrialConfig, images: int) -> float:
    """Seconds to evaluate `images` images."""
    tune = config.training.tune if features.views_of(config.model, config.training) else "full"  # on features, only what is trained runs
    training = dataclasses.replace(config.training, batch_size=EVALUATED_AT_ONCE, accumulation=1, auto_augment="none", tune=tune)
    return speed.evaluation * train_seconds(speed, dataclasses.replace(config, training=training), images)


def features_seconds(speed: Speed, config: TrialConfig, images: Images) -> float:
    """Seconds to compute the features that a trial reads, of all versions of the training images; 0 if it reads none."""
    views = features.views_of(config.model, config.training)
    training = dataclasses.replace(config.training, feature_views=0)
    whole = dataclasses.replace(config, training=training)
    return evaluation_seconds(speed, whole, views * images.train + images.val) if views else 0.0


def epoch_seconds(speed: Speed, config: TrialConfig, images: Images) -> float:
    """Seconds of one epoch of a trial: training, evaluation and checkpoint. Without the computation of features."""
    save = speed.save_s + speed.mparam_save_s * saved_params(config.model, config.training.tuning) / 1e6
    return train_seconds(speed, config, images.train) + evaluation_seconds(speed, config, images.val) + save
