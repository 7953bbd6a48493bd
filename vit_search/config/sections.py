"""The sections `data`, `model` and `training` of a search file, made from the config dataclasses: one key per field.

Keys of `model` and `training` take a value, or a distribution to search.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Strict,
    Tag,
    WithJsonSchema,
    create_model,
    model_validator,
)

from vit_search.config import class_weights
from vit_search.config.data_config import DataConfig
from vit_search.config.distributions import Choice, Conditional, FloatRange, IntRange, StrictModel, spelling
from vit_search.config.knobs import bounds_text, field_types, within
from vit_search.config.model_config import FROM_DATA, ModelConfig
from vit_search.config.training_config import TrainingConfig


def _as_value(choice: type[Choice[Any]], parameter: IntRange | FloatRange) -> Any:
    """Replace a range with equal ends by its value, or by a `choice` of this value if it has a condition. Other ranges stay."""
    low, high = parameter.range
    if low != high:
        return parameter
    if parameter.when is None:
        return low
    return choice(choice=[low], **parameter.model_dump(by_alias=True, include={"when", "otherwise"}))


def _form_of(value: Any) -> str:
    """The form of a parameter, one of FORMS. pydantic's discriminator calls it."""
    if isinstance(value, dict):
        return next((form for form in ("choice", "int", "float") if form in value), "unclear")
    forms: dict[type, str] = {IntRange: "int", FloatRange: "float"}
    return "choice" if isinstance(value, Choice) else forms.get(type(value), "value")


FORMS = ("value", "choice", "int", "float")
"""Forms of a parameter, as `_form_of` returns them. pydantic puts them into the path of an error."""


def _value_type(annotation: Any, bounds: Mapping[str, float]) -> Any:
    """The type of a field with its bounds, in strict mode: a text is not a number, and true is not 1."""
    optional = type(None) in get_args(annotation)
    bare = next(a for a in get_args(annotation) if a is not type(None)) if optional else annotation
    strict: Any = bare
    if bare in (int, float, bool, str):
        limits: dict[str, Any] = {**bounds, "allow_inf_nan": False} if bare is float else dict(bounds)
        strict = Annotated[bare, Strict(), Field(**limits)]
    elif int in get_args(bare):  # a whole number, or a word; the tags are forms of a parameter, so that errors read alike
        words = next(part for part in get_args(bare) if part is not int)
        range_: dict[str, Any] = dict(bounds)
        forms: Any = Annotated[int, Strict(), Field(**range_), Tag("int")] | Annotated[words, Tag("value")]
        strict = Annotated[forms, Discriminator(lambda value: "value" if isinstance(value, str) else "int")]
    return strict | None if optional else strict


def _parameter_type(annotation: Any, bounds: Mapping[str, float]) -> Any:
    """The type of a searched key: a fixed value, or a distribution that makes sense for the field's type."""
    value: Any = _value_type(annotation, bounds)
    numbers = set(get_args(annotation)) if isinstance(annotation, types.UnionType) else {annotation}
    choice: Any = Choice.__class_getitem__(value)
    simpler = AfterValidator(partial(_as_value, choice))
    forms: list[Any] = [Annotated[value, Tag("value")], Annotated[choice, Tag("choice")]]
    if int in numbers:
        forms.append(Annotated[IntRange, simpler, Tag("int")])
    if float in numbers:
        forms.append(Annotated[FloatRange, simpler, Tag("float")])
    return Annotated[Union[tuple(forms)], Discriminator(_form_of)]  # noqa: UP007


def _class_weights_type() -> Any:
    """The type of class_weights: a value, or a choice of values. Any other mapping has classes for keys, whatever their names are."""
    value: Any = Annotated[str, BeforeValidator(class_weights.as_text), WithJsonSchema(class_weights.SCHEMA)]
    choice: Any = Choice.__class_getitem__(value)

    def form_of(given: Any) -> str:
        return "choice" if isinstance(given, Choice) or (isinstance(given, dict) and class_weights.is_choice(given)) else "value"

    return Annotated[Union[Annotated[value, Tag("value")], Annotated[choice, Tag("choice")]], Discriminator(form_of)]  # noqa: UP007


def _type_fault(value: Any, annotation: Any, bounds: Mapping[str, float]) -> str | None:
    """Why a value does not have a field's type and how to fix it, or None."""
    kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if value is None:
        return None if type(None) in kinds else "null will not do; give a value"
    bare = next(kind for kind in kinds if kind is not type(None))
    if get_origin(bare) is Literal:
        return None if value in get_args(bare) else f"{spelling(value)} will not do; choose from {', '.join(map(spelling, get_args(bare)))}"
    fits: tuple[Any, ...] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}[bare]
    if not isinstance(value, fits) or (isinstance(value, bool) and bare is not bool):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        return f"{spelling(value)} will not do; give {words[bare]}"
    return None if not bounds or within(value, dict(bounds)) else f"{value:g} is out of bounds; give {bounds_text(dict(bounds))}"


def _check_ends(section: Any) -> Any:
    """Check the values under `else` and both ends of each range against the same bounds as fixed values."""
    config = type(section).__config__
    for f in fields(config):
        parameter, bounds = getattr(section, f.name, None), f.metadata.get("bounds", {})
        if isinstance(parameter, Conditional) and "otherwise" in parameter.model_fields_set:
            other = parameter.otherwise
            fault = class_weights.fault(other) if f.name == "class_weights" else _type_fault(other, PARAMETER_TYPES[f.name], bounds)
            if fault:
                raise ValueError(f"@{f.name}.else@{fault}")
        if bounds:
            for end in parameter.ends() if isinstance(parameter, (Choice, IntRange, FloatRange)) else [parameter]:
                if isinstance(end, (int, float)) and not within(end, bounds):
                    raise ValueError(f"@{f.name}@{end:g} is out of bounds; give {bounds_text(bounds)}")
    return section


def _section_of(name: str, config: type[Any], *, leave_out: tuple[str, ...] = (), searched: bool) -> type[BaseModel]:
    """Make a pydantic model with one key per field of a config. Keys with `searched` may be distributions.

    A key that the file leaves out gets the config's own default, so that it is written in one place.
    """
    hints = field_types(config)
    keys: dict[str, Any] = {}
    for f in fields(config):
        if f.name in leave_out:
            continue
        make = _parameter_type if searched else _value_type
        required, doc = f.default is ... or f.default is MISSING, f.metadata.get("doc", "")
        shown = (
            ""
            if required or "Default:" in doc
            else f" Default: {'null' if f.default is None else str(f.default).lower() if isinstance(f.default, bool) else f.default}."
        )
        default = ... if required else f.default
        kind = _class_weights_type() if f.name == "class_weights" else make(hints[f.name], f.metadata.get("bounds", {}))
        keys[f.name] = (kind, Field(default, description=doc + shown))
    validators: dict[str, Any] = {"ends": model_validator(mode="after")(_check_ends)}
    made: type[BaseModel] = create_model(name, __base__=StrictModel, __validators__=validators, **keys)
    made.__config__ = config  # type: ignore[attr-defined]
    made.__doc__ = config.__doc__
    return made


PARAMETER_TYPES = {**field_types(ModelConfig), **field_types(TrainingConfig)}

if TYPE_CHECKING:  # made at import, so a type checker does not know their keys
    DataSection: TypeAlias = Any
    ModelSection: TypeAlias = Any
    TrainingSection: TypeAlias = Any
else:
    DataSection = _section_of("DataSection", DataConfig, searched=False)
    ModelSection = _section_of("ModelSection", ModelConfig, leave_out=FROM_DATA, searched=True)
    TrainingSection = _section_of("TrainingSection", TrainingConfig, leave_out=("epochs",), searched=True)
