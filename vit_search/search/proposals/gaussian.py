"""A Gaussian process over the trials of a search, and the most promising next point.

- Model: a Matern 5/2 kernel with a length scale for each coordinate (Rasmussen and Williams 2006, sections 4.2 and 5.4). Length scales and
  variances are those with the largest posterior density (`fitted`). `conditioned` computes the process for given ones.
- Next point: the largest expected improvement (Jones et al. 1998, https://doi.org/10.1023/A:1008306431147) over the best mean at a trial.
- Running trials count as if they had reached their mean (kriging believer: Ginsbourger et al. 2010, https://hal.science/hal-00732512).

Here each trial is one point with one score; curves.py models whole learning curves with the same process. candidates.py draws the
candidates. A proposal takes 11 to 57 ms on one core with up to 150 trials (tests/benchmarks/ask_cost.py; Optuna's process: 125 to 263 ms).
It depends on its arguments alone.

In this file n is the number of points, and d the number of their coordinates.
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
"""Priors: mean and standard deviation of the logarithm of a length scale (the range of a parameter is 1), of the function's variance and of
the noise's variance (the scores have variance 1)."""

JITTER = 1e-6
"""Added to the noise's variance, so that the Cholesky decomposition also succeeds if points are equal."""


@dataclass(frozen=True)
class Process:
    """The distribution of the score at any point, after n scores were observed."""

    logs: Matrix
    """Logarithms of the d length scales, of the function's variance and of the noise's variance, in this order."""
    points: Matrix
    """(n, d): where scores were observed."""
    cholesky: Matrix
    """(n, n): the lower Cholesky factor of the covariance of the observed scores, noise included."""
    weights: Matrix
    """(n,): the mean at x is kernel(x, points) @ weights."""

    def at(self, points: Matrix) -> tuple[Matrix, Matrix]:
        """Mean and standard deviation, (m,) each, of the score without noise at (m, d) points."""
        from scipy.linalg import solve_triangular  # type: ignore[import-untyped]  # slow to import

        near = _kernel(points, self.points, self.logs)
        down = solve_triangular(self.cholesky, near.T, lower=True, check_finite=False)
        left = np.exp(self.logs[-2]) - (down**2).sum(0)
        return near @ self.weights, np.sqrt(np.maximum(left, 1e-9))


def fitted(points: Matrix, scores: Matrix) -> Process:
    """The process with the most probable length scales and variances, after (n, d) points and their n scores (see `standardised`)."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # slow to import

    dimensions = points.shape[1]
    means, deviations = np.array([LENGTH] * dimensions + [SIGNAL, NOISE]).T
    squares = squared_differences(points, points)
    bounds = [(-3.5, 2.5)] * dimensions + [(-3.0, 3.0), (-9.0, 1.0)]
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


def conditioned(logs: Matrix, points: Matrix, scores: Matrix) -> Process:
    """The process with given length scales and variances, after (n, d) points and their n scores. `logs`: see `Process`."""
    covariance = _kernel(points, points, logs) + (math.exp(logs[-1]) + JITTER) * np.eye(len(points))
    cholesky = np.linalg.cholesky(covariance)
    weights = np.linalg.solve(cholesky.T, np.linalg.solve(cholesky, scores))
    return Process(logs, points, np.asarray(cholesky), np.asarray(weights))


def believing(process: Process, scores: Matrix, more: Matrix) -> Process:
    """The process as if its own means had been observed at (m, d) further points.

    This changes no mean, but the process is more certain near these points, so the next proposal keeps its distance.

    Args:
        process: after its n points.
        scores: the n scores of these points.
        more: the further points.
    """
    return conditioned(process.logs, np.vstack([process.points, more]), np.concatenate([scores, process.at(more)[0]]))


def log_improvement(mean: Matrix, deviation: Matrix, best: float) -> Matrix:
    """The logarithm of the expected improvement over `best`, exact even if the improvement is too small for a float.

    Args:
        mean, deviation: of the scores at (m,) points.
    """
    from scipy.special import erfcx, log_ndtr  # type: ignore[import-untyped]  # slow to import

    z = (mean - best) / deviation
    density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.log(z * np.exp(log_ndtr(z)) + np.exp(density))
        far = density + np.log1p(math.sqrt(math.pi / 2) * z * erfcx(-z / math.sqrt(2)))  # phi(z) (1 + z Phi(z) / phi(z))
        further = density - 2 * np.log(np.abs(z))  # its limit
    return np.asarray(np.log(deviation) + np.where(z > -1, plain, np.where(z > -1e3, far, further)))


def standardised(scores: Matrix) -> Matrix:
    """Scale n scores to mean 0 and variance 1. More is better.

    Scores far below the median are first set to one value: how bad they are says nothing about good ones. Equal scores become 0.
    """
    middle = float(np.median(scores))
    kept = np.maximum(scores, middle - 3 * (float(scores.max()) - middle) - 1e-9)
    deviation = float(kept.std())
    return np.asarray((kept - float(kept.mean())) / (deviation if deviation > 1e-12 else 1.0))


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
    generator = np.random.default_rng(rng.getrandbits(64))
    axes = axes_of(space)
    standard = standardised(np.array(scores, float))
    process = fitted(encoded(axes, trials), standard)
    best = float(process.at(process.points)[0].max())
    if running:
        process = believing(process, standard, encoded(axes, running))
    parents = [trials[i] for i in np.argsort(-standard, kind="stable")[:PARENTS]]

    def promise(candidates: Matrix) -> Matrix:
        return log_improvement(*process.at(candidates), best)

    return most_promising(space, axes, promise, parents, generator, suits, fixed)


def squared_differences(a: Matrix, b: Matrix) -> Matrix:
    """(n, m, d): squared differences of (n, d) and (m, d) points in each coordinate."""
    return np.asarray((a[:, None] - b[None]) ** 2)


def _kernel(a: Matrix, b: Matrix, logs: Matrix) -> Matrix:
    """(n, m): the Matern 5/2 kernel between (n, d) and (m, d) points."""
    a, b = a * np.exp(-logs[:-2]), b * np.exp(-logs[:-2])
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    far = np.sqrt(5 * np.maximum(squares, 0.0))
    return np.asarray(np.exp(logs[-2] - far) * (1 + far + far**2 / 3))


def negative_log_posterior(logs: Matrix, squares: Matrix, scores: Matrix, means: Matrix, deviations: Matrix) -> tuple[float, Matrix]:
    """The negative logarithm of the posterior density of length scales and variances, up to a constant, and its gradient.

    Args:
        logs: (d + 2,): see `Process`.
        squares: (n, n, d): `squared_differences` of the points.
        scores: (n,).
        means, deviations: (d + 2,) each: the priors of `logs`.
    Returns: a large loss and gradient 0 if the covariance has no Cholesky decomposition.
    """
    n = len(scores)
    scales = np.exp(-2 * logs[:-2])
    far = np.sqrt(5 * squares @ scales)  # sqrt(5) times the scaled distances
    decay = np.exp(logs[-2] - far)
    kernel = decay * (1 + far + far**2 / 3)
    noise = math.exp(logs[-1])
    try:
        cholesky = np.linalg.cholesky(kernel + (noise + JITTER) * np.eye(n))
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
