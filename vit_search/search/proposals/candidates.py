"""The candidates for the next trial, and the search for the most promising of them.

Candidates are drawn from the space and around its best trials. A random draw is a vector of quantiles, one for each parameter. The space
turns it into a point, so each candidate meets the space's conditions. Infeasible candidates are skipped.

A Gaussian process needs coordinates in which similar points are near each other. `encoded` computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vit_search.config.distributions import Choice, Distribution, FloatRange, Value
from vit_search.config.space import Space
from vit_search.config.value_sources import AtQuantiles, FromPoint, quantile

Matrix = npt.NDArray[np.float64]

DRAWN, NEAR = 200, 200
"""Number of candidates: drawn from the whole space, and around the best trials."""

PARENTS = 5
"""Number of best trials around which candidates are drawn."""

STEPS = (0.2, 0.1, 0.05, 0.02)
"""Standard deviations of the steps from these trials, in quantiles. They are used in turns."""

CHANGED = 0.4
"""Probability that a step changes a parameter. It always changes at least one."""

MANY = 21
"""With this many values or more, numbers are handled like a continuous range: a step may be too small to change the value."""

REFINED, ROUND = (0.03, 0.01), 60
"""Two further rounds around the best candidate: standard deviation of the steps in each, and candidates in each."""


def most_promising(
    space: Space,
    axes: Sequence[Axis],
    promise: Callable[[Matrix], Matrix],
    parents: Sequence[Mapping[str, Value]],
    generator: np.random.Generator,
    suits: Callable[[Mapping[str, Value]], bool],
    fixed: Mapping[str, Value] | None = None,
) -> dict[str, Value] | None:
    """The suitable candidate with the largest promise; None if no candidate is suitable.

    Args:
        space: the space to propose from.
        axes: of the space's parameters; see `axes_of`.
        promise: from (n, d) encoded points to their n values; more is better.
        parents: trials around which candidates are drawn, best first.
        generator: decides which candidates are drawn.
        suits: whether a point may be proposed. It is called for the most promising candidates only.
        fixed: values that a proposal must have.
    """
    quantiles = np.vstack([generator.random((DRAWN, len(axes))), _near(axes, parents, STEPS, NEAR, generator)])
    choice: dict[str, Value] | None = None
    for deviation in (*REFINED, None):
        candidates = [
            space.suggest(FromPoint(fixed or {}, AtQuantiles(dict(zip(space.searched, row, strict=True))))) for row in quantiles.tolist()
        ]
        candidates += [choice] if choice else []
        promises = promise(encoded(axes, candidates))
        choice = next((candidates[i] for i in np.argsort(-promises, kind="stable") if suits(candidates[i])), None)
        if choice is None or deviation is None:
            break
        quantiles = _near(axes, [choice], (deviation,), ROUND, generator)
    return choice


def axes_of(space: Space) -> list[Axis]:
    """The axes of a space's searched parameters, in their order."""
    return [Axis.of(name, parameter) for name, parameter in space.searched.items()]


@dataclass(frozen=True)
class Axis:
    """How one parameter is encoded: as one coordinate, or as one for each of its choices."""

    name: str
    parameter: Distribution
    quantiles: Mapping[Value, float] | None
    """The quantile of each value. None for a range of floats, and for numbers with MANY values or more: it is computed then."""
    ordered: bool
    """Whether values have an order. False for choices that are not numbers."""
    least: float
    """The least step, in quantiles, so that a step changes the value; 0 if there are many values."""

    @staticmethod
    def of(name: str, parameter: Distribution) -> Axis:
        """The axis of a parameter."""
        choices = parameter.choice if isinstance(parameter, Choice) else []
        ordered = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in choices)
        cells = parameter.size()
        if cells is None or (cells >= MANY and ordered):
            return Axis(name, parameter, None, ordered, 0.0)
        exact = not isinstance(parameter, FloatRange)  # 0.3 and 0.1 + 0.2 are one value of a range with steps, and two keys
        quantiles = {value: quantile(parameter, value) for value in parameter.values()} if exact else None
        return Axis(name, parameter, quantiles, ordered, 1 / cells)

    def quantile_of(self, point: Mapping[str, Value]) -> float:
        """The quantile of a point's value; NaN if a condition leaves the parameter out."""
        if self.name not in point:
            return math.nan
        value = point[self.name]
        return self.quantiles[value] if self.quantiles else quantile(self.parameter, value)


def encoded(axes: Sequence[Axis], points: Sequence[Mapping[str, Value]]) -> Matrix:
    """The (n, d) coordinates of n points. Similar points are near each other.

    - A number is its quantile, so a logarithmic range is logarithmic here, too.
    - A choice that is not a number has one coordinate for each of the choices: sqrt(0.5) for its own, 0 for the others. So two different
      choices have a distance of 1, as the two ends of a range.
    - A parameter with a condition has one more coordinate: 1 if the point has the parameter, else 0. A number that is left out counts as
      the middle of its range.
    """
    columns: list[Matrix] = []
    for axis in axes:
        quantiles = np.array([axis.quantile_of(point) for point in points])
        present = ~np.isnan(quantiles)
        if axis.ordered:
            columns.append(np.where(present, quantiles, 0.5))
        else:
            columns += [math.sqrt(0.5) * (quantiles == value) for value in (axis.quantiles or {}).values()]
        if axis.parameter.when is not None:
            columns.append(present.astype(float))
    return np.stack(columns, axis=1)


def _near(
    axes: Sequence[Axis], parents: Sequence[Mapping[str, Value]], deviations: Sequence[float], count: int, generator: np.random.Generator
) -> Matrix:
    """Quantiles of (count, parameters) points near the parents. Some parameters change: numbers by a step, other choices at random.

    The parents take turns, and so do the standard deviations of the steps.
    """
    start = np.array([[axis.quantile_of(parent) for axis in axes] for parent in parents])[np.arange(count) % len(parents)]
    steps = generator.normal(0, 1, start.shape) * np.array(deviations)[np.arange(count) % len(deviations), None]
    steps = np.copysign(np.maximum(np.abs(steps), [axis.least for axis in axes]), steps)
    changed = generator.random(start.shape) < CHANGED
    changed[np.arange(count), generator.integers(len(axes), size=count)] = True
    redrawn = np.isnan(start) | (changed & ~np.array([axis.ordered for axis in axes]))
    return np.clip(np.where(redrawn, generator.random(start.shape), start + changed * steps), 0.0, 1 - 1e-9)
