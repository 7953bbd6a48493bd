"""Starts the server as a Ray Serve application, follows the alias of the model, and stops the server.

Ray Serve starts the replicas and replaces one that dies. Each replica listens on the port itself, and the kernel spreads connections
over them, because Serve's own proxy costs more than the classification (tests/benchmarks/serving.py).

The process that runs `serve` follows the registry (serving/alias_follower.py) and writes the version to serve into a file, which the
replicas read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vit_search.data.cache_folder import default_cache
from vit_search.errors import ServingError
from vit_search.registry import references
from vit_search.runtime.pickles import REFUSED
from vit_search.runtime.signals import ending_signals, leave_terminal
from vit_search.runtime.worker_env import WORKER_ENV
from vit_search.serving.host_header import hosts_of
from vit_search.serving.settings import TOKEN, ServingSettings
from vit_search.serving.state import STATE
from vit_search.text import last_line

APPLICATION = "vit_search"
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(8 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20), "MALLOC_TOP_PAD_": str(2**17)}
"""Settings that make glibc return the memory of a large image after the answer. Pillow keeps such images in pieces of 16 MiB."""


def serve(
    model: str, settings: ServingSettings, *, tracking_uri: str | None = None, say: Callable[[str], None] = lambda line: None
) -> None:
    """Serve a model until SIGINT, SIGTERM or the loss of the terminal. Returns when all requests that had begun are answered.

    Args:
        model: a reference as in references.py. An alias is followed.
        say: called with each line for the user.
    Raises: ServingError; TrackingError if the registry is away and the cache has no version to start with.
    """
    _check(settings)
    from vit_search.runtime.ray_session import session  # before Ray Serve: this module makes Ray's settings

    _check_installed()
    from vit_search.serving import alias_follower

    trained = references.folder_of(model)
    if trained is None:
        references.parse(model)  # report a misspelt name before Ray is imported
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        port = stack.enter_context(_reserved(settings.host, settings.port))
        run = Path(tempfile.mkdtemp(prefix="vit_search-serve-"))
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        follower = (
            alias_follower.FixedModel(trained, run / STATE, say)
            if trained
            else alias_follower.AliasFollower(references.parse(model), tracking_uri, run / STATE, default_cache(), say)
        )
        torch.set_num_threads(1)  # this process tests models while the replicas answer
        state = follower.start()
        stack.enter_context(session(cpus=settings.replicas))
        stack.enter_context(stop_on_signals(stop))  # again, because Ray has replaced the handlers
        try:
            _start_replicas(settings, port, run)
        except Exception as error:
            raise ServingError(f"{model}: no replica started ({last_line(error)})") from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        say(f"serving {state.version.name} on http://{host}:{port}")

        def follow() -> None:
            while not stop.wait(settings.poll_s):
                try:
                    follower.poll()
                except OSError as error:  # for example a full disk; at the end, the folder is gone
                    if not stop.is_set():
                        say(f"the registry cannot be followed ({error}); tried again")

        threading.Thread(target=follow, daemon=True).start()
        stop.wait()
        follower.drain()
        _wait_for_drained(run, settings)


def _check(settings: ServingSettings) -> None:
    """Check the settings.

    Raises: ServingError if they cannot work.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and not _loopback(settings.host):
        raise ServingError(f"--host {settings.host}: others can reach it; set {TOKEN} to a secret that they must know, or drop --host.")
    with contextlib.suppress(OSError):  # an invalid --host is reported when its port is reserved
        hosts_of(settings.host, settings.allow_hosts)
    if settings.gpus and not torch.cuda.is_available():
        raise ServingError("--gpus: torch finds no GPU on this machine; drop it.")


def _check_installed() -> None:
    """Check that the extra `serve` is installed.

    Raises: ServingError if it is not.
    """
    try:
        import prometheus_client  # noqa: F401 -- comes with the extra
        import uvicorn  # noqa: F401
        from ray import serve as _  # noqa: F401
    except ImportError as error:
        raise ServingError(f"Ray Serve is not installed ({error}); pip install 'vit_search[serve]'") from None


def _start_replicas(settings: ServingSettings, port: int, run: Path) -> None:
    """Start the replicas, and wait until they answer."""
    from ray import serve as ray_serve

    from vit_search.serving.replica import Replica  # needs the extra `serve`

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
    ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
    ray_serve.run(replica.bind(settings, port, str(run), threads), name=APPLICATION, route_prefix=None)


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set the event at SIGINT, SIGTERM or a lost terminal. A second SIGINT ends the process at once."""
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
    """Reserve a free port. The replicas can share it, and no other account can take it.

    Raises: ServingError.
    """
    from vit_search.serving import listener

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(
            family, kind, protocol
        ) as alone:  # bind without sharing first: this fails if another server already has the port
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            port = alone.getsockname()[1]
        held = listener.bind(host, port)
    except OSError as error:
        raise ServingError(f"{host}:{port}: cannot be listened on ({error.strerror or error}); choose another --port or --host.") from None
    with held:
        yield port


def _wait_for_drained(run: Path, settings: ServingSettings) -> None:
    end = time.monotonic() + settings.limits.timeout_s + 2
    while len(list(run.glob("drained-*"))) < settings.replicas and time.monotonic() < end:
        time.sleep(0.05)


def _loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)
