"""A Gaussian process over the trials of a search, and the most promising next point.

- Model: a Matern 5/2 kernel with a length scale for each parameter (Rasmussen and Williams 2006, sections 4.2 and 5.4), fitted at the
  maximum of the posterior.
- Next point: the largest expected improvement (Jones et al. 1998, https://doi.org/10.1023/A:1008306431147) over the best mean at a trial.
- Running trials count as if they had reached their mean (kriging believer: Ginsbourger et al. 2010, https://hal.science/hal-00732512).

Candidates are drawn from the space and around its best trials. So they meet the space's conditions, and infeasible points are skipped. A
proposal takes 11 to 57 ms on one core with up to 150 trials (tests/benchmarks/ask_cost.py; Optuna's process: 125 to 263 ms). It depends on
its arguments alone.
"""

from __future__ import annotations

import math
import random
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

WIDE = (0.2, 0.1, 0.05, 0.02)
"""Standard deviations of the steps from these trials, as shares of each range."""

MOVED = 0.4
"""Share of the parameters that a step changes."""

MANY = 21
"""If a parameter has this many values or more, a step may keep its value."""

REFINED, ROUND = (0.03, 0.01), 60
"""Two further rounds around the best candidate: standard deviation of each, and points in each."""

LENGTH, SIGNAL, NOISE = (math.log(0.6), 1.0), (0.0, 1.0), (math.log(0.02), 1.5)
"""Priors: mean and standard deviation of the logarithm of a length scale (in shares of a range), of the function's variance and of the
noise's variance (of values whose variance is 1)."""


@dataclass(frozen=True)
class Process:
    """The posterior of the score, given (n, d) `points`. Its mean at x is kernel(x, points) @ weights."""

    logs: Matrix
    """Logarithms of the d length scales, of the signal's variance and of the noise's variance."""
    points: Matrix
    cholesky: Matrix
    weights: Matrix

    def at(self, points: Matrix) -> tuple[Matrix, Matrix]:
        """Mean and standard deviation of the score at (m, d) points, without noise."""
        near = _kernel(squared_differences(points, self.points), self.logs)
        down = np.linalg.solve(self.cholesky, near.T)
        left = np.exp(self.logs[-2]) - (down**2).sum(0)
        return near @ self.weights, np.sqrt(np.maximum(left, 1e-9))


def fitted(points: Matrix, scores: Matrix) -> Process:
    """Fit a process to (n, d) points and their n standardised scores: the most probable length scales and variances."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # slow to import

    wide = points.shape[1]
    means = np.array([LENGTH[0]] * wide + [SIGNAL[0], NOISE[0]])
    deviations = np.array([LENGTH[1]] * wide + [SIGNAL[1], NOISE[1]])
    squares = squared_differences(points, points)
    bounds = [(-3.5, 2.5)] * wide + [(-3.0, 3.0), (-9.0, 1.0)]
    optimum = minimize(
        negative_log_posterior,
        means,
        (squares, scores, means, deviations),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 20},
    )
    return conditioned(optimum.x, points, scores)


def believing(process: Process, scores: Matrix, more: Matrix) -> Process:
    """The process after its own means were observed at (m, d) further points. `scores`: of the process's own points."""
    return conditioned(process.logs, np.vstack([process.points, more]), np.concatenate([scores, process.at(more)[0]]))


def log_improvement(mean: Matrix, deviation: Matrix, best: float) -> Matrix:
    """The logarithm of the expected improvement over `best`, exact even if the improvement is too small for a float."""
    from scipy.special import erfcx, log_ndtr  # type: ignore[import-untyped]  # slow to import

    z = (mean - best) / deviation
    density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.log(z * np.exp(log_ndtr(z)) + np.exp(density))
        far = density + np.log1p(math.sqrt(math.pi / 2) * z * erfcx(-z / math.sqrt(2)))  # phi(z) (1 + z Phi(z) / phi(z))
        further = density - 2 * np.log(np.abs(z))  # its limit
    return np.asarray(np.log(deviation) + np.where(z > -1, plain, np.where(z > -1e3, far, further)))


def standardised(scores: Matrix) -> Matrix:
    """Scale scores to mean 0 and variance 1. Scores far below the median count alike: how bad they are says nothing about good ones."""
    middle = float(np.median(scores))
    least = middle - 3 * (float(scores.max()) - middle) - 1e-9
    kept = np.maximum(scores, least)
    deviation = float(kept.std())
    return np.asarray((kept - kept.mean()) / (deviation if deviation > 1e-12 else 1.0))


def propose(
    space: Space,
    trials: Sequence[Mapping[str, Value]],
    scores: Sequence[float],
    running: Sequence[Mapping[str, Value]],
    rng: random.Random,
    suits: Callable[[Mapping[str, Value]], bool],
    fixed: Mapping[str, Value] | None = None,
) -> dict[str, Value] | None:
    """The suitable candidate with the largest expected improvement; None if no candidate is suitable.

    Args:
        space: the space to propose from.
        trials, scores: parameters and scores of at least two trials; more is better.
        running: trials whose score is not known yet.
        rng: decides which candidates are drawn.
        suits: whether a point may be proposed. It is called for the most promising candidates only.
        fixed: values that a proposal must have.
    """
    lots = np.random.default_rng(rng.getrandbits(64))
    axes = [_Axis.of(name, parameter) for name, parameter in space.searched.items()]
    standard = standardised(np.array(scores, float))
    process = fitted(_encoded(axes, trials), standard)
    best = float(process.at(process.points)[0].max())
    if running:
        process = believing(process, standard, _encoded(axes, running))
    parents = [trials[i] for i in np.argsort(-standard, kind="stable")[:PARENTS]]
    quantiles = np.vstack([lots.random((DRAWN, len(axes))), _around(axes, parents, WIDE, NEAR, lots)])
    choice: dict[str, Value] | None = None
    for deviation in (*REFINED, None):
        candidates = [
            space.suggest(FromPoint(fixed or {}, AtQuantiles(dict(zip(space.searched, row, strict=True))))) for row in quantiles.tolist()
        ]
        candidates += [choice] if choice else []
        promise = log_improvement(*process.at(_encoded(axes, candidates)), best)
        choice = next((candidates[i] for i in np.argsort(-promise, kind="stable") if suits(candidates[i])), None)
        if choice is None or deviation is None:
            break
        quantiles = _around(axes, [choice], (deviation,), ROUND, lots)
    return choice


@dataclass(frozen=True)
class _Axis:
    """How one parameter is encoded: as one coordinate, or as one for each of its choices."""

    name: str
    parameter: Distribution
    quantiles: Mapping[Value, float] | None
    """The quantile of each value, if there are few values."""
    ordered: bool
    """False for choices that are not numbers."""
    least: float
    """Distance to the next value; 0 if there are many values."""

    @staticmethod
    def of(name: str, parameter: Distribution) -> _Axis:
        """The axis of a parameter."""
        choices = parameter.choice if isinstance(parameter, Choice) else []
        ordered = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in choices)
        cells = parameter.size()
        if cells is None or (cells >= MANY and ordered):
            return _Axis(name, parameter, None, ordered, 0.0)
        exact = not isinstance(parameter, FloatRange)  # 0.3 and 0.1 + 0.2 are one value of a range with steps, and two keys
        quantiles = {value: quantile(parameter, value) for value in parameter.values()} if exact else None
        return _Axis(name, parameter, quantiles, ordered, 1 / cells)

    def quantile_of(self, point: Mapping[str, Value]) -> float:
        """The quantile of a point's value; NaN if a condition leaves the parameter out."""
        if self.name not in point:
            return math.nan
        value = point[self.name]
        return self.quantiles[value] if self.quantiles else quantile(self.parameter, value)


def _around(
    axes: Sequence[_Axis], parents: Sequence[Mapping[str, Value]], deviations: Sequence[float], count: int, lots: np.random.Generator
) -> Matrix:
    """Quantiles of (count, parameters) points near the parents. Some parameters change: numbers by a little, choices at random."""
    start = np.array([[axis.quantile_of(parent) for axis in axes] for parent in parents])[np.arange(count) % len(parents)]
    steps = lots.normal(0, 1, start.shape) * np.array(deviations)[np.arange(count) % len(deviations), None]
    steps = np.copysign(np.maximum(np.abs(steps), [axis.least for axis in axes]), steps)
    moved = lots.random(start.shape) < MOVED
    moved[np.arange(count), lots.integers(len(axes), size=count)] = True
    anywhere = np.isnan(start) | (moved & ~np.array([axis.ordered for axis in axes]))
    return np.clip(np.where(anywhere, lots.random(start.shape), start + moved * steps), 0.0, 1 - 1e-9)


def _encoded(axes: Sequence[_Axis], points: Sequence[Mapping[str, Value]]) -> Matrix:
    """One row of coordinates for each point. Similar points are near each other."""
    columns: list[Matrix] = []
    for axis in axes:
        quantiles = np.array([axis.quantile_of(point) for point in points])
        there = ~np.isnan(quantiles)
        if axis.ordered:
            columns.append(np.where(there, quantiles, 0.5))
        else:
            columns += [math.sqrt(0.5) * (quantiles == value) for value in (axis.quantiles or {}).values()]
        if axis.parameter.when is not None:
            columns.append(there.astype(float))
    return np.stack(columns, axis=1)


def squared_differences(a: Matrix, b: Matrix) -> Matrix:
    """(n, m, d): squared differences of (n, d) and (m, d) points in each coordinate."""
    return np.asarray((a[:, None] - b[None]) ** 2)


def _kernel(squares: Matrix, logs: Matrix) -> Matrix:
    far = np.sqrt(5 * squares @ np.exp(-2 * logs[:-2]))
    return np.asarray(np.exp(logs[-2] - far) * (1 + far + far**2 / 3))


def negative_log_posterior(logs: Matrix, squares: Matrix, scores: Matrix, means: Matrix, deviations: Matrix) -> tuple[float, Matrix]:
    """The negative log posterior, up to a constant, and its gradient."""
    n = len(scores)
    scales = np.exp(-2 * logs[:-2])
    far = np.sqrt(5 * squares @ scales)
    decay = np.exp(logs[-2] - far)
    kernel = decay * (1 + far + far**2 / 3)
    noise = math.exp(logs[-1])
    try:
        cholesky = np.linalg.cholesky(kernel + (noise + 1e-6) * np.eye(n))
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(logs)
    inverse = np.linalg.inv(cholesky)
    precision = inverse.T @ inverse
    weights = precision @ scores
    outer = precision - np.outer(weights, weights)
    # The kernel's derivative by the logarithm of a length scale is 5/3 (1 + far) exp(-far) times that coordinate's scaled square.
    by_scale = np.einsum("ij,ijk->k", outer * decay * (1 + far), squares, optimize=True) * scales * 5 / 3
    gradient = 0.5 * np.array([*by_scale, (outer * kernel).sum(), noise * np.trace(outer)])
    apart = (logs - means) / deviations
    loss = 0.5 * scores @ weights + np.log(np.diag(cholesky)).sum() + 0.5 * (apart**2).sum()
    return float(loss), gradient + apart / deviations


def conditioned(logs: Matrix, points: Matrix, scores: Matrix) -> Process:
    """The process after (n, d) points and their n scores were observed, for given length scales and variances (as logarithms)."""
    kernel = _kernel(squared_differences(points, points), logs) + (math.exp(logs[-1]) + 1e-6) * np.eye(len(points))
    cholesky = np.linalg.cholesky(kernel)
    weights = np.linalg.solve(cholesky.T, np.linalg.solve(cholesky, scores))
    return Process(logs, points, np.asarray(cholesky), np.asarray(weights))
