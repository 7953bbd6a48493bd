"""The search space: values, choices and ranges of the model's and the training's fields, conditions, constraints, and how a trial asks.

A parameter whose condition does not hold is inactive: no trial asks for it, and it takes its `else`, or the config's own
default. Conditions and constraints see that value, so every expression is decided whatever is active.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property, partial
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    Tag,
    create_model,
    model_serializer,
    model_validator,
)

from vit_search.config import expressions, shares
from vit_search.config.cost import Cost, cost_of, in_units
from vit_search.config.expressions import Expression
from vit_search.config.trial import FROM_DATA, ModelConfig, TrainingConfig, bounds_text, field_types, hashed, model_problem, within
from vit_search.errors import SpecError
from vit_search.text import counted, nearest

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


class _Conditional(_Part):
    when: str | None = Field(
        None, description="The parameter is searched only where this holds, as \"pool == 'cls'\"; over other parameters."
    )
    otherwise: Any = Field(None, alias="else", description="Its value where `when` does not hold; the parameter's default where left out.")

    @model_validator(mode="after")
    def _else_needs_when(self) -> Any:
        if self.when is None and "otherwise" in self.model_fields_set:
            raise ValueError("@else@stands without when; add a condition or drop it")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for key, written in (("when", self.when is not None), ("else", "otherwise" in self.model_fields_set)):
            if not written:
                values.pop(key, None)
                values.pop("otherwise" if key == "else" else key, None)
        return values


class Choice(_Conditional, Generic[T]):
    """One of the values listed: `{choice: [2, 4, 8]}`."""

    choice: list[T] = Field(min_length=1, max_length=10_000, description="The values, each once.")

    @model_validator(mode="after")
    def _each_once(self) -> Choice[T]:
        listed: set[Any] = set()
        for value in self.choice:
            if value in listed:
                raise ValueError(f"{value!r} is listed twice; list each value once")
            listed.add(value)
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

    def size(self) -> int:
        """How many values there are."""
        return len(self.choice)

    def values(self) -> Sequence[Any]:
        """All of them."""
        return self.choice

    def fault(self, value: Any) -> str | None:
        """Why this is none of the values, with the mend, or None."""
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.choice):
            return None
        listed = ", ".join(_spelt(one) for one in self.choice[:20]) + (", ..." if len(self.choice) > 20 else "")
        return f"{_spelt(value)} is none of its choices; choose from {listed}"


class IntRange(_Conditional):
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

    def size(self) -> int:
        """How many values there are."""
        return len(self.values())

    def values(self) -> Sequence[int]:
        """All of them, on a logarithmic scale too."""
        return range(self.range[0], self.range[1] + 1, self.step)

    def fault(self, value: Any) -> str | None:
        """Why this is none of the values, with the mend, or None."""
        low, high = self.range
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{_spelt(value)} is no whole number; choose from {low} to {high}"
        if not low <= value <= high:
            return f"{value} lies outside {low} to {high}; choose a value inside, or widen the range"
        below = value - (value - low) % self.step
        return None if below == value else f"{value} is not on the steps of {self.step} from {low}; choose {below} or {below + self.step}"


class FloatRange(_Conditional):
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
        if self.step is not None and self.step > high - low > 0:
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
            return min(high, low + self.step * rng.randrange(int((high - low) / self.step + 1e-9) + 1))
        return rng.uniform(low, high)

    def ends(self) -> list[float]:
        """The values that bounds must hold for."""
        return list(self.range)

    def size(self) -> int | None:
        """How many values there are; None without steps."""
        return None if self.step is None else int((self.range[1] - self.range[0]) / self.step + 1e-9) + 1

    def values(self) -> Sequence[float]:
        """All of them, which takes steps."""
        assert self.step is not None
        return [min(self.range[1], self.range[0] + self.step * i) for i in range(self.size() or 0)]

    def fault(self, value: Any) -> str | None:
        """Why this is none of the values, with the mend, or None."""
        low, high = self.range
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{_spelt(value)} is no number; choose from {low:g} to {high:g}"
        if not low <= value <= high:
            return f"{_spelt(value)} lies outside {low:g} to {high:g}; choose a value inside, or widen the range"
        if self.step is not None and abs(value - low - self.step * round((value - low) / self.step)) > 1e-9 * max(abs(low), abs(high)):
            below = low + self.step * math.floor((value - low) / self.step)
            return f"{value:g} is not on the steps of {self.step:g} from {low:g}; choose {below:g} or {below + self.step:g}"
        return None


Distribution = Choice[Any] | IntRange | FloatRange


def _rounded_off(parameter: Distribution, value: Any) -> bool:
    """Whether a number lies outside of a range by its last bits alone, or between its steps: samplers round."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isinstance(parameter, FloatRange):
        return False
    low, high = parameter.range
    most = 1e-9 * max(abs(low), abs(high))
    return low - most <= value <= high + most


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}; swap them")
    if log and low <= 0 and low < high:
        raise ValueError(f"a log range starts above 0, not at {low:g}; raise low or drop log")


def _as_value(choice: type[Choice[Any]], parameter: IntRange | FloatRange) -> Any:
    """The one value of a range with equal ends, as a `choice` where it stands under a condition; any other range as it is."""
    low, high = parameter.range
    if low != high:
        return parameter
    if parameter.when is None:
        return low
    return choice(choice=[low], **parameter.model_dump(by_alias=True, include={"when", "otherwise"}))


def _spelt(value: Any) -> str:
    """A value as a search file spells it, on one line."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
    choice: Any = Choice.__class_getitem__(value)
    simpler = AfterValidator(partial(_as_value, choice))
    forms: list[Any] = [Annotated[value, Tag("value")], Annotated[choice, Tag("choice")]]
    if int in numbers:
        forms.append(Annotated[IntRange, simpler, Tag("int")])
    if float in numbers:
        forms.append(Annotated[FloatRange, simpler, Tag("float")])
    return Annotated[Union[tuple(forms)], Discriminator(_kind)]  # noqa: UP007


def _type_fault(value: Any, annotation: Any, bounds: Mapping[str, float]) -> str | None:
    """Why a value is none of a config's type, with the mend, or None."""
    kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if value is None:
        return None if type(None) in kinds else "null will not do; give a value"
    bare = next(kind for kind in kinds if kind is not type(None))
    if get_origin(bare) is Literal:
        return None if value in get_args(bare) else f"{_spelt(value)} will not do; choose from {', '.join(map(_spelt, get_args(bare)))}"
    fits: tuple[Any, ...] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}[bare]
    if not isinstance(value, fits) or (isinstance(value, bool) and bare is not bool):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        return f"{_spelt(value)} will not do; give {words[bare]}"
    return None if not bounds or within(value, dict(bounds)) else f"{value:g} is out of bounds; give {bounds_text(dict(bounds))}"


def _check_ends(section: Any) -> Any:
    """Ranges obey the same bounds as fixed values, at both ends, and so does what stands under `else`."""
    config = type(section).__config__
    for f in fields(config):
        parameter, bounds = getattr(section, f.name, None), f.metadata.get("bounds", {})
        if isinstance(parameter, _Conditional) and "otherwise" in parameter.model_fields_set:
            fault = _type_fault(parameter.otherwise, _TYPES[f.name], bounds)
            if fault:
                raise ValueError(f"@{f.name}.else@{fault}")
        if bounds:
            for end in parameter.ends() if isinstance(parameter, (Choice, IntRange, FloatRange)) else [parameter]:
                if isinstance(end, (int, float)) and not within(end, bounds):
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


CALCULATED = ("params", "flops", "train_flops", "train_memory", "tokens")
"""What a constraint may ask of the cost model: exact parameters, FLOPs of one image forward and of forward with backward,
bytes that training with one micro-batch takes, and the length of the encoder's sequence."""

GIVEN = ("epochs", "image_height", "image_width")
"""What a constraint may ask of the search file."""

_TYPES = {**field_types(ModelConfig), **field_types(TrainingConfig)}
_DEFAULTS = {f.name: f.default for config in (ModelConfig, TrainingConfig) for f in fields(config)}
_MODEL = tuple(f.name for f in fields(ModelConfig) if f.name not in FROM_DATA)
_MEMORY = ("batch_size", "accumulation", "optimizer", "precision", "ema_decay", "cuda_graphs")
"""What of the training decides how much memory it takes of a GPU."""


def path_of(name: str) -> str:
    """Where a parameter stands in the search file: `model.dim` for dim."""
    return f"{'model' if name in _MODEL else 'training'}.{name}"


@dataclass(frozen=True)
class Space:
    """All parameters of a search by their flat names, for images of a known size."""

    parameters: Mapping[str, Distribution | Value]
    image_size: tuple[int, int]
    in_channels: int
    num_classes: int
    memory_limit: int
    """Bytes that one trial may take; a proposal that is predicted to need more is never run."""
    constraints: tuple[str, ...] = ()
    """Expressions that must hold for a proposal to be run."""
    epochs: int = 1
    """Length of a full training."""
    gpu_memory: int = 0
    """Bytes of the one GPU that a trial must fit into, in the place of memory_limit; 0 where that is not known."""

    @cached_property
    def searched(self) -> dict[str, Distribution]:
        """The parameters that vary."""
        return {name: p for name, p in self.parameters.items() if isinstance(p, (Choice, IntRange, FloatRange))}

    @property
    def conditional(self) -> bool:
        """Whether some parameter is searched only under a condition."""
        return bool(self._conditions)

    def suggest(self, trial: Asks) -> dict[str, Value]:
        """Ask an Optuna trial for every active parameter: in the file's order, but after those that decide whether it is active.

        Returns: the active parameters alone; `complete` adds the others.
        """
        return self._decided(lambda name, parameter: parameter.ask(trial, name))[0]

    def draw(self, rng: random.Random) -> dict[str, Value]:
        """A proposal at random, of the active parameters alone."""
        return self._decided(lambda name, parameter: parameter.draw(rng))[0]

    def complete(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """A proposal with the fixed parameters and the inactive ones added."""
        values = self._decided(lambda name, parameter: params.get(name, parameter))[1]  # type: ignore[arg-type]
        return {name: values[name] for name in self.parameters} | {name: v for name, v in params.items() if name not in self.parameters}

    def trained(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """The searched parameters as a trial is trained with them: its proposal, and what a condition sets instead of asking."""
        values = self.complete(params)
        return {**{name: values[name] for name in self.searched}, **params}

    def misfit(self, params: Mapping[str, Value]) -> str:
        """Why a trial of this very space cannot have such parameters, with its name first; empty where it can."""
        for name, value in params.items():
            if name not in self.searched:
                return f"{name!r:.60} is not searched"
            fault = self.searched[name].fault(value)
            if fault and not (isinstance(self.searched[name], FloatRange) and _rounded_off(self.searched[name], value)):
                return f"{name}: {fault}"
        missing = [name for name, value in self.complete(params).items() if isinstance(value, (Choice, IntRange, FloatRange))]
        return f"{missing[0]} is missing" if missing else ""

    def problem(self, params: Mapping[str, Value]) -> str | None:
        """Why a proposal cannot be run, or None. A proposal with a problem is never trained (law 3)."""
        return self._problem(self.complete(params))

    def cost(self, params: Mapping[str, Value]) -> Cost:
        """What a proposal costs, trained with micro-batches of its own size.

        Raises: SpecError when it makes no ViT.
        """
        return self._cost(self.complete(params))

    def too_large(self, values: Mapping[str, Any], cost: Cost) -> str | None:
        """Why a proposal's training is predicted not to fit into memory, or None.

        Args:
            values: those of `complete`. cost: of them.
        """
        if not self.gpu_memory:
            if cost.train_bytes <= self.memory_limit:
                return None
            return f"training would take about {in_units(cost.train_bytes)}, and a trial has {in_units(self.memory_limit)}."
        training = {name: values[name] for name in _MEMORY if name in values}
        need, room = shares.training_bytes(self._model(values), TrainingConfig(epochs=1, **training)), shares.allowed(1.0, self.gpu_memory)
        if need <= room:
            return None
        return f"training would take about {in_units(need)} of a GPU, and a whole one has {in_units(room)} beside its context."

    def feasible_share(self, draws: int = 2000) -> float:
        """Share of random proposals that can be run, from a fixed seed."""
        rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
        return sum(self.problem(self.draw(rng)) is None for _ in range(draws)) / draws

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination of the active parameters, each once; also those that `problem` refuses.

        Raises: SpecError that names a float range without steps.
        """
        for name, parameter in self.searched.items():
            if parameter.size() is None:
                raise SpecError(f"{path_of(name)}: a grid cannot try every number of a range; give a step or a choice.")
        return (dict(active) for active, _ in self._combinations(self._order))

    def grid_size(self, most: int = 100_000) -> int | None:
        """How many combinations `grid` gives; None where a float range has no steps.

        None as well where conditions ask for parameters of more than `most` combinations, which must be gone through.
        """
        sizes = {name: parameter.size() for name, parameter in self.searched.items()}
        deciding = {name for condition in self._conditions.values() for name in condition.names}
        total = 0
        for i, (_, values) in enumerate(self._combinations([name for name in self._order if name in deciding])):
            if i >= most:
                return None
            count = 1
            for name, size in sizes.items():
                if size is None:
                    return None
                count *= size if name not in deciding and self._is_active(name, values) else 1
            total += count
        return total

    @cached_property
    def space_hash(self) -> str:
        """SHA-256, in hex, of the parameters, conditions and constraints, image size, channels and classes: equal for equal spaces."""
        parameters: dict[str, Any] = dict(self.parameters)
        for name, parameter in self.searched.items():
            parameters[name] = parameter.model_dump(by_alias=True, exclude={"when", "otherwise"})
            if name in self._conditions:
                parameters[name] |= {"when": self._conditions[name].spelling, "else": self._fallback(name)}
        space = {
            "parameters": hashed(ModelConfig, hashed(TrainingConfig, parameters)),
            "constraints": sorted({rule.spelling for rule in self._rules}),
            "image_size": self.image_size,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
        }
        return hashlib.sha256(json.dumps(space, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def check(self) -> None:
        """Refuse expressions that cannot be read, and a space in which no proposal can be built or none fits into memory.

        Raises: SpecError that names the parameter at fault.
        """
        for name in self._order:
            if name in self._conditions:
                self._check_kinds(f"{path_of(name)}.when", self._conditions[name])
        for i, rule in enumerate(self._rules):
            self._check_kinds(f"constraints.{i}", rule)
        patches = self._values("patch_size")
        height, width = self.image_size
        if not any(height % patch == 0 and width % patch == 0 for patch in patches):
            common = math.gcd(height, width)
            divisors = ", ".join(str(d) for d in range(1, common + 1) if common % d == 0)
            raise SpecError(
                f"model.patch_size: 0 of {counted(len(patches), 'value')} divide the image of {height}x{width} pixels; "
                f"choose from {divisors}."
            )
        heads, dims = self._values("heads"), self._values("dim")
        if None in self._values("dim_head") and not any(dim % head == 0 for head in heads for dim in dims):
            divisors = ", ".join(str(d) for d in range(1, min(dims[0], 64) + 1) if dims[0] % d == 0)
            raise SpecError(
                f"model.heads: 0 of {counted(len(heads) * len(dims), 'pair')} of heads and dim fit, since heads must divide dim; "
                f"for dim={dims[0]} choose from {divisors}."
            )
        self._check_memory()

    def check_point(self, point: Mapping[str, Any], where: str) -> None:
        """Refuse a point to start with that no trial could propose; `where` is its path in the search file.

        What the point leaves out, the sampler adds later: a constraint is checked as soon as all that it asks for is known.

        Raises: SpecError.
        """
        if not point:
            raise SpecError(f"{where}: names no parameter; give at least one, or leave the point out.")
        for name, value in point.items():
            if name not in self.searched:
                if name in self.parameters:
                    fixed = _spelt(self.parameters[name])
                    raise SpecError(f"{where}.{name}: the file fixes it at {fixed}; drop it, or give it a distribution.")
                at, fact = (f".{name}", "unknown parameter") if name.isidentifier() else ("", f"unknown parameter {_spelt(name)}")
                raise SpecError(f"{where}{at}: {fact}; {nearest(name, list(self.searched)) if self.searched else 'none is searched.'}")
            fault = self.searched[name].fault(value)
            if fault:
                raise SpecError(f"{where}.{name}: {fault}.")
        values: dict[str, Any] = {name: p for name, p in self.parameters.items() if name not in self.searched}
        for name in self._order:
            condition = self._conditions.get(name)
            if condition is not None and not all(other in values for other in condition.names):
                continue
            why = condition.failure(values) if condition is not None else None
            if why is not None:
                if name in point:
                    raise SpecError(f"{where}.{name}: is not searched here, since {why}; drop it.")
                values[name] = self._fallback(name)
            elif name in point:
                values[name] = point[name]
        problem = self._problem(values)
        if problem:
            raise SpecError(f"{where}: cannot be run: {problem.rstrip('.')}; change it or leave it out.")

    @cached_property
    def _conditions(self) -> dict[str, Expression]:
        """Conditions by the name of the parameter that has one."""
        conditions: dict[str, Expression] = {}
        for name, parameter in self.searched.items():
            if parameter.when is None:
                continue
            try:
                conditions[name] = expressions.parse_condition(parameter.when, (*self.parameters, *CALCULATED, *GIVEN))
            except SpecError as error:
                raise SpecError(f"{path_of(name)}.when: {error}") from None
            for other in conditions[name].names:
                if other == name:
                    raise SpecError(f"{path_of(name)}.when: it asks for {name} itself; name other parameters.")
                if other not in self.parameters:
                    raise SpecError(
                        f"{path_of(name)}.when: {other} is no parameter, and conditions ask for parameters alone; use it in constraints."
                    )
        return conditions

    @cached_property
    def _rules(self) -> tuple[Expression, ...]:
        """The constraints."""
        rules = []
        for i, text in enumerate(self.constraints):
            try:
                rules.append(expressions.parse_condition(text, (*self.parameters, *CALCULATED, *GIVEN)))
            except SpecError as error:
                raise SpecError(f"constraints.{i}: {error}") from None
        return tuple(rules)

    @cached_property
    def _order(self) -> tuple[str, ...]:
        """The searched parameters in the file's order, but each after those that its condition asks for."""
        order: dict[str, None] = {}

        def visit(name: str, waiting: tuple[str, ...]) -> None:
            if name in waiting:
                circle = " waits for ".join((*waiting[waiting.index(name) :], name))
                raise SpecError(f"{path_of(name)}.when: {circle}; drop one of these conditions.")
            for other in self._conditions[name].names if name in self._conditions else ():
                if other in self.searched and other not in order:
                    visit(other, (*waiting, name))
            order[name] = None

        for name in self.searched:
            if name not in order:
                visit(name, ())
        return tuple(order)

    def _fallback(self, name: str) -> Any:
        """The value of a parameter that is inactive."""
        parameter = self.searched[name]
        if "otherwise" not in parameter.model_fields_set:
            return _DEFAULTS.get(name)
        real = isinstance(parameter, FloatRange) or (isinstance(parameter, Choice) and any(isinstance(v, float) for v in parameter.choice))
        return float(parameter.otherwise) if real and type(parameter.otherwise) is int else parameter.otherwise

    def _is_active(self, name: str, values: Mapping[str, Any]) -> bool:
        condition = self._conditions.get(name)
        return condition is None or condition.holds(values)

    def _decided(self, pick: Callable[[str, Distribution], Value]) -> tuple[dict[str, Value], dict[str, Any]]:
        """A value for each parameter: (the active ones, all)."""
        active: dict[str, Value] = {}
        values: dict[str, Any] = dict(self.parameters)
        for name in self._order:
            if self._is_active(name, values):
                values[name] = active[name] = pick(name, self.searched[name])
            else:
                values[name] = self._fallback(name)
        return active, values

    def _combinations(self, names: Sequence[str]) -> Iterator[tuple[dict[str, Value], dict[str, Any]]]:
        """Every combination of some parameters, in the order of `names`: (the active ones, those with all that is fixed or inactive).

        Both are changed in place from one combination to the next.
        """
        active: dict[str, Value] = {}
        values: dict[str, Any] = dict(self.parameters)

        def below(i: int) -> Iterator[tuple[dict[str, Value], dict[str, Any]]]:
            if i == len(names):
                yield active, values
            elif self._is_active(names[i], values):
                for value in self.searched[names[i]].values():
                    values[names[i]] = active[names[i]] = value
                    yield from below(i + 1)
                del active[names[i]]
            else:
                values[names[i]] = self._fallback(names[i])
                yield from below(i + 1)

        return below(0)

    def _problem(self, values: Mapping[str, Any]) -> str | None:
        """Why values cannot be run, as far as they are known."""
        shape = [values.get(name, MISSING) for name in ("patch_size", "dim", "heads", "dim_head")]
        problem = None if MISSING in shape else model_problem(self.image_size, *shape)
        if problem is not None:
            return problem
        scope: dict[str, Any] = {**values, "epochs": self.epochs, "image_height": self.image_size[0], "image_width": self.image_size[1]}
        shown: dict[str, str] = {}
        if all(name in values for name in (*_MODEL, "batch_size", "accumulation")):
            cost = self._cost(values)
            problem = self.too_large(values, cost)
            if problem is not None:
                return problem
            figures = (cost.params, cost.forward_flops, cost.train_flops, cost.train_bytes, cost.tokens)
            scope |= dict(zip(CALCULATED, figures, strict=True))
            shown["train_memory"] = in_units(cost.train_bytes)
        for rule in self._rules:
            if all(name in scope for name in rule.names):
                why = rule.failure(scope, shown)
                if why is not None:
                    return f"{why}."
        return None

    def _cost(self, values: Mapping[str, Any]) -> Cost:
        return cost_of(self._model(values), math.ceil(values["batch_size"] / values["accumulation"]), values["optimizer"])

    def _model(self, values: Mapping[str, Any]) -> ModelConfig:
        model = {name: values[name] for name in _MODEL if name in values}
        shape: dict[str, Any] = {"image_size": self.image_size, "in_channels": self.in_channels, "num_classes": self.num_classes}
        return ModelConfig(**shape, **model)

    def _values(self, name: str) -> list[Any]:
        """Every value that a whole-number parameter can take."""
        parameter = self.parameters[name]
        if not isinstance(parameter, (Choice, IntRange, FloatRange)):
            return [parameter]
        return [*parameter.values(), *([self._fallback(name)] if parameter.when is not None else [])]

    def _check_kinds(self, where: str, expression: Expression) -> None:
        """Refuse a comparison with a text that its parameter never has, and a number that is taken for true or false."""
        for name, text in expression.texts:
            kind = _TYPES.get(name)
            allowed = get_args(kind) if get_origin(kind) is Literal else ()
            if text not in allowed:
                mend = nearest(text, allowed) if allowed else f"compare it with {'true or false' if kind is bool else 'a number'}."
                raise SpecError(f"{where}: {name} is never {_spelt(text)}; {mend}")
        for name in expression.alone:
            if _TYPES.get(name) is not bool:
                raise SpecError(f"{where}: {name} stands alone, and is not true or false; compare it with something.")

    def _check_memory(self) -> None:
        """Refuse a space whose smallest model does not fit; a patch as large as the image has the fewest tokens."""
        plain: dict[str, Any] = {name: p for name, p in self.parameters.items() if name not in self.searched}
        for name, parameter in self.searched.items():
            ends = [*parameter.ends(), *([self._fallback(name)] if parameter.when is not None else [])]
            plain[name] = min(ends, key=lambda v: (v is not None, v)) if name in _SIZES else None
        plain["patch_size"] = max(p for p in self._values("patch_size") if self.image_size[0] % p == 0 and self.image_size[1] % p == 0)
        parts = max(self._values("accumulation"))
        model = {f.name: plain[f.name] for f in fields(ModelConfig) if f.name in _SIZES}
        model |= {"heads": 1, "dim_head": None, "pool": "mean"}  # the least that heads can cost
        shape: dict[str, Any] = {"image_size": self.image_size, "in_channels": self.in_channels, "num_classes": self.num_classes}
        optimizer = plain["optimizer"] or "sgd"  # which keeps the least
        need = cost_of(ModelConfig(**shape, **model), math.ceil(plain["batch_size"] / parts), optimizer).train_bytes
        if need > self.memory_limit:
            raise SpecError(
                f"model.dim: even the smallest model of this space takes about {in_units(need)} to train, "
                f"and a trial has {in_units(self.memory_limit)}; lower dim, depth or batch_size."
            )


_SIZES = ("patch_size", "dim", "depth", "mlp_ratio", "mlp_dim", "batch_size")
"""What decides how much memory a training takes."""
