"""Asks Ray what the nodes of the cluster have, for gpu_sharing.py."""

from __future__ import annotations

import pynvml
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vit_search.config.search_file_blocks import Resources
from vit_search.errors import SearchError
from vit_search.search.gpu_sharing import Nodes

ANSWER_WITHIN_S = 120


def nodes_of(resources: Resources) -> Nodes:
    """What the nodes of the connected cluster have.

    Raises: SearchError if the memory of a GPU is needed but unknown.
    """
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]  # type: ignore[no-untyped-call]
    with_gpus = [node for node in alive if node["Resources"].get("GPU", 0) > 0]
    memory = resources.gpu_bytes
    if resources.gpus == "auto" and not memory:
        memory = min((_gpu_memory_of(node["NodeID"]) for node in with_gpus), default=0)
        if not memory:
            who = "a node does not tell what its GPUs have" if with_gpus else "no node with GPUs is up to be asked"
            raise SearchError(f"resources.gpu_memory: {who}; write it, e.g. gpu_memory: 80GiB.")
    return Nodes(
        gpu_memory=memory,
        gpus=sum(node["Resources"]["GPU"] for node in with_gpus),
        cores_per_gpu=min((node["Resources"]["CPU"] / node["Resources"]["GPU"] for node in with_gpus), default=0.0),
        cores=min((node["Resources"]["CPU"] for node in alive), default=1.0),
        count=max(1, len(alive)),
    )


def _gpu_memory_of(node: str) -> int:
    """Memory of a node's smallest GPU, in bytes; 0 if it is unknown."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    answer = ray.remote(_smallest_gpu).options(num_cpus=0, scheduling_strategy=there).remote()
    return int(ray.get(answer, timeout=ANSWER_WITHIN_S))


def _smallest_gpu() -> int:
    """The memory from NVML, which creates no CUDA context."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=0)
    except pynvml.NVMLError:
        return 0
