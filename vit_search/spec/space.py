"""The search space: fixed values, choices and ranges of the model's and the training's fields, and how a trial asks for values."""

from __future__ import annotations

import math
import random
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Generic, Protocol, TypeVar, Union, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, create_model, model_validator

from vit_search.errors import SpecError
from vit_search.spec.config import ModelConfig, bounds_text, field_types, model_problem, within
from vit_search.spec.cost import cost_of, in_units

T = TypeVar("T")
Value = int | float | bool | str | None


class Asks(Protocol):
    """What a space needs of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any: ...  # noqa: D102
    def suggest_int(self, name: str, low: int, high: int, /, *, step: int, log: bool) -> int: ...  # noqa: D102
    def suggest_float(self, name: str, low: float, high: float, /, *, step: float | None, log: bool) -> float: ...  # noqa: D102


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True
    )  # no use_attribute_docstrings: it reads the source once per type, 13 s in all


class Choice(_Part, Generic[T]):
    """One of the values listed: `{choice: [2, 4, 8]}`."""

    choice: list[T] = Field(min_length=1, max_length=10_000, description="The values, each once.")

    @model_validator(mode="after")
    def _each_once(self) -> Choice[T]:
        seen: set[Any] = set()
        for value in self.choice:
            if value in seen:
                raise ValueError(f"{value!r} is listed twice; list each value once")
            seen.add(value)
        return self

    def ask(self, trial: Asks, name: str) -> Any:
        """A value, from an Optuna trial."""
        return trial.suggest_categorical(name, self.choice)

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        return rng.choice(self.choice)

    def ends(self) -> list[Any]:
        """The values that bounds must hold for."""
        return self.choice


class IntRange(_Part):
    """A whole number from low to high, both included: `{int: [32, 96], step: 16}`."""

    range: tuple[Annotated[int, Strict()], Annotated[int, Strict()]] = Field(alias="int", description="Low and high.")
    step: Annotated[int, Strict()] = Field(1, ge=1, description="Distance between values, counted from low.")
    log: bool = Field(False, description="Draw evenly on a logarithmic scale; step must then be 1.")

    @model_validator(mode="after")
    def _sound(self) -> IntRange:
        low, high = self.range
        _check_range(low, high, self.log)
        if self.log and self.step != 1:
            raise ValueError("log and step do not go together; drop one")
        if (high - low) % self.step:
            raise ValueError(f"steps of {self.step} from {low} never reach {high}; end at {high - (high - low) % self.step}")
        return self

    def ask(self, trial: Asks, name: str) -> int:
        """A value, from an Optuna trial."""
        return trial.suggest_int(name, *self.range, step=self.step, log=self.log)

    def draw(self, rng: random.Random) -> int:
        """A value at random."""
        low, high = self.range
        if self.log:
            return min(high, max(low, round(math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        return rng.randrange(low, high + 1, self.step)

    def ends(self) -> list[int]:
        """The values that bounds must hold for."""
        return list(self.range)


class FloatRange(_Part):
    """A number from low to high: `{float: [1e-4, 1e-2], log: true}`."""

    range: tuple[Annotated[float, Strict()], Annotated[float, Strict()]] = Field(alias="float", description="Low and high.")
    step: Annotated[float, Strict()] | None = Field(
        None, gt=0, description="Distance between values, counted from low; none for any number between."
    )
    log: bool = Field(False, description="Draw evenly on a logarithmic scale.")

    @model_validator(mode="after")
    def _sound(self) -> FloatRange:
        low, high = self.range
        _check_range(low, high, self.log)
        if self.step is not None and self.log:
            raise ValueError("log and step do not go together; drop one")
        if self.step is not None and self.step > high - low:
            raise ValueError(f"the step {self.step:g} is longer than the range {low:g} to {high:g}; make it smaller")
        return self

    def ask(self, trial: Asks, name: str) -> float:
        """A value, from an Optuna trial."""
        return trial.suggest_float(name, *self.range, step=self.step, log=self.log)

    def draw(self, rng: random.Random) -> float:
        """A value at random."""
        low, high = self.range
        if self.log:
            return min(high, max(low, math.exp(rng.uniform(math.log(low), math.log(high)))))
        if self.step is not None:
            return low + self.step * rng.randrange(int((high - low) / self.step + 1e-9) + 1)
        return rng.uniform(low, high)

    def ends(self) -> list[float]:
        """The values that bounds must hold for."""
        return list(self.range)


Distribution = Choice[Any] | IntRange | FloatRange


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}; swap them")
    if low == high:
        raise ValueError(f"low and high are both {low:g}; write the plain value {low:g}")
    if log and low <= 0:
        raise ValueError(f"a log range starts above 0, not at {low:g}; raise low or drop log")


def _kind(value: Any) -> str:
    """Which form a parameter has; pydantic's discriminator."""
    if isinstance(value, dict):
        return next((form for form in ("choice", "int", "float") if form in value), "unclear")
    forms: dict[type, str] = {IntRange: "int", FloatRange: "float"}
    return "choice" if isinstance(value, Choice) else forms.get(type(value), "value")


FORMS = ("value", "choice", "int", "float")
"""Tags that `_kind` gives, which pydantic puts into the path of an error."""


def _value_type(annotation: Any, bounds: Mapping[str, float]) -> Any:
    """A config's type with its bounds, strict: no text is taken for a number and no true for a 1."""
    optional = type(None) in get_args(annotation)
    bare = next(a for a in get_args(annotation) if a is not type(None)) if optional else annotation
    strict: Any = bare
    if bare in (int, float, bool, str):
        limits: dict[str, Any] = {**bounds, "allow_inf_nan": False} if bare is float else dict(bounds)
        strict = Annotated[bare, Strict(), Field(**limits)]
    return strict | None if optional else strict


def _parameter_type(annotation: Any, bounds: Mapping[str, float]) -> Any:
    """A fixed value or whichever distributions make sense for the type."""
    value: Any = _value_type(annotation, bounds)
    numbers = set(get_args(annotation)) if isinstance(annotation, types.UnionType) else {annotation}
    forms: list[Any] = [Annotated[value, Tag("value")], Annotated[Choice.__class_getitem__(value), Tag("choice")]]
    if int in numbers:
        forms.append(Annotated[IntRange, Tag("int")])
    if float in numbers:
        forms.append(Annotated[FloatRange, Tag("float")])
    return Annotated[Union[tuple(forms)], Discriminator(_kind)]  # noqa: UP007


def _check_ends(section: Any) -> Any:
    """Ranges obey the same bounds as fixed values, at both ends."""
    config = type(section).__config__
    for f in fields(config):
        parameter, bounds = getattr(section, f.name, None), f.metadata.get("bounds", {})
        if isinstance(parameter, (IntRange, FloatRange)) and bounds:
            for end in parameter.ends():
                if not within(end, bounds):
                    raise ValueError(f"@{f.name}@{end:g} is out of bounds; give {bounds_text(bounds)}")
    return section


def section(name: str, config: type[Any], *, leave_out: tuple[str, ...] = (), searched: bool) -> type[BaseModel]:
    """A pydantic model with one optional key per field of a config; `searched` ones may be distributions.

    A key that the file leaves out keeps the config's own default: it stands in one place.
    """
    hints = field_types(config)
    keys: dict[str, Any] = {}
    for f in fields(config):
        if f.name in leave_out:
            continue
        make = _parameter_type if searched else _value_type
        required = f.default is ... or f.default is MISSING
        shown = (
            ""
            if required
            else f" Default: {'null' if f.default is None else str(f.default).lower() if isinstance(f.default, bool) else f.default}."
        )
        default = ... if required else f.default
        keys[f.name] = (make(hints[f.name], f.metadata.get("bounds", {})), Field(default, description=f.metadata.get("doc", "") + shown))
    validators: dict[str, Any] = {"ends": model_validator(mode="after")(_check_ends)}
    made: type[BaseModel] = create_model(name, __base__=_Part, __validators__=validators, **keys)
    made.__config__ = config  # type: ignore[attr-defined]
    made.__doc__ = config.__doc__
    return made


@dataclass(frozen=True)
class Space:
    """All parameters of a search by their flat names, for images of a known size."""

    parameters: Mapping[str, Distribution | Value]
    image_size: tuple[int, int]
    in_channels: int
    num_classes: int
    memory_limit: int
    """Bytes that one trial may take; a proposal that is predicted to need more is never run."""

    @property
    def searched(self) -> dict[str, Distribution]:
        """The parameters that vary."""
        return {name: p for name, p in self.parameters.items() if isinstance(p, (Choice, IntRange, FloatRange))}

    def suggest(self, trial: Asks) -> dict[str, Value]:
        """Ask an Optuna trial for every searched parameter, in the file's order.

        Returns: the searched parameters alone; `complete` adds the fixed ones.
        """
        return {name: parameter.ask(trial, name) for name, parameter in self.searched.items()}

    def complete(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """A proposal with the fixed parameters added."""
        return {**self.parameters, **params}

    def problem(self, params: Mapping[str, Value]) -> str | None:
        """Why a proposal cannot be built, or None. A proposal with a problem is never trained (law 3)."""
        values = self.complete(params)
        problem = model_problem(self.image_size, values["patch_size"], values["dim"], values["heads"], values["dim_head"])
        if problem is not None:
            return problem
        model = {f.name: values[f.name] for f in fields(ModelConfig) if f.name in values}
        shape: dict[str, Any] = {"image_size": self.image_size, "in_channels": self.in_channels, "num_classes": self.num_classes}
        need = cost_of(ModelConfig(**shape, **model), math.ceil(values["batch_size"] / values["accumulation"])).train_bytes
        if need > self.memory_limit:
            return f"training would take about {in_units(need)}, and a trial has {in_units(self.memory_limit)}."
        return None

    def feasible_share(self, draws: int = 2000) -> float:
        """Share of random proposals that can be built, from a fixed seed."""
        rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
        searched = self.searched
        good = sum(self.problem({name: p.draw(rng) for name, p in searched.items()}) is None for _ in range(draws))
        return good / draws

    def check(self) -> None:
        """Refuse a space in which no proposal can be built or none fits into memory.

        Raises: SpecError that names the parameter at fault.
        """
        patches = list(_values(self.parameters["patch_size"]))
        height, width = self.image_size
        if not any(height % patch == 0 and width % patch == 0 for patch in patches):
            common = math.gcd(height, width)
            divisors = ", ".join(str(d) for d in range(1, common + 1) if common % d == 0)
            raise SpecError(
                f"model.patch_size: 0 of {len(patches)} values divide the image of {height}x{width} pixels; choose from {divisors}."
            )
        heads, dims = list(_values(self.parameters["heads"])), list(_values(self.parameters["dim"]))
        if None in _values(self.parameters["dim_head"]) and not any(dim % head == 0 for head in heads for dim in dims):
            divisors = ", ".join(str(d) for d in range(1, min(dims[0], 64) + 1) if dims[0] % d == 0)
            raise SpecError(
                f"model.heads: 0 of {len(heads) * len(dims)} pairs of heads and dim fit, since heads must divide dim; "
                f"for dim={dims[0]} choose from {divisors}."
            )
        self._check_memory()

    def _check_memory(self) -> None:
        """Refuse a space whose smallest model does not fit; a patch as large as the image has the fewest tokens."""
        smallest = {name: min(p.ends(), key=lambda v: (v is not None, v)) for name, p in self.searched.items() if name in _SIZES}
        patches = [p for p in _values(self.parameters["patch_size"]) if self.image_size[0] % p == 0 and self.image_size[1] % p == 0]
        plain = self.complete(dict.fromkeys(self.searched) | smallest | {"patch_size": max(patches)})
        parts = max(_values(self.parameters["accumulation"]))
        model = {f.name: plain[f.name] for f in fields(ModelConfig) if f.name in _SIZES}
        model |= {"heads": 1, "dim_head": None, "pool": "mean"}  # the least that heads can cost
        shape: dict[str, Any] = {"image_size": self.image_size, "in_channels": self.in_channels, "num_classes": self.num_classes}
        need = cost_of(ModelConfig(**shape, **model), math.ceil(plain["batch_size"] / parts)).train_bytes
        if need > self.memory_limit:
            raise SpecError(
                f"model.dim: even the smallest model of this space takes about {in_units(need)} to train, "
                f"and a trial has {in_units(self.memory_limit)}; lower dim, depth or batch_size."
            )


_SIZES = ("patch_size", "dim", "depth", "mlp_ratio", "mlp_dim", "batch_size")
"""What decides how much memory a training takes."""


def _values(parameter: Distribution | Value) -> Iterator[Any]:
    """Every value that a whole-number parameter can take."""
    if isinstance(parameter, Choice):
        yield from parameter.choice
    elif isinstance(parameter, IntRange):
        yield from range(parameter.range[0], parameter.range[1] + 1, parameter.step)
    else:
        yield parameter
