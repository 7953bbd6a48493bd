"""The capabilities of this machine: number types, memory. They are measured, not assumed."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from typing import Any

import torch

from vit_search.config.gpu_share import fraction
from vit_search.config.trial import TrialConfig


def native_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16. A CPU that emulates it needs 5 to 7 times as long as for float32 (shared/VIT.md)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast_type(config: TrialConfig, device: torch.device) -> torch.dtype | None:
    """Type of matrix products under autocast; None for plain float32.

    A type that the search file names is used, fast or not. "auto" means bfloat16 if the hardware has it and the step is large enough to
    outweigh the casts. On a CPU with AVX512_BF16, bfloat16 was 0.6 to 0.9 times as fast as float32 at half of HALF_PAYS, 1.0 to 1.2
    times at HALF_PAYS, and up to 1.9 times beyond (tests/benchmarks/half_precision.py).
    """
    if config.training.precision != "auto":
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.training.precision]
    work = config.training.batch_size * config.model.tokens * config.model.dim**2
    return torch.bfloat16 if native_bfloat16(device) and (device.type == "cuda" or work >= HALF_PAYS) else None


HALF_PAYS = 2_000_000
"""Size of a step (images x tokens x width squared) from which bfloat16 is faster on a CPU that has it."""


def compiling_pays(device: torch.device) -> bool:
    """Whether torch.compile saves time. Not on a CPU: 0.94 to 1.03 times the speed, for 39 to 62 s per input shape (shared/VIT.md)."""
    return device.type == "cuda"


def limit_memory(share: float, cuda: Any = torch.cuda) -> None:
    """Limit the GPU memory of this process, so that it does not take memory of other trials on the same GPU.

    This replaces the limit of an earlier trial in the process, and frees memory that the trial left cached. Without a GPU, it does nothing.

    Args:
        share: part of the GPU; 1 or more means no limit, 0 does nothing.
        cuda: torch.cuda, or a replacement in tests.
    """
    if share and cuda.is_available():
        gc.collect()
        cuda.empty_cache()
        cuda.set_per_process_memory_fraction(fraction(share, cuda.get_device_properties(0).total_memory))


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take: of the GPU and its share of it; or of the machine, the container and the process limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = int(total * torch.cuda.get_per_process_memory_fraction(device.index))  # it needs a device with an index
        return max(0, min(free + torch.cuda.memory_reserved(device), share) - torch.cuda.memory_allocated(device))
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    bounds = [1024 * int(memory["MemAvailable"].split()[0])]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        bounds.append(limit - resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]))
    try:
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().rpartition("::/")[2].strip()
        bounds.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no cgroup v2, or no limit in it (`max`)
        pass
    return max(0, min(bounds))


def peak_memory(device: torch.device) -> int:
    """Peak of the device's allocator since the last reset; on a CPU, the peak resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


SHORTAGES = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)
"""Texts in errors of torch's allocator, oneDNN, C++, the CUDA driver and its libraries."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a memory allocation failed, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in SHORTAGES)
