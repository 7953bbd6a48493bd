"""What the record costs: metric points a second into MLflow and seconds that a report blocks the scheduler's thread, ours against Ray's.

    python tests/benchmarks/tracking.py [--trials 20] [--epochs 20] [--rounds 3] [--large 5000]

Ours is Ledger.append, which writes each event twice to the disk and wakes the recorder; then the wait until MLflow has all of it,
the second in which events are gathered included. Ray's is MLflowLoggerCallback as Tune calls it, which sends in the scheduler's
thread, key by key. Both get the same values, and both make their runs, log the parameters and end the runs. Stores: a SQLite
file, and MLflow's server over PostgreSQL (where its binary is installed).
The large search is ours alone: `--large` trials of `--epochs` epochs, the time of what a person then asks for, and the peak memory.

What was learned, 2026-11-24: of Ray's time nearly all is one transaction or one request per key; ours sends all that is new of a
trial in one call, so a backlog costs less per point than a trickle.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the tests

import torch
from helpers import servers
from helpers.synthetic import begin, events, result
from ray.air.integrations.mlflow import MLflowLoggerCallback
from rounds import ratios, spread, surroundings, table

from vit_search.config.trial import EpochResult
from vit_search.ledger.events import Ended, Event, Proposed, Reported
from vit_search.ledger.file import Ledger
from vit_search.tracking import mlflow_client
from vit_search.tracking.recorder import Recorder
from vit_search.tracking.sync import sync_search

POINTS = sum(getattr(result(1, 0.5), field.name) is not None for field in dataclasses.fields(EpochResult)) - 1
"""Of a report: all that it holds but the number of its epoch."""

COMMAND = str(Path(sys.executable).with_name("vit-search"))


@dataclasses.dataclass
class Cost:
    """Of one recording."""

    whole_s: float
    blocked_s: list[float]
    """The scheduler's thread, report by report."""


def ours(uri: str, home: Path, happens: list[Event], trials: int, epochs: int) -> Cost:
    """Through the ledger and the recorder."""
    folder, spec, facts = begin(home, trials=trials, epochs=epochs)
    ledger, recorder = Ledger(folder / "ledger.jsonl"), Recorder.connect(uri, spec.name)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    blocked: list[float] = []
    began = time.perf_counter()
    for event in happens:
        at = time.perf_counter()
        ledger.append(event)
        if isinstance(event, Reported):
            blocked.append(time.perf_counter() - at)
    while recorder.behind:
        time.sleep(0.01)
    whole = time.perf_counter() - began
    recorder.close("FINISHED", None)
    ledger.close()
    check(uri, spec.name, f"tags.`mlflow.parentRunId` = '{recorder.parent_run}'", len(blocked))
    return Cost(whole, blocked)


def stock(uri: str, home: Path, happens: list[Event]) -> Cost:
    """Through Ray's callback."""
    experiment = f"stock-{home.name}"
    callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name=experiment)
    callback.setup()
    trials: dict[int, SimpleNamespace] = {}
    blocked: list[float] = []
    began = time.perf_counter()
    for event in happens:
        if isinstance(event, Proposed):
            trials[event.trial] = _HashedTrial(config=event.params, trial_id=str(event.trial))
            callback.log_trial_start(trials[event.trial])
        elif isinstance(event, Reported):
            values = {k: v for k, v in dataclasses.asdict(event.result).items() if v is not None}
            at = time.perf_counter()
            callback.log_trial_result(event.result.epoch, trials[event.trial], values | {"training_iteration": event.result.epoch})
            blocked.append(time.perf_counter() - at)
        elif isinstance(event, Ended):
            callback.log_trial_end(trials[event.trial], failed=event.outcome == "diverged")
    whole = time.perf_counter() - began
    check(uri, experiment, "", len(blocked))
    return Cost(whole, blocked)


class _HashedTrial(SimpleNamespace):
    __hash__ = object.__hash__  # the callback keeps trials as keys

    def __str__(self) -> str:
        return f"trial {self.trial_id}"


def check(uri: str, experiment: str, search: str, reports: int) -> None:
    """Refuse to compare records that are not complete."""
    client = mlflow_client.client_for(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], search, max_results=1000)
    found = sum(len(client.get_metric_history(run.info.run_id, "val_accuracy")) for run in runs if "trial" in run.info.run_name)
    assert found == reports, f"{experiment}: {found} of {reports} reports are there"


@contextlib.contextmanager
def stores(home: Path) -> Iterator[dict[str, str]]:
    """URIs by their names."""
    found = {"SQLite file": f"sqlite:///{home / 'mlruns.db'}"}
    with contextlib.ExitStack() as stack:
        if servers.POSTGRES is not None:
            server_home = home / "server"
            server_home.mkdir()
            found["server, PostgreSQL"] = stack.enter_context(servers.mlflow_server(server_home, stack.enter_context(servers.postgres())))
        yield found


def small(trials: int, epochs: int, rounds: int) -> None:
    """Both, in turns."""
    rows = []
    with tempfile.TemporaryDirectory() as place, stores(Path(place)) as uris:
        os.chdir(place)
        for name, uri in uris.items():
            costs: dict[str, list[Cost]] = {"ours": [], "Ray's MLflowLoggerCallback": []}
            for number in range(rounds):
                home = Path(place) / f"{name.split()[0]}-{number}"
                spec = begin(home / "drawn", trials=trials, epochs=epochs)[1]
                happens = list(events(spec, seed=number))
                costs["ours"].append(ours(uri, home / "ours", happens, trials, epochs))
                costs["Ray's MLflowLoggerCallback"].append(stock(uri, home, happens))
            theirs = costs["Ray's MLflowLoggerCallback"]
            reports = len(theirs[0].blocked_s)
            for who, seen in costs.items():
                faster = ratios([c.whole_s for c in seen], [c.whole_s for c in theirs])
                blocked = sorted(second for c in seen for second in c.blocked_s)
                rows.append(
                    [
                        name,
                        who,
                        f"{statistics.median(POINTS * reports / c.whole_s for c in seen):,.0f}",
                        spread(faster),
                        f"{1000 * statistics.median(blocked):.3f}",
                        f"{1000 * blocked[int(0.99 * len(blocked))]:.3f}",
                    ]
                )
    print(f"{trials} trials, {reports} reports, {rounds} rounds; {POINTS} points each\n")
    print(table(["store", "record", "points a second", "against Ray's", "blocked ms, median", "99 %"], rows))


def large(trials: int, epochs: int) -> None:
    """A search of thousands of trials: into SQLite, and what a person asks for afterwards."""
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        folder, spec, _ = begin(Path(place) / "searches", trials=trials, epochs=epochs)
        ledger = Ledger(folder / "ledger.jsonl")
        began = time.perf_counter()
        for event in events(spec):
            ledger.append(event)
        written = time.perf_counter() - began
        reports = sum(len(trial.results) for trial in ledger.trials.values())
        ledger.close()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = time.perf_counter()
        assert sync_search(folder, f"sqlite:///{place}/mlruns.db")
        sent = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows = [
            [f"write {reports:,} reports to the ledger", f"{written:.1f} s"],
            ["send all to MLflow, report and leaderboard included", f"{sent:.1f} s"],
            ["peak memory before and after sending", f"{before:,.0f} and {peak:,.0f} MiB"],
        ]
        for name in ("show", "status", "report"):
            began = time.perf_counter()
            subprocess.run([COMMAND, name, folder.name], check=True, capture_output=True)
            rows.append([f"vit-search {name}", f"{time.perf_counter() - began:.1f} s"])
        print(f"\n{trials:,} trials of up to {epochs} epochs\n")
        print(table(["", "took"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=5000)
    given = parser.parse_args()
    print(surroundings(torch.device("cpu"), "mlflow", "ray"))
    if given.rounds:
        small(given.trials, given.epochs, given.rounds)
    if given.large:
        large(given.large, given.epochs)
