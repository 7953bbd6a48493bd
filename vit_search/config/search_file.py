"""A search file: read strictly, checked whole, and described to editors by a JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Strict, Tag, ValidationError, model_validator

from vit_search.config import presets, strict_yaml
from vit_search.config.cost import memory_of_this_machine
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.metrics import METRICS, RANKING, Direction
from vit_search.config.shares import SMALLEST
from vit_search.config.space import FORMS, FloatRange, IntRange, Space, Value, path_of, section
from vit_search.config.trial import FROM_DATA, DataConfig, ModelConfig, TrainingConfig, TrialConfig, field_types
from vit_search.config.wanted import spelt, wanted
from vit_search.errors import SpecError
from vit_search.text import counted, nearest

if TYPE_CHECKING:  # made from the dataclasses' fields when imported, so their keys are not known to a type checker
    DataSection: TypeAlias = Any
    ModelSection: TypeAlias = Any
    TrainingSection: TypeAlias = Any
else:
    DataSection = section("DataSection", DataConfig, searched=False)
    ModelSection = section("ModelSection", ModelConfig, leave_out=FROM_DATA, searched=True)
    TrainingSection = section("TrainingSection", TrainingConfig, leave_out=("epochs",), searched=True)
Count = Annotated[int, Strict()]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

COSTS = ("params", "flops", "train_flops", "latency_ms")
"""What a model costs, as an objective."""

OBJECTIVES = tuple(METRICS)
"""What can be an objective beside the metric."""

TRIALS_APART = 1_000_003
"""How far the seeds of trial 0 of two searches lie apart whose own seeds are neighbours."""

LARGEST_GPU = 288 * 2**30
"""Bytes; what no single GPU of 2026 exceeds. The GPU at hand is known to its worker alone."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _with_direction(values: Any) -> Any:
    """A metric's section of the file with the `mode` that follows from the metric, where the file leaves it out."""
    if not isinstance(values, dict) or "mode" in values:
        return values
    metric = values.get("metric", "val_accuracy")
    return {**values, "mode": METRICS[metric].mode} if isinstance(metric, str) and metric in METRICS else values


def _with_grace(values: Any) -> Any:
    """A search file whose trainings are shorter than the default grace_epochs, with a grace of their length: a default never refuses."""
    if not isinstance(values, dict):
        return values
    epochs, stopping = values.get("epochs"), values.get("stopping", {})
    if not isinstance(stopping, dict) or "grace_epochs" in stopping or not isinstance(epochs, int) or isinstance(epochs, bool):
        return values
    short = 1 <= epochs < Stopping.model_fields["grace_epochs"].default
    return {**values, "stopping": {**stopping, "grace_epochs": epochs}} if short else values


def _check_direction(metric: str, mode: str) -> None:
    if mode != METRICS[metric].mode:
        better = "smaller" if METRICS[metric].mode == "min" else "larger"
        raise ValueError(
            f"@mode@{mode} contradicts {metric}, of which a {better} value is better; drop the key, or write {METRICS[metric].mode}"
        )


class Objective(_Part):
    """A further metric that a search weighs against its first: `{metric: params}`."""

    metric: Literal[OBJECTIVES]  # type: ignore[valid-type]
    """A metric of an epoch, or what the model costs: params, flops (forward, one image), train_flops, latency_ms."""
    mode: Direction = "min"
    """Whether a smaller or a larger value is better. It follows from the metric; leave it out."""

    @model_validator(mode="before")
    @classmethod
    def _with_mode(cls, values: Any) -> Any:
        return _with_direction(values)

    @model_validator(mode="after")
    def _mode_is_the_metrics(self) -> Objective:
        _check_direction(self.metric, self.mode)
        return self


class Stopping(_Part):
    """When weak trials are stopped early."""

    kind: Literal["asha", "hyperband", "median", "none"] = "asha"
    """Asynchronous successive halving, HyperBand, trials below the median of the others, or no trial at all."""
    grace_epochs: Count = Field(3, ge=1, le=100_000)
    """No trial is stopped before this many epochs."""
    reduction_factor: Count = Field(3, ge=2, le=100)
    """At each rung the best 1 / reduction_factor go on; rungs stand at grace_epochs x reduction_factor^k."""
    audit_share: Annotated[float, Strict()] = Field(0.05, ge=0, lt=1)
    """Share of the trials that go on whatever the rungs say, to see what stopping costs."""
    strata: Count = Field(1, ge=1, le=10)
    """Groups of trials by predicted training FLOPs; a trial is held against its own group alone."""

    @property
    def stops(self) -> bool:
        """Whether any trial is stopped early."""
        return self.kind != "none"


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


class Resources(_Part):
    """What one trial takes."""

    cpus: Cores = 1.0
    """CPU cores; a trial's torch threads are as many, at least 1. auto: a node's cores, shared among the trials that fit on it."""
    gpus: Gpus = 0.0
    """GPUs, or a share of one; auto: the share that the trial's predicted memory needs, so that small ones run beside each other."""
    gpu_memory: str | None = None
    """Memory of a GPU, as 80GiB; it is asked of the cluster where it is left out, which takes a GPU node that is up."""

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
        cpus, gpus = (SMALLEST if asked == "auto" else asked for asked in (self.cpus, self.gpus))
        return cpus, gpus

    @property
    def devices(self) -> float | None:
        """GPUs of every trial, or its cores where it has none; None where each trial has its own."""
        held = self.gpus or self.cpus
        return None if held == "auto" else held


class Limits(_Part):
    """When a search ends before its last trial; the first limit that is met ends it."""

    hours: Annotated[float, Strict()] | None = Field(None, gt=0, allow_inf_nan=False)
    """Wall time."""
    device_hours: Annotated[float, Strict()] | None = Field(None, gt=0, allow_inf_nan=False)
    """Time of all trials, each multiplied by its GPUs or its share of one, or by its CPU cores where it has none."""
    target: Annotated[float, Strict()] | None = Field(None, allow_inf_nan=False)
    """The metric's value at which the search is done."""
    patience: Count | None = Field(None, ge=1)
    """Trials that end in a row without a better metric."""


def check_target(target: float, metric: str, where: str) -> None:
    """Refuse a target that no trial can reach.

    Raises: SpecError.
    """
    if METRICS[metric].fraction and not 0 <= target <= 1:
        mend = f"write {target / 100:g}" if 1 < target <= 100 else "give a value in it"
        raise SpecError(f"{where}: {target:g} cannot be reached, since {metric} is a fraction in [0, 1]; {mend}.")


class SearchSpec(_Part):
    """A search file: which images, which Vision Transformers, how many trials."""

    name: str = Field(pattern=NAME)
    """Letters, digits, `.`, `_` and `-`; searches, the MLflow experiment and the registered model are named after it."""
    data: DataSection
    """Which images, and how they are split."""
    metric: Literal[RANKING] = "val_accuracy"  # type: ignore[valid-type]
    """What trials are ranked by, at their last epoch."""
    mode: Direction = "max"
    """Whether a smaller or a larger metric is better. It follows from the metric; leave it out."""
    objectives: list[Objective] = Field(default_factory=list, max_length=3)
    """Further metrics, weighed against the first: the search then looks for the best compromises."""
    sampler: Literal["auto", "gp", "tpe", "cmaes", "random", "grid", "qmc"] = "auto"
    """Who proposes: Gaussian processes, tree-structured Parzen estimators, CMA-ES, chance, every combination, or a Sobol sequence;
    auto takes the first while trials are few, and the second for the rest and where there are conditions or several objectives."""
    trials: Count = Field(ge=1, le=1_000_000)
    """Trials in all, stopped ones included."""
    epochs: Count = Field(ge=1, le=100_000)
    """Length of a full training."""
    train_on: Literal["train", "train+val"] = "train"
    """Which splits trials train on: with train+val they are validated on the holdout, as `vit-search promote` does at the end."""
    stopping: Stopping = Field(default_factory=lambda: Stopping.model_validate({}))
    """When weak trials are stopped early."""
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    """When the search ends before its last trial."""
    seed: Count = Field(0, ge=0, le=2**31 - 1)
    """Decides the proposals and each trial's initialisation, order, augmentation and dropout."""
    concurrency: Count = Field(1, ge=1, le=10_000)
    """Trials at the same time; where fewer find a place, hardly more are proposed than do."""
    resources: Resources = Field(default_factory=lambda: Resources.model_validate({}))
    """What one trial takes."""
    keep_checkpoints: Count = Field(3, ge=1, le=1_000_000)
    """Trials whose checkpoints are kept: the best ones."""
    log_pt2: Annotated[bool, Strict()] = False
    """Whether the models that are logged hold a torch.export archive besides: for programs without this package's code."""
    system_metrics: bool = False
    """Whether each epoch records what its trial took of processor, memory and GPU, under MLflow's own names."""
    stall_minutes: Annotated[float, Strict()] = Field(30, gt=0, allow_inf_nan=False)
    """A trial that reports nothing for so long is taken for hung, ended, and tried again, on another node where there is one."""
    stall_epochs: Count = Field(20, ge=2, le=1_000_000)
    """The same after this many times the longest of its epochs, if that comes sooner, but not before a minute."""
    preset: Literal[presets.PRESETS] | None = None  # type: ignore[valid-type]
    """Distributions around DeiT-Ti, DeiT-S or DeiT-B for what model and training leave out; see config/presets.py."""
    model: ModelSection = ModelSection()
    """The Vision Transformer: each key a value, or a distribution to search."""
    training: TrainingSection = TrainingSection()
    """How it is trained: each key a value, or a distribution to search."""
    constraints: list[str] = Field(default_factory=list, max_length=100)
    """What must hold for a proposal to be run, as `params <= 5e6`: over all parameters by their plain names, and over params,
    flops (forward, one image), train_flops, train_memory (bytes, of one micro-batch), tokens, epochs, image_height, image_width."""
    start_with: list[dict[str, Any]] = Field(default_factory=list, max_length=1000)
    """Points to try first, each a mapping of some or all searched parameters by their plain names, as `{lr: 1e-3, depth: 6}`."""
    learn_from: list[str] = Field(default_factory=list, max_length=100)
    """Names or folders of earlier searches whose trials the sampler is told before it begins."""

    _text: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        """The preset, the metric's mode and a short search's grace, written out: what is checked, logged and run is the whole."""
        values = _with_grace(_with_direction(values))
        return presets.fill(values) if isinstance(values, dict) and isinstance(values.get("preset"), str) else values

    @model_validator(mode="after")
    def _mode_is_the_metrics(self) -> SearchSpec:
        _check_direction(self.metric, self.mode)
        return self

    @property
    def text(self) -> str:
        """The search file as it was written, or an equal one where the spec was made in Python."""
        return self._text or yaml.safe_dump(self.model_dump(by_alias=True, exclude_unset=True), sort_keys=False)

    @property
    def data_config(self) -> DataConfig:
        """The data section as the rest of the code knows it."""
        return DataConfig(**self.data.model_dump())

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels, known before the data is read."""
        return DATA_SETS[self.data.name].image_size or (self.data.image_size, self.data.image_size)

    @property
    def space(self) -> Space:
        """Model and training parameters by their flat names."""
        sections = (self.model, self.training)
        facts = DATA_SETS[self.data.name]
        return Space(
            parameters={name: getattr(s, name) for s in sections for name in type(s).model_fields},
            image_size=self.image_size,
            in_channels=facts.channels or self.data.channels,
            num_classes=facts.classes or 1,  # those of a set that is not known yet are counted later; a head's weights are few
            memory_limit=LARGEST_GPU if self.resources.on_gpu else memory_of_this_machine(),
            gpu_memory=self.resources.gpu_bytes,
            constraints=tuple(self.constraints),
            epochs=self.epochs,
        )

    def trial_config(self, params: dict[str, Value], *, in_channels: int, num_classes: int, trial: int) -> TrialConfig:
        """What the worker of one trial is told.

        Raises: SpecError when the parameters make no ViT.
        """
        values = self.space.complete(params)
        model = {name: values[name] for name in type(self.model).model_fields}
        training = {name: values[name] for name in type(self.training).model_fields}
        return TrialConfig(
            data=self.data_config,
            model=ModelConfig(image_size=self.image_size, in_channels=in_channels, num_classes=num_classes, **model),
            training=TrainingConfig(epochs=self.epochs, **training),
            seed=self.seed * TRIALS_APART + trial,  # trials of one search differ, and so do searches of other seeds
        )

    def check(self) -> None:
        """Refuse what no single key shows: contradictions between keys.

        Raises: SpecError that begins with the key's path.
        """
        if self.data.name not in DATA_SETS:
            raise SpecError(f"data.name: unknown data set {self.data.name!r}; {nearest(self.data.name, list(DATA_SETS))}")
        facts = DATA_SETS[self.data.name]
        if facts.path and self.data.path is None:
            raise SpecError(f"data.path: {self.data.name} needs it; give {facts.path}.")
        if facts.image_size is None and self.data.image_size is None:
            raise SpecError(f"data.image_size: {self.data.name} needs it; give the side in pixels.")
        if facts.image_size is not None and self.data.image_size is not None:
            raise SpecError(f"data.image_size: {self.data.name} has its own size; drop the key.")
        if self.data.val_fraction + self.data.holdout_fraction + self.data.test_fraction >= 1:
            raise SpecError("data.val_fraction: with holdout_fraction and test_fraction nothing is left to train on; make them smaller.")
        if self.train_on == "train+val" and not self.data.holdout_fraction:
            raise SpecError("train_on: train+val leaves no image to validate on; give data.holdout_fraction a value, or train on train.")
        self._check_goal()
        self._check_stopping()
        space = self.space
        space.check()
        self._check_sampler(space)
        for i, point in enumerate(self.start_with):
            space.check_point(point, f"start_with.{i}")
            if any(point == other for other in self.start_with[:i]):
                raise SpecError(f"start_with.{i}: the same point as one above; list each once.")
        for i, name in enumerate(self.learn_from):
            if not name.strip() or not name.isprintable():
                raise SpecError(f"learn_from.{i}: {name!r} is no search; write its name or its folder.")
            if name in self.learn_from[:i]:
                raise SpecError(f"learn_from.{i}: {name} stands twice; list each search once.")

    def check_data(self, classes: int) -> None:
        """Refuse a metric that images of so many classes cannot give.

        Raises: SpecError that begins with the key's path.
        """
        goals = [("metric", self.metric), *((f"objectives.{i}.metric", goal.metric) for i, goal in enumerate(self.objectives))]
        for key, metric in goals:
            least = METRICS[metric].least_classes
            if classes < least:
                raise SpecError(
                    f"{key}: {metric} needs at least {least} classes, and the data has {classes}; choose val_accuracy or val_loss."
                )

    def _check_goal(self) -> None:
        seen = [self.metric]
        for i, objective in enumerate(self.objectives):
            if objective.metric in seen:
                raise SpecError(f"objectives.{i}.metric: {objective.metric} is an objective already; list each metric once.")
            seen.append(objective.metric)
        if self.limits.target is not None:
            check_target(self.limits.target, self.metric, "limits.target")

    def _check_stopping(self) -> None:
        if not self.stopping.stops:
            if self.stopping.strata > 1:
                raise SpecError(f"stopping.strata: {self.stopping.strata} groups, but kind: none stops no trial; drop one of the two.")
        elif self.stopping.grace_epochs > self.epochs:
            raise SpecError(f"stopping.grace_epochs: {self.stopping.grace_epochs} is more than epochs={self.epochs}; lower it.")

    def _check_sampler(self, space: Space) -> None:
        """Refuse a sampler that cannot propose from the space."""
        if self.sampler == "grid":
            for name, parameter in space.searched.items():
                if isinstance(parameter, FloatRange) and parameter.step is None:
                    raise SpecError(f"sampler: grid cannot try every number of {path_of(name)}; give it a step or a choice, or write qmc.")
        if self.sampler == "cmaes" and space.conditional:
            name = next(name for name, parameter in space.searched.items() if parameter.when is not None)
            raise SpecError(f"sampler: cmaes knows no conditions, and {path_of(name)} has one; drop its when, or write tpe.")
        if self.sampler == "cmaes":
            ranges = sum(isinstance(parameter, (IntRange, FloatRange)) for parameter in space.searched.values())
            if ranges < 2:
                raise SpecError(
                    f"sampler: cmaes moves along two ranges or more, and this space has {ranges}; write tpe, or ranges for choices."
                )
            if self.objectives:
                raise SpecError("sampler: cmaes knows one metric, and objectives lists more; drop them, or write tpe.")


def check_name(name: str, what: str) -> None:
    """Refuse a name that no search file could have.

    Args:
        what: where it was given, for the message.
    """
    if not re.fullmatch(NAME, name):
        raise SpecError(f"{what}: {name!r} is no name; give letters, digits, `.`, `_` and `-`, at most 64, a letter or digit first.")


def load(path: Path) -> SearchSpec:
    """Read and check a search file.

    Raises: SpecError, one line: file, line, key, what was seen, the mend.
    """
    document = strict_yaml.load(path)
    return _validated(document, str(path), path.read_text(encoding="utf-8"))


def parse(text: str, source: str = "search file") -> SearchSpec:
    """The same from text."""
    return _validated(strict_yaml.parse(text, source), source, text)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a search file, for editors."""
    schema = SearchSpec.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$defs"]["DataSection"]["properties"]["name"]["enum"] = list(DATA_SETS)
    return schema


def _validated(document: strict_yaml.Document, source: str, text: str) -> SearchSpec:
    def refuse(path: tuple[str | int, ...], message: str) -> SpecError:
        return SpecError(f"{source}:{document.line(path)}: {message}")

    try:
        spec = SearchSpec.model_validate(document.values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        wrong = [e for e in found if e["type"] != "missing"] or found  # a misspelt key before the one that is missing for it
        problems = [_in_words(dict(e), document) for e in wrong]
        path, message = min(problems, key=lambda problem: document.line(problem[0]))
        raise refuse(path, message) from None
    spec._text = text
    try:
        spec.check()
    except SpecError as error:
        key = str(error).partition(":")[0]
        raise refuse(tuple(int(step) if step.isdecimal() else step for step in key.split(".")), str(error)) from None
    return spec


def _in_words(error: dict[str, Any], document: strict_yaml.Document) -> tuple[tuple[str | int, ...], str]:
    """A pydantic error as (path in the file, one line with the mend)."""
    path: tuple[str | int, ...] = ()
    here: Any = document.values
    for i, step in enumerate(error["loc"]):  # pydantic puts the tags of our forms between the keys of the file
        if i == 2 and error["loc"][0] in ("model", "training") and step in FORMS and len(error["loc"]) > 3:
            continue
        known = (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int) and step < len(here))
        if known:
            path, here = (*path, step), here[step]
        elif step not in FORMS or step == error["loc"][-1]:
            path, here = (*path, step), None
    if path and path[-1] in FORMS and error["loc"][-1] == path[-1] and here is None and error["type"] != "missing":
        path = path[:-1]
    key, seen, kind = ".".join(map(str, path)), error["input"], error["type"]
    if kind == "extra_forbidden":
        other = {"model": ("training", TrainingSection), "training": ("model", ModelSection)}.get(str(path[0]))
        if len(path) == 2 and other and path[1] in other[1].model_fields:
            return path, f"{key}: unknown key; it belongs under {other[0]}."
        known_keys = _known_keys(path[:-1], error["loc"])
        if len(path) == 3 and path[0] in ("model", "training") and path[2] in (*FORMS, "step", "log"):
            return path, f"{key}: {path[2]} does not go with {error['loc'][2]}; drop it."
        return path, f"{key}: unknown key; {nearest(str(path[-1]), known_keys)}"
    if kind == "missing":
        return path[:-1], f"{key}: missing; add it."
    if kind == "union_tag_invalid":
        return path, f"{key}: {spelt(seen)} is no value and no distribution; {_mend(path, error)}"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        if text.startswith("@"):
            _, name, text = text.split("@", 2)
            path = (*(path[:-1] if len(path) == 3 and path[-1] in FORMS else path), *name.split("."))
            key = ".".join(map(str, path))
        return path, f"{key}: {text}."
    if kind == "too_long":
        return path, f"{key}: {counted(error['ctx']['actual_length'], 'entry', 'entries')}; give at most {error['ctx']['max_length']:,}."
    if kind == "too_short":
        return path, f"{key}: the list is empty; give at least one value."
    if kind == "string_pattern_mismatch":
        return (
            path,
            f"{key}: {spelt(seen)} will not do as a name; use letters, digits, '.', '_' and '-', at most 64, a letter or digit first.",
        )
    return path, f"{key}: {'has no value' if seen is None else f'{spelt(seen)} will not do'}; {_mend(path, error)}"


def _section(path: tuple[str | int, ...]) -> type[BaseModel]:
    found: type[BaseModel] = SearchSpec
    sections: dict[str | int, type[BaseModel]] = {
        "data": DataSection,
        "model": ModelSection,
        "training": TrainingSection,
        "stopping": Stopping,
        "resources": Resources,
        "objectives": Objective,
        "limits": Limits,
    }
    return sections.get(path[0], found) if path else found


def _known_keys(path: tuple[str | int, ...], loc: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand under a path; `loc` is pydantic's, which names the form of a distribution."""
    if len(path) >= 2 and path[0] in ("model", "training"):
        return [str(loc[2]), *([] if loc[2] == "choice" else ["step", "log"]), "when", "else"]
    return list(_section(path).model_fields)


_LISTS = {
    "objectives": "write a list, as [{metric: params}].",
    "constraints": 'write a list of texts, as ["params <= 5e6"].',
    "start_with": "write a list of mappings, as [{lr: 1e-3}].",
    "learn_from": "write a list of names or folders, as [digits-1].",
}


def _mend(path: tuple[str | int, ...], error: Mapping[str, Any]) -> str:
    """What may stand at a path, in place of what pydantic has refused."""
    home = _section(path)
    if path == ("stopping",):
        return "write a mapping, as {kind: none} or {kind: asha, grace_epochs: 3}."
    if len(path) == 3 and path[-1] == "when":
        return "write a condition in quotes, as \"pool == 'cls'\"."
    if path and path[0] in _LISTS and (len(path) == 1 or isinstance(path[-1], int)):
        return _LISTS[str(path[0])]
    config = {ModelSection: ModelConfig, TrainingSection: TrainingConfig}.get(home)
    mend = wanted(error)
    if config is None or len(path) < 2 or path[-1] in ("step", "log") or mend.startswith(("give at", "give less", "give more", "did")):
        return mend
    annotation = field_types(config)[str(path[1])]
    if get_origin(annotation) is Literal:
        return f"write {' or '.join(map(str, get_args(annotation)))}, or {{choice: [...]}} of them."
    kind = str(annotation).removeprefix("<class '").removesuffix("'>").removesuffix(" | None")
    examples = {
        "int": "a whole number, as 64, {choice: [32, 64]} or {int: [32, 96], step: 16}",
        "float": "a number, as 1e-3, {choice: [1e-3, 2e-3]} or {float: [1e-4, 1e-2], log: true}",
        "bool": "true, false or {choice: [true, false]}",
    }
    return f"write {examples[kind]}." if kind in examples else f"write {kind} or {{choice: [...]}}."
