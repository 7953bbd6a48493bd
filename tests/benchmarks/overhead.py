"""What a driver costs: wall time per trial that trains nothing and per report, ours against the stock wiring.

    python tests/benchmarks/overhead.py [--trials 40] [--epochs 16] [--rounds 3]

The stock wiring is what Ray's documentation shows: OptunaSearch, ASHAScheduler and MLflowLoggerCallback on SQLite, two trials
at a time, actors reused. Both propose by Optuna's TPE; what our own sampler takes is in ask_cost.py. Ours writes its ledger and
MLflow's record besides. Both run in one Ray that is up before the clock starts, in turns; ours is timed to the end of
`launch.run`, when all is in MLflow. Two sizes part the cost of a trial from that of a report: all trials with one report each,
and the same number with `--epochs` reports, where nobody is stopped.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from vit_search.search import launch  # before ray: it sets what ray reads when it is imported

# isort: split
import mlflow
import ray
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rounds import ratios, spread, surroundings, table
from simulated import SEARCH, our_trial, start_ray, stock_trial

from vit_search.config import search_file

FEW = (2, 1)
"""Trials and epochs of the smallest search."""


def ours(trials: int, epochs: int, folder: Path) -> float:
    """Seconds of a whole search of ours."""
    text = SEARCH.format(trials=trials, epochs=epochs).replace("grace_epochs: 1, reduction_factor: 4", "kind: none")
    spec = search_file.parse(text)
    began = time.perf_counter()
    done = launch.run(spec, output=folder / "searches", tracking_uri=f"sqlite:///{folder / 'mlruns.db'}", work=our_trial)
    seconds = time.perf_counter() - began
    assert sum(len(trial.results) for trial in done.trials) == trials * epochs
    return seconds


def stock(trials: int, epochs: int, folder: Path) -> float:
    """Seconds of the same with Ray's own parts."""
    space = {
        "patch_size": tune.choice([1, 2, 4]),
        "depth": tune.randint(1, 5),
        "dim": tune.qrandint(32, 96, 16),
        "heads": tune.choice([1, 2, 4]),
        "lr": tune.loguniform(3e-4, 5e-3),
        "weight_decay": tune.loguniform(1e-3, 0.3),
        "epochs": epochs,
    }
    began = time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(stock_trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=2,
            search_alg=OptunaSearch(seed=0),
            scheduler=ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=epochs),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=str(folder / "ray"),
            callbacks=[MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}", experiment_name="stock")],
            verbose=0,
        ),
    )
    results = tuner.fit()
    assert sum(r.metrics["epoch"] for r in results) == trials * epochs
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--trials", default=40, type=int)
    ask.add_argument("--epochs", default=16, type=int)
    ask.add_argument("--rounds", default=3, type=int)
    told = ask.parse_args()
    start_ray()
    print(surroundings(torch.device("cpu"), "ray", "optuna", "mlflow"))
    seconds: dict[tuple[str, tuple[int, int]], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for run in (ours, stock):  # MLflow makes its tables, workers import what they need
            (Path(place) / run.__name__).mkdir()
            run(2, 2, Path(place) / run.__name__)
        for _ in range(told.rounds):
            for size in (FEW, (told.trials, 1), (told.trials, told.epochs)):
                for run in (ours, stock):
                    mlflow.set_tracking_uri(f"sqlite:///{Path(place) / run.__name__ / 'mlruns.db'}")
                    seconds.setdefault((run.__name__, size), []).append(run(*size, Path(place) / run.__name__))
        os.chdir("/")
    rows = []
    parts = {}
    for name in ("ours", "stock"):
        few, short, long = (seconds[name, size] for size in (FEW, (told.trials, 1), (told.trials, told.epochs)))
        reports = told.trials * (told.epochs - 1)
        parts[name] = (
            few,
            [(b - a) / (told.trials - FEW[0]) for a, b in zip(few, short, strict=True)],
            [(b - a) / reports for a, b in zip(short, long, strict=True)],
        )
    for k, what in enumerate(("a search of 2 trials", "each further trial, of one report", "each further report")):
        own, peer = parts["ours"][k], parts["stock"][k]
        rows.append([what, f"{1000 * statistics.median(own):.1f}", f"{1000 * statistics.median(peer):.1f}", spread(ratios(own, peer))])
    print(f"\n{told.trials} trials, two at a time; milliseconds of wall time\n")
    print(table(["", "ours", "stock", "stock takes, times as long"], rows))
    ray.shutdown()


if __name__ == "__main__":
    main()
