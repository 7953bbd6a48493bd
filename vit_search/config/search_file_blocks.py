"""The blocks of a search file that are the same whatever is searched: `objectives`, `stopping`, `resources` and `limits`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, model_validator

from vit_search.config.gpu_share import SMALLEST
from vit_search.config.metrics import METRICS, Direction
from vit_search.config.stopping_rules import STOPPING_RULES
from vit_search.errors import SpecError

Count = Annotated[int, Strict()]

OBJECTIVES = tuple(METRICS)
"""What can be an objective beside the metric."""


def described(about: str, names: Mapping[str, str]) -> str:
    """The description of a key that takes one of some names, for the JSON Schema."""
    return f"{about} {'; '.join(f'{name}: {text}' for name, text in names.items())}."


class FileBlock(BaseModel):
    """A part of a search file, which refuses unknown keys; the text under a field is its description in the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def with_direction(values: Any) -> Any:
    """A metric's section of the file with the `mode` that follows from the metric, where the file leaves it out."""
    if not isinstance(values, dict) or "mode" in values:
        return values
    metric = values.get("metric", "val_accuracy")
    return {**values, "mode": METRICS[metric].mode} if isinstance(metric, str) and metric in METRICS else values


def check_direction(metric: str, mode: str) -> None:
    """Refuse a `mode` that is not the metric's.

    Raises: ValueError, which pydantic hands on.
    """
    if mode != METRICS[metric].mode:
        better = "smaller" if METRICS[metric].mode == "min" else "larger"
        raise ValueError(
            f"@mode@{mode} contradicts {metric}, of which a {better} value is better; drop the key, or write {METRICS[metric].mode}"
        )


class Objective(FileBlock):
    """A further metric that a search weighs against its first: `{metric: params}`."""

    metric: Literal[OBJECTIVES]  # type: ignore[valid-type]
    """A metric of an epoch, or a cost of the model: params, flops (forward pass of one image), train_flops, latency_ms."""
    mode: Direction = "min"
    """Whether a smaller or a larger value is better. Leave it out: it follows from the metric."""

    @model_validator(mode="before")
    @classmethod
    def _with_mode(cls, values: Any) -> Any:
        return with_direction(values)

    @model_validator(mode="after")
    def _mode_is_the_metrics(self) -> Objective:
        check_direction(self.metric, self.mode)
        return self


class Stopping(FileBlock):
    """Early stopping of weak trials."""

    kind: Literal[tuple(STOPPING_RULES)] = Field("asha", description=described("Rule that stops weak trials.", STOPPING_RULES))  # type: ignore[valid-type]
    grace_epochs: Count = Field(3, ge=1, le=100_000)
    """No trial is stopped before this many epochs."""
    reduction_factor: Count = Field(3, ge=2, le=100)
    """At each rung, the best 1 / reduction_factor of the trials continue. The rungs are at grace_epochs x reduction_factor^k epochs."""
    audit_share: Annotated[float, Strict()] = Field(0.05, ge=0, lt=1)
    """Share of the trials that are never stopped. They show how many good trials early stopping loses."""
    strata: Count = Field(1, ge=1, le=10)
    """Number of groups of trials, by predicted training FLOPs. A trial is compared only with trials of its group."""

    @property
    def stops(self) -> bool:
        """Whether any trial is stopped early."""
        return bool(self.kind != "none")


def _amount(**bounds: float) -> Any:
    """A number within bounds, or auto; the tags are forms of a parameter, so that errors read alike."""
    number = Annotated[float, Strict(), Field(**bounds), Tag("float")]
    forms: Any = number | Annotated[Literal["auto"], Tag("value")]
    return Annotated[forms, Discriminator(lambda value: "value" if isinstance(value, str) else "float")]


if TYPE_CHECKING:
    Cores: TypeAlias = float | Literal["auto"]
    Gpus: TypeAlias = float | Literal["auto"]
else:
    Cores, Gpus = _amount(gt=0, le=1024), _amount(ge=0, le=64)


class Resources(FileBlock):
    """CPUs and GPUs of one trial."""

    cpus: Cores = 1.0
    """CPU cores of a trial, which has as many torch threads, at least 1. auto: the trials that fit on a node share its cores."""
    gpus: Gpus = 0.0
    """GPUs of a trial, or a share of one. auto: the share that its predicted memory needs, so that small trials share a GPU."""
    gpu_memory: str | None = None
    """Memory of one GPU, for example 80GiB; only for `gpus: auto`. Default: asked of the cluster, which needs a running GPU node."""

    @model_validator(mode="after")
    def _memory_is_readable(self) -> Resources:
        if self.gpu_memory is not None and not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})? ?GiB", self.gpu_memory):
            raise ValueError(f"@gpu_memory@{self.gpu_memory!r} is no size; write e.g. 80GiB")
        if self.gpu_memory is not None and self.gpus != "auto":
            raise ValueError("@gpu_memory@it decides nothing unless gpus is auto; drop it, or write gpus: auto")
        return self

    @property
    def on_gpu(self) -> bool:
        """Whether trials train on a GPU."""
        return self.gpus != 0

    @property
    def gpu_bytes(self) -> int:
        """gpu_memory as a number; 0 where it is left out."""
        return int(float(self.gpu_memory.removesuffix("GiB")) * 2**30) if self.gpu_memory else 0

    @property
    def least(self) -> tuple[float, float]:
        """CPU cores and GPUs that a trial asks for, at the least where the file leaves them to us."""
        cpus, gpus = (SMALLEST if amount == "auto" else amount for amount in (self.cpus, self.gpus))
        return cpus, gpus

    @property
    def devices(self) -> float | None:
        """GPUs of every trial, or its cores where it has none; None where each trial has its own."""
        held = self.gpus or self.cpus
        return None if held == "auto" else held


class Limits(FileBlock):
    """Limits that end a search before its last trial. The first one that is reached ends it."""

    hours: Annotated[float, Strict()] | None = Field(None, gt=0, allow_inf_nan=False)
    """Hours while the search runs or is paused. The time between an interruption and `resume` does not count."""
    device_hours: Annotated[float, Strict()] | None = Field(None, gt=0, allow_inf_nan=False)
    """Hours of all trials together. For each trial, its time is multiplied by its GPUs, or by its CPU cores if it has no GPU."""
    target: Annotated[float, Strict()] | None = Field(None, allow_inf_nan=False)
    """Value of the metric at which the search ends."""
    patience: Count | None = Field(None, ge=1)
    """The search ends after this many trials in a row without a better metric."""


class Report(FileBlock):
    """What the report shows beside numbers."""

    images: Annotated[bool, Strict()] = True
    """Whether the reports of the search and of its promotions, and so MLflow, hold thumbnails of images. With false, the tables and the
    CSV files stay."""


def check_target(target: float, metric: str, where: str) -> None:
    """Refuse a target that no trial can reach.

    Raises: SpecError.
    """
    if METRICS[metric].fraction and not 0 <= target <= 1:
        mend = f"write {target / 100:g}" if 1 < target <= 100 else "give a value in it"
        raise SpecError(f"{where}: {target:g} cannot be reached, since {metric} is a fraction in [0, 1]; {mend}.")
