"""What this machine can do, probed and not assumed."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from typing import Any

import torch

from vit_search.config.gpu_share import fraction
from vit_search.config.trial import TrialConfig


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is calculated in hardware. A CPU without it takes 5 to 7 times as long as in float32 (shared/VIT.md)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast_type(config: TrialConfig, device: torch.device) -> torch.dtype | None:
    """Type of matrix products under autocast, or None for plain float32.

    What a file asks for by name it gets, slow or not; "auto" is bfloat16 where it is native and the step is large enough to
    pay for the casts. On a CPU with AVX512_BF16 a step took 0.6 to 0.9 times as long at half of HALF_PAYS, 1.0 to 1.2 at it,
    and up to 1.9 times beyond (tests/benchmarks/half_precision.py).
    """
    if config.training.precision != "auto":
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.training.precision]
    work = config.training.batch_size * config.model.tokens * config.model.dim**2
    return torch.bfloat16 if native_bfloat16(device) and (device.type == "cuda" or work >= HALF_PAYS) else None


HALF_PAYS = 2_000_000
"""Images times tokens times width squared of a step from which bfloat16 is faster on a CPU that has it."""


def compiling_pays(device: torch.device) -> bool:
    """Whether torch.compile is worth its time: not on a CPU, 0.94 to 1.03 times the speed for 39 to 62 s a shape (shared/VIT.md)."""
    return device.type == "cuda"


def limit_memory(share: float, cuda: Any = torch.cuda) -> None:
    """Have this process's allocator hold no more of its GPU than a share of one allows, so that no neighbour is pushed out.

    It undoes what an earlier trial of the process was allowed, and gives back what that left behind. Nothing without a GPU.

    Args:
        share: of the GPU; 1 or more for no limit.
        cuda: torch.cuda, or what a test puts in its place.
    """
    if share and cuda.is_available():
        gc.collect()
        cuda.empty_cache()
        cuda.set_per_process_memory_fraction(fraction(share, cuda.get_device_properties(0).total_memory))


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take: of the GPU and its own share of it, or of the machine, its container and the own limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = int(total * torch.cuda.get_per_process_memory_fraction(device.index))  # it refuses a device without an index
        return max(0, min(free + torch.cuda.memory_reserved(device), share) - torch.cuda.memory_allocated(device))
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    bounds = [1024 * int(memory["MemAvailable"].split()[0])]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        bounds.append(limit - resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]))
    try:
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().rpartition("::/")[2].strip()
        bounds.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no cgroup of version 2, or no limit in it: `max`
        pass
    return max(0, min(bounds))


def peak_memory(device: torch.device) -> int:
    """Peak of the device's allocator since the last reset; the process's peak resident size on a CPU."""
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
"""Words of torch's own allocator, of oneDNN's, of C++'s, and of the CUDA driver's and its libraries' beside that allocator."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on whichever device."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in SHORTAGES)
