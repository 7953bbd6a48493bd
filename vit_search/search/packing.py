"""CPU cores and GPU share of a trial, from its predicted memory and from what the trials before it took.

Ray takes a share as a number: it places trials by it, and holds nobody to it. So each worker limits its own allocator to its share
(vit/machine.py); a trial that outgrows it is held, and goes on from its checkpoint with the next larger one. All that is learnt
follows from the ledger's events, and a resume knows it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pynvml
import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vit_search.errors import SearchError
from vit_search.ray_session import Shape
from vit_search.spec import shares
from vit_search.spec.search_file import Resources, SearchSpec
from vit_search.tracking.ledger import Event, Outgrown, Proposed, Reported

ENOUGH = 10
"""Trials of which a peak is known before the prediction is trusted to be too high; that it is too low is believed of the first."""

QUANTILE = 0.95
"""Share of the trials whose peaks the corrected prediction covers; the others outgrow their share, which costs them an epoch."""

LEAST, MOST = 0.5, 4.0
"""Bounds of the correction: trials to come may be unlike those that were seen, and one that a stranger left no room means nothing."""

NEWEST = 500
"""Trials that the correction follows from, at most."""

ANSWER_WITHIN_S = 120


@dataclass(frozen=True)
class Nodes:
    """What packing must know of a cluster."""

    gpu_memory: int
    """Bytes of its smallest GPU; 0 where none is asked for."""
    gpus: float
    """In all."""
    cores_per_gpu: float
    """Least of the nodes with GPUs; 0 where none is up."""
    cores: float
    """Of the node that has the fewest."""
    count: int
    """Nodes on which trials can run."""


@dataclass(frozen=True)
class Held:
    """What a trial asks for."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Of torch: its cores, so that the trials of a node have no more threads than it has cores."""
        return max(1, int(self.cpus))


class Packing:
    """What each trial of a search holds.

    Args:
        spec: of the search. channels, classes: of its images.
        images: bytes of the splits that a trial has on its GPU.
        nodes: of the cluster; must be known before `ask` where the file says auto. It may be changed, as may
            `concurrency` and `trials`.
    """

    def __init__(self, spec: SearchSpec, *, channels: int, classes: int, images: int, nodes: Nodes | None = None) -> None:
        self.nodes, self.concurrency, self.trials = nodes, spec.concurrency, spec.trials
        self._spec, self._channels, self._classes, self._images = spec, channels, classes, images
        self._needs: dict[int, shares.Need] = {}
        self._peaks: dict[int, tuple[int, float]] = {}
        """Of a trial: the most that it took of a GPU, or was too little for it, and its share then."""
        self._least: dict[int, float] = {}
        """Shares that trials were given for having outgrown smaller ones."""
        self._held: dict[int, Held] = {}
        self._graphs: set[int] = set()
        """Trials with CUDA graphs, whose memory is in no peak that torch reports."""

    def take(self, event: Event) -> None:
        """One more event of the ledger."""
        if self._spec.resources.gpus != "auto":
            return
        if isinstance(event, Proposed):
            config = self._spec.trial_config(event.params, in_channels=self._channels, num_classes=self._classes, trial=0)
            self._needs[event.trial] = shares.Need(shares.training_bytes(config.model, config.training), self._images)
            if config.training.cuda_graphs:
                self._graphs.add(event.trial)
        elif isinstance(event, Reported) and event.trial not in self._graphs:
            self._saw(event.trial, event.result.peak_memory_bytes, event.devices)
        elif isinstance(event, Outgrown):
            self._saw(event.trial, event.memory, event.gpus)
            self._least[event.trial] = shares.next_step(event.gpus) or 1.0

    @property
    def factor(self) -> float:
        """Peaks as they were found, as a multiple of the predicted ones: what covers most of the newest trials."""
        found = sorted(self._ratio(trial) for trial in list(self._peaks)[-NEWEST:])
        covers = found[math.ceil(QUANTILE * len(found)) - 1] if len(found) >= ENOUGH else max([1.0, *found])
        return min(MOST, max(LEAST, covers))

    def ask(self, trial: int) -> Held:
        """What a trial that is about to start is to hold."""
        told = self._spec.resources
        if told.gpus != "auto":
            gpus = told.gpus
        else:
            share = shares.share_of(self._needs[trial], self._known.gpu_memory, self.factor) or 1.0
            least = shares.spread(self._known.gpus, self.concurrency, self.trials)
            gpus = max(share, self._least.get(trial, 0.0), least)
        self._held[trial] = held = Held(told.cpus if told.cpus != "auto" else self._cores(gpus), gpus)
        return held

    def outgrown(self, trial: int, reason: str) -> Outgrown | None:
        """What the ledger is to know of a trial that did not fit into its share; None where it has a whole GPU."""
        gpus = self._held[trial].gpus
        return Outgrown(trial=trial, gpus=gpus, memory=shares.allowed(gpus, self._known.gpu_memory), reason=reason) if gpus < 1 else None

    def devices(self, trial: int) -> float:
        """GPUs or cores that a trial holds, for the ledger, where the file leaves them to us; else 0."""
        held = self._held[trial]
        return (held.gpus or held.cpus) if self._spec.resources.devices is None else 0.0

    def places(self, shapes: Iterable[Shape]) -> float:
        """How many trials like the last one find a place at the same time, on nodes that are there or may come."""
        held = next(reversed(self._held.values()), None)
        return sum((shape.count or 1) * _fit(shape, held) for shape in shapes) if held else 0

    def told(self, trial: int) -> dict[str, Any]:
        """What the worker of a trial is told of what it holds: `ask` comes first."""
        held, auto = self._held[trial], self._spec.resources.gpus == "auto"
        return {
            "resources": {"CPU": held.cpus, "GPU": held.gpus},
            "threads": held.threads,
            "decoders": max(1, held.threads - 1) if self._spec.resources.cpus == "auto" else None,
            "halves": not auto or held.gpus >= 1,
        }

    @property
    def _known(self) -> Nodes:
        assert self.nodes is not None, "the cluster is known before the first trial"
        return self.nodes

    def _saw(self, trial: int, peak: int, share: float) -> None:
        if peak > self._peaks.get(trial, (0, 0.0))[0]:
            self._peaks[trial] = peak, share

    def _ratio(self, trial: int) -> float:
        peak, share = self._peaks[trial]
        need = self._needs[trial]
        return max(0, peak - shares.resident(need.images, shares.allowed(share, self._known.gpu_memory))) / need.training

    def _cores(self, gpus: float) -> float:
        """Cores of a trial beside whom as many others run as its GPUs or the concurrency allow."""
        nodes = self._known
        if gpus:
            return math.floor(1e4 * nodes.cores_per_gpu * gpus) / 1e4 or 1.0  # Ray's smallest step
        return max(1.0, nodes.cores // math.ceil(self.concurrency / nodes.count))


def _fit(shape: Shape, held: Held) -> float:
    """Trials that a node holds; infinitely many where nobody knows how large it will be."""
    if math.inf in (shape.cpus, shape.gpus):
        return math.inf
    gpus = shape.gpus * math.floor(1 / held.gpus + 1e-9) if 0 < held.gpus < 1 else shape.gpus // held.gpus if held.gpus else math.inf
    return min(gpus, shape.cpus // held.cpus if held.cpus else math.inf)


def request(told: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Tune is to ask Ray for, from what a worker is told."""
    return tune.PlacementGroupFactory([dict(told["resources"])])


def nodes_of(resources: Resources) -> Nodes:
    """What the cluster that this process is connected to has.

    Raises: SearchError where it must be known how much memory a GPU has, and nobody says.
    """
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]  # type: ignore[no-untyped-call]
    with_gpus = [node for node in alive if node["Resources"].get("GPU", 0) > 0]
    memory = resources.gpu_bytes
    if resources.gpus == "auto" and not memory:
        memory = min((_asked(node["NodeID"]) for node in with_gpus), default=0)
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


def _asked(node: str) -> int:
    """Bytes of a node's smallest GPU; 0 where it does not tell."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    answer = ray.remote(_smallest_gpu).options(num_cpus=0, scheduling_strategy=there).remote()
    return int(ray.get(answer, timeout=ANSWER_WITHIN_S))


def _smallest_gpu() -> int:
    """Asked of the driver library, which makes no CUDA context."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=0)
    except pynvml.NVMLError:
        return 0
