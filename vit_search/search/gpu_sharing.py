"""The CPU cores and the GPU share of each trial.

The share follows from the trial's predicted memory and from the peaks of earlier trials. Ray uses a share only to place trials; it does not
enforce it. So each worker limits its own allocator to its share (runtime/machine.py). A trial that needs more is held, and continues from
its checkpoint with the next larger share. Everything learnt here follows from the ledger's events, so a resume knows it, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_search.config import features, gpu_share
from vit_search.config.search_file import SearchSpec
from vit_search.ledger.events import Event, OutgrewShare, Proposed, Reported
from vit_search.search.commands import Commands

if TYPE_CHECKING:
    from vit_search.runtime.ray_session import Shape

ENOUGH = 10
"""Known peaks from which on the prediction may be corrected downwards. Upwards it is corrected from the first one."""

QUANTILE = 0.95
"""Share of the trials whose peaks the corrected prediction covers. Each of the others outgrows its share, which costs it one epoch."""

LEAST, MOST = 0.5, 4.0
"""Bounds of the correction factor.

Later trials may differ from those seen, and a peak is misleading if another program used the GPU.
"""

NEWEST = 500
"""The most trials that the correction uses, the newest ones."""


@dataclass(frozen=True)
class Nodes:
    """What GPU sharing needs to know about a cluster."""

    gpu_memory: int
    """Memory of its smallest GPU, in bytes; 0 if no trial uses GPUs."""
    gpus: float
    """In the whole cluster."""
    cores_per_gpu: float
    """The smallest of any node with GPUs; 0 if none is up."""
    cores: float
    """CPU cores of the node that has the fewest."""
    count: int
    """Number of nodes that can run trials."""


@dataclass(frozen=True)
class Devices:
    """The CPU cores and GPUs of a trial."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Threads for torch: one per core, so the trials of a node have no more threads than it has cores."""
        return max(1, int(self.cpus))


class GpuSharing:
    """Decides how many cores and what share of a GPU each trial gets, from its proposal on.

    Args:
        spec: of the search.
        commands: the current settings. It must apply an event before this object does.
        channels, classes: of the images. images: bytes of the splits that a trial keeps on its GPU. count: images in these splits.
        nodes: of the cluster; needed if trials run and the search file has `auto` devices.
    """

    def __init__(
        self, spec: SearchSpec, commands: Commands, *, channels: int, classes: int, images: int, nodes: Nodes | None, count: int = 0
    ) -> None:
        self._spec, self._commands, self._nodes = spec, commands, nodes
        self._channels, self._classes, self._images, self._count = channels, classes, images, count
        self._needs: dict[int, gpu_share.Need] = {}
        self._peaks: dict[int, tuple[int, float]] = {}
        """By trial: the most bytes that it used, or that were too few for it, and its share at that time."""
        self._devices: dict[int, Devices] = {}
        self._unlike: set[int] = set()
        """Trials from whose peaks nothing is learnt. With CUDA graphs, the peak that torch reports leaves out the memory of the graphs.
        Trials on features take little, but for the one that computes them."""

    def apply(self, event: Event) -> None:
        """Apply one event."""
        if isinstance(event, Proposed):
            self._apply_proposal(event)
        elif isinstance(event, OutgrewShare) and event.trial in self._devices:
            self._apply_peak(event.trial, event.memory, event.gpus)
            self._devices[event.trial] = self._with_cores(max(gpu_share.next_step(event.gpus) or 1.0, self._devices[event.trial].gpus))
        elif isinstance(event, Reported) and self.shares and event.trial not in self._unlike:
            self._apply_peak(event.trial, event.result.peak_memory_bytes, event.devices)

    @property
    def shares(self) -> bool:
        """Whether trials share GPUs according to their memory."""
        return self._spec.resources.gpus == "auto"

    @property
    def factor(self) -> float:
        """The correction factor: a predicted peak times this covers the real peaks of most of the newest trials."""
        ratios = sorted(self._ratio(trial) for trial in list(self._peaks)[-NEWEST:])
        covers = ratios[math.ceil(QUANTILE * len(ratios)) - 1] if len(ratios) >= ENOUGH else max([1.0, *ratios])
        return min(MOST, max(LEAST, covers))

    def devices(self, trial: int) -> Devices:
        """The cores and GPUs of a trial."""
        return self._devices[trial]

    def halves(self, trial: int) -> bool:
        """Whether a trial that runs out of memory halves its micro-batch. Otherwise it gets a larger share of a GPU."""
        return not self.shares or self._devices[trial].gpus >= 1

    def decoders(self, trial: int) -> int | None:
        """Processes that decode a trial's images, if its cores are `auto`; otherwise None."""
        return max(1, self._devices[trial].threads - 1) if self._spec.resources.cpus == "auto" else None

    def allowed_bytes(self, trial: int) -> int:
        """GPU memory that a trial may use."""
        return gpu_share.allowed(self._devices[trial].gpus, self._known.gpu_memory)

    def reported_devices(self, trial: int) -> float:
        """GPUs (or cores, without GPUs) of a trial, for the ledger, if the search file has `auto`; otherwise 0."""
        devices = self._devices[trial]
        return (devices.gpus or devices.cpus) if self._spec.resources.devices is None else 0.0

    def slots(self, shapes: Iterable[Shape]) -> float:
        """How many trials like the newest one can run at the same time, on nodes that are up or may be added."""
        devices = next(reversed(self._devices.values()), None)
        return sum((shape.count or 1) * _fit(shape, devices) for shape in shapes) if devices else 0

    def _apply_proposal(self, event: Proposed) -> None:
        resources = self._spec.resources
        if resources.gpus != "auto":
            self._devices[event.trial] = self._with_cores(resources.gpus)
            return
        config = self._spec.trial_config(event.params, in_channels=self._channels, num_classes=self._classes, trial=0)
        of_features = features.bytes_of_image(config.model, config.training) * self._count
        training = gpu_share.training_bytes(config.model, config.training)
        need = self._needs[event.trial] = gpu_share.Need(training, self._images, of_features)
        if config.training.cuda_graphs or of_features:
            self._unlike.add(event.trial)
        if self._nodes is not None:  # otherwise the search is only inspected, and nothing runs
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
        return max(0, peak - gpu_share.resident_of(need, gpu_share.allowed(share, self._known.gpu_memory))) / need.training

    def _with_cores(self, gpus: float) -> Devices:
        """The devices of a trial with these GPUs. `auto` cores are divided equally among the trials that can run on the node."""
        if self._spec.resources.cpus != "auto":
            return Devices(self._spec.resources.cpus, gpus)
        if self._nodes is None:
            return Devices(1.0, gpus)
        if gpus:
            return Devices(math.floor(1e4 * self._nodes.cores_per_gpu * gpus) / 1e4 or 1.0, gpus)  # rounded down to Ray's smallest step
        return Devices(max(1.0, self._nodes.cores // math.ceil(self._commands.settings.concurrency / self._nodes.count)), gpus)


def _fit(shape: Shape, devices: Devices) -> float:
    """How many trials a node holds; infinity if the size of the node is not known."""
    if math.inf in (shape.cpus, shape.gpus):
        return math.inf
    gpus, cpus = devices.gpus, devices.cpus
    on_gpus = shape.gpus * math.floor(1 / gpus + 1e-9) if 0 < gpus < 1 else shape.gpus // gpus if gpus else math.inf
    return min(on_gpus, shape.cpus // cpus if cpus else math.inf)
