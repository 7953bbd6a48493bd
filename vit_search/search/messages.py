"""What the driver, the workers and Ray Tune say to each other, and how it is written down on the way.

The driver gives a worker a TrialOrder. The worker sends Reports back. The driver answers each with a Decision, and what it wants of
Tune besides with an Action. Orders and reports cross a process border: each is encoded and decoded here alone.
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
    """What a worker is to train, and with what."""

    trial: int
    """Its number."""
    config: dict[str, Any]
    """A TrialConfig as a dict."""
    folder: Path
    """Of the trial, on storage that every node sees."""
    data: DataSet | None = None
    """Prepared; None where nothing is trained, as in a simulation."""
    weights: Path | None = None
    """Folder in which the search keeps pretrained weights, if it has some."""
    train_on: str = "train"
    """As in a search file."""
    cpus: float = 1.0
    gpus: float = 0.0
    """That it holds; see gpu_sharing.py."""
    threads: int = 1
    """Of torch."""
    decoders: int | None = None
    """Processes that decode images; None for as many as seem right."""
    halves: bool = True
    """Whether a lack of memory halves the micro-batch; else the trial asks for a larger share of a GPU."""
    halvings: int = 0
    """How often the micro-batch was halved because a lack of memory killed the process."""
    usage: bool = False
    """Whether to report what each epoch took of the machine."""
    latency: bool = False
    """Whether to measure the time to classify an image."""

    def encode(self) -> dict[str, Any]:
        """As Tune's configuration of the trial."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "folder": str(self.folder),
            "weights": None if self.weights is None else str(self.weights),
        }

    @staticmethod
    def decode(config: Mapping[str, Any]) -> TrialOrder:
        """From what Tune hands to the worker."""
        weights = config.get("weights")
        return TrialOrder(**{**config, "folder": Path(config["folder"]), "weights": None if weights is None else Path(weights)})


@dataclass(frozen=True)
class Epoch:
    """An epoch is trained, evaluated and saved."""

    result: EpochResult
    system: dict[str, float] = field(default_factory=dict)
    """What it took of the machine; see resource_usage.py."""


@dataclass(frozen=True)
class Waiting:
    """The trial waits for its storage."""

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


Report = Epoch | Waiting | Outgrown | Failed

SCORE = "score/"
"""Before the names of an epoch's further metrics in Tune's result."""


def encode(trial: int, report: Report) -> dict[str, Any]:
    """A report as one of Tune's results."""
    if isinstance(report, Epoch):
        values = asdict(report.result)
        scores = {SCORE + name: value for name, value in values.pop("scores").items()}  # Tune wants no dictionary in a result
        return {"trial": trial, **values, **scores, **report.system}
    if isinstance(report, Failed):
        return {"trial": trial, "failure": report.outcome, "reason": report.reason}
    return {"trial": trial, type(report).__name__.lower(): report.reason}


def decode(result: Mapping[str, Any]) -> Report:
    """A report from one of Tune's results, which add much of their own."""
    if "failure" in result:
        return Failed(result["failure"], result["reason"])
    if "waiting" in result:
        return Waiting(result["waiting"])
    if "outgrown" in result:
        return Outgrown(result["outgrown"])
    scores = {name.removeprefix(SCORE): value for name, value in result.items() if name.startswith(SCORE)}
    epoch = EpochResult(**{f.name: result[f.name] for f in fields(EpochResult) if f.name != "scores"}, scores=scores)
    return Epoch(epoch, {name: value for name, value in result.items() if name.startswith("system/")})


@dataclass(frozen=True)
class Continue:
    """The trial goes on with its next epoch."""


@dataclass(frozen=True)
class Stop:
    """The trial ends here."""


@dataclass(frozen=True)
class Hold:
    """The trial frees its devices, and goes on from its checkpoint when the search goes on."""


@dataclass(frozen=True)
class Move:
    """The trial frees its devices, and goes on from its checkpoint as it is ordered now."""

    order: TrialOrder
    avoid: frozenset[str] = frozenset()
    """Ids of the nodes on which it must not start."""


Decision = Continue | Stop | Hold | Move


@dataclass(frozen=True)
class Wait:
    """There is no trial to start now."""


@dataclass(frozen=True)
class Finished:
    """There will be no trial to start."""


@dataclass(frozen=True)
class KillWorker:
    """An action: the process of a trial hangs and is to be ended. Ray then reports that it died."""

    trial: int
