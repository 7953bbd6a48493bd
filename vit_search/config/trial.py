"""The configuration of one trial, and the result of one of its epochs, as frozen dataclasses of plain Python.

Each default and bound is written once, in the parts of a configuration: data_config.py, model_config.py and training_config.py. The
sections of a search file (sections.py), the JSON Schema, the model and its training read them there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from vit_search.config.data_config import DataConfig
from vit_search.config.knobs import check_bounds, knob
from vit_search.config.model_config import ModelConfig
from vit_search.config.strict_json import Seconds, Share, build
from vit_search.config.training_config import TrainingConfig
from vit_search.config.tuning import tuning_problem
from vit_search.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """All that a worker needs to train one trial, and to rebuild it from a checkpoint."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    seed: int = knob(..., "Of all random numbers of the training.", ge=0, le=2**63 - 1)

    def __post_init__(self) -> None:
        check_bounds(self)
        problem = tuning_problem(self.training.tuning, self.model.depth, self.model.dim)
        if problem:
            raise SpecError(f"training.{problem}")

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return dataclasses.asdict(self) | {"schema": 1}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrialConfig:
        """The inverse of `to_dict`.

        Raises: SpecError for a field that this version does not know, or an unknown schema number.
        """
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != 1:
            raise SpecError(f"config schema is {schema!r}; this version reads 1. Use the version of vit_search that wrote it.")
        try:
            return build(TrialConfig, {key: value for key, value in values.items() if key != "schema"}, "config")
        except ValueError as error:
            raise SpecError(f"{error}; it was written by another version of vit_search, or changed.") from None


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The metrics of one epoch."""

    epoch: Annotated[int, (1, 100_000)]
    """Number of the epoch, from 1."""
    train_loss: float
    train_accuracy: Share
    """Share of the augmented training images that are right, in [0, 1]."""
    val_loss: float
    val_accuracy: Share
    """Share of all validation images that are right, in [0, 1]."""
    val_top5_accuracy: Share | None
    """None with fewer than 5 classes."""
    lr: float
    """Learning rate of the last step."""
    images_per_s: Annotated[float, (0, 1e15)]
    """Training images per second, without evaluation."""
    seconds: Seconds
    """Seconds of wall time, for training and evaluation."""
    peak_memory_bytes: Annotated[int, (0, 2**63)]
    """Peak memory: of torch's allocator on a GPU, of the process on a CPU."""
    latency_ms: Annotated[float, (0, 1e12)] | None = None
    """Median time to classify one image; None unless it is an objective of the search."""
    scores: dict[str, float] = field(default_factory=dict)
    """Further metrics by name, see vit/evaluation.py. Empty in results of versions before 0.3."""

    def value(self, metric: str) -> float | None:
        """The value of a metric; None if this epoch does not have it."""
        value = self.scores[metric] if metric in self.scores else getattr(self, metric, None)
        return None if value is None else float(value)
