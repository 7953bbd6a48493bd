"""Measures what a trial uses of its machine in each epoch, under the names of MLflow's system metrics."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import psutil
import pynvml

from vit_search.text import whole_number

EVERY_S = 1.0
"""Time between two measurements. Each costs the trial's own thread about 0.2 ms."""

MEGABYTE = 1e6


class Meter:
    """A context in which a thread measures this process and its GPU once a second."""

    def __init__(self) -> None:
        self._process, self._gpu = psutil.Process(), _gpu()
        self._process.cpu_percent()  # the first call returns 0; later ones count from the call before
        self._sums: dict[str, float] = {}
        self._looks = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Meter:
        threading.Thread(target=self._watch, name="usage", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def read(self) -> dict[str, float]:
        """The means since the last call: use of the machine's CPU, this process's CPU and the GPU in percent, and memory in megabytes."""
        with self._lock:
            if not self._looks:  # the epoch took less than a second
                self._read_meters()
            means = {name: value / self._looks for name, value in self._sums.items()}
            self._sums, self._looks = {}, 0
        return means

    def _read_meters(self) -> None:
        memory = psutil.virtual_memory()
        readings = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_cpu_percentage": self._process.cpu_percent(),
            "system/process_memory_megabytes": self._process.memory_info().rss / MEGABYTE,
        }
        if self._gpu is not None:
            with contextlib.suppress(pynvml.NVMLError):
                held = pynvml.nvmlDeviceGetMemoryInfo(self._gpu)
                readings |= {
                    "system/gpu_0_utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu),
                    "system/gpu_0_memory_usage_megabytes": held.used / MEGABYTE,
                    "system/gpu_0_memory_usage_percentage": 100 * held.used / held.total,
                }
        self._looks += 1
        for name, value in readings.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            with self._lock:
                self._read_meters()


def _gpu() -> Any:
    """NVML's handle of the one GPU that Ray gives to this process; None if there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        if (index := whole_number(visible)) is not None:
            return pynvml.nvmlDeviceGetHandleByIndex(index)
        return pynvml.nvmlDeviceGetHandleByUUID(visible) if visible else None
    return None
