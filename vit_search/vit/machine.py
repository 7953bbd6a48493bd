"""What this machine can do, probed and not assumed."""

from __future__ import annotations

import os
import resource

import torch

from vit_search.spec.config import TrainingConfig


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is calculated in hardware. A CPU without it takes 5 to 7 times as long as in float32 (shared/VIT.md)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast_type(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """Type of matrix products under autocast, or None for plain float32.

    What a file asks for by name it gets, slow or not; "auto" is bfloat16 where it is native.
    """
    if config.precision == "auto":
        return torch.bfloat16 if native_bfloat16(device) else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.precision]


def compiling_pays(device: torch.device) -> bool:
    """Whether torch.compile is worth its time: not on a CPU, 0.94 to 1.03 times the speed for 39 to 62 s a shape (shared/VIT.md)."""
    return device.type == "cuda"


def free_bytes(device: torch.device) -> int:
    """Memory that nobody has taken yet."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def peak_memory(device: torch.device) -> int:
    """Peak of the device's allocator since the last reset; the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on whichever device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
