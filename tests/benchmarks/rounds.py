"""Contenders timed in turns in one process, so that a machine whose speed drifts is unfair to nobody.

A round runs every contender once, in an order that rotates; a ratio is taken within a round; what is printed is the
median of the ratios with their quartiles. Differences below the quartiles' distance mean nothing.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch


def cpu_seconds() -> float:
    """Processor time of this process and of the children that it has waited for, in seconds."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def clock_of(device: torch.device) -> Callable[[], float]:
    """The clock that is fair on a device: processor time on a CPU, where neighbours come and go; wall time on a GPU."""
    if device.type != "cuda":
        return cpu_seconds

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = cpu_seconds, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, the warm-up left out."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        gc.collect()
        for name in names[turn:] + names[:turn]:
            began = clock()
            contenders[name]()
            if number >= 0:
                seconds[name].append(clock() - began)
            else:
                clock()
    return seconds


def ratios(seconds: Sequence[float], to: Sequence[float]) -> list[float]:
    """Speed of one contender against another, round by round: 2 is twice as fast."""
    return [theirs / ours for ours, theirs in zip(seconds, to, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with its quartiles: `1.08 (1.05 to 1.11)`."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table with columns of equal width, which is easy to read in a terminal and on the pages of docs/results."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def surroundings(device: torch.device, *peers: str) -> str:
    """One line: date, device, threads, and versions of torch and of the peers."""
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_processor()}, {torch.get_num_threads()} thread(s) of {os.cpu_count()}"
    )
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", *peers))
    return f"{time.strftime('%Y-%m-%d')}, {where}; {versions}"


def installed(package: str) -> bool:
    """Whether a peer can be measured here."""
    return _version(package) != "absent"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
