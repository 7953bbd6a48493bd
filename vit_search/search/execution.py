"""Runs the trials of a search on Ray Tune, from the connection to Ray to the handling of Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vit_search.runtime.ray_session import Shape, WatchedHead, session, shapes, watched  # isort: skip  (before ray: it sets what ray reads at import)
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution import class_cache

from vit_search.config.search_file import SearchSpec
from vit_search.errors import LostClusterError, SearchError, VitSearchError
from vit_search.runtime.signals import ending_signals, leave_terminal
from vit_search.runtime.worker_env import WORKER_ENV
from vit_search.search import tune_faults  # noqa: F401  # corrects Tune
from vit_search.search.driver import Driver
from vit_search.search.tune import NoProgress, TuneCallback, TuneScheduler, TuneSearcher, resources_of
from vit_search.text import counted

# Tune copies these variables into its workers' runtime environment. Ray logs that and shows it to everybody, so no secret may be in it.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
)

# Tune's snapshots are never read. If one cannot be written, our own message already describes the problem with the disk.
logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)

NODES_JOIN_WITHIN_S = 60.0
"""How long a search waits for a node with room for a trial. After a restart, the head is up before the other nodes."""


@contextlib.contextmanager
def cluster_of(spec: SearchSpec, search: str, address: str | None) -> Iterator[WatchedHead]:
    """Connect to the Ray cluster that the search runs on; see `ray_session.session`.

    Raises: ClusterError; SearchError if a trial fits on no node.
    """
    with ray_for(spec, address), watched(search) as head:
        yield head


def run_trials(driver: Driver, folder: Path, work: Callable[[dict[str, Any]], None], head: WatchedHead, *, apart: bool) -> None:
    """Run trials until all are over, a limit is reached, or somebody ends the search.

    Args:
        folder: of the search.
        work: what a worker runs; it gets the trial's configuration.
        apart: whether the search has joined a cluster, whose head can be lost; see `_fit_apart`.
    Raises: the error that ended the search, as one of our errors if possible.
    """
    tuner = Tuner(
        tune.with_resources(work, resources_of),
        tune_config=TuneConfig(
            search_alg=TuneSearcher(driver),
            scheduler=TuneScheduler(driver),
            num_samples=-1,  # the driver decides how many trials there are, and how many run at a time
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['trial']:04d}",
            trial_name_creator=lambda trial: f"trial_{trial.config['trial']:04d}",
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(folder.resolve()),
            callbacks=[TuneCallback(driver), NoProgress()],
            failure_config=FailureConfig(max_failures=-1),  # recovery.py limits the retries
            verbose=0,
        ),
    )
    with end_on_signals(driver):
        try:
            if apart:
                _fit_apart(tuner, driver, head)
            else:
                tuner.fit()
        except Exception as error:
            raise driver.trouble or storage_trouble(folder, error) or error from None
        if driver.trouble:
            raise driver.trouble


def _fit_apart(tuner: Tuner, driver: Driver, head: WatchedHead) -> None:
    """Run Tune in a thread of its own. If the head is lost, leave the thread behind: its calls to Ray would wait for the head."""
    ended: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    thread.start()
    while thread.is_alive() and not isinstance(head.lost, LostClusterError):
        thread.join(0.2)
    if head.lost is not None:
        driver.fail(head.lost)
    elif ended:
        raise ended[0]


def storage_trouble(folder: Path, error: BaseException) -> VitSearchError | None:
    """The cause inside an error from Tune: an error of ours, or of the driver's own storage; None if there is neither."""
    causes, visited = [error], {id(error)}
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and id(cause) not in visited:
        causes.append(cause)
        visited.add(id(cause))
    ours = next((cause for cause in causes if isinstance(cause, VitSearchError)), None)
    storage = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno), None)
    if ours is None and storage is not None:
        return SearchError(f"{folder}: cannot be written ({storage}); make room or mend it, then `vit-search resume {folder.name}`.")
    return ours


@contextlib.contextmanager
def ray_for(spec: SearchSpec, address: str | None) -> Iterator[None]:
    """Connect to a Ray that has room for a trial. Wait a while for a node; if an autoscaler can add one, Tune waits for it."""
    resources = spec.resources
    threads = (
        {} if resources.cpus == "auto" else {"OMP_NUM_THREADS": str(max(1, int(resources.cpus)))}
    )  # otherwise Ray sets it to the number of the trial's cores
    with session(address, env=WORKER_ENV | threads):
        end = time.monotonic() + (0 if address is None else NODES_JOIN_WITHIN_S)
        while problem := resource_problem(spec, shapes(), address):
            if time.monotonic() > end:
                raise SearchError(problem)
            time.sleep(1)
        yield


def resource_problem(spec: SearchSpec, there: list[Shape], address: str | None) -> str:
    """Why a trial fits on no node; empty if one has room.

    It is also empty if the search file gives `gpu_memory`: then an autoscaler may start GPU nodes on demand.
    """
    resources = spec.resources
    if address is None:
        there = [shape for shape in there if shape.count is None]
    elif resources.gpu_bytes:
        return ""
    cpus, gpus = resources.least
    if any(shape.cpus >= cpus and shape.gpus >= gpus for shape in there):
        return ""
    where = "this machine" if address is None else "the largest node of the cluster"
    for name, amount, most in (("cpu", cpus, max(shape.cpus for shape in there)), ("gpu", gpus, max(shape.gpus for shape in there))):
        if amount > most:
            mend = "lower it"
            if getattr(resources, f"{name}s") == "auto":
                mend = "write 0" if resources.gpu_bytes else "write 0, or, where a cluster starts nodes by itself, add gpu_memory"
            return f"resources.{name}s: a trial asks for {counted(amount, name.upper())} and {where} has {most:g}; {mend}."
    return f"resources: a trial asks for {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}, and no node of the cluster has both; lower one."


@contextlib.contextmanager
def end_on_signals(driver: Driver) -> Iterator[None]:
    """End the search cleanly on Ctrl-C, SIGTERM or a lost terminal. A second Ctrl-C ends it at once.

    If a job is stopped, SIGTERM arrives twice. So after the block a search that was cancelled still does not hear SIGTERM, while its last
    records are written. `restored` around it gives the signal its effect back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if driver.cancelled and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            leave_terminal()
        driver.cancel()  # may be called twice

    before = {number: signal.signal(number, stop) for number in ending_signals()}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    try:
        yield
    finally:
        for number, handler in before.items():
            if number != signal.SIGTERM or not driver.cancelled:
                signal.signal(number, handler)
