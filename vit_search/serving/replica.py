"""One replica, as Ray Serve runs it: a model on a device, behind its own listener.

A file says which version to serve. So a replica does not import MLflow, has no password of the registry, and survives its outages.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import threading
import time
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch

from vit_search.files import write_whole
from vit_search.serving.batching import Batcher
from vit_search.serving.endpoint import Endpoint, ReplicaStatus
from vit_search.serving.host_header import hosts_of
from vit_search.serving.loaded_model import LoadedModel, load
from vit_search.serving.metrics import Metrics, follower_text
from vit_search.serving.settings import TOKEN, ServingSettings
from vit_search.serving.state import STATE, ServingState, moment, read_state
from vit_search.text import last_line

_log = logging.getLogger(__name__)

CHECK_S = 0.2
"""Seconds between two readings of the state file."""
AGAIN_S = 60.0
"""Seconds before a replica tries a version again that it could not load, for example because a GPU was full."""


class Replica:
    """One model on one device behind one listener. Ray Serve makes it."""

    def __init__(self, settings: ServingSettings, port: int, run: str, threads: int) -> None:
        from ray import serve as ray_serve

        _keep_serve_on_loopback()
        torch.set_num_threads(threads)
        self._settings, self._port, self._run = settings, port, Path(run)
        self._name = ray_serve.get_replica_context().replica_id.unique_id
        self._metrics = Metrics(self._name)
        self._state = read_state(self._run / STATE)
        self._tried = self._state.version
        self._failure = ""
        """Why this replica could not load the version that the follower chose, or empty."""
        self._again = 0.0
        self._broken: BaseException | None = None
        model, began = self._load(self._state), threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(model, began), daemon=True, name="listen")
        self._thread.start()
        began.wait()
        self.check_health()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises an error."""
        if self._broken is not None or not self._thread.is_alive() or not self._batcher.alive:
            raise RuntimeError(f"the replica has stopped answering ({self._broken})")

    def _load(self, state: ServingState) -> LoadedModel:
        return load(state.version, device="cuda" if self._settings.gpus else "cpu", batch=self._settings.limits.batch)

    def _listen(self, model: LoadedModel, began: threading.Event) -> None:
        """Run the listener in its own event loop, apart from Ray's."""
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

    async def _answer(self, model: LoadedModel, began: threading.Event) -> None:
        from vit_search.serving import listener

        limits = self._settings.limits
        self._batcher = Batcher(model, asyncio.get_running_loop(), limits.batch, self._metrics.batches.observe)
        hosts = hosts_of(self._settings.host, self._settings.allow_hosts)
        endpoint = Endpoint(self._batcher, self._metrics, limits, os.environ.get(TOKEN, "").strip(), self._status, hosts)
        server = listener.server(endpoint, timeout_s=limits.timeout_s, held=endpoint.held)
        serving = asyncio.create_task(server.serve(sockets=[listener.bind(self._settings.host, self._port)]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        began.set()
        written = 0.0
        while not (self._state.draining or serving.done()):
            await asyncio.sleep(CHECK_S)
            await self._reload_if_changed()
            if time.monotonic() - written > 1:
                self._write_metrics()
                written = time.monotonic()
        server.should_exit = True
        await serving
        if self._state.draining:
            write_whole(self._run / f"drained-{self._name}", "")
            await asyncio.Event().wait()  # the driver ends this process

    async def _reload_if_changed(self) -> None:
        """Load the version that the follower has chosen, if it is new."""
        try:
            self._state = state = read_state(self._run / STATE)
        except (OSError, ValueError, TypeError):  # the driver is gone; this process will end soon, too
            return
        if state.version == self._tried and not (self._failure and time.monotonic() >= self._again):
            return
        self._tried = state.version
        try:
            self._batcher.model = await asyncio.to_thread(self._load, state)
        except Exception as error:
            self._failure, self._again = f"{state.version.name}: {last_line(error)}", time.monotonic() + AGAIN_S
            self._metrics.reload_failures.inc()
            _log.error("rejected: %s", self._failure)
        else:
            self._failure = ""
            self._metrics.reloads.inc()

    def _write_metrics(self) -> None:
        """Write a file for the other replicas' /metrics and /readyz."""
        model = self._batcher.model
        content = {"at": time.time(), "version": model.version, "metrics": self._metrics.text(model)}
        with contextlib.suppress(OSError):
            write_whole(self._run / f"replica-{self._name}.json", json.dumps(content))

    def _others(self) -> list[dict[str, Any]]:
        """What the other replicas have written in the last 10 seconds."""
        others = []
        for path in sorted(self._run.glob("replica-*.json")):
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(path.read_text())
                if path.name != f"replica-{self._name}.json" and time.time() - content["at"] < 10:
                    others.append(content)
        return others

    def _status(self) -> ReplicaStatus:
        state, model, others = self._state, self._batcher.model, self._others()
        model_facts = {"version": model.version, "weights_sha256": model.weights_sha256}
        return ReplicaStatus(
            ready={
                "ready": not state.draining,
                **model_facts,
                "alias": state.alias or None,
                "alias_names": state.alias_names,
                "alias_seen": moment(state.seen),
                "lag_s": round(time.time() - state.seen, 1),
                "stale_since": moment(state.stale_since),
                "not_taken": state.failed or self._failure or None,
                "replicas": sorted([model.version, *(other["version"] for other in others)]),
            },
            version={**model_facts, "vit_search": installed("vit_search"), "torch": torch.__version__, "ray": installed("ray")},
            others=[*(other["metrics"] for other in others), follower_text(state.failures, state.seen)],
            draining=state.draining,
        )


def _keep_serve_on_loopback() -> None:
    """Keep Ray Serve's gRPC ports on 127.0.0.1. Ray Serve 2.60 opens them on all interfaces, and they accept pickles."""
    replica: Any = importlib.import_module("ray.serve._private.replica")
    opened = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        return int(opened(server, address.replace("[::]", "127.0.0.1")))

    replica.add_port_to_grpc_server = on_loopback
