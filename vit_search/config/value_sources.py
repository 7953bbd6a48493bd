"""Sources of values for a space: quantiles, a fixed point, or random numbers. Also the way back, from a value to its quantile."""

# ruff: noqa: D102 -- for the methods, see distributions.ValueSource

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from vit_search.config.distributions import Choice, Distribution, FloatRange, Value, ValueSource


class AtQuantiles:
    """Gives each parameter the value at a quantile in [0, 1)."""

    def __init__(self, quantiles: Mapping[str, float]) -> None:
        self._at = quantiles

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any:
        return choices[int(self._at[name] * len(choices))]

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int, log: bool) -> int:
        if log:
            value = math.exp(math.log(low - 0.5) + self._at[name] * math.log((high + 0.5) / (low - 0.5)))
            return min(high, max(low, round(value)))
        return low + step * int(self._at[name] * ((high - low) // step + 1))

    def suggest_float(self, name: str, low: float, high: float, /, *, step: float | None, log: bool) -> float:
        if log:
            return min(high, low * math.exp(self._at[name] * math.log(high / low)))
        if step is not None:
            return low + step * int(self._at[name] * (int((high - low) / step + 1e-9) + 1))
        return low + self._at[name] * (high - low)


class FromPoint:
    """Gives the values of a point. Values that the point leaves out come from another source."""

    def __init__(self, point: Mapping[str, Value], rest: ValueSource) -> None:
        self._point, self._rest = point, rest

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any:
        return self._point[name] if name in self._point else self._rest.suggest_categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int, log: bool) -> Any:
        return self._point[name] if name in self._point else self._rest.suggest_int(name, low, high, step=step, log=log)

    def suggest_float(self, name: str, low: float, high: float, /, *, step: float | None, log: bool) -> Any:
        return self._point[name] if name in self._point else self._rest.suggest_float(name, low, high, step=step, log=log)


class AtRandom:
    """Draws each value at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any:
        return self._rng.choice(choices)

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int, log: bool) -> int:
        return AtQuantiles({name: self._rng.random()}).suggest_int(name, low, high, step=step, log=log)

    def suggest_float(self, name: str, low: float, high: float, /, *, step: float | None, log: bool) -> float:
        return AtQuantiles({name: self._rng.random()}).suggest_float(name, low, high, step=step, log=log)


def quantile(parameter: Distribution, value: Any) -> float:
    """The inverse of AtQuantiles: the middle of the quantiles that give a value."""
    if isinstance(parameter, Choice):
        return (parameter.choice.index(value) + 0.5) / len(parameter.choice)
    low, high = map(float, parameter.range)
    if isinstance(parameter, FloatRange) and parameter.step is None:
        if high == low:
            return 0.5
        return math.log(value / low) / math.log(high / low) if parameter.log else (value - low) / (high - low)
    if parameter.log:
        return math.log(value / (low - 0.5)) / math.log((high + 0.5) / (low - 0.5))
    return float((round((value - low) / (parameter.step or 1)) + 0.5) / (parameter.size() or 1))
