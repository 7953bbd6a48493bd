"""Chooses ports for the agents of our own Ray.

Otherwise the agents choose their ports themselves, and Ray's raylet ends if that takes more than 15 s, whatever its settings say
(ray#65983). Each agent first imports half of Ray, which takes longer on a busy machine. The raylet does not wait for a port that is given.
"""

from __future__ import annotations

import contextlib
import functools
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

from ray._private import parameter, ray_constants, services

AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""Parameters of a node, which `ray start` has and `ray.init` does not."""

LISTEN = "dashboard_agent_listen_port"
"""The parameter that Ray 2.60 does not pass to its raylet, although the raylet has this option."""

CHOICES = range(20_000, 32_768)
"""Ports below those that Linux gives to outgoing connections. So no connection takes a port before its agent does."""


@contextlib.contextmanager
def chosen() -> Iterator[None]:
    """Inside this block, a node that this process starts gets ports for its agents from us.

    Raises: OSError if no ports are free.
    """
    ports = dict(zip(AGENTS, free(len(AGENTS)), strict=True))
    params, start = parameter.RayParams, services.start_ray_process
    parameter.RayParams = functools.partial(_params, params, ports)  # type: ignore[misc, assignment]
    services.start_ray_process = functools.partial(_start_process, start, ports)
    try:
        yield
    finally:
        parameter.RayParams, services.start_ray_process = params, start  # type: ignore[misc]


def _params(kind: Callable[..., Any], ports: dict[str, int], *args: Any, **kwargs: Any) -> Any:
    return kind(*args, **(kwargs | ports))


def _start_process(start: Callable[..., Any], ports: dict[str, int], command: list[str], kind: str, *args: Any, **kwargs: Any) -> Any:
    if kind == ray_constants.PROCESS_TYPE_RAYLET:
        command = [*command, f"--{LISTEN}={ports[LISTEN]}"]
    return start(command, kind, *args, **kwargs)


def free(count: int) -> list[int]:
    """Free ports of 127.0.0.1, chosen at random because another search may start at the same moment."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(CHOICES, len(CHOICES)):
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"fewer than {count} ports between {CHOICES.start} and {CHOICES.stop - 1} are free")
