"""Connects to Ray: starts our own Ray on this machine, or joins the cluster at an address.

Ray reads its settings when it is imported, and passes them to the processes that it starts. So this module makes the settings and must
be imported before Ray.
"""

from __future__ import annotations

import contextlib
import gc
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
"""Seconds after which Ray silently ends a driver whose head is dead. We end it earlier, with a message; see `watched`."""

for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",  # a busy two-core machine needs more than 15 s (ray#65983)
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_prestart_worker_first_driver": "0",  # trials use their own environment, so these workers would stay idle
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": OUTLIVE_HEAD_S,
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # search/driver.py sets the number; with 1, Tune would start processes and nodes one by one
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the ledger has the reason of each failure, in one line
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the ledger is our state; Tune's snapshots are never read
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

# Ray 2.60 prints messages of its daemons between our lines, even with `log_to_driver=False`. A dead worker fills the terminal.
# The ledger has the reason why a trial failed, and Ray's logs have the messages.
worker.print_to_stdstream = lambda data, ignore_prefix: None
# Ray sends the command line to its head. It may contain a password, or characters outside the locale: then Ray does not start.
utils.get_entrypoint_name = lambda: "vit-search"
# Ray's handler would print a C++ stack on SIGTERM in this process, before ours runs. Ray's daemons and workers keep it.
ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
# Ray starts its dashboard's process even without a dashboard, for usage statistics, which are off. On a busy machine it may not start
# within a minute. Ray goes on without it, and we do not need it, but Ray prints the end of its log.
logging.getLogger(services.__name__).setLevel(logging.CRITICAL)

LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable. With 0, Ray 2.60 keeps the node address 127.0.0.1; otherwise its daemons listen on all addresses.

Only for our own Ray: in a process that joins a cluster, it would give the node a wrong name.
"""

AUTOSCALER_FILE = "~/ray_bootstrap_config.yaml"
"""File that `ray up` leaves on the head of an autoscaling cluster. It is JSON, in spite of its name."""

SHARED_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""Variables for the folder in which another program's processes share metrics. If that folder is missing, no replica could start."""

TRIES = 3

LEAST_FILES = 256
"""Minimum limit of open files. Ray's daemons hold up to 64 each with four workers, and three more for each further worker."""

LEAST_THREADS, THREADS_A_WORKER = 250, 30
"""Threads that our own Ray needs, and further ones for each worker. Linux counts them as processes. Measured: 161 and 25, with Ray 2.60."""

LOOK_EVERY_S = 2.0
LOST_AFTER_S = 20.0
"""Seconds without an answer after which a cluster's head counts as lost."""


@dataclass(frozen=True)
class Shape:
    """The size of one node, or of a node type that may be added."""

    name: str
    cpus: float
    gpus: float
    count: int | None = None
    """How many nodes of this type may exist; None for one existing node."""


@contextlib.contextmanager
def session(address: str | None = None, *, env: Mapping[str, str] | None = None, cpus: int | None = None) -> Iterator[None]:
    """Connect to a Ray, and disconnect at the end. If this process is already connected, use that connection and leave it open.

    Args:
        address: `auto` for the cluster of this machine, or the head as `HOST:6379`. None starts our own Ray on 127.0.0.1, even if a
            cluster runs on this machine.
        env: variables of the workers. Never put a secret here: Ray shows them.
        cpus: cores of our own Ray; all by default.
    Raises: ClusterError, one line. After a LostClusterError inside the block, it does not disconnect.
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
            _disconnect()
            raise
        _disconnect()


def _disconnect() -> None:
    """Disconnect from Ray. First free the references to Ray's objects that wait for Python's garbage collector.

    If another thread frees such a reference while Ray 2.60 shuts down, Ray ends this process at once, with exit code 1.
    """
    gc.collect()
    ray.shutdown()


def check_limits(cpus: int | None = None) -> None:
    """Check that our own Ray can start on this machine and in this shell. Ray itself would wait for minutes and give no reason.

    Raises: ClusterError, one line.
    """
    ray_trouble.check()
    ray_folder.around()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the hard limit; Ray raises the soft limit to it
    if files != resource.RLIM_INFINITY and files < LEAST_FILES:
        raise ClusterError(f"a process here may open {files} files, and Ray needs {LEAST_FILES}; raise that, e.g. `ulimit -n 65536`.")
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.getuid() == 0 or most == resource.RLIM_INFINITY:  # root has no such limit
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
    """Ray's information about the nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def shapes() -> list[Shape]:
    """The nodes of the connected Ray, and the types that its autoscaler may add. Call it on the head."""
    there = [
        Shape(node["NodeManagerHostname"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes_alive()
    ]
    return there + nodes_to_come(Path(os.path.expanduser(AUTOSCALER_FILE)))  # noqa: PTH111 -- Path's version raises an error if there is no home folder


def nodes_to_come(path: Path) -> list[Shape]:
    """The node types that an autoscaler may add. A type without `resources` counts as unlimited."""
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
    """The state of a cluster's head, updated by threads."""

    shapes: list[Shape]
    """The existing nodes, and the types that may be added."""
    leaving: Collection[str] = ()
    """Ids of nodes that get no new work because they will be taken away soon."""
    lost: ClusterError | None = None
    """The error if the head no longer answers."""

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        """The resources of each living node, by its id."""
        return {node["NodeID"]: node["Resources"] for node in nodes_alive()}


@contextlib.contextmanager
def watched(search: str) -> Iterator[WatchedHead]:
    """Watch the cluster's head with threads.

    Args:
        search: name of the search, for the message.
    """
    address, over, head = ray.get_runtime_context().gcs_address, threading.Event(), WatchedHead(shapes())
    listening = threading.Thread(target=_watch_head, args=(head, address, over, search), name="head", daemon=True)
    # in its own thread, because the call blocks if the head is dead
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
        with contextlib.suppress(Exception):  # the head is dead, which `_watch_head` reports
            head.leaving = tuple(state.get_draining_nodes())
            head.shapes = shapes()


@contextlib.contextmanager
def _own(workers: dict[str, dict[str, str]] | None, cpus: int | None) -> Iterator[None]:
    """Start our own Ray in its own folder. At the end, the folder and what is in it are removed."""
    check_limits(cpus)
    os.environ.pop(
        "RAY_gcs_rpc_server_reconnect_timeout_s", None
    )  # this process has read it already, and the daemons of our own Ray should end soon
    with ray_folder.private() as folder, _environment(RAY_TMPDIR=str(folder)), _token(folder):
        environment = _environment(**{LOOPBACK_ALONE: "0", "PYTHONSAFEPATH": "1"}, **dict.fromkeys(SHARED_METRICS))
        with environment, _loopback_alone(), native_stderr_hidden(), _ended_at_once(lambda: _remove(folder)):
            _start(workers, cpus, folder)
        yield


@contextlib.contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Set variables of this process, and of those that it starts inside the block. None removes a variable."""
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
    """Make sure that Ray finds a private token, in the usual place or in our folder. Others could read one that Ray makes."""
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
    """Keep Ray on 127.0.0.1 through its constant, because this process has read the variable already."""
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
    """Start Ray in a folder. If that fails, end the processes that Ray has started, because Ray leaves them running."""
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
    """Let signals end the program at once while Ray starts or is joined, which takes a minute on a busy machine; see `heard_at_once`."""
    theirs = utils.set_sigterm_handler
    with heard_at_once(clean) as heard:
        if heard:
            utils.set_sigterm_handler = lambda handler: None  # Ray's handler would end the program without a message
        try:
            yield
        finally:
            utils.set_sigterm_handler = theirs


def _remove(folder: Path) -> None:
    """End the processes of our own Ray and remove its folder."""
    ray_processes.end(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _job() -> JobConfig:
    """Job settings that keep the driver's folder off the workers' path, so that no numpy.py there is run. Ray adds it for other jobs."""
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
    """The first line of Ray's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
