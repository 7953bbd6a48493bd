"""A whole search, from the command to its end: ours against the script that a competent user writes from Ray's tutorials.

    python tests/benchmarks/whole_search.py [--seeds 0 1 2] [--trials 32] [--sets digits fashion_mnist] [--data DIR]

Same images and splits, space, number of trials, epochs, machine and two trials at a time. Theirs: torchvision-style datasets in
a DataLoader, timm's Vision Transformer (class token), AdamW with a cosine schedule, float32, a checkpoint an epoch, OptunaSearch,
ASHAScheduler and MLflowLoggerCallback on SQLite. Ours: `launch.run` of the same space, its defaults for the rest. Each search is
a process of its own in a folder of its own, so that imports and the start of Ray count; in turns, seed by seed. Accuracy is the
best that a full-length trial reached on the validation images. `to theirs` is the time until a full-length trial was as good
as the best of the usual search of the same seed.

Learned from one search of digits (2026-11-24): of its 89 s with two workers 77 were training and evaluation, 4 their imports, and
a report costs 17 ms with its checkpoint; 7 s more are the driver's imports and the start of Ray. What is left to win is in the step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vit_search.search import launch  # before ray: it sets what ray reads when it is imported

# isort: split
import torch
from fashion import BESIDE, fashion_mnist
from ray import tune
from rounds import ratios, spread, surroundings, table
from usual_trial import usual_trial

from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare
from vit_search.ledger.events import Reported
from vit_search.ledger.file import read_events

SEARCHES = {
    "digits": """
name: whole
data: {{name: digits}}
trials: {trials}
epochs: 25
stopping: {{grace_epochs: 3, reduction_factor: 3}}
seed: {seed}
concurrency: 2
model: {{patch_size: {{choice: [1, 2, 4]}}, depth: {{int: [1, 4]}}, dim: {{int: [32, 96], step: 16}}, heads: {{choice: [1, 2, 4, 8]}},
  dropout: {{float: [0, 0.2]}}, mlp_ratio: 2}}
training: {{lr: {{float: [3e-4, 5e-3], log: true}}, weight_decay: {{float: [1e-3, 0.3], log: true}}, batch_size: 32}}
""",
    "fashion_mnist": """
name: whole
data: {{name: fashion_mnist, path: {path}, train_limit: 5000}}
trials: {trials}
epochs: 9
stopping: {{grace_epochs: 1, reduction_factor: 3}}
seed: {seed}
concurrency: 2
model: {{patch_size: {{choice: [4, 7]}}, depth: {{int: [1, 4]}}, dim: {{int: [32, 96], step: 16}}, heads: {{choice: [1, 2, 4, 8]}},
  dropout: {{float: [0, 0.2]}}, mlp_ratio: 2}}
training: {{lr: {{float: [3e-4, 5e-3], log: true}}, weight_decay: {{float: [1e-3, 0.3], log: true}}, batch_size: 64}}
""",
}


def ours(text: str) -> list[tuple[float, float]]:
    """When each full-length trial ended, and its validation accuracy."""
    spec = search_file.parse(text)
    done = launch.run(spec, tracking_uri=f"sqlite:///{Path('mlruns.db').resolve()}")
    reports = [event for event in read_events(done.folder / "ledger.jsonl") if isinstance(event, Reported)]
    return [(event.at, event.result.val_accuracy) for event in reports if event.result.epoch == spec.epochs]


def usual(text: str) -> list[tuple[float, float]]:
    """The same with Ray's own parts."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    spec = search_file.parse(text)
    data = prepare(spec.data_config)
    patches = spec.space.parameters["patch_size"].choice
    space: dict[str, Any] = {
        "patch_size": tune.choice(patches),
        "depth": tune.randint(1, 5),
        "dim": tune.qrandint(32, 96, 16),
        "heads": tune.choice([1, 2, 4, 8]),
        "dropout": tune.uniform(0, 0.2),
        "lr": tune.loguniform(3e-4, 5e-3),
        "weight_decay": tune.loguniform(1e-3, 0.3),
        "batch_size": spec.training.batch_size,
        "epochs": spec.epochs,
        "folder": str(data.folder),
        "mean": list(data.mean),
        "std": list(data.std),
    }
    tuner = tune.Tuner(
        tune.with_resources(usual_trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            num_samples=spec.trials,
            max_concurrent_trials=2,
            search_alg=OptunaSearch(seed=spec.seed),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=spec.epochs,
                grace_period=spec.stopping.grace_epochs,
                reduction_factor=spec.stopping.reduction_factor,
            ),
        ),
        run_config=tune.RunConfig(
            name="usual",
            storage_path=str(Path("ray").resolve()),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[MLflowLoggerCallback(tracking_uri=f"sqlite:///{Path('mlruns.db').resolve()}", experiment_name="usual")],
            verbose=0,
        ),
    )
    results = tuner.fit()
    full = [r.metrics for r in results if r.metrics and r.metrics.get("epoch") == spec.epochs]
    return [(metrics["timestamp"], metrics["val_accuracy"]) for metrics in full]


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--seeds", default=[0, 1, 2], type=int, nargs="+")
    ask.add_argument("--trials", default=32, type=int)
    ask.add_argument("--sets", default=list(SEARCHES), choices=list(SEARCHES), nargs="+")
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    ask.add_argument("--one", choices=["ours", "usual"], help=argparse.SUPPRESS)
    ask.add_argument("--text", help=argparse.SUPPRESS)
    told = ask.parse_args()
    if told.one:
        print("\n" + json.dumps({"full": {"ours": ours, "usual": usual}[told.one](told.text)}))
        return
    print(surroundings(torch.device("cpu"), "ray", "optuna", "mlflow", "timm"), flush=True)
    rows = []
    for name in told.sets:
        path = fashion_mnist(told.data) if name == "fashion_mnist" else ""
        found: dict[str, list[tuple[float, list[tuple[float, float]]]]] = {"ours": [], "usual": []}
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {
                "VIT_SEARCH_CACHE": cache,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            }
            if path:
                prepare(DataConfig(name="fashion_mnist", path=str(path), train_limit=5000), cache=Path(cache))
            for seed in told.seeds:
                text = SEARCHES[name].format(trials=told.trials, seed=seed, path=path)
                for contender in found:
                    command = [sys.executable, str(Path(__file__).resolve()), "--one", contender, "--text", text]
                    with tempfile.TemporaryDirectory() as place:
                        at, began = time.time(), time.perf_counter()
                        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
                        seconds = time.perf_counter() - began
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    answer = next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"full"'))
                    found[contender].append((seconds, [(ended - at, accuracy) for ended, accuracy in json.loads(answer)["full"]]))
        walls = {contender: [seconds for seconds, _ in pairs] for contender, pairs in found.items()}
        theirs = [max(accuracy for _, accuracy in full) for _, full in found["usual"]]
        until = {
            contender: [min((s for s, own in full if own >= a), default=math.inf) for (_, full), a in zip(pairs, theirs, strict=True)]
            for contender, pairs in found.items()
        }
        for contender, pairs in found.items():
            accuracies = [max(accuracy for _, accuracy in full) for _, full in pairs]
            rows.append(
                [
                    name,
                    contender,
                    f"{statistics.median(walls[contender]):.0f}",
                    spread(ratios(walls["ours"], walls[contender])),
                    f"{statistics.mean(accuracies):.4f} ({min(accuracies):.4f} to {max(accuracies):.4f})",
                    f"{statistics.median(until[contender]):.0f}",
                    spread(ratios(until["ours"], until[contender])),
                ]
            )
        print(f"\n{told.trials} trials, {len(told.seeds)} seed(s)\n")
        print(
            table(["set", "contender", "wall s", "ours is faster", "best validation accuracy", "to theirs, s", "ours is faster"], rows),
            flush=True,
        )


if __name__ == "__main__":
    main()
