"""The forms of a searched parameter in a search file: `choice` (a list), `int` and `float` (ranges). Each may have a condition."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
    model_validator,
)

T = TypeVar("T")
Value = int | float | bool | str | None


class ValueSource(Protocol):
    """The methods of an Optuna trial that a space uses."""

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any: ...  # noqa: D102
    def suggest_int(self, name: str, low: int, high: int, /, *, step: int, log: bool) -> int: ...  # noqa: D102
    def suggest_float(self, name: str, low: float, high: float, /, *, step: float | None, log: bool) -> float: ...  # noqa: D102


class StrictModel(BaseModel):
    """Base of parts of a search file that exist once per field. Unknown keys are an error."""

    # no use_attribute_docstrings: pydantic would read the source once per type, which takes 13 s in all
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Conditional(StrictModel):
    """A distribution that may have a condition: the parameter is searched only if it holds."""

    when: str | None = Field(
        None, description="Condition on other parameters, for example \"pool == 'cls'\". The parameter is searched only if it holds."
    )
    otherwise: Any = Field(
        None, alias="else", description="Value if `when` does not hold. If you leave it out: the default of the parameter."
    )

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


class Choice(Conditional, Generic[T]):
    """One of the values listed: `{choice: [2, 4, 8]}`."""

    choice: list[T] = Field(min_length=1, max_length=10_000, description="List of the values, each once.")

    @model_validator(mode="after")
    def _each_once(self) -> Choice[T]:
        listed: set[Any] = set()
        for value in self.choice:
            if value in listed:
                raise ValueError(f"{value!r} is listed twice; list each value once")
            listed.add(value)
        return self

    def ask(self, trial: ValueSource, name: str) -> Any:
        """Ask an Optuna trial for a value."""
        return trial.suggest_categorical(name, self.choice)

    def draw(self, rng: random.Random) -> Any:
        """Draw a random value."""
        return rng.choice(self.choice)

    def ends(self) -> list[Any]:
        """Values to check against bounds."""
        return self.choice

    def size(self) -> int:
        """Number of values."""
        return len(self.choice)

    def values(self) -> Sequence[Any]:
        """All values."""
        return self.choice

    def fault(self, value: Any) -> str | None:
        """Why a value is not one of the choices and how to fix it, or None."""
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.choice):
            return None
        listed = ", ".join(spelling(one) for one in self.choice[:20]) + (", ..." if len(self.choice) > 20 else "")
        return f"{spelling(value)} is none of its choices; choose from {listed}"


class IntRange(Conditional):
    """A whole number from low to high, both included: `{int: [32, 96], step: 16}`."""

    range: tuple[Annotated[int, Strict()], Annotated[int, Strict()]] = Field(alias="int", description="Lowest and highest value.")
    step: Annotated[int, Strict()] = Field(1, ge=1, description="Distance between two values, counted from the lowest.")
    log: bool = Field(False, description="Whether values are drawn evenly on a logarithmic scale. step must then be 1.")

    @model_validator(mode="after")
    def _sound(self) -> IntRange:
        low, high = self.range
        _check_range(low, high, self.log)
        if self.log and self.step != 1:
            raise ValueError("log and step do not go together; drop one")
        if (high - low) % self.step:
            raise ValueError(f"steps of {self.step} from {low} never reach {high}; end at {high - (high - low) % self.step}")
        return self

    def ask(self, trial: ValueSource, name: str) -> int:
        """Ask an Optuna trial for a value."""
        return trial.suggest_int(name, *self.range, step=self.step, log=self.log)

    def draw(self, rng: random.Random) -> int:
        """Draw a random value."""
        low, high = self.range
        if self.log:
            return min(high, max(low, round(math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        return rng.randrange(low, high + 1, self.step)

    def ends(self) -> list[int]:
        """Values to check against bounds."""
        return list(self.range)

    def size(self) -> int:
        """Number of values."""
        return len(self.values())

    def values(self) -> Sequence[int]:
        """All values. A logarithmic scale has the same values."""
        return range(self.range[0], self.range[1] + 1, self.step)

    def fault(self, value: Any) -> str | None:
        """Why a value is not in the range and how to fix it, or None."""
        low, high = self.range
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{spelling(value)} is no whole number; choose from {low} to {high}"
        if not low <= value <= high:
            return f"{value} lies outside {low} to {high}; choose a value inside, or widen the range"
        below = value - (value - low) % self.step
        return None if below == value else f"{value} is not on the steps of {self.step} from {low}; choose {below} or {below + self.step}"


class FloatRange(Conditional):
    """A number from low to high: `{float: [1e-4, 1e-2], log: true}`."""

    range: tuple[Annotated[float, Strict()], Annotated[float, Strict()]] = Field(alias="float", description="Lowest and highest value.")
    step: Annotated[float, Strict()] | None = Field(
        None, gt=0, description="Distance between two values, counted from the lowest. If you leave it out: any number in the range."
    )
    log: bool = Field(False, description="Whether values are drawn evenly on a logarithmic scale.")

    @model_validator(mode="after")
    def _sound(self) -> FloatRange:
        low, high = self.range
        _check_range(low, high, self.log)
        if self.step is not None and self.log:
            raise ValueError("log and step do not go together; drop one")
        if self.step is not None and self.step > high - low > 0:
            raise ValueError(f"the step {self.step:g} is longer than the range {low:g} to {high:g}; make it smaller")
        return self

    def ask(self, trial: ValueSource, name: str) -> float:
        """Ask an Optuna trial for a value."""
        return trial.suggest_float(name, *self.range, step=self.step, log=self.log)

    def draw(self, rng: random.Random) -> float:
        """Draw a random value."""
        low, high = self.range
        if self.log:
            return min(high, max(low, math.exp(rng.uniform(math.log(low), math.log(high)))))
        if self.step is not None:
            return min(high, low + self.step * rng.randrange(int((high - low) / self.step + 1e-9) + 1))
        return rng.uniform(low, high)

    def ends(self) -> list[float]:
        """Values to check against bounds."""
        return list(self.range)

    def size(self) -> int | None:
        """Number of values; None without steps."""
        return None if self.step is None else int((self.range[1] - self.range[0]) / self.step + 1e-9) + 1

    def values(self) -> Sequence[float]:
        """All values. The range must have steps."""
        assert self.step is not None
        return [min(self.range[1], self.range[0] + self.step * i) for i in range(self.size() or 0)]

    def fault(self, value: Any) -> str | None:
        """Why a value is not in the range and how to fix it, or None."""
        low, high = self.range
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{spelling(value)} is no number; choose from {low:g} to {high:g}"
        if not low <= value <= high:
            return f"{spelling(value)} lies outside {low:g} to {high:g}; choose a value inside, or widen the range"
        if self.step is not None and abs(value - low - self.step * round((value - low) / self.step)) > 1e-9 * max(abs(low), abs(high)):
            below = low + self.step * math.floor((value - low) / self.step)
            return f"{value:g} is not on the steps of {self.step:g} from {low:g}; choose {below:g} or {below + self.step:g}"
        return None


Distribution = Choice[Any] | IntRange | FloatRange


def is_rounding_error(parameter: Distribution, value: Any) -> bool:
    """Whether a number lies in a float range, give or take its last bits. It may lie between two steps, since samplers round."""
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


def spelling(value: Any) -> str:
    """A value as a search file writes it: on one line, at most 60 characters."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
