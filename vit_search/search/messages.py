"""The messages between driver, workers and Ray Tune.

| Message | From | To |
|---|---|---|
| TrialOrder | driver | worker |
| Report | worker | driver |
| Decision: the answer to a report | driver | Tune |
| KillWorker: an action | driver | Tune |

Orders and reports cross a process border. This module has their only encoders and decoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vit_search.config.trial import EpochResult

if TYPE_CHECKING:
    from vit_search.data.cache import DataSet


@dataclass(frozen=True, kw_only=True)
class TrialOrder:
    """What a worker trains, and with which resources."""

    trial: int
    config: dict[str, Any]
    """A TrialConfig as a dict."""
    folder: Path
    """The trial's folder, on storage that all nodes share."""
    data: DataSet | None = None
    """The prepared images; None if nothing is trained, as in a simulation."""
    weights: Path | None = None
    """Folder in which the search keeps its pretrained weights, if it has some."""
    train_on: str = "train"
    """As in the search file."""
    cpus: float = 1.0
    gpus: float = 0.0
    """Share of a GPU, or number of GPUs; see gpu_sharing.py."""
    threads: int = 1
    """Threads for torch."""
    decoders: int | None = None
    """Processes that decode images; None: the data loader decides."""
    halves: bool = True
    """Whether the trial halves its micro-batch if memory runs out. Otherwise it asks for a larger share of a GPU."""
    halvings: int = 0
    """How often the micro-batch was halved because the process was killed for lack of memory."""
    usage: bool = False
    """Whether to report the use of CPU, memory and GPU for each epoch."""
    latency: bool = False
    """Whether to measure how long the classification of one image takes."""

    def encode(self) -> dict[str, Any]:
        """The order as Tune's configuration of the trial."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "folder": str(self.folder),
            "weights": None if self.weights is None else str(self.weights),
        }

    @staticmethod
    def decode(config: Mapping[str, Any]) -> TrialOrder:
        """The inverse, from what Tune gives to the worker."""
        weights = config.get("weights")
        return TrialOrder(**{**config, "folder": Path(config["folder"]), "weights": None if weights is None else Path(weights)})


@dataclass(frozen=True)
class Epoch:
    """An epoch was trained and evaluated, and its checkpoint saved."""

    result: EpochResult
    system: dict[str, float] = field(default_factory=dict)
    """Use of the machine during the epoch; see resource_usage.py."""


@dataclass(frozen=True)
class Waiting:
    """The trial waits for its storage."""

    reason: str


@dataclass(frozen=True)
class Busy:
    """The trial works on something that is no epoch: it computes what its later epochs read, or waits for another trial that does."""

    reason: str


@dataclass(frozen=True)
class Outgrown:
    """The trial does not fit into its share of a GPU."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The trial cannot go on, and trying again would not help."""

    outcome: Literal["diverged", "failed"]
    reason: str


Report = Epoch | Waiting | Busy | Outgrown | Failed

SCORE = "score/"
"""Prefix of an epoch's other metrics in Tune's result."""


def encode(trial: int, report: Report) -> dict[str, Any]:
    """A report as a result for Tune."""
    if isinstance(report, Epoch):
        values = asdict(report.result)
        scores = {SCORE + name: value for name, value in values.pop("scores").items()}  # a result for Tune may contain no dictionary
        return {"trial": trial, **values, **scores, **report.system}
    if isinstance(report, Failed):
        return {"trial": trial, "failure": report.outcome, "reason": report.reason}
    return {"trial": trial, type(report).__name__.lower(): report.reason}


def decode(result: Mapping[str, Any]) -> Report:
    """The report in one of Tune's results. Tune adds keys of its own, which are ignored."""
    if "failure" in result:
        return Failed(result["failure"], result["reason"])
    if "waiting" in result:
        return Waiting(result["waiting"])
    if "busy" in result:
        return Busy(result["busy"])
    if "outgrown" in result:
        return Outgrown(result["outgrown"])
    scores = {name.removeprefix(SCORE): value for name, value in result.items() if name.startswith(SCORE)}
    epoch = EpochResult(**{f.name: result[f.name] for f in fields(EpochResult) if f.name != "scores"}, scores=scores)
    return Epoch(epoch, {name: value for name, value in result.items() if name.startswith("system/")})


@dataclass(frozen=True)
class Continue:
    """The trial continues with its next epoch."""


@dataclass(frozen=True)
class Stop:
    """The trial ends here."""


@dataclass(frozen=True)
class Hold:
    """The trial frees its devices. It continues from its checkpoint when the search is no longer paused."""


@dataclass(frozen=True)
class Move:
    """The trial frees its devices. It continues from its checkpoint with a new order."""

    order: TrialOrder
    avoid: frozenset[str] = frozenset()
    """Ids of the nodes where it must not start."""


Decision = Continue | Stop | Hold | Move


@dataclass(frozen=True)
class Wait:
    """No trial can start now."""


@dataclass(frozen=True)
class Finished:
    """No trial will start any more."""


@dataclass(frozen=True)
class KillWorker:
    """The process of a trial hangs and must be killed. Ray then reports its death."""

    trial: int
