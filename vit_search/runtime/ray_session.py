"""A Ray to work on: one of our own on this machine alone, or the cluster that an address names.

Ray reads its settings when it is imported and hands them to the processes it starts, so they are made here, before that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTLIVE_HEAD_S = "600"
"""Seconds after which Ray ends a driver whose head is dead, without a word: we do it before, with one; see `watched`."""

for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",  # a busy two-core machine needs more than 15 s (ray#65983)
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_prestart_worker_first_driver": "0",  # Tune's trials ask for an environment of their own, so these workers would stay idle
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": OUTLIVE_HEAD_S,
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # search/driver.py says how many; Tune's one would start processes and nodes in turn
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failure is reported without the metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the ledger tells why a trial failed, in a line
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the ledger is our state; Tune's own snapshots are never read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

import psutil
import ray
from ray._private import ray_constants, services, utils, worker
from ray._private.state import state
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # of Cython
from ray.job_config import JobConfig

from vit_search.errors import ClusterError, LostClusterError
from vit_search.runtime import ray_folder, ray_ports, ray_processes, ray_token, ray_trouble
from vit_search.runtime.native_stderr import native_stderr_hidden
from vit_search.runtime.signals import heard_at_once

# Ray 2.60 prints its daemons' messages between our own lines, whatever `log_to_driver` says: a dead worker's fills the terminal. The
# ledger has why a trial broke down; the messages are in Ray's logs.
worker.print_to_stdstream = lambda data, ignore_prefix: None
# It sends the command line to its head. That may hold a password, or characters that this locale has not: then Ray does not start.
utils.get_entrypoint_name = lambda: "vit-search"
# Its handler would print a stack of C++ on SIGTERM in this process, before ours is called. Its daemons and workers keep it.
ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
# It starts the process of its dashboard without one, too, for statistics of usage, which are off. On a busy machine that process may not
# start within a minute: Ray goes on without it, and nothing of ours asks it anything, but prints the end of its log.
logging.getLogger(services.__name__).setLevel(logging.CRITICAL)

LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0 Ray 2.60 keeps the node address 127.0.0.1; else it takes one that others reach, and its daemons listen everywhere.

For a Ray of our own alone: in a process that joins a cluster it would name the node wrongly.
"""

AUTOSCALER_FILE = "~/ray_bootstrap_config.yaml"
"""What `ray up` leaves on the head of a cluster that grows by itself; JSON, in spite of its name."""

SHARED_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""They name the folder in which the processes of another program share their metrics. Where it is missing, no replica would start."""

TRIES = 3

LEAST_FILES = 256
"""Open files that a process may have, at least. Ray's daemons hold up to 64 each for four workers, and three more for each further one."""

LEAST_THREADS, THREADS_A_WORKER = 250, 30
"""Threads of a Ray of our own, which count as processes: 161 for its daemons and 25 for each worker on this machine, Linux, Ray 2.60."""

LOOK_EVERY_S = 2.0
LOST_AFTER_S = 20.0
"""Seconds without an answer after which a cluster's head is taken for lost."""


@dataclass(frozen=True)
class Shape:
    """A node as large as it is, or a kind of node that may be added."""

    name: str
    cpus: float
    gpus: float
    count: int | None = None
    """How many of its kind there may be; None for a node that is there."""


@contextlib.contextmanager
def session(address: str | None = None, *, env: Mapping[str, str] | None = None, cpus: int | None = None) -> Iterator[None]:
    """Be connected to a Ray, which is left as it was at the end; where this process is connected already, that one serves.

    Args:
        address: `auto` for the cluster that this machine is a node of, or its head as `HOST:6379`; None for a Ray of our own on
            127.0.0.1, never a cluster that happens to run here.
        env: variables of its workers. Never a secret: Ray shows them.
        cpus: cores of a Ray of our own; all by default.
    Raises: ClusterError, one line. A LostClusterError from within leaves what is left of the connection as it is.
    """
    if ray.is_initialized():
        yield
        return
    workers = {"env_vars": dict(env)} if env else None
    with _own(workers, cpus) if address is None else _joined(address, workers):
        try:
            yield
        except LostClusterError:
            raise  # `ray.shutdown` would wait for the head
        except BaseException:
            ray.shutdown()
            raise
        ray.shutdown()


def check_limits(cpus: int | None = None) -> None:
    """Refuse a machine or a shell on which a Ray of our own cannot start: Ray would wait for minutes, and tell nothing.

    Raises: ClusterError, one line.
    """
    ray_trouble.check()
    ray_folder.around()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the hard one; Ray raises the other to it
    if files != resource.RLIM_INFINITY and files < LEAST_FILES:
        raise ClusterError(f"a process here may open {files} files, and Ray needs {LEAST_FILES}; raise that, e.g. `ulimit -n 65536`.")
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.getuid() == 0 or most == resource.RLIM_INFINITY:  # root is not held to it
        return
    needed = LEAST_THREADS + THREADS_A_WORKER * (cpus or os.cpu_count() or 1)
    running = sum(process.info["num_threads"] or 0 for process in psutil.process_iter(["num_threads", "uids"]) if _mine(process))
    if running + needed > most:
        raise ClusterError(
            f"this account may have {most} processes and threads and has {running}, and Ray needs {needed} more; "
            f"raise that, e.g. `ulimit -u {max(4096, 2 * (running + needed))}`, or end some."
        )


def _mine(process: psutil.Process) -> bool:
    return process.info["uids"] is not None and process.info["uids"].real == os.getuid()


def nodes_alive() -> list[dict[str, Any]]:
    """What Ray tells of the nodes that are there."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def shapes() -> list[Shape]:
    """The nodes of the Ray that this process is connected to, and the kinds that its autoscaler may add; called on its head."""
    there = [
        Shape(node["NodeManagerHostname"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes_alive()
    ]
    return there + nodes_to_come(Path(os.path.expanduser(AUTOSCALER_FILE)))  # noqa: PTH111 -- Path's raises where there is no home


def nodes_to_come(path: Path) -> list[Shape]:
    """What an autoscaler may add; a kind whose size is nowhere told may be of any."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kinds, head = config["available_node_types"].items(), config.get("head_node_type")
        kinds_to_come = []
        for name, kind in kinds:
            count = int(kind.get("max_workers", config.get("max_workers", 0)))
            has = kind.get("resources") or {"CPU": math.inf, "GPU": math.inf}
            if name != head and count:
                kinds_to_come.append(Shape(name, float(has.get("CPU", 0)), float(has.get("GPU", 0)), count))
        return kinds_to_come
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


@dataclass
class WatchedHead:
    """What the head of a cluster tells from time to time."""

    shapes: list[Shape]
    """The nodes that are there, and the kinds that may come."""
    leaving: Collection[str] = ()
    """Ids of nodes that get no more work, since they are about to be taken away."""
    lost: ClusterError | None = None
    """Set where it does not answer any more."""

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        """What each living node has, by its id."""
        return {node["NodeID"]: node["Resources"] for node in nodes_alive()}


@contextlib.contextmanager
def watched(search: str) -> Iterator[WatchedHead]:
    """The cluster's head, looked after by threads of its own.

    Args:
        search: its name, for the message.
    """
    address, over, head = ray.get_runtime_context().gcs_address, threading.Event(), WatchedHead(shapes())
    listening = threading.Thread(target=_watch_head, args=(head, address, over, search), name="head", daemon=True)
    # a thread of its own: the call waits for a dead head
    looking = threading.Thread(target=_watch_nodes, args=(head, over), name="leaving", daemon=True)
    listening.start()
    looking.start()
    try:
        yield head
    finally:
        over.set()
        for thread in (listening, looking):
            thread.join(LOOK_EVERY_S + 1)


def _watch_head(head: WatchedHead, address: str, over: threading.Event, search: str) -> None:
    host, _, port = address.rpartition(":")
    heard = time.monotonic()
    while not over.wait(LOOK_EVERY_S):
        try:
            with socket.create_connection((host, int(port)), timeout=LOOK_EVERY_S):
                heard = time.monotonic()
        except OSError as error:
            if time.monotonic() - heard > LOST_AFTER_S:
                mend = f"start the cluster again, then `vit-search resume {search}` with its --address"
                silent = f"the head of the Ray cluster has not answered for {LOST_AFTER_S:g} s ({error})"
                head.lost = LostClusterError(f"{address}: {silent}; {mend}.")
                return


def _watch_nodes(head: WatchedHead, over: threading.Event) -> None:
    while not over.wait(LOOK_EVERY_S):
        with contextlib.suppress(Exception):  # of a dead head, which `_watch_head` tells
            head.leaving = tuple(state.get_draining_nodes())
            head.shapes = shapes()


@contextlib.contextmanager
def _own(workers: dict[str, dict[str, str]] | None, cpus: int | None) -> Iterator[None]:
    """A Ray of our own, in a folder of its own; what is left in that goes with it."""
    check_limits(cpus)
    os.environ.pop("RAY_gcs_rpc_server_reconnect_timeout_s", None)  # Ray has read it for this process; its own are to end soon
    with ray_folder.private() as folder, _environment(RAY_TMPDIR=str(folder)), _token(folder):
        environment = _environment(**{LOOPBACK_ALONE: "0", "PYTHONSAFEPATH": "1"}, **dict.fromkeys(SHARED_METRICS))
        with environment, _loopback_alone(), native_stderr_hidden(), _ended_at_once(lambda: _remove(folder)):
            _start(workers, cpus, folder)
        yield


@contextlib.contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Variables of this process, and of those that it starts meanwhile; None for a variable that they must not have."""
    before = {name: os.environ.pop(name, None) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[None]:
    """Ray's token where it looks for one; in our folder where that place cannot be written. Ray would make one that everybody can read."""
    try:
        ray_token.ensure()
    except ClusterError:
        usable = ray_token.is_readable()
    else:
        usable = True
    if usable:
        yield
        return
    loader = AuthenticationTokenLoader.instance()
    with _environment(**{ray_token.PLACE: str(folder / "token")}):
        ray_token.ensure()
        loader.reset_cache()
        yield
    loader.reset_cache()


@contextlib.contextmanager
def _loopback_alone() -> Iterator[None]:
    """By Ray's constant for this process, which has read the variable already."""
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _start(workers: dict[str, dict[str, str]] | None, cpus: int | None, folder: Path) -> None:
    before, reasons = ray_trouble.kills(), [""]
    for attempt in range(TRIES):
        try:
            _start_once(workers, cpus, folder / str(attempt))
            return
        except Exception as error:
            reasons.append(ray_trouble.reason_in_log(folder / str(attempt)))
            if isinstance(error, OSError | ValueError) or (reasons[-1] and reasons[-1] == reasons[-2]):
                raise ClusterError(f"Ray cannot start on this machine ({reasons[-1] or _short(error)}).") from None
            if attempt == TRIES - 1:
                mend = ray_trouble.shortage(ray_trouble.kills() - before)
                raise ClusterError(f"Ray did not start on this machine ({reasons[-1] or _short(error)}); {mend}.") from None
            time.sleep(5)


def _start_once(workers: dict[str, dict[str, str]] | None, cpus: int | None, folder: Path) -> None:
    """Start Ray in a folder. Where that fails, none of its processes is left: Ray itself leaves those that it has started."""
    try:
        with ray_ports.chosen():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=workers,
                job_config=_job(),
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
            )
    except BaseException:
        ray.shutdown()
        ray_processes.end(folder)
        raise


@contextlib.contextmanager
def _ended_at_once(clean: Callable[[], None]) -> Iterator[None]:
    """Signals end the program while Ray starts or is joined, which takes a minute on a busy machine; see `heard_at_once`."""
    theirs = utils.set_sigterm_handler
    with heard_at_once(clean) as heard:
        if heard:
            utils.set_sigterm_handler = lambda handler: None  # Ray's would end the program without a word
        try:
            yield
        finally:
            utils.set_sigterm_handler = theirs


def _remove(folder: Path) -> None:
    """End what runs in the folder of a Ray of our own, and remove it."""
    ray_processes.end(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _job() -> JobConfig:
    """Ray puts the driver's working folder first on its workers' path, so that a numpy.py there is run, but not for a client's job."""
    return JobConfig(_client_job=True)


@contextlib.contextmanager
def _joined(address: str, workers: dict[str, dict[str, str]] | None) -> Iterator[None]:
    try:
        with native_stderr_hidden(), _ended_at_once(lambda: None):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=workers, job_config=_job())
    except Exception as error:
        ray.shutdown()
        mend = "run this on a node of the cluster, or hand the search over with `vit-search submit FILE --address URL`"
        if "auth" in str(error).lower() or "token" in str(error).lower():
            mend = "this node's token is not the cluster's: copy the head's ~/.ray/auth_token, mode 0600"
        raise ClusterError(f"--address {address}: no Ray cluster to join ({_short(error)}); {mend}.") from None
    yield


def _short(error: Exception) -> str:
    """The first line of what Ray said."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
