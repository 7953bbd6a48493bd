"""Does the search find good models for its budget? The shipped driver on real learning curves, nothing trained.

A cluster is simulated by bench.py, which is handed to the project's people beside the repository: asynchronous workers on LCBench
(Zimmer et al. 2021, https://arxiv.org/abs/2006.13799; multi-layer perceptrons, 7 parameters, 50 epochs) through the surrogate of
YAHPO Gym, and on Vision Transformers (14 parameters, 27 epochs) through the surrogate of curve_surrogate.py, fitted to our own
trainings (vit_table.py). Regret: best possible minus the true value of the configuration that looked best, in per cent of the
distance from the best to the median configuration. Run it from the repository:

    OMP_NUM_THREADS=1 python tests/benchmarks/search_quality.py --workers 4,16 --seeds 6
    OMP_NUM_THREADS=1 python tests/benchmarks/search_quality.py --tasks vit --workers 4,16 --seeds 6
    OMP_NUM_THREADS=1 python tests/benchmarks/search_quality.py --only stock,tpe --variants tpe:audit_share=0,tpe:strata=2
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from curve_surrogate import export
from curve_table import load_spec
from rounds import table
from scipy.stats import rankdata, wilcoxon

from vit_search.config.distributions import Choice, FloatRange, IntRange, ValueSource
from vit_search.config.search_file_blocks import Resources
from vit_search.config.trial import EpochResult
from vit_search.ledger.events import Event
from vit_search.ledger.trials import Progress
from vit_search.runtime.ray_session import Shape
from vit_search.search.commands import Commands, Settings
from vit_search.search.components import Components, Verdicts
from vit_search.search.driver import Driver
from vit_search.search.gpu_sharing import GpuSharing
from vit_search.search.limits import SearchLimits
from vit_search.search.messages import Continue, Epoch, TrialOrder
from vit_search.search.proposals.history import SHOWN
from vit_search.search.proposals.proposals import ProposalOptions, Proposals
from vit_search.search.recovery import Patience, Recovery
from vit_search.stopping import RULES
from vit_search.stopping.rule import StoppingOptions
from vit_search.stopping.rungs import boundaries

BENCH = Path(__file__).parents[3] / "shared" / "bench"
SYNE_TUNE = ("asha", "mobster")
VIT = "vit"
"""How the names of tasks begin that train Vision Transformers."""


@dataclass(frozen=True)
class PerceptronCost:
    """As far as a search asks for it."""

    params: int
    train_flops: int
    forward_flops: int = 0


class Space:
    """A task's space with what the searcher asks of ours."""

    conditional = False

    def __init__(self, task: Any) -> None:
        self.searched = {p.name: _parameter(p) for p in task.space}
        self.cost = _vit_cost(task.name) if task.name.startswith(VIT) else _perceptron_cost

    def suggest(self, trial: ValueSource) -> dict[str, Any]:
        return {name: parameter.ask(trial, name) for name, parameter in self.searched.items()}

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return {name: parameter.draw(rng) for name, parameter in self.searched.items()}

    def problem(self, params: Mapping[str, Any]) -> str | None:
        return None


class Events(list[Event]):
    """A ledger in memory, as far as a driver asks for one."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Callable[[Event], None]] = []

    @property
    def events(self) -> list[Event]:
        return self

    def append(self, event: Event) -> None:
        super().append(event)
        for listener in self.listeners:
            listener(event)


class Endless:
    """A cluster with room for every trial: bench.py counts its workers."""

    leaving, lost, shapes = (), None, (Shape("all", math.inf, math.inf),)

    def nodes(self) -> dict[str, dict[str, float]]:
        return {}


class Ours:
    """The shipped driver, told of each epoch by bench.py."""

    def __init__(self, task: Any, seed: int, *, sampler: str = "tpe", most: int = SHOWN, model: str = "rung", **stopping: Any) -> None:
        asked = {"kind": "asha", "grace_epochs": 3, "reduction_factor": 3, "audit_share": 0.05, "strata": 1} | stopping
        kind, strata, space = str(asked.pop("kind")), int(asked.pop("strata")), Space(task)

        def train_flops(params: Mapping[str, Any]) -> float:
            return float(space.cost(params).train_flops)

        parts = boundaries(space, strata)
        options = StoppingOptions(metric="val_accuracy", mode="max", epochs=task.R, seed=seed, boundaries=parts, **asked)
        rule, progress, recovery = RULES[kind](options, train_flops), Progress(task.R), Recovery()
        commands = Commands(Settings(trials=10**6, concurrency=10**6), "val_accuracy")
        limits = SearchLimits(commands, progress, metric="val_accuracy", mode="max", devices=1)
        proposed = ProposalOptions(
            metric="val_accuracy", mode="max", epochs=task.R, seed=seed, sampler=sampler, levels=rule.levels, shown=most, model=model,
        )  # fmt: skip
        components = Components(
            progress=progress,
            commands=commands,
            proposals=Proposals(space, proposed),
            stopping=rule,
            limits=limits,
            sharing=GpuSharing(SimpleNamespace(resources=Resources()), commands, channels=1, classes=2, images=0, nodes=None),
            recovery=recovery,
            verdicts=Verdicts(task.R, "val_accuracy", commands, limits, rule, recovery),
        )
        patience = Patience(math.inf, 1)
        self.driver = Driver(Events(), components, _order, cluster=Endless(), patience=patience, train_flops=train_flops)

    def ask(self) -> tuple[str, int, dict[str, Any]]:
        self.driver.tick()
        order = self.driver.propose()
        assert isinstance(order, TrialOrder)
        self.driver.started(order.trial)
        return "resume" if self.driver.trials[order.trial].results else "new", order.trial, order.config

    def report(self, number: int, epoch: int, value: float) -> str:
        return "continue" if self.driver.report(number, Epoch(_result(epoch, value))) == Continue() else "stop"

    def ended(self, number: int, epoch: int, value: float, action: str, full: bool) -> None:
        self.driver.released(number)


def _order(trial: int, params: Mapping[str, Any], components: Components) -> TrialOrder:
    return TrialOrder(trial=trial, config=dict(params), folder=Path())


def _result(epoch: int, value: float) -> EpochResult:
    return EpochResult(
        epoch=epoch, train_loss=1.0, train_accuracy=0.5, val_loss=1.0, val_accuracy=value, val_top5_accuracy=None,
        lr=1e-3, images_per_s=1.0, seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def _perceptron_cost(params: Mapping[str, Any]) -> PerceptronCost:
    """LCBench's shaped perceptrons narrow from max_units; the FLOPs of a sample grow with the weights."""
    widths = [params["max_units"] * (1 - k / (params["num_layers"] + 1)) for k in range(params["num_layers"] + 1)]
    weights = round(sum(a * b for a, b in zip([50, *widths], [*widths, 2], strict=True)))  # 50 features, 2 classes
    return PerceptronCost(weights, 6 * weights)


@functools.cache
def _vit_cost(task: str) -> Callable[[Mapping[str, Any]], Any]:
    """The cost of a configuration of a task, by the search file that its trainings were drawn from."""
    return load_spec(task.removeprefix(f"{VIT}_").rpartition("_")[0]).space.cost


def _parameter(p: Any) -> Choice[Any] | IntRange | FloatRange:
    if p.kind == "cat":
        return Choice[Any](choice=p.choices)
    return IntRange(int=(p.lo, p.hi), log=p.log) if p.kind == "int" else FloatRange(float=(p.lo, p.hi), log=p.log)


def load(bench: Path) -> Any:
    """bench.py as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location("bench", bench / "bench.py")
    assert spec and spec.loader
    module = sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contenders(bench: Any) -> dict[str, Callable[[Any, int, int], Any]]:
    """Name to what makes the method for (task, workers, seed)."""
    return {
        "stock": bench.get_method("REAL:ray_default"),
        "random": lambda task, workers, seed: Ours(task, seed, sampler="random", kind="none"),
        "Optuna TPE": bench.get_method("REAL:tpe"),
        "tpe, no stopping": lambda task, workers, seed: Ours(task, seed, kind="none"),
        "asha + random": lambda task, workers, seed: Ours(task, seed, sampler="random"),
        "tpe": lambda task, workers, seed: Ours(task, seed),
        "gp": lambda task, workers, seed: Ours(task, seed, sampler="gp"),
        "cmaes": lambda task, workers, seed: Ours(task, seed, sampler="cmaes"),
    }


def variant(text: str) -> Callable[[Any, int, int], Any]:
    """`tpe:strata=3:most=100`: a sampler and what differs from the default."""
    sampler, *words = text.split(":")
    more = {key: json.loads(value) if value[0].isdigit() else value for key, value in (word.split("=") for word in words)}
    return lambda task, workers, seed: Ours(task, seed, sampler=sampler, **more)


def splits(args: argparse.Namespace, vit: Path) -> dict[str, str]:
    """What `--tasks` names, by the folder that bench.py finds it in.

    Args:
        vit: an empty folder, into which the tasks of Vision Transformers are written if they are asked for.
    """
    words = args.tasks.split(",")
    ours = [word for word in words if word.startswith(VIT)]
    others = [word for word in words if word not in ours]
    if ours:
        names = export(vit)
        strangers = [word for word in ours if word not in (VIT, *names)]
        if strangers:
            sys.exit(f"--tasks: no task {strangers[0]}; choose from {VIT}, {', '.join(names)}.")
    found = {"public": ",".join(others)} if others else {}
    return found | ({str(vit): "all" if VIT in ours else ",".join(ours)} if ours else {})


def runs(
    bench: Any, args: argparse.Namespace, methods: Mapping[str, Callable[[Any, int, int], Any]], parts: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Every run that `--out` does not hold yet, seed by seed, so that a run cut short is fair."""
    done = {(r["method"], r["task"], r["seed"], r["W"]) for r in known(args.out)}
    began = time.monotonic()
    tasks = [task for split, names in parts.items() for task in bench.load_tasks(split, names, str(args.bench))]
    for seed in range(args.seed0, args.seed0 + args.seeds):
        for task in tasks:
            for workers in map(int, args.workers.split(",")):
                for name, make in methods.items():
                    if time.monotonic() - began > 60 * args.minutes:
                        return
                    if (name, task.name, seed, workers) not in done:
                        yield bench.simulate(task, make, workers, args.budget, seed) | {"method": name}


def known(out: Path) -> list[dict[str, Any]]:
    """Runs of a file."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def syne_tune(args: argparse.Namespace, parts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Syne Tune's ASHA and MOBSTER, run by an interpreter that has it."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (split, tasks) in itertools.product(SYNE_TUNE, parts.items()):
            out = Path(folder) / f"{name}-{Path(split).name}"
            plugin = args.bench / "peers_synetune.py"
            command = [args.syne_tune, args.bench / "bench.py", "run", "--plugin", f"{plugin}:{name}", "--name", f"Syne Tune {name}"]
            command += ["--workers", args.workers, "--budget", args.budget, "--seeds", args.seeds, "--seed0", args.seed0]
            command += ["--split", split, "--tasks", tasks, "--out", out, "--limit", 60 * args.minutes]
            subprocess.run(list(map(str, command)), check=True)
            found += known(out)
    return found


def report(found: list[dict[str, Any]], base: str) -> str:
    """A table per number of workers: regret, rank, and the difference to `base`, over what all methods have run."""
    lines = []
    for workers in sorted({r["W"] for r in found}):
        by: dict[str, dict[tuple[str, int], float]] = {}
        for r in found:
            if r["W"] == workers:
                regret = 1.5 if r["regret"][-1] is None else r["regret"][-1] / r["span"]
                by.setdefault(r["method"], {})[r["task"], r["seed"]] = 100 * regret
        pairs = sorted(set.intersection(*(set(one) for one in by.values())))
        tasks = sorted({task for task, _ in pairs})
        regrets = np.array([[by[name][pair] for pair in pairs] for name in by])  # method, run
        ranks = rankdata(regrets, axis=0)
        means = {task: [i for i, pair in enumerate(pairs) if pair[0] == task] for task in tasks}
        per_task = np.array([[row[means[task]].mean() for task in tasks] for row in regrets])
        rows = []
        for k in np.argsort(ranks.mean(1)):
            name, row = list(by)[k], [f"{values[k].mean():.1f} ({_error(values[k]):.1f})" for values in (regrets, ranks)]
            if name == base or base not in by:
                rows.append([name, *row, "", "", ""])
                continue
            gain = per_task[k] - per_task[list(by).index(base)]
            rows.append(
                [name, *row, f"{gain.mean():+.1f} ({_error(gain):.1f})", f"{(gain < 0).sum()}/{len(tasks)}", f"{wilcoxon(gain).pvalue:.4f}"]
            )
        head = ["method", "regret", "rank", f"to {base}", "tasks better", "p"]
        lines.append(f"{workers} workers, {len(pairs)} runs on {len(tasks)} tasks\n\n{table(head, rows)}\n")
    return "\n".join(lines)


def _error(values: Any) -> float:
    """Standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bench", type=Path, default=BENCH, help="folder of bench.py")
    parser.add_argument("--only", default="", help="contenders, comma-separated; all by default")
    parser.add_argument("--variants", default="", help="more of them, as tpe:strata=3,gp:most=100")
    parser.add_argument("--syne-tune", help="a Python that has syne-tune 0.13")
    parser.add_argument("--base", default="stock", help="who the others are held against")
    parser.add_argument("--workers", default="4,16")
    parser.add_argument("--budget", type=float, default=32, help="in full trainings")
    parser.add_argument("--tasks", default="all", help="all: those of LCBench; vit: those of our own table; or names, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed0", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so long")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "search_quality.jsonl", help="runs, kept and added to")
    args = parser.parse_args()
    if not (args.bench / "bench.py").exists():
        sys.exit(f"{args.bench}: no bench.py here; name its folder with --bench.")
    bench = load(args.bench)
    methods = contenders(bench)
    if args.only:
        methods = {name: methods[name] for name in args.only.split(",")}
    methods |= {text: variant(text) for text in args.variants.split(",") if text}
    with args.out.open("a") as file, tempfile.TemporaryDirectory() as vit:
        parts = splits(args, Path(vit))
        for run in runs(bench, args, methods, parts):
            file.write(json.dumps(run, default=float) + "\n")
            file.flush()
        for run in syne_tune(args, parts) if args.syne_tune else []:
            file.write(json.dumps(run, default=float) + "\n")
    print(f"{time.strftime('%Y-%m-%d')}, budget {args.budget:g} full trainings; standard errors in brackets\n")
    print(report(known(args.out), args.base))


if __name__ == "__main__":
    main()
