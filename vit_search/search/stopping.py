"""Who is stopped early: rungs (ASHA, HyperBand) or the median, decided anew from the order of the results alone.

ASHA: Li et al. 2020, https://arxiv.org/abs/1810.05934. HyperBand: Li et al. 2018, https://arxiv.org/abs/1603.06560, its brackets
run asynchronously. Median: Golovin et al. 2017, https://dl.acm.org/doi/10.1145/3097983.3098043, section 3.2.1.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from vit_search.search.packing import request
from vit_search.spec.rungs import levels, wilson

MEDIAN_STARTUP = 5
"""Other results at an epoch before their median stops anybody; Optuna's own default."""


def false_kills(audits: Iterable[tuple[int, int | None]], finals: Mapping[int, float], mode: str) -> tuple[int, int, float, float]:
    """How often stopping was wrong, from trials that nothing could stop.

    Wrong: the trial would have been stopped, and its full-length value is better than the median of the full-length values
    of all trials that the rungs let through.

    Args:
        audits: (trial, epoch at which it would have been stopped, or None), as `Rungs.audits` gives them.
        finals: full-length value of each completed trial, audits among them.
        mode: "min" or "max".
    Returns: would-be-stopped trials that completed, those wrongly stopped, and a 95 % interval (Wilson 1927) of their share,
        which is 0 to 1 where there are none.
    """
    sign = 1.0 if mode == "max" else -1.0
    stopped = {trial for trial, epoch in audits if epoch is not None and trial in finals}
    through = [sign * value for trial, value in finals.items() if trial not in stopped]
    wrong = sum(sign * finals[trial] > statistics.median(through) for trial in stopped) if through else 0
    return len(stopped), wrong, *wilson(wrong, len(stopped))


def chance(*words: object) -> float:
    """A number in [0, 1) that follows from the words alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big") / 2**64


class Rungs:
    """What each trial had reached where, and whether that is enough to go on.

    Args:
        mode: "min" or "max".
        epochs: length of a full training.
        grace_epochs: the first rung. reduction_factor: see `levels`; the best 1 / reduction_factor of a rung go on.
        kind: "asha"; "hyperband", where a trial's bracket says at which rung it is first looked at; "median", from
            grace_epochs on; "none".
        audit_share: share of trials that are never stopped. What they reach counts like any other value.
        strata: groups by training FLOPs that are held against themselves alone, up to the last rung, which all share.
        boundaries: between the strata, see the function of that name.
        seed: with a trial's number decides its bracket and whether it is an audit.

    The decisions follow from the order of the calls alone, so feeding a ledger's results again rebuilds everything.
    """

    def __init__(
        self,
        *,
        mode: str,
        epochs: int,
        grace_epochs: int,
        reduction_factor: int,
        kind: str = "asha",
        audit_share: float = 0.0,
        strata: int = 1,
        boundaries: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        assert len(boundaries) < strata, "one boundary less than strata"
        self.epochs = epochs
        self.levels = levels(grace_epochs=grace_epochs, reduction_factor=reduction_factor, epochs=epochs)
        self._sign, self._factor, self._grace, self._kind, self._seed = (
            1.0 if mode == "max" else -1.0,
            reduction_factor,
            grace_epochs,
            kind,
            seed,
        )
        self._audit_share, self._boundaries = audit_share, list(boundaries)
        self._reached: dict[tuple[int, ...], list[float]] = {}
        """Scores, ascending, by (epoch, stratum, bracket)."""
        self._best: dict[int, float] = {}
        self._would: dict[int, int | None] = {}

    def stops(self, trial: int, epoch: int, value: float | None, flops: float | None = None) -> bool:
        """Take in a trial's value at an epoch, each once and in order; True when it is to end here.

        NaN and None count as worst, stop even an audit, and leave no trace. Whoever ties with the cutoff goes on, and so does
        the first at a rung.
        """
        audit = self._audits(trial)
        if audit:
            self._would.setdefault(trial, None)
        if value is None or not math.isfinite(value):
            return True
        falls_short = self._falls_short(trial, epoch, self._sign * value, self._stratum(flops))
        if audit and falls_short and self._would[trial] is None:
            self._would[trial] = epoch
        return falls_short and not audit

    def audits(self) -> list[tuple[int, int | None]]:
        """Trials that nothing stops, each with the epoch at which it would have been stopped, or None."""
        return list(self._would.items())

    def bracket(self, trial: int) -> int:
        """HyperBand's: how many of the first rungs are not for this trial. Each bracket gets about the same number of epochs."""
        if self._kind != "hyperband":
            return 0
        count = len(self.levels) + 1
        shares = [self._factor ** (count - 1 - b) / (count - b) for b in range(count)]
        drawn = chance(self._seed, "bracket", trial) * sum(shares)
        return next((b for b in range(count) if drawn < sum(shares[: b + 1])), count - 1)

    def _audits(self, trial: int) -> bool:
        return self._kind != "none" and chance(self._seed, "audit", trial) < self._audit_share

    def _stratum(self, flops: float | None) -> int:
        return 0 if flops is None else bisect.bisect_right(self._boundaries, flops)

    def _falls_short(self, trial: int, epoch: int, score: float, stratum: int) -> bool:
        if self._kind == "median":
            return self._below_median(trial, epoch, score, stratum)
        bracket = self.bracket(trial)
        if self._kind == "none" or epoch not in self.levels[bracket:]:
            return False
        scores = self._reached.setdefault((epoch, 0 if epoch == self.levels[-1] else stratum, bracket), [])
        bisect.insort(scores, score)
        return score < scores[-max(1, len(scores) // self._factor)]

    def _below_median(self, trial: int, epoch: int, score: float, stratum: int) -> bool:
        """Whether the best that a trial has shown is less than what half of the others had at this epoch."""
        best = self._best[trial] = max(score, self._best.get(trial, score))
        others = self._reached.setdefault((epoch, stratum), [])
        below = len(others) >= MEDIAN_STARTUP and self._grace <= epoch < self.epochs and best < statistics.median(others)
        bisect.insort(others, score)
        return below


class RungScheduler(FIFOScheduler):
    """Tune's view of it.

    Args:
        rungs: decides.
        metric: a field of EpochResult.
        record: told every result before anything is decided on it; False when the result is already known.
        flops: training FLOPs of a trial, by its number, where strata ask for them.
        paused: whether running trials are to be held after their epoch until it says False. Their devices are freed, but for
            those of one idle worker, which Tune keeps for reuse.
        asked_to_stop: whether a trial is to end after its epoch.
        cancelled: whether all trials are to end at once.
        outgrown: told of a trial, and why, that did not fit into its share of a GPU; what its worker is to be told instead.
        broke: told each trial of Tune's whose process died, before it is queued again.
        given_up: whether a trial that broke down is not to be tried again.
        withdrawn: whether a trial that waits for a place is not to start.
        moves: what a trial of Tune's, held after its epoch, is to ask for instead so that it goes on elsewhere; None to stay.
    """

    def __init__(
        self,
        rungs: Rungs,
        metric: str,
        record: Callable[[int, Mapping[str, Any]], bool] = lambda trial, result: True,
        *,
        flops: Callable[[int], float | None] = lambda trial: None,
        paused: Callable[[], bool] = lambda: False,
        asked_to_stop: Callable[[int], bool] = lambda trial: False,
        cancelled: Callable[[], bool] = lambda: False,
        outgrown: Callable[[int, str], dict[str, Any]] = lambda trial, reason: {},
        broke: Callable[[Any], None] = lambda trial: None,
        given_up: Callable[[int], bool] = lambda trial: False,
        withdrawn: Callable[[int], bool] = lambda trial: False,
        moves: Callable[[Any], Any] = lambda trial: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rungs, self._name, self._record, self._flops = rungs, metric, record, flops
        self._paused, self._asked_to_stop, self._cancelled, self._outgrown = paused, asked_to_stop, cancelled, outgrown
        self._broke, self._given_up, self._withdrawn, self._moves = broke, given_up, withdrawn, moves

    def __reduce__(self) -> Any:
        """Nothing of it is in Tune's snapshots: the ledger is what a search is rebuilt from."""
        return object, ()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP, CONTINUE, or NOOP for a trial that is held."""
        if result.get("failure"):
            return str(TrialScheduler.STOP)
        if result.get("waiting"):
            return str(TrialScheduler.CONTINUE)
        if result.get("outgrown"):
            self._hold(tune_controller, trial)
            # Only now: while a trial runs or waits, Tune keeps it in places that it finds by its resources.
            trial.set_config(trial.config | self._outgrown(trial.config["trial"], result["reason"]))
            trial.update_resources(request(trial.config))
            return str(TrialScheduler.NOOP)
        number, epoch = trial.config["trial"], result["epoch"]
        new = self._record(number, result)
        if new and self._rungs.stops(number, epoch, result.get(self._name), self._flops(number)):
            return str(TrialScheduler.STOP)
        if self._asked_to_stop(number):
            return str(TrialScheduler.STOP)
        if self._paused() and epoch < self._rungs.epochs:
            self._hold(tune_controller, trial)
            return str(TrialScheduler.NOOP)
        elsewhere = self._moves(trial) if epoch < self._rungs.epochs else None
        if elsewhere is not None:
            self._hold(tune_controller, trial)
            trial.placement_group_factory = elsewhere  # after that, so that the worker kept for reuse is not the one it leaves
            return str(TrialScheduler.NOOP)
        return str(TrialScheduler.CONTINUE)

    def _hold(self, tune_controller: Any, trial: Any) -> None:
        """Not PAUSE: Tune would then have its worker save, and ours rebuilds itself from its own checkpoint."""
        tune_controller.pause_trial(trial, should_checkpoint=False)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process died; Tune is about to queue it again."""
        self._broke(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The oldest that waits, among live trials alone: Tune's own way looks through all trials at each of its steps.

        None while the search is paused; where it is cancelled, all trials end here, as does one that is given up or withdrawn.
        """
        live = sorted(tune_controller.get_live_trials(), key=lambda trial: trial.config["trial"])
        for trial in live:
            number = trial.config["trial"]
            if self._cancelled() or self._given_up(number) or (trial.status == Trial.PENDING and self._withdrawn(number)):
                tune_controller.stop_trial(trial)
        if self._paused() and not any(trial.status == Trial.RUNNING for trial in live):
            time.sleep(0.1)  # Tune waits for nothing where nothing runs, and would keep a core busy
        if self._cancelled() or self._paused():
            return None
        return next((trial for trial in live if trial.status in (Trial.PENDING, Trial.PAUSED)), None)
