"""Read a search file, check it as a whole, and describe it to editors with a JSON Schema.

Its small blocks are in search_file_blocks.py, its sections `data`, `model` and `training` in sections.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, Strict, ValidationError, model_validator

from vit_search.config import class_weights, presets, space_checks, strict_yaml
from vit_search.config.backbone_text import with_backbone
from vit_search.config.cost import memory_of_this_machine
from vit_search.config.data_config import DataConfig
from vit_search.config.data_sets import DATA_SETS, KEYS_OF_SOME, DataSetFacts
from vit_search.config.data_urls import check_url, is_url
from vit_search.config.distributions import FloatRange, IntRange, Value
from vit_search.config.metrics import METRICS, RANKING, Direction
from vit_search.config.model_config import ModelConfig
from vit_search.config.samplers import SAMPLERS
from vit_search.config.search_file_blocks import (
    Count,
    FileBlock,
    Limits,
    Objective,
    Report,
    Resources,
    Stopping,
    check_direction,
    check_target,
    described,
    with_direction,
)
from vit_search.config.search_file_errors import problem_in_words
from vit_search.config.sections import DataSection, ModelSection, TrainingSection
from vit_search.config.space import Space, path_of
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.config.weight_sources import parse as parse_source
from vit_search.errors import SpecError
from vit_search.text import in_words, nearest

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

TRIALS_APART = 1_000_003
"""Distance between the seeds of trial 0 in two searches whose own seeds differ by 1."""

BACKBONE_KEYS = (
    *("patch_size", "dim", "depth", "heads", "dim_head", "mlp_dim", "pool", "registers", "positions", "activation", "norm", "norm_eps"),
    *("qkv_bias", "qk_norm", "layer_scale"),
)
"""Keys of the section `model` that pretrained weights decide if a file leaves them out; for rotary positions also rope_base."""

LARGEST_GPU = 288 * 2**30
"""More bytes than any single GPU has in 2026. Only a worker knows its own GPU."""


def _with_grace(values: Any) -> Any:
    """Shorten grace_epochs to trainings that are shorter than its default: a default must not make a file invalid."""
    if not isinstance(values, dict):
        return values
    epochs, stopping = values.get("epochs"), values.get("stopping", {})
    if not isinstance(stopping, dict) or "grace_epochs" in stopping or not isinstance(epochs, int) or isinstance(epochs, bool):
        return values
    short = 1 <= epochs < Stopping.model_fields["grace_epochs"].default
    return {**values, "stopping": {**stopping, "grace_epochs": epochs}} if short else values


class SearchSpec(FileBlock):
    """A search file: which images, which Vision Transformers, how many trials."""

    name: str = Field(pattern=NAME)
    """Name of the search: letters, digits, `.`, `_` and `-`. The folders of its searches, the MLflow experiment and the registered model
    get this name."""
    data: DataSection
    """The images, and how they are split."""
    metric: Literal[RANKING] = "val_accuracy"  # type: ignore[valid-type]
    """Trials are ranked by the value of this metric at their last epoch."""
    mode: Direction = "max"
    """Whether a smaller or a larger value is better. Leave it out: it follows from the metric."""
    objectives: list[Objective] = Field(default_factory=list, max_length=3)
    """Further metrics. The search then looks for the best compromises between all of them and `metric`."""
    sampler: Literal[tuple(SAMPLERS)] = Field("auto", description=described("How the parameters of the next trial are chosen.", SAMPLERS))  # type: ignore[valid-type]
    trials: Count = Field(ge=1, le=1_000_000)
    """Number of trials, with those that are stopped early."""
    epochs: Count = Field(ge=1, le=100_000)
    """Epochs of a full training."""
    train_on: Literal["train", "train+val"] = "train"
    """Splits that trials train on. With train+val they are validated on the holdout split, as `vit-search promote` does."""
    stopping: Stopping = Field(default_factory=lambda: Stopping.model_validate({}))
    """Early stopping of weak trials."""
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    """Limits that end the search before its last trial."""
    seed: Count = Field(0, ge=0, le=2**31 - 1)
    """Seed of the proposals, and of the initialisation, data order, augmentation and dropout of each trial."""
    concurrency: Count = Field(1, ge=1, le=10_000)
    """Number of trials that run at the same time. If there is room for fewer, fewer run."""
    resources: Resources = Field(default_factory=lambda: Resources.model_validate({}))
    """CPUs and GPUs of one trial."""
    keep_checkpoints: Count = Field(3, ge=1, le=1_000_000)
    """Number of trials whose checkpoints are kept: the best ones. The others are deleted when they end."""
    log_pt2: Annotated[bool, Strict()] = False
    """Whether the models in MLflow also hold a torch.export archive, for programs without the code of vit_search."""
    system_metrics: bool = False
    """Whether each epoch records how much CPU, memory and GPU the trial used, under MLflow's own names."""
    report: Report = Field(default_factory=lambda: Report.model_validate({}))
    """What the report shows."""
    stall_minutes: Annotated[float, Strict()] = Field(30, gt=0, allow_inf_nan=False)
    """A trial that reports nothing for this long counts as hung. It is ended and tried again, on another node if there is one."""
    stall_epochs: Count = Field(20, ge=2, le=1_000_000)
    """A trial also counts as hung if it reports nothing for this many times its longest epoch, but not before a minute."""
    preset: Literal[presets.PRESETS] | None = None  # type: ignore[valid-type]
    """Ranges around DeiT-Ti (tiny), DeiT-S (small) or DeiT-B (base) for these keys, if the file leaves them out: patch_size, dim, depth,
    heads, drop_path, batch_size, lr, weight_decay, mixup, cutmix."""
    model: ModelSection = ModelSection()
    """The Vision Transformer. Each key takes a value, or a distribution to search."""
    training: TrainingSection = TrainingSection()
    """The training. Each key takes a value, or a distribution to search."""
    constraints: list[str] = Field(default_factory=list, max_length=100)
    """Conditions that a proposal must meet, for example `params <= 5e6`. They use the parameters by their names, and params, flops (forward
    pass of one image), train_flops, train_memory (bytes, of one micro-batch), tokens, epochs, image_height and image_width."""
    start_with: list[dict[str, Any]] = Field(default_factory=list, max_length=1000)
    """Points to try first. Each has values for some or all of the searched parameters, for example `{lr: 1e-3, depth: 6}`."""
    learn_from: list[str] = Field(default_factory=list, max_length=100)
    """Names or folders of earlier searches. The sampler knows their trials before it proposes the first one."""

    _text: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        """Write out the preset, the metric's mode, a short search's grace_epochs, and class weights.

        So what is checked, logged and run is complete.
        """
        values = class_weights.with_texts(_with_grace(with_direction(values)))
        return presets.fill(values) if isinstance(values, dict) and isinstance(values.get("preset"), str) else values

    @model_validator(mode="after")
    def _mode_is_the_metrics(self) -> SearchSpec:
        check_direction(self.metric, self.mode)
        return self

    @property
    def text(self) -> str:
        """The search file as it was written; an equal one if the spec was made in Python."""
        return self._text or yaml.safe_dump(self.model_dump(by_alias=True, exclude_unset=True), sort_keys=False)

    @property
    def data_config(self) -> DataConfig:
        """The section `data` as a DataConfig."""
        return DataConfig(**self.data.model_dump())

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels, known before the data is read."""
        return DATA_SETS[self.data.name].image_size or (self.data.image_size, self.data.image_size)

    @property
    def space(self) -> Space:
        """All parameters of `model` and `training`, by their names without the section."""
        sections = (self.model, self.training)
        facts = DATA_SETS[self.data.name]
        return Space(
            parameters={name: getattr(s, name) for s in sections for name in type(s).model_fields},
            image_size=self.image_size,
            in_channels=facts.channels or self.data_config.channel_count,
            num_classes=facts.classes or 1,  # unknown until the data is read; a head has few weights
            memory_limit=LARGEST_GPU if self.resources.on_gpu else memory_of_this_machine(),
            gpu_memory=self.resources.gpu_bytes,
            constraints=tuple(self.constraints),
            epochs=self.epochs,
        )

    def trial_config(self, params: dict[str, Value], *, in_channels: int, num_classes: int, trial: int) -> TrialConfig:
        """Make the configuration of one trial, for its worker.

        Raises: SpecError if the parameters are not a valid ViT.
        """
        values = self.space.complete(params)
        model = {name: values[name] for name in type(self.model).model_fields}
        training = {name: values[name] for name in type(self.training).model_fields}
        return TrialConfig(
            data=self.data_config,
            model=ModelConfig(image_size=self.image_size, in_channels=in_channels, num_classes=num_classes, **model),
            training=TrainingConfig(epochs=self.epochs, **training),
            seed=self.seed * TRIALS_APART + trial,  # differs between trials, and between searches with other seeds
        )

    def with_channels(self, channels: int) -> SearchSpec:
        """Replace `data.channels: auto` by a number, in the text, too. A resumed search then need not look at the images again.

        Raises: SpecError if no model fits images with this number of channels.
        """
        if self.data.channels != "auto":
            return self
        if not self._text:
            counted = self.model_copy(update={"data": self.data.model_copy(update={"channels": channels})})
            counted.check()
            return counted
        return parse(strict_yaml.with_value(self._text, ("data", "channels"), str(channels)))

    @property
    def pretrained(self) -> list[str]:
        """Pretrained weights that a model may start from; empty if all models start at random."""
        return [source for source in self.space.possible_values("pretrained") if source]

    @property
    def left_to_backbone(self) -> tuple[str, ...]:
        """Keys of the section `model` that the file leaves out and that pretrained weights decide; empty without pretrained weights."""
        if not self.pretrained:
            return ()
        written = self.model.model_fields_set | ({"mlp_dim"} if "mlp_ratio" in self.model.model_fields_set else set())
        return tuple(key for key in BACKBONE_KEYS if key not in written)

    def with_backbone(self, pins: Mapping[str, str], own: Mapping[str, Any]) -> SearchSpec:
        """Pin the weights and write out the keys left to them, in the text, too. A resumed search then need not look at them again.

        Args:
            pins: the pinned source for each source.
            own: what the weights decide, by key of the section `model`.
        Raises: SpecError if the result is not a valid search file.
        """
        try:
            return parse(with_backbone(self.text, pins, own))
        except SpecError as error:
            raise SpecError(re.sub(r"^search file:\d+: ", "", str(error))) from None

    def check(self) -> None:
        """Reject keys that contradict each other.

        Raises: SpecError that begins with the key's path.
        """
        if self.data.name not in DATA_SETS:
            raise SpecError(f"data.name: unknown data set {self.data.name!r}; {nearest(self.data.name, list(DATA_SETS))}")
        facts = DATA_SETS[self.data.name]
        if facts.path and self.data.path is None:
            raise SpecError(f"data.path: {self.data.name} needs it; give {facts.path}.")
        if is_url(self.data.path):
            check_url(self.data.path)
        if facts.image_size is None and self.data.image_size is None:
            raise SpecError(f"data.image_size: {self.data.name} needs it; give the side in pixels.")
        if facts.image_size is not None and self.data.image_size is not None:
            raise SpecError(f"data.image_size: {self.data.name} has its own size; drop the key.")
        self._check_keys_of_data(facts)
        if self.data.val_fraction + self.data.holdout_fraction + self.data.test_fraction >= 1:
            raise SpecError("data.val_fraction: with holdout_fraction and test_fraction nothing is left to train on; make them smaller.")
        if self.train_on == "train+val" and not self.data.holdout_fraction:
            raise SpecError("train_on: train+val leaves no image to validate on; give data.holdout_fraction a value, or train on train.")
        self._check_goal()
        self._check_stopping()
        self._check_space()
        for i, name in enumerate(self.learn_from):
            if not name.strip() or not name.isprintable():
                raise SpecError(f"learn_from.{i}: {name!r} is no search; write its name or its folder.")
            if name in self.learn_from[:i]:
                raise SpecError(f"learn_from.{i}: {name} stands twice; list each search once.")

    def _check_space(self) -> None:
        """Reject a space in which nothing can run, and points to start with that are not in it.

        If pretrained weights decide some keys, most of this waits until the weights are read.
        """
        space = self.space
        for source in self.pretrained:
            parse_source(source)
        known = not self.left_to_backbone  # else it is checked once the weights are read
        if known:
            space_checks.check_space(space)
        else:
            space_checks.check_expressions(space)
        self._check_sampler(space)
        for i, point in enumerate(self.start_with):
            if known:
                space_checks.check_point(space, point, f"start_with.{i}")
            if any(point == other for other in self.start_with[:i]):
                raise SpecError(f"start_with.{i}: the same point as one above; list each once.")

    def _check_keys_of_data(self, facts: DataSetFacts) -> None:
        """Reject keys that the data set does not take, an empty label_map, and invalid class names in it."""
        for key in KEYS_OF_SOME:
            if getattr(self.data, key) is None:
                continue
            if key not in facts.keys:
                sets = in_words([name for name, others in DATA_SETS.items() if key in others.keys])
                raise SpecError(f"data.{key}: {self.data.name} does not take it, only {sets}; drop the key.")
            if not getattr(self.data, key):
                raise SpecError(f"data.{key}: an empty text; give a name, or drop the key.")
        if self.data.channels not in (1, 3) and "bit_depth" not in facts.keys:
            raise SpecError(f"data.channels: {self.data.channels} is not for {self.data.name}; drop the key.")
        if self.data.label_map is not None and not self.data.label_map:
            raise SpecError("data.label_map: it is empty; list classes, as {kitten: cat}, or drop the key.")
        for old, new in (self.data.label_map or {}).items():
            if new is not None and not (new.strip() and new.isprintable()):
                raise SpecError(f"data.label_map.{old}: {new!r} is no name of a class; give a printable text, or null to drop the class.")

    def check_data(self, classes: Sequence[str], absent: Sequence[str] = ()) -> None:
        """Reject a metric that these images cannot give, and weights of classes that they do not have.

        Args:
            classes: names of the classes.
            absent: classes without an image in the split that trials are validated on.
        Raises: SpecError that begins with the key's path.
        """
        goals = [("metric", self.metric), *((f"objectives.{i}.metric", goal.metric) for i, goal in enumerate(self.objectives))]
        for key, metric in goals:
            least = METRICS[metric].least_classes
            if len(classes) < least:
                raise SpecError(
                    f"{key}: {metric} needs at least {least} classes, and the data has {len(classes)}; choose val_accuracy or val_loss."
                )
            if absent and METRICS[metric].every_class:
                split = "validation" if self.train_on == "train" else "holdout"
                names = ", ".join(absent[:10]) + (f", … {len(absent) - 10} more" if len(absent) > 10 else "")
                raise SpecError(
                    f"{key}: {metric} needs {split} images of each class, and there is none of {names}; "
                    "add images, or choose val_balanced_accuracy or val_macro_f1."
                )
        self.check_classes(classes)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Reject weights of classes that the data does not have.

        Raises: SpecError that begins with the key's path and names the nearest class.
        """
        class_weights.check_classes(self.class_weights, classes)

    @property
    def class_weights(self) -> list[str]:
        """All values that training.class_weights may have in a trial."""
        return self.space.possible_values("class_weights")

    def _check_goal(self) -> None:
        metrics = [self.metric]
        for i, objective in enumerate(self.objectives):
            if objective.metric in metrics:
                raise SpecError(f"objectives.{i}.metric: {objective.metric} is an objective already; list each metric once.")
            metrics.append(objective.metric)
        if self.limits.target is not None:
            check_target(self.limits.target, self.metric, "limits.target")

    def _check_stopping(self) -> None:
        if not self.stopping.stops:
            if self.stopping.strata > 1:
                raise SpecError(f"stopping.strata: {self.stopping.strata} groups, but kind: none stops no trial; drop one of the two.")
        elif self.stopping.grace_epochs > self.epochs:
            raise SpecError(f"stopping.grace_epochs: {self.stopping.grace_epochs} is more than epochs={self.epochs}; lower it.")

    def _check_sampler(self, space: Space) -> None:
        """Reject a sampler that cannot propose from this space."""
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
    """Reject a name that no search file could have.

    Args:
        what: the key or option that gave the name, for the message.
    """
    if not re.fullmatch(NAME, name):
        raise SpecError(f"{what}: {name!r} is no name; give letters, digits, `.`, `_` and `-`, at most 64, a letter or digit first.")


def load(path: Path) -> SearchSpec:
    """Read and check a search file.

    Raises: SpecError in one line: file, line, key, what was found, how to fix it.
    """
    document = strict_yaml.load(path)
    return validated(document, str(path), path.read_text(encoding="utf-8"))


def parse(text: str, source: str = "search file") -> SearchSpec:
    """Read and check the text of a search file; `source` names it in messages."""
    return validated(strict_yaml.parse(text, source), source, text)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a search file, for editors."""
    schema = SearchSpec.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$defs"]["DataSection"]["properties"]["name"]["enum"] = list(DATA_SETS)
    return schema


def validated(document: strict_yaml.Document, source: str, text: str) -> SearchSpec:
    """Make and check the search file of a document that was parsed from `text`; `source` names it in messages.

    Raises: SpecError that names the line.
    """

    def refuse(path: tuple[str | int, ...], message: str) -> SpecError:
        return SpecError(f"{source}:{document.line(path)}: {message}")

    try:
        spec = SearchSpec.model_validate(document.values)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        wrong = [e for e in errors if e["type"] != "missing"] or errors  # a misspelt key, not the key that is missing because of it
        problems = [problem_in_words(dict(e), document, SearchSpec) for e in wrong]
        path, message = min(problems, key=lambda problem: document.line(problem[0]))
        raise refuse(path, message) from None
    spec._text = text
    try:
        spec.check()
    except SpecError as error:
        key = str(error).partition(":")[0]
        raise refuse(tuple(int(step) if step.isdecimal() else step for step in key.split(".")), str(error)) from None
    return spec
