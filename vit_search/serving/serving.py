"""A Ray Serve application that answers with the model that a registry's alias names, and follows the alias.

Ray Serve starts the replicas, watches over them and replaces one that dies. Each replica listens on the port by itself (the
kernel spreads connections over them): Serve's own proxy costs more than the classifying (tests/benchmarks/serving.py).
The process that was asked to serve follows the registry (serving/alias_follower.py) and writes what to serve into a file; the
replicas read it, so a replica imports no MLflow, holds no registry's password, and outlives a registry that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch

from vit_search.data.cache import default_cache
from vit_search.errors import ServingError
from vit_search.files import write_whole
from vit_search.registry import references
from vit_search.runtime.pickles import REFUSED
from vit_search.runtime.signals import ending_signals, leave_terminal
from vit_search.runtime.worker_env import WORKER_ENV
from vit_search.serving.endpoint import Batcher, Endpoint, Limits, Loaded, Metrics, Told, load
from vit_search.serving.host_header import hosts_of
from vit_search.serving.state import State, moment, read_state

_log = logging.getLogger(__name__)

TOKEN = "VIT_SEARCH_SERVE_TOKEN"  # noqa: S105 -- the variable's name
APPLICATION = "vit_search"
STATE = "state.json"
LOOK_S = 0.2
"""Between a replica's looks at the state file."""
AGAIN_S = 60.0
"""Until a replica tries once more what the follower took and it could not: a GPU that was full, say."""

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(8 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20), "MALLOC_TOP_PAD_": str(2**17)}
"""Makes glibc return the memory of a large image, which Pillow keeps in pieces of 16 MiB, once it is answered."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for a free one."""
    replicas: int = 1
    gpus: bool = False
    allow_hosts: tuple[str, ...] = ()
    """Further names by which requests may call the server; see host_header.py."""
    limits: Limits = field(default_factory=Limits)
    poll_s: float = 2.0
    """Between looks at the registry."""


def serve(model: str, settings: Settings, *, tracking_uri: str | None = None, say: Callable[[str], None] = lambda line: None) -> None:
    """Serve a registered model until SIGINT, SIGTERM or the loss of the terminal, and end when what had begun is answered.

    Args:
        model: as references.py reads it; an alias is followed.
        say: given a line whenever something is to be told.
    Raises: ServingError; TrackingError when the registry is away and the cache holds no version to start with.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and not _loopback(settings.host):
        raise ServingError(f"--host {settings.host}: others can reach it; set {TOKEN} to a secret that they must know, or drop --host.")
    _check_hosts(settings)
    if settings.gpus and not torch.cuda.is_available():
        raise ServingError("--gpus: torch finds no GPU on this machine; drop it.")
    from vit_search.runtime.ray_session import session  # before Ray Serve: it makes Ray's settings

    try:
        import uvicorn  # noqa: F401 -- what the extra brings
        from ray import serve as ray_serve
    except ImportError as error:
        raise ServingError(f"Ray Serve is not installed ({error}); pip install 'vit_search[serve]'") from None
    from vit_search.serving import alias_follower

    trained = references.folder_of(model)
    if trained is None:
        references.parse(model)  # a misspelt one is told before Ray is imported
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals(stop))
        port = stack.enter_context(_reserved(settings.host, settings.port))
        run = Path(tempfile.mkdtemp(prefix="vit_search-serve-"))
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        follower = (
            alias_follower.Fixed(trained, run / STATE, say)
            if trained
            else alias_follower.Follower(references.parse(model), tracking_uri, run / STATE, default_cache(), say)
        )
        torch.set_num_threads(1)  # this process tries models while the replicas answer
        state = follower.start()
        stack.enter_context(session(cpus=settings.replicas))
        stack.enter_context(_signals(stop))  # again: Ray has put a handler of its own in their place
        threads = max(1, (os.cpu_count() or 1) // settings.replicas)
        replica = ray_serve.deployment(
            num_replicas=settings.replicas,
            ray_actor_options={
                "num_cpus": 1,
                "num_gpus": min(1.0, torch.cuda.device_count() / settings.replicas) if settings.gpus else 0,
                "runtime_env": {"env_vars": WORKER_ENV | GIVES_BACK | REFUSED | {"OMP_NUM_THREADS": str(threads)}},
            },
            health_check_period_s=2,
        )(Replica)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
            ray_serve.run(replica.bind(settings, port, str(run), threads), name=APPLICATION, route_prefix=None)
        except Exception as error:
            raise ServingError(f"{model}: no replica started ({_last_line(error)})") from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        say(f"serving {state.version.name} on http://{host}:{port}")

        def follow() -> None:
            while not stop.wait(settings.poll_s):
                try:
                    follower.poll()
                except OSError as error:  # a full disk, say; at the end, the folder is gone
                    if not stop.is_set():
                        say(f"the registry cannot be followed ({error}); tried again")

        threading.Thread(target=follow, daemon=True).start()
        stop.wait()
        follower.drain()
        _wait_for_drained(run, settings)


class Replica:
    """What Ray Serve runs: one model on one device behind one listener."""

    def __init__(self, settings: Settings, port: int, run: str, threads: int) -> None:
        from ray import serve as ray_serve

        _keep_serve_on_loopback()
        torch.set_num_threads(threads)
        self._settings, self._port, self._run = settings, port, Path(run)
        self._name = ray_serve.get_replica_context().replica_id.unique_id
        self._metrics = Metrics(self._name)
        self._state = read_state(self._run / STATE)
        self._tried = self._state.version
        self._failure = ""
        """Why the version that the follower chose was not taken here."""
        self._again = 0.0
        self._broken: BaseException | None = None
        model, began = self._load(self._state), threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(model, began), daemon=True, name="listen")
        self._thread.start()
        began.wait()
        self.check_health()

    def check_health(self) -> None:
        """Ray Serve asks, and replaces a replica that raises."""
        if self._broken is not None or not self._thread.is_alive() or not self._batcher.alive:
            raise RuntimeError(f"the replica has stopped answering ({self._broken})")

    def _load(self, state: State) -> Loaded:
        return load(state.version, device="cuda" if self._settings.gpus else "cpu", batch=self._settings.limits.batch)

    def _listen(self, model: Loaded, began: threading.Event) -> None:
        """An event loop of its own, apart from those of Ray."""
        from vit_search.serving import listener

        try:
            loop = listener.event_loop()
            asyncio.set_event_loop(loop)
            loop.run_until_complete(self._answer(model, began))
        except BaseException as error:
            self._broken = error
            _log.exception("the listener has ended")
        finally:
            began.set()

    async def _answer(self, model: Loaded, began: threading.Event) -> None:
        from vit_search.serving import listener

        limits = self._settings.limits
        self._batcher = Batcher(model, asyncio.get_running_loop(), limits.batch, self._metrics.batches.add)
        hosts = hosts_of(self._settings.host, self._settings.allow_hosts)
        endpoint = Endpoint(self._batcher, self._metrics, limits, os.environ.get(TOKEN, "").strip(), self._tell, hosts)
        server = listener.server(endpoint, timeout_s=limits.timeout_s, held=endpoint.held)
        serving = asyncio.create_task(server.serve(sockets=[listener.bind(self._settings.host, self._port)]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        began.set()
        written = 0.0
        while not (self._state.draining or serving.done()):
            await asyncio.sleep(LOOK_S)
            await self._look()
            if time.monotonic() - written > 1:
                self._write()
                written = time.monotonic()
        server.should_exit = True
        await serving
        if self._state.draining:
            write_whole(self._run / f"drained-{self._name}", "")
            await asyncio.Event().wait()  # the driver ends this process

    async def _look(self) -> None:
        """Take what the follower has chosen."""
        try:
            self._state = state = read_state(self._run / STATE)
        except (OSError, ValueError, TypeError):  # the driver is gone; its end is ours
            return
        if state.version == self._tried and not (self._failure and time.monotonic() >= self._again):
            return
        self._tried = state.version
        try:
            self._batcher.model = await asyncio.to_thread(self._load, state)
        except Exception as error:
            self._failure, self._again = f"{state.version.name}: {_last_line(error)}", time.monotonic() + AGAIN_S
            self._metrics.reload_failures += 1
            _log.error("not taken: %s", self._failure)
        else:
            self._failure = ""
            self._metrics.reloads += 1

    def _write(self) -> None:
        """For the other replicas' /metrics and /readyz."""
        model = self._batcher.model
        told = {"at": time.time(), "version": model.version, "samples": self._metrics.samples(model)}
        with contextlib.suppress(OSError):
            write_whole(self._run / f"replica-{self._name}.json", json.dumps(told))

    def _others(self) -> list[dict[str, Any]]:
        """What the other replicas have written, at most a few seconds ago."""
        found = []
        for path in sorted(self._run.glob("replica-*.json")):
            with contextlib.suppress(OSError, ValueError):
                told = json.loads(path.read_text())
                if path.name != f"replica-{self._name}.json" and time.time() - told["at"] < 10:
                    found.append(told)
        return found

    def _tell(self) -> Told:
        state, model, others = self._state, self._batcher.model, self._others()
        follower = 'replica="follower"'
        told = {"version": model.version, "weights_sha256": model.weights_sha256}
        return Told(
            ready={
                "ready": not state.draining,
                **told,
                "alias": state.alias or None,
                "alias_names": state.alias_names,
                "alias_seen": moment(state.seen),
                "lag_s": round(time.time() - state.seen, 1),
                "stale_since": moment(state.stale_since),
                "not_taken": state.failed or self._failure or None,
                "replicas": sorted([model.version, *(other["version"] for other in others)]),
            },
            version={**told, "vit_search": installed("vit_search"), "torch": torch.__version__, "ray": installed("ray")},
            others=[
                *(other["samples"] for other in others),
                {
                    "reload_failures_total": [f"vit_search_reload_failures_total{{{follower}}} {state.failures}"],
                    "alias_seen_timestamp_seconds": [f"vit_search_alias_seen_timestamp_seconds{{{follower}}} {state.seen:.3f}"],
                },
            ],
            draining=state.draining,
        )


def _keep_serve_on_loopback() -> None:
    """Ray Serve 2.60 opens a gRPC port of each replica on all interfaces, whatever the node's address; it takes pickles."""
    replica: Any = importlib.import_module("ray.serve._private.replica")
    opened = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        return int(opened(server, address.replace("[::]", "127.0.0.1")))

    replica.add_port_to_grpc_server = on_loopback


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT, SIGTERM and a lost terminal set the event; the second SIGINT ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            leave_terminal()
        stop.set()

    before = {number: signal.signal(number, handle) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """A free port, held so that the replicas can share it and nobody else takes it.

    Raises: ServingError.
    """
    from vit_search.serving import listener

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as alone:  # who shares a port must ask for it: this one does not
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            port = alone.getsockname()[1]
        held = listener.bind(host, port)
    except OSError as error:
        raise ServingError(f"{host}:{port}: cannot be listened on ({error.strerror or error}); choose another --port or --host.") from None
    with held:
        yield port


def _wait_for_drained(run: Path, settings: Settings) -> None:
    end = time.monotonic() + settings.limits.timeout_s + 2
    while len(list(run.glob("drained-*"))) < settings.replicas and time.monotonic() < end:
        time.sleep(0.05)


def _check_hosts(settings: Settings) -> None:
    """Raises: ServingError for an --allow-host that is no name. A --host that is none is told when its port is taken."""
    with contextlib.suppress(OSError):
        hosts_of(settings.host, settings.allow_hosts)


def _loopback(host: str) -> bool:
    """Whether an address is one that this machine alone can reach."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
