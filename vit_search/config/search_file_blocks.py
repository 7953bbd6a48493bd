"""The smaller blocks of a search file: `objectives`, `stopping`, `resources`, `limits` and `report`."""

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
"""Names that `objectives` may list."""


def described(about: str, names: Mapping[str, str]) -> str:
    """Describe a key that takes one of some names, for the JSON Schema."""
    return f"{about} {'; '.join(f'{name}: {text}' for name, text in names.items())}."


class FileBlock(BaseModel):
    """A part of a search file. Unknown keys are an error. The docstring of a field is its description in the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def with_direction(values: Any) -> Any:
    """Add `mode` to a mapping of the file that leaves it out. It follows from the metric."""
    if not isinstance(values, dict) or "mode" in values:
        return values
    metric = values.get("metric", "val_accuracy")
    return {**values, "mode": METRICS[metric].mode} if isinstance(metric, str) and metric in METRICS else values


def check_direction(metric: str, mode: str) -> None:
    """Reject a `mode` that contradicts the metric.

    Raises: ValueError, which pydantic passes on.
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
    """The type of a number within bounds, or auto. Its tags are those of a parameter's forms, so that errors read alike."""
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
    """CPU cores of a trial, and the number of its torch threads (at least 1). auto: the trials that fit on a node share its cores."""
    gpus: Gpus = 0.0
    """GPUs of a trial, or a share of one. auto: the share that its predicted memory needs, so that small trials share a GPU."""
    gpu_memory: str | None = None
    """Memory of one GPU, for example 80GiB; only for `gpus: auto`. Default: the cluster is asked, which needs a running GPU node."""

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
        """`gpu_memory` in bytes; 0 if the file leaves it out."""
        return int(float(self.gpu_memory.removesuffix("GiB")) * 2**30) if self.gpu_memory else 0

    @property
    def least(self) -> tuple[float, float]:
        """CPU cores and GPUs that a trial needs at least. An amount of `auto` counts as the smallest share."""
        cpus, gpus = (SMALLEST if amount == "auto" else amount for amount in (self.cpus, self.gpus))
        return cpus, gpus

    @property
    def devices(self) -> float | None:
        """Number of GPUs of every trial, or of CPU cores if it has no GPU; None if trials may have different amounts (`auto`)."""
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
    """What the report shows in addition to numbers."""

    images: Annotated[bool, Strict()] = True
    """Whether the reports of the search and of its promotions, also in MLflow, show thumbnails of images. With false, the tables and the
    CSV files stay."""


def check_target(target: float, metric: str, where: str) -> None:
    """Reject a target that no trial can reach.

    Raises: SpecError.
    """
    if METRICS[metric].fraction and not 0 <= target <= 1:
        mend = f"write {target / 100:g}" if 1 < target <= 100 else "give a value in it"
        raise SpecError(f"{where}: {target:g} cannot be reached, since {metric} is a fraction in [0, 1]; {mend}.")
