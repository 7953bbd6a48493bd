"""A search file: read strictly, checked whole, and described to editors by a JSON Schema."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, Strict, ValidationError

from vit_search.errors import SpecError
from vit_search.spec import strict_yaml
from vit_search.spec.config import DATA_SETS, FROM_DATA, METRICS, SHAPES, DataConfig, ModelConfig, TrainingConfig, TrialConfig, field_types
from vit_search.spec.cost import memory_of_this_machine
from vit_search.spec.space import FORMS, Space, Value, section

if TYPE_CHECKING:  # made from the dataclasses' fields when imported, so their keys are not known to a type checker
    DataSection: TypeAlias = Any
    ModelSection: TypeAlias = Any
    TrainingSection: TypeAlias = Any
else:
    DataSection = section("DataSection", DataConfig, searched=False)
    ModelSection = section("ModelSection", ModelConfig, leave_out=FROM_DATA, searched=True)
    TrainingSection = section("TrainingSection", TrainingConfig, leave_out=("epochs",), searched=True)
Count = Annotated[int, Strict()]

LARGEST_GPU = 288 * 2**30
"""Bytes; what no single GPU of 2026 exceeds. The GPU at hand is known to its worker alone."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Stopping(_Part):
    """When weak trials are stopped early: asynchronous successive halving (ASHA)."""

    grace_epochs: Count = Field(3, ge=1, le=100_000)
    """No trial is stopped before this many epochs."""
    reduction_factor: Count = Field(3, ge=2, le=100)
    """At each rung the best 1 / reduction_factor go on; rungs stand at grace_epochs x reduction_factor^k."""


class Resources(_Part):
    """What one trial takes."""

    cpus: Annotated[float, Strict()] = Field(1, gt=0, le=1024)
    """CPU cores; a trial's torch threads are as many, at least 1."""
    gpus: Annotated[float, Strict()] = Field(0, ge=0, le=64)
    """GPUs, or a share of one."""


class SearchSpec(_Part):
    """A search file: which images, which Vision Transformers, how many trials."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Letters, digits, `.`, `_` and `-`; searches, the MLflow experiment and the registered model are named after it."""
    data: DataSection
    """Which images, and how they are split."""
    metric: Literal[METRICS] = "val_accuracy"  # type: ignore[valid-type]
    """What trials are ranked by, at their last epoch."""
    mode: Literal["min", "max"] = "max"
    """Whether a smaller or a larger metric is better."""
    trials: Count = Field(ge=1, le=1_000_000)
    """Trials in all, stopped ones included."""
    epochs: Count = Field(ge=1, le=100_000)
    """Length of a full training."""
    stopping: Stopping = Field(default_factory=lambda: Stopping.model_validate({}))
    """When weak trials are stopped early."""
    seed: Count = Field(0, ge=0, le=2**31 - 1)
    """Decides the proposals and each trial's initialisation, order, augmentation and dropout."""
    concurrency: Count = Field(1, ge=1, le=10_000)
    """Trials at the same time."""
    resources: Resources = Field(default_factory=lambda: Resources.model_validate({}))
    """What one trial takes."""
    model: ModelSection = ModelSection()
    """The Vision Transformer: each key a value, or a distribution to search."""
    training: TrainingSection = TrainingSection()
    """How it is trained: each key a value, or a distribution to search."""

    _text: str = PrivateAttr("")

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
        if self.data.name in SHAPES:
            return SHAPES[self.data.name][0]
        return self.data.image_size, self.data.image_size

    @property
    def space(self) -> Space:
        """Model and training parameters by their flat names."""
        sections = (self.model, self.training)
        known = SHAPES.get(self.data.name)
        return Space(
            parameters={name: getattr(s, name) for s in sections for name in type(s).model_fields},
            image_size=self.image_size,
            in_channels=known[1] if known else self.data.channels,
            num_classes=known[2] if known else 1,  # an image folder's are counted later; a head's weights are few
            memory_limit=LARGEST_GPU if self.resources.gpus else memory_of_this_machine(),
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
            seed=self.seed * 1_000_003 + trial,  # trials of one search differ, and so do searches of other seeds
        )

    def check(self) -> None:
        """Refuse what no single key shows: contradictions between keys.

        Raises: SpecError that begins with the key's path.
        """
        if self.data.name not in DATA_SETS:
            raise SpecError(f"data.name: unknown data set {self.data.name!r}; {nearest(self.data.name, DATA_SETS)}")
        if self.data.name == "image_folder" and (self.data.image_size is None or self.data.path is None):
            missing, mend = ("path", "the folder of class folders") if self.data.path is None else ("image_size", "the side in pixels")
            raise SpecError(f"data.{missing}: image_folder needs it; give {mend}.")
        if self.data.name in SHAPES and self.data.image_size is not None:
            raise SpecError(f"data.image_size: {self.data.name} has its own size; drop the key.")
        if self.data.val_fraction + self.data.test_fraction >= 1:
            raise SpecError("data.val_fraction: with test_fraction nothing is left to train on; make them smaller.")
        if self.stopping.grace_epochs > self.epochs:
            raise SpecError(f"stopping.grace_epochs: {self.stopping.grace_epochs} is more than epochs={self.epochs}; lower it.")
        self.space.check()


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


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """The mend for a misspelt name."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]}?" if match else f"choose from {', '.join(known)}."


def _validated(document: strict_yaml.Document, source: str, text: str) -> SearchSpec:
    def refuse(path: tuple[str | int, ...], message: str) -> SpecError:
        return SpecError(f"{source}:{document.line(path)}: {message}")

    try:
        spec = SearchSpec.model_validate(document.values)
    except ValidationError as error:
        problems = [_in_words(dict(e), document) for e in error.errors(include_url=False)]
        path, message = min(problems, key=lambda problem: document.line(problem[0]))
        raise refuse(path, message) from None
    spec._text = text
    try:
        spec.check()
    except SpecError as error:
        key = str(error).partition(":")[0]
        raise refuse(tuple(key.split(".")), str(error)) from None
    return spec


def _in_words(error: dict[str, Any], document: strict_yaml.Document) -> tuple[tuple[str | int, ...], str]:
    """A pydantic error as (path in the file, one line with the mend)."""
    path: tuple[str | int, ...] = ()
    here: Any = document.values
    for step in error["loc"]:  # pydantic puts the tags of our forms between the keys of the file
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
        return path, f"{key}: unknown key; {nearest(str(path[-1]), _known_keys(path[:-1]))}"
    if kind == "missing":
        return path[:-1], f"{key}: missing; add it."
    if kind == "union_tag_invalid":
        return path, f"{key}: {_short(seen)} is no value and no distribution; {_wanted(path)}"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        if text.startswith("@"):
            _, name, text = text.split("@", 2)
            path, key = (*path, name), f"{key}.{name}"
        return path, f"{key}: {text}."
    if kind == "too_short":
        return path, f"{key}: the list is empty; give at least one value."
    if kind == "string_pattern_mismatch":
        return (
            path,
            f"{key}: {_short(seen)} will not do as a name; use letters, digits, '.', '_' and '-', at most 64, a letter or digit first.",
        )
    return path, f"{key}: {_short(seen)} will not do: {error['msg'].removeprefix('Input ')}; {_wanted(path)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _section(path: tuple[str | int, ...]) -> type[BaseModel]:
    found: type[BaseModel] = SearchSpec
    sections: dict[str | int, type[BaseModel]] = {
        "data": DataSection,
        "model": ModelSection,
        "training": TrainingSection,
        "stopping": Stopping,
        "resources": Resources,
    }
    return sections.get(path[0], found) if path else found


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand under a path."""
    if len(path) >= 2:
        return ["choice", "int", "float", "step", "log"]
    return list(_section(path).model_fields)


def _wanted(path: tuple[str | int, ...]) -> str:
    """What may stand at a path."""
    home = _section(path)
    config = {ModelSection: ModelConfig, TrainingSection: TrainingConfig}.get(home)
    if config is None or len(path) < 2:
        return "see `vit-search schema`."
    annotation = field_types(config)[str(path[1])]
    if get_origin(annotation) is Literal:
        return f"write {' or '.join(map(str, get_args(annotation)))}, or {{choice: [...]}} of them."
    kind = str(annotation).removeprefix("<class '").removesuffix("'>")
    examples = {
        "int": "64, {choice: [32, 64]} or {int: [32, 96], step: 16}",
        "float": "1e-3, {choice: [1e-3, 2e-3]} or {float: [1e-4, 1e-2], log: true}",
    }
    base = kind.removesuffix(" | None")
    return f"write e.g. {examples[base]}." if base in examples else f"write {kind} or {{choice: [...]}}."
