"""CPU cores and GPU share of a trial, from its predicted memory and from what the trials before it took.

Ray takes a share as a number: it places trials by it, and holds nobody to it. So each worker limits its own allocator to its share
(runtime/machine.py); a trial that outgrows it is held, and goes on from its checkpoint with the next larger one. All that is learnt
follows from the ledger's events, and a resume knows it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_search.config import gpu_share
from vit_search.config.search_file import SearchSpec
from vit_search.ledger.events import Event, OutgrewShare, Proposed, Reported
from vit_search.search.commands import Commands

if TYPE_CHECKING:
    from vit_search.runtime.ray_session import Shape

ENOUGH = 10
"""Trials of which a peak is known before the prediction is trusted to be too high; that it is too low is believed of the first."""

QUANTILE = 0.95
"""Share of the trials whose peaks the corrected prediction covers; the others outgrow their share, which costs them an epoch."""

LEAST, MOST = 0.5, 4.0
"""Bounds of the correction: trials to come may be unlike those that were seen, and one that a stranger left no room means nothing."""

NEWEST = 500
"""Trials that the correction follows from, at most."""


@dataclass(frozen=True)
class Nodes:
    """What must be known of a cluster to share its GPUs."""

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
class Devices:
    """What a trial holds."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Of torch: its cores, so that the trials of a node have no more threads than it has cores."""
        return max(1, int(self.cpus))


class GpuSharing:
    """What each trial of a search holds, from the moment of its proposal on.

    Args:
        spec: of the search. commands: have its settings; they take in an event before this does.
        channels, classes: of its images. images: bytes of the splits that a trial has on its GPU.
        nodes: of the cluster; must be known where the file says auto and a trial is to be run.
    """

    def __init__(self, spec: SearchSpec, commands: Commands, *, channels: int, classes: int, images: int, nodes: Nodes | None) -> None:
        self._spec, self._commands, self._nodes = spec, commands, nodes
        self._channels, self._classes, self._images = channels, classes, images
        self._needs: dict[int, gpu_share.Need] = {}
        self._peaks: dict[int, tuple[int, float]] = {}
        """Of a trial: the most that it took of a GPU, or was too little for it, and its share then."""
        self._devices: dict[int, Devices] = {}
        self._graphs: set[int] = set()
        """Trials with CUDA graphs, whose memory is in no peak that torch reports."""

    def apply(self, event: Event) -> None:
        """Take in one more event."""
        if isinstance(event, Proposed):
            self._apply_proposal(event)
        elif isinstance(event, OutgrewShare) and event.trial in self._devices:
            self._apply_peak(event.trial, event.memory, event.gpus)
            self._devices[event.trial] = self._with_cores(max(gpu_share.next_step(event.gpus) or 1.0, self._devices[event.trial].gpus))
        elif isinstance(event, Reported) and self.shares and event.trial not in self._graphs:
            self._apply_peak(event.trial, event.result.peak_memory_bytes, event.devices)

    @property
    def shares(self) -> bool:
        """Whether trials share GPUs by their memory."""
        return self._spec.resources.gpus == "auto"

    @property
    def factor(self) -> float:
        """Peaks as they were found, as a multiple of the predicted ones: what covers most of the newest trials."""
        ratios = sorted(self._ratio(trial) for trial in list(self._peaks)[-NEWEST:])
        covers = ratios[math.ceil(QUANTILE * len(ratios)) - 1] if len(ratios) >= ENOUGH else max([1.0, *ratios])
        return min(MOST, max(LEAST, covers))

    def devices(self, trial: int) -> Devices:
        """What a trial holds."""
        return self._devices[trial]

    def halves(self, trial: int) -> bool:
        """Whether a lack of memory halves a trial's micro-batch; else it gets a larger share of a GPU."""
        return not self.shares or self._devices[trial].gpus >= 1

    def decoders(self, trial: int) -> int | None:
        """Processes that decode a trial's images, where the file leaves its cores to us."""
        return max(1, self._devices[trial].threads - 1) if self._spec.resources.cpus == "auto" else None

    def allowed_bytes(self, trial: int) -> int:
        """Of GPU memory."""
        return gpu_share.allowed(self._devices[trial].gpus, self._known.gpu_memory)

    def reported_devices(self, trial: int) -> float:
        """GPUs or cores that a trial holds, for the ledger, where the file leaves them to us; else 0."""
        devices = self._devices[trial]
        return (devices.gpus or devices.cpus) if self._spec.resources.devices is None else 0.0

    def slots(self, shapes: Iterable[Shape]) -> float:
        """How many trials like the last one run at the same time, on nodes that are there or may come."""
        devices = next(reversed(self._devices.values()), None)
        return sum((shape.count or 1) * _fit(shape, devices) for shape in shapes) if devices else 0

    def _apply_proposal(self, event: Proposed) -> None:
        resources = self._spec.resources
        if resources.gpus != "auto":
            self._devices[event.trial] = self._with_cores(resources.gpus)
            return
        config = self._spec.trial_config(event.params, in_channels=self._channels, num_classes=self._classes, trial=0)
        need = self._needs[event.trial] = gpu_share.Need(gpu_share.training_bytes(config.model, config.training), self._images)
        if config.training.cuda_graphs:
            self._graphs.add(event.trial)
        if self._nodes is not None:  # else the search is looked at, and nothing is run
            settings = self._commands.settings
            share = gpu_share.share_of(need, self._nodes.gpu_memory, self.factor) or 1.0
            self._devices[event.trial] = self._with_cores(
                max(share, gpu_share.spread(self._nodes.gpus, settings.concurrency, settings.trials))
            )

    def _apply_peak(self, trial: int, peak: int, share: float) -> None:
        if peak > self._peaks.get(trial, (0, 0.0))[0]:
            self._peaks[trial] = peak, share

    @property
    def _known(self) -> Nodes:
        assert self._nodes is not None, "the cluster is known before the first trial"
        return self._nodes

    def _ratio(self, trial: int) -> float:
        peak, share = self._peaks[trial]
        need = self._needs[trial]
        return max(0, peak - gpu_share.resident(need.images, gpu_share.allowed(share, self._known.gpu_memory))) / need.training

    def _with_cores(self, gpus: float) -> Devices:
        """Cores of a trial beside whom as many others run as its GPUs or the concurrency allow."""
        if self._spec.resources.cpus != "auto":
            return Devices(self._spec.resources.cpus, gpus)
        if self._nodes is None:
            return Devices(1.0, gpus)
        if gpus:
            return Devices(math.floor(1e4 * self._nodes.cores_per_gpu * gpus) / 1e4 or 1.0, gpus)  # Ray's smallest step
        return Devices(max(1.0, self._nodes.cores // math.ceil(self._commands.settings.concurrency / self._nodes.count)), gpus)


def _fit(shape: Shape, devices: Devices) -> float:
    """Trials that a node holds; infinitely many where nobody knows how large it will be."""
    if math.inf in (shape.cpus, shape.gpus):
        return math.inf
    gpus, cpus = devices.gpus, devices.cpus
    on_gpus = shape.gpus * math.floor(1 / gpus + 1e-9) if 0 < gpus < 1 else shape.gpus // gpus if gpus else math.inf
    return min(on_gpus, shape.cpus // cpus if cpus else math.inf)
