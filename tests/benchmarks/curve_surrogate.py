"""Learning curves of any ViT of a recorded space, predicted from the trainings in a table, and how wrong the predictions are.

    python tests/benchmarks/curve_surrogate.py                     # errors on trainings that were left out
    python tests/benchmarks/curve_surrogate.py --export FOLDER     # tasks for bench.py: bench.py run --split FOLDER ...

search_quality.py --tasks vit runs searches on these tasks.

Model: the logits of a metric after each epoch are a mean curve plus a few principal components. A Gaussian process predicts the weight of
each component from the parameters (squared exponential kernel; the length scales are shared, the variances are not; Rasmussen and Williams
2006, sections 2.2, 5.1 and 5.4). A task gives the mean of the process, so the same configuration has the same curve each time, and noise
that differs from training to training is left out: bench.py adds its own. This is the form that `VitTask` of bench.py reads.

Why a surrogate, and not the recorded trainings themselves? A sampler proposes any point of the space. The nearest recorded training is far
away in so many dimensions, and many proposals would get the same curve: a sampler that looks closely around its best point, as a Gaussian
process does, would learn nothing from it. The table of errors has a column for this alternative.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from curve_table import FOLDER, Array, Table, load_spec, read, rungs
from rounds import table
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.stats import spearmanr

from vit_search.config.distributions import Choice, IntRange
from vit_search.config.search_file import SearchSpec
from vit_search.errors import VitSearchError

COMPONENTS = 5
"""Principal components of the curves."""

LEAST = 0.002
"""Shares nearer to 0 or 1 count as this near; their logits would otherwise outweigh all others."""

WEIGHT, SIGNAL, NOISE = (-2.2, 1.5), (0.0, 1.0), (-2.5, 1.5)
"""Priors: mean and standard deviation of the logarithm of a parameter's inverse squared length scale (parameters have variance 1), and of
the variances of the function and of the noise (components have variance 1)."""

METRICS = {"accuracy": Table.accuracy, "loss": lambda recorded: np.exp(-recorded.loss())}
"""Name to a share in [0, 1] of which more is better, (trainings, epochs). exp(-loss) puts trainings into the order of their loss."""


@dataclass(frozen=True)
class Surrogate:
    """Predicts curves. The arrays have the names that `VitTask` of bench.py reads."""

    mu: Array
    """(parameters,), mean of each parameter over the trainings."""
    sd: Array
    """(parameters,), standard deviation."""
    X: Array
    """(trainings, parameters), scaled by both."""
    w: Array
    """(parameters,), inverse squared length scales."""
    A: Array
    """(trainings, components): weights of the kernel."""
    mean: Array
    """(components,)."""
    B: Array
    """(components, epochs), the principal components."""
    c0: Array
    """(epochs,), the mean curve."""

    def predict(self, points: Array) -> Array:
        """Curves of (n, parameters) encoded points: (n, epochs), shares in [0, 1]."""
        scaled = (points - self.mu) / self.sd
        kernel = np.exp(-0.5 * ((scaled[:, None] - self.X) ** 2 @ self.w))
        return np.asarray(1 / (1 + np.exp(-((self.mean + kernel @ self.A) @ self.B + self.c0))))


@dataclass(frozen=True)
class Process:
    """The fitted parts of the Gaussian processes, as logarithms."""

    weights: Array
    """(parameters,)."""
    signal: Array
    """(components,)."""
    noise: Array
    """(components,)."""


def space_of(spec: SearchSpec) -> list[dict[str, Any]]:
    """The searched parameters as bench.py writes them. Whole numbers with steps are choices, since it knows no steps."""
    found: list[dict[str, Any]] = []
    for name, parameter in spec.space.searched.items():
        if isinstance(parameter, Choice) or (isinstance(parameter, IntRange) and parameter.step > 1):
            found.append({"name": name, "kind": "cat", "choices": list(parameter.values())})
        else:
            kind = "int" if isinstance(parameter, IntRange) else "float"
            found.append({"name": name, "kind": kind, "lo": parameter.range[0], "hi": parameter.range[1], "log": parameter.log})
    return found


def encoded(space: Sequence[Mapping[str, Any]], params: Sequence[Mapping[str, Any]]) -> Array:
    """(n, parameters): the number of a choice, or the value, or its logarithm where the range is logarithmic."""

    def number(p: Mapping[str, Any], value: Any) -> float:
        if p["kind"] == "cat":
            return float(p["choices"].index(value))
        return math.log(value) if p["log"] else float(value)

    return np.array([[number(p, one[p["name"]]) for p in space] for one in params], float)


def random_points(space: Sequence[Mapping[str, Any]], count: int, rng: np.random.Generator) -> Array:
    """(count, parameters) encoded points, evenly drawn."""
    columns = []
    for p in space:
        if p["kind"] == "cat":
            columns.append(rng.integers(len(p["choices"]), size=count).astype(float))
        elif p["kind"] == "int" and not p["log"]:
            columns.append(rng.integers(p["lo"], p["hi"] + 1, size=count).astype(float))
        else:
            low, high = (math.log(p["lo"]), math.log(p["hi"])) if p["log"] else (p["lo"], p["hi"])
            columns.append(rng.uniform(low, high, size=count))
    return np.array(columns).T


def fitted(points: Array, shares: Array, process: Process | None = None, rounds: int = 60) -> tuple[Surrogate, Process]:
    """Fit a surrogate to encoded points and their curves.

    Args:
        points: (n, parameters). shares: (n, epochs), in [0, 1].
        process: where the fit starts.
        rounds: most iterations of L-BFGS.
    """
    mu, sd = points.mean(0), np.maximum(points.std(0), 1e-9)
    scaled = (points - mu) / sd
    logits = np.clip(shares, LEAST, 1 - LEAST)
    logits = np.log(logits / (1 - logits))
    c0 = logits.mean(0)
    _, _, components = np.linalg.svd(logits - c0, full_matrices=False)
    basis = components[: min(COMPONENTS, len(points), shares.shape[1])]
    targets = (logits - c0) @ basis.T
    spread = np.maximum(targets.std(0), 1e-9)
    squares = ((scaled[:, None] - scaled) ** 2).transpose(2, 0, 1).copy()
    wide, deep = points.shape[1], len(basis)
    middle = np.repeat([WEIGHT[0], SIGNAL[0], NOISE[0]], [wide, deep, deep])
    width = np.repeat([WEIGHT[1], SIGNAL[1], NOISE[1]], [wide, deep, deep])
    first = middle if process is None else np.concatenate([process.weights, process.signal, process.noise])
    bounds = [(-8.0, 3.0)] * wide + [(-4.0, 4.0)] * deep + [(-8.0, 1.0)] * deep
    optimum = minimize(
        _negative_log_posterior, first, (squares, targets / spread, middle, width),
        jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": rounds},
    )  # fmt: skip
    logs = optimum.x
    found = Process(logs[:wide], logs[wide : wide + deep], logs[wide + deep :])
    near = np.exp(-0.5 * np.tensordot(np.exp(found.weights), squares, 1))
    weights = []
    for k in range(deep):
        kernel = np.exp(found.signal[k]) * near + np.exp(found.noise[k]) * np.eye(len(points))
        weights.append(np.exp(found.signal[k]) * spread[k] * cho_solve(cho_factor(kernel), targets[:, k] / spread[k]))
    surrogate = Surrogate(
        mu=mu, sd=sd, X=scaled, w=np.exp(found.weights), A=np.array(weights).T, mean=np.zeros(deep), B=basis, c0=c0
    )  # fmt: skip
    return surrogate, found


def _negative_log_posterior(logs: Array, squares: Array, targets: Array, middle: Array, width: Array) -> tuple[float, Array]:
    """Of the logarithms of weights and variances, with its gradient.

    Args:
        squares: (parameters, n, n), squared differences. targets: (n, components).
        middle, width: of the priors.
    """
    wide, deep = len(squares), targets.shape[1]
    weights, signal, noise = np.exp(logs[:wide]), np.exp(logs[wide : wide + deep]), np.exp(logs[wide + deep :])
    near = np.exp(-0.5 * np.tensordot(weights, squares, 1))
    value, gradient = 0.5 * float((((logs - middle) / width) ** 2).sum()), (logs - middle) / width**2
    pull = np.zeros_like(near)
    for k in range(deep):
        kernel = signal[k] * near
        factor = cho_factor(kernel + (noise[k] + 1e-8) * np.eye(len(near)), lower=True)
        inverse = cho_solve(factor, np.eye(len(near)))
        alpha = inverse @ targets[:, k]
        value += 0.5 * float(targets[:, k] @ alpha) + float(np.log(np.diag(factor[0])).sum())
        slope = np.outer(alpha, alpha) - inverse
        pull += slope * kernel
        gradient[wide + k] -= 0.5 * (slope * kernel).sum()
        gradient[wide + deep + k] -= 0.5 * noise[k] * np.trace(slope)
    gradient[:wide] += 0.25 * weights * np.tensordot(squares, pull, 2)
    return value, gradient


def left_out(points: Array, shares: Array, folds: int = 10) -> tuple[Array, Array]:
    """Curves of each training, predicted from the trainings of the other folds, by the surrogate and by the nearest training.

    Returns: two arrays (n, epochs).
    """
    _, process = fitted(points, shares)
    ours, nearest = np.empty_like(shares), np.empty_like(shares)
    for fold in range(folds):
        out = np.arange(len(points)) % folds == fold
        surrogate, _ = fitted(points[~out], shares[~out], process, rounds=20)
        ours[out] = surrogate.predict(points[out])
        scaled = (points - points[~out].mean(0)) / np.maximum(points[~out].std(0), 1e-9)
        distances = ((scaled[out][:, None] - scaled[~out]) ** 2).sum(2)
        nearest[out] = shares[~out][distances.argmin(1)]
    return ours, nearest


def error_rows(name: str, shares: Array, ours: Array, nearest: Array) -> list[list[str]]:
    """One line for each rung: errors in percentage points of the share, and rank correlations."""
    rows = []
    for rung in rungs(shares.shape[1]):
        true, values = shares[:, rung - 1], []
        for predicted in (np.full_like(true, true.mean()), nearest[:, rung - 1], ours[:, rung - 1]):
            values.append(f"{100 * math.sqrt(((predicted - true) ** 2).mean()):.1f}")
        ranks = [f"{spearmanr(predicted[:, rung - 1], true).statistic:.2f}" for predicted in (nearest, ours)]
        ends = [f"{spearmanr(curves[:, rung - 1], curves[:, -1]).statistic:.2f}" for curves in (shares, ours)]
        rows.append([name, str(rung), *values, *ranks, *ends])
    return rows


ERRORS_HEAD = [
    "task", "rung", "error of the mean", "of the nearest", "of the surrogate", "rank correlation, nearest", "surrogate",
    "recorded rung with end", "predicted rung with end",
]  # fmt: skip


def best_and_median(surrogate: Surrogate, space: Sequence[Mapping[str, Any]], seed: int = 0) -> tuple[float, float]:
    """The highest share at the end that any configuration has, found by climbing from the best of many draws, and their median."""
    rng = np.random.default_rng(seed)
    points = random_points(space, 20_000, rng)
    ends = np.concatenate([surrogate.predict(part)[:, -1] for part in np.array_split(points, 40)])
    parents = points[np.argsort(-ends)[:20]]
    best = float(ends.max())
    for _ in range(60):
        children = np.repeat(parents, 20, axis=0)
        fresh = random_points(space, len(children), rng)
        share = rng.choice([0.02, 0.1, 0.5], size=(len(children), 1))
        moved = rng.random(children.shape) < 0.25
        exact = np.array([p["kind"] != "float" for p in space])
        children = np.where(moved, np.where(exact, fresh, children + share * (fresh - children)), children)
        every = np.vstack([parents, children])
        values = surrogate.predict(every)[:, -1]
        parents = every[np.argsort(-values, kind="stable")[:20]]
        best = max(best, float(values.max()))
    return best, float(np.median(ends))


def names_of_tables(folder: Path) -> list[str]:
    """Tables that have trainings."""
    return [path.stem for path in sorted(folder.glob("*.csv"))]


def export(folder: Path, tables: Path = FOLDER) -> list[str]:
    """Write all tasks into a folder, so that `bench.py run --split FOLDER` finds them. Returns their names.

    bench.py counts time in epochs. Its clock `--cost time` knows the FLOPs of 8x8 images alone, so tasks with larger ones do not have it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, dict[str, Any]] = {}
    for name in names_of_tables(tables):
        recorded, spec = read(tables / f"{name}.csv"), load_spec(name, tables)
        space = space_of(spec)
        points = encoded(space, recorded.params())
        for metric, shares in METRICS.items():
            surrogate, _ = fitted(points, shares(recorded))
            best, median = best_and_median(surrogate, space)
            task = f"vit_{name}_{metric}"
            np.savez(folder / f"{task}.npz", **{part.name: getattr(surrogate, part.name) for part in fields(surrogate)})
            tasks[task] = {
                "kind": "vit", "file": f"{task}.npz", "R": recorded.head.epochs, "space": space,
                "best": 100 * best, "median": 100 * median,
            }  # fmt: skip
            if spec.image_size == (8, 8):
                tasks[task]["flops_mean"] = float(np.mean([_layers_flops(spec.space.complete(one)) for one in recorded.params()]))
    (folder / "tasks.json").write_text(json.dumps(tasks, indent=1))
    return list(tasks)


def _layers_flops(params: Mapping[str, Any]) -> float:
    """As `VitTask.cost` of bench.py counts."""
    tokens, dim = (8 // params["patch_size"]) ** 2, params["dim"]
    return float(params["depth"] * (8 * dim * dim * tokens + 2 * tokens * tokens * dim))


def main() -> None:
    """Print the errors, or write the tasks."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--tables", default=FOLDER, type=Path, help="folder of the search files and tables")
    ask.add_argument("--export", type=Path, metavar="FOLDER", help="write tasks for bench.py, and print no errors")
    options = ask.parse_args()
    if options.export:
        print(*export(options.export, options.tables), sep="\n")
        return
    rows = []
    for name in names_of_tables(options.tables):
        recorded = read(options.tables / f"{name}.csv")
        points = encoded(space_of(load_spec(name, options.tables)), recorded.params())
        for metric, shares in METRICS.items():
            rows += error_rows(f"{name}, {metric}", shares(recorded), *left_out(points, shares(recorded)))
    print(table(ERRORS_HEAD, rows))


if __name__ == "__main__":
    try:
        main()
    except VitSearchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
