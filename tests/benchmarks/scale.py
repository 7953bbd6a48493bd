"""Whether a search stays as quick with ten thousand trials as with a hundred: wall time per simulated trial through the real driver.

    python tests/benchmarks/scale.py [--trials 100 1000 10000] [--epochs 4]

Everything is real but the training: `launch.run` with its ledger, TPE (which `auto` comes to after 150 observations), rungs,
Tune's loop with two reused workers, and MLflow's record in SQLite. The time of a trial is that between its proposal and the
next one, read off the ledger; the start of Ray and the last summary are printed apart. Each size is a search of its own;
`last tenth` is what a trial costs at its end.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from vit_search.search import launch  # before ray: it sets what ray reads when it is imported

# isort: split
import ray
import torch
from rounds import surroundings, table
from simulated import SEARCH, our_trial, start_ray

from vit_search.config import search_file
from vit_search.ledger.events import Proposed
from vit_search.ledger.file import read_events


def searched(trials: int, epochs: int, folder: Path) -> list[str]:
    """One search; its row of the table."""
    spec = search_file.parse(SEARCH.format(trials=trials, epochs=epochs))
    began = time.perf_counter()
    done = launch.run(spec, output=folder / "searches", tracking_uri=f"sqlite:///{folder / 'mlruns.db'}", work=our_trial)
    whole = time.perf_counter() - began
    at = [event.at for event in read_events(done.folder / "ledger.jsonl") if isinstance(event, Proposed)]
    steps = [b - a for a, b in itertools.pairwise(at[20:])]  # the first ones wait for the workers
    last = steps[-max(len(steps) // 10, 20) :]
    per_trial = (at[-1] - at[20]) / (len(at) - 21)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return [
        f"{trials:,}",
        f"{1000 * per_trial:.1f}",
        f"{1000 * statistics.mean(last):.1f}",
        f"{whole - (at[-1] - at[0]):.0f}",
        f"{whole:.0f}",
        f"{memory:,.0f}",
    ]


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--trials", default=[100, 1000, 10000], type=int, nargs="+")
    ask.add_argument("--epochs", default=4, type=int)
    told = ask.parse_args()
    start_ray()
    print(surroundings(torch.device("cpu"), "ray", "optuna", "mlflow"))
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        rows = [searched(trials, told.epochs, Path(place)) for trials in told.trials]
        os.chdir("/")
    print(f"\ntrials of up to {told.epochs} epochs, ASHA (1, 4), two at a time\n")
    print(table(["trials", "ms a trial", "last tenth", "start and summary, s", "whole, s", "driver's peak MiB"], rows))
    ray.shutdown()


if __name__ == "__main__":
    main()
