"""A Gaussian process over the trials of a search, and the most promising next point.

- Model: a Matern 5/2 kernel with a length scale for each parameter (Rasmussen and Williams 2006, sections 4.2 and 5.4), fitted at the
  maximum of the posterior.
- Next point: the largest expected improvement (Jones et al. 1998, https://doi.org/10.1023/A:1008306431147) over the best mean at a trial.
- Running trials count as if they had reached their mean (kriging believer: Ginsbourger et al. 2010, https://hal.science/hal-00732512).

candidates.py draws the candidates. A proposal takes 11 to 57 ms on one core with up to 150 trials (tests/benchmarks/ask_cost.py; Optuna's
process: 125 to 263 ms). It depends on its arguments alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vit_search.config.distributions import Value
from vit_search.config.space import Space
from vit_search.search.proposals.candidates import PARENTS, Matrix, axes_of, encoded, most_promising

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
    variances: Matrix | float = 0.0
    """Of the noise of each of the n scores, beside the noise that all of them have."""

    def at(self, points: Matrix) -> tuple[Matrix, Matrix]:
        """Mean and standard deviation of the score at (m, d) points, without noise."""
        from scipy.linalg import solve_triangular  # type: ignore[import-untyped]  # slow to import

        near = _kernel(points, self.points, self.logs)
        down = solve_triangular(self.cholesky, near.T, lower=True, check_finite=False)
        left = np.exp(self.logs[-2]) - (down**2).sum(0)
        return near @ self.weights, np.sqrt(np.maximum(left, 1e-9))


def fitted(points: Matrix, scores: Matrix, variances: Matrix | float = 0.0, last: tuple[float, float] = LENGTH) -> Process:
    """Fit a process to (n, d) points and their n standardised scores: the most probable length scales and variances.

    Args:
        variances: see `Process.variances`.
        last: prior of the last coordinate's length scale, as LENGTH.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # slow to import

    wide = points.shape[1]
    means, deviations = np.array([LENGTH] * (wide - 1) + [last, SIGNAL, NOISE]).T
    squares = squared_differences(points, points)
    bounds = [(-3.5, 2.5)] * wide + [(-3.0, 3.0), (-9.0, 1.0)]
    optimum = minimize(
        negative_log_posterior,
        means,
        (squares, scores, means, deviations, variances),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 20},
    )
    return conditioned(optimum.x, points, scores, variances)


def believing(process: Process, scores: Matrix, more: Matrix) -> Process:
    """The process after its own means were observed at (m, d) further points. `scores`: of the process's own points."""
    variances = np.concatenate([np.broadcast_to(process.variances, len(scores)), np.zeros(len(more))])
    return conditioned(process.logs, np.vstack([process.points, more]), np.concatenate([scores, process.at(more)[0]]), variances)


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
    least, mean, deviation = scale_of(scores)
    return np.asarray((np.maximum(scores, least) - mean) / deviation)


def scale_of(scores: Matrix) -> tuple[float, float, float]:
    """The scale of `standardised`: the least score that counts, and the mean and the standard deviation of the scores raised to it."""
    middle = float(np.median(scores))
    least = middle - 3 * (float(scores.max()) - middle) - 1e-9
    kept = np.maximum(scores, least)
    deviation = float(kept.std())
    return least, float(kept.mean()), deviation if deviation > 1e-12 else 1.0


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
    axes = axes_of(space)
    standard = standardised(np.array(scores, float))
    process = fitted(encoded(axes, trials), standard)
    best = float(process.at(process.points)[0].max())
    if running:
        process = believing(process, standard, encoded(axes, running))
    parents = [trials[i] for i in np.argsort(-standard, kind="stable")[:PARENTS]]

    def promise(points: Matrix) -> Matrix:
        return log_improvement(*process.at(points), best)

    return most_promising(space, axes, promise, parents, lots, suits, fixed)


def squared_differences(a: Matrix, b: Matrix) -> Matrix:
    """(n, m, d): squared differences of (n, d) and (m, d) points in each coordinate."""
    return np.asarray((a[:, None] - b[None]) ** 2)


def _kernel(a: Matrix, b: Matrix, logs: Matrix) -> Matrix:
    """(n, m): the kernel between (n, d) and (m, d) points."""
    a, b = a * np.exp(-logs[:-2]), b * np.exp(-logs[:-2])
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    far = np.sqrt(5 * np.maximum(squares, 0.0))
    return np.asarray(np.exp(logs[-2] - far) * (1 + far + far**2 / 3))


def negative_log_posterior(
    logs: Matrix, squares: Matrix, scores: Matrix, means: Matrix, deviations: Matrix, variances: Matrix | float = 0.0
) -> tuple[float, Matrix]:
    """The negative log posterior, up to a constant, and its gradient."""
    n = len(scores)
    scales = np.exp(-2 * logs[:-2])
    far = np.sqrt(5 * squares @ scales)
    decay = np.exp(logs[-2] - far)
    kernel = decay * (1 + far + far**2 / 3)
    noise = math.exp(logs[-1])
    try:
        cholesky = np.linalg.cholesky(kernel + (noise + variances + 1e-6) * np.eye(n))
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


def conditioned(logs: Matrix, points: Matrix, scores: Matrix, variances: Matrix | float = 0.0) -> Process:
    """The process after (n, d) points and their n scores were observed, for given length scales and variances (as logarithms)."""
    kernel = _kernel(points, points, logs) + (math.exp(logs[-1]) + variances + 1e-6) * np.eye(len(points))
    cholesky = np.linalg.cholesky(kernel)
    weights = np.linalg.solve(cholesky.T, np.linalg.solve(cholesky, scores))
    return Process(logs, points, np.asarray(cholesky), np.asarray(weights), variances)
