"""How many trials at once, and how many in all, one driver can drive on a cluster of many nodes; and what sets the limit.

    python tests/benchmarks/cluster_scale.py [--concurrent 100 500 2000] [--nodes 20] [--epoch-s 20] [--start-s 10] [--trials 4000]
    python tests/benchmarks/cluster_scale.py --saturate           # epochs of no length: the most reports a second

Everything is real but the training and the processes that would train: raylets on loopback as nodes, a placement group for each
trial in Ray's scheduler, `launch.run` with ledger, rungs, searcher and MLflow's record in SQLite, Tune's loop over as many futures as
there are trials. A trial's actor is a number within one of a few host processes, since 2,000 Python processes do not fit into this
machine: it sleeps for its epoch's length and reports, and before its first trial for as long as a process takes to start. So what a
worker process costs its own node is not in these figures, and all that the driver and Ray's head do is.

Of each report the host notes when it was sent; the latency is from there to its line in the ledger, of what is sent once the slots
are filled; beside it the longest until then. The wait of a trial is from its proposal to its first breath in a host. Slots are busy
from there to the last report; all are filled once nine of ten are busy.
`--pending 1` is what Tune does by itself with a searcher like ours: one process, or one node, starts at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_search.search import launch  # before ray: it sets what ray reads when it is imported

# isort: split
import psutil
import ray
import torch
from ray.air.execution.resources.placement_group import PlacementGroupAcquiredResources
from ray.cluster_utils import Cluster
from ray.tune import Trainable
from rounds import surroundings, table
from simulated import SEARCH, curve, result

from vit_search.config import search_file
from vit_search.ledger.events import Ended, Proposed, Reported
from vit_search.ledger.file import read_events
from vit_search.runtime.ray_session import LOOPBACK_ALONE

HOSTS = 2

NODES_OWN = {"REPORTER_UPDATE_INTERVAL_MS": "3600000", "RAY_metrics_report_interval_ms": "3600000"}
"""Ray's agents watch the processes of their nodes, here all those of one machine a hundred times over: no more than once an hour."""


class Simulated(Trainable):
    """An epoch is a report; its length is slept outside."""

    def setup(self, config: dict) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.told, self.epoch, self.began = new_config, 0, time.time()
        return True

    def step(self) -> dict:
        self.epoch += 1
        model, training = self.told["config"]["model"], self.told["config"]["training"]
        value = curve(model["patch_size"], model["depth"], model["dim"], training["lr"], training["weight_decay"], self.epoch)
        moments = {"system/began": self.began, "system/sent": time.time()}
        return {"trial": self.told["trial"], **result(self.epoch, value), **moments}


@ray.remote(num_cpus=0)
class Host:
    """Many trials' actors in one process."""

    def __init__(self, epoch_s: float, start_s: float) -> None:
        self.epoch_s, self.start_s, self.actors, self.up = epoch_s, start_s, {}, {}

    async def call(self, key: int, method: str, args: tuple, kwargs: dict) -> Any:
        up = self.up.setdefault(key, asyncio.Event())
        if method == "__init__":
            await asyncio.sleep(self.start_s)
            self.actors[key] = Simulated(**kwargs)
            up.set()
        elif method == "__ray_terminate__":
            self.actors.pop(key, None)
        else:
            await up.wait()
            if method == "__ray_ready__":
                return None
            if method == "train":
                await asyncio.sleep(self.epoch_s * (0.75 + 0.5 * (hash((key, time.time())) % 1000) / 1000))
            return getattr(self.actors[key], method)(*args, **kwargs)


class Method:
    def __init__(self, host: Any, key: int, name: str) -> None:
        self.host, self.key, self.name = host, key, name

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self.host.call.remote(self.key, self.name, args, kwargs)


class Handle:
    """What Tune takes for an actor."""

    def __init__(self, host: Any, key: int, kwargs: dict) -> None:
        self._host, self._key = host, key
        Method(host, key, "__init__").remote(**kwargs)

    def __getattr__(self, name: str) -> Method:
        return Method(self._host, self._key, name)


class Shared:
    """What Tune takes for a class of actors."""

    def __init__(self, hosts: list[Any]) -> None:
        self.hosts, self.count = hosts, 0

    def remote(self, **kwargs: Any) -> Handle:
        self.count += 1
        return Handle(self.hosts[self.count % len(self.hosts)], self.count, kwargs)


@contextlib.contextmanager
def nodes(count: int, slots: int) -> Any:
    """A head without slots, and nodes that share the slots among them."""
    os.environ[LOOPBACK_ALONE] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])  # of the hosts
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**28})
    for _ in range(count):
        cluster.add_node(num_cpus=-(-slots // count), object_store_memory=80 * 2**20, wait=False)
    cluster.wait_for_nodes(timeout=600)
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


class Watched(threading.Thread):
    """Processor time and memory of Ray's head process by process, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.began = {}, {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(2):
            for name, process in servers().items():
                with contextlib.suppress(psutil.Error):
                    self.peak[name] = max(self.peak.get(name, 0), process.memory_info().rss)


def servers() -> dict[str, psutil.Process]:
    """Those of Ray's head that may set a limit."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "gcs_server" in process.name():
                found["gcs"] = process
    return found


def spent(process: psutil.Process) -> float:
    """Seconds of processor time."""
    times = process.cpu_times()
    return times.user + times.system


def filled(first: Mapping[int, float], ends: Mapping[int, float], slots: float) -> float:
    """When so many trials ran at the same time, in the time of the ledger; infinite where they never did."""
    running = 0
    for at, change in sorted([(at, 1) for at in first.values()] + [(ends[trial], -1) for trial in first]):
        running += change
        if running >= slots:
            return at
    return math.inf


def searched(concurrent: int, trials: int, told: argparse.Namespace, folder: Path) -> list[str]:
    """One search; its row of the table."""
    epochs, epoch_s, count = told.epochs, 0.0 if told.saturate else told.epoch_s, told.nodes
    began = time.perf_counter()
    with nodes(count, concurrent) as address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        up = time.perf_counter() - began
        hosts = [Host.options(max_concurrency=10_000).remote(epoch_s, told.start_s) for _ in range(HOSTS)]
        shared = Shared(hosts)
        usual = PlacementGroupAcquiredResources.annotate_remote_entities
        PlacementGroupAcquiredResources.annotate_remote_entities = lambda self, entities: [shared]
        text = SEARCH.format(trials=trials, epochs=epochs).replace("concurrency: 2", f"concurrency: {concurrent}")
        spec, kill = search_file.parse(text), ray.kill
        ray.kill = lambda actor, **options: None if isinstance(actor, Handle) else kill(actor, **options)
        watched, gcs = Watched(), servers()["gcs"]
        watched.start()
        own, theirs, start = time.process_time(), spent(gcs), time.perf_counter()
        try:
            done = launch.run(spec, output=folder / "searches", tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
        finally:
            PlacementGroupAcquiredResources.annotate_remote_entities, ray.kill = usual, kill
            watched.over.set()
        wall = time.perf_counter() - start
        own, theirs = time.process_time() - own, spent(gcs) - theirs
    events = read_events(done.folder / "ledger.jsonl")
    reports = [event for event in events if isinstance(event, Reported)]
    first = {event.trial: event.system["system/began"] for event in reports if event.result.epoch == 1}
    waits = sorted(first[event.trial] - event.at for event in events if isinstance(event, Proposed) and event.trial in first)
    ends = {event.trial: event.at for event in events if isinstance(event, Ended)}
    full = filled(first, ends, 0.9 * concurrent)
    sent = [(event.system["system/sent"], event.at) for event in reports]
    latency = sorted(heard - at for at, heard in sent if at > full or full == math.inf)
    burst = max((heard - at for at, heard in sent if at <= full), default=0.0)
    busy = sum(ends[trial] - at for trial, at in first.items())
    between = max(ends.values()) - min(first.values())
    assert len(ends) == trials, "a trial is lost"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        f"{concurrent:,}",
        f"{count}",
        f"{trials:,}",
        f"{len(reports) / between:.0f}",
        f"{1000 * statistics.median(latency):.0f}",
        f"{1000 * latency[int(0.99 * (len(latency) - 1))]:.0f}",
        f"{statistics.median(waits):.2f}",
        f"{waits[int(0.99 * (len(waits) - 1))]:.1f}",
        "never" if full == math.inf else f"{full - events[0].at:.0f}",
        f"{burst:.1f}",
        f"{busy / between / concurrent:.0%}",
        f"{1000 * own / len(reports):.1f}",
        f"{own / wall:.0%}",
        f"{theirs / wall:.0%}",
        f"{memory:.1f}",
        f"{watched.peak.get('gcs', 0) / 2**20:.0f}",
        f"{up:.0f}",
        f"{wall:.0f}",
    ]


HEAD = ["at once", "nodes", "trials", "reports/s", "latency ms", "99 %", "wait s", "99 %", "filled s", "latency till then", "slots busy"]
HEAD += ["driver ms a report", "driver's core", "GCS's core", "driver GiB", "GCS MiB", "nodes up s", "whole s"]


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--concurrent", default=[100, 500, 2000], type=int, nargs="+")
    ask.add_argument("--nodes", default=20, type=int)
    ask.add_argument("--trials", default=0, type=int, help="in all; by default five times as many as at once")
    ask.add_argument("--epochs", default=4, type=int)
    ask.add_argument("--epoch-s", default=20.0, type=float)
    ask.add_argument("--start-s", default=10.0, type=float)
    ask.add_argument("--pending", type=int, help="trials that Tune lets wait for a place")
    ask.add_argument("--saturate", action="store_true")
    told = ask.parse_args()
    if told.pending:
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(told.pending)
    logging.disable(logging.WARNING)
    os.environ.update(NODES_OWN)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    print(surroundings(torch.device("cpu"), "ray", "optuna", "mlflow"))
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        rows = [searched(concurrent, told.trials or 5 * concurrent, told, Path(place)) for concurrent in told.concurrent]
        os.chdir("/")
    length = 0 if told.saturate else told.epoch_s
    print(f"\ntrials of up to {told.epochs} epochs of about {length:g} s, ASHA (1, 4); a process starts in {told.start_s:g} s\n")
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
