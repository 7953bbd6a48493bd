"""Asynchronous successive halving (ASHA, Li et al. 2020, https://arxiv.org/abs/1810.05934) with rungs that survive a resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler


class Rungs:
    """What each trial had reached at each rung, and whether that is enough to go on.

    Args:
        mode: "min" or "max".
        grace_epochs: the first rung. reduction_factor: the next ones stand at grace_epochs * reduction_factor**k.
        epochs: length of a full training; there is no rung at or beyond it, since a finished trial is not stopped.

    The decisions follow from the order of the values alone, so feeding a ledger's results again rebuilds the rungs.
    """

    def __init__(self, *, mode: str, grace_epochs: int, reduction_factor: int, epochs: int) -> None:
        self._sign = 1.0 if mode == "max" else -1.0
        self._factor = reduction_factor
        self.values: dict[int, list[float]] = {}
        rung = grace_epochs
        while rung < epochs:
            self.values[rung] = []
            rung *= reduction_factor

    def stops(self, epoch: int, value: float | None) -> bool:
        """Take in a trial's value at an epoch; True when it is not among the best 1 / reduction_factor of its rung.

        NaN and None count as worst and always stop. The first at a rung goes on; so does whoever ties with the cutoff.
        """
        if value is None or not math.isfinite(value):
            return True
        if epoch not in self.values:
            return False
        scores = self.values[epoch]
        scores.append(self._sign * value)
        keep = max(1, len(scores) // self._factor)
        return self._sign * value < sorted(scores, reverse=True)[keep - 1]


class RungScheduler(FIFOScheduler):
    """Tune's view of the rungs.

    Args:
        rungs: decides.
        metric: a field of EpochResult.
        record: told every result before anything is decided on it; False when the result is already known.
    """

    def __init__(self, rungs: Rungs, metric: str, record: Callable[[int, Mapping[str, Any]], bool] = lambda trial, result: True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rungs, self._name, self._record = rungs, metric, record

    def __reduce__(self) -> Any:
        """Nothing of it is in Tune's snapshots: the ledger is what a search is rebuilt from."""
        return object, ()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE."""
        if result.get("failure"):
            return str(TrialScheduler.STOP)
        if not self._record(trial.config["trial"], result):
            return str(TrialScheduler.CONTINUE)
        stops = self._rungs.stops(result["epoch"], result.get(self._name))
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)
