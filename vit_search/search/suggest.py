"""Optuna behind Tune's Searcher: states told truly, proposals that cannot be built never run, resume exact.

A proposal depends on the history, the seed and its own index alone: every ask gets a sampler seeded anew. So a searcher
that was fed the events of a ledger goes on as the one that wrote them would have.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from vit_search.spec.space import Space, Value
from vit_search.tracking.ledger import Event, Infeasible, Proposed, Reported

STARTUP = 10
"""Random proposals before TPE takes over; Optuna's own default."""

GIVE_UP = 1000
"""Proposals in a row that cannot be built before the search ends."""


class OptunaSearcher(Searcher):
    """Proposals by TPE for one metric.

    Args:
        space: what to ask for.
        metric: a field of EpochResult. mode: "min" or "max".
        epochs: length of a full training; a trial that ends before it is told PRUNED.
        trials: proposals in all.
        seed: see above.
        config: what Tune hands to the worker of a trial, from its number and its parameters.
        record: receives Proposed and Infeasible events as they happen.
        may_go_on: asked before each proposal; False ends the search.
    """

    def __init__(
        self,
        space: Space,
        *,
        metric: str,
        mode: str,
        epochs: int,
        trials: int,
        seed: int,
        config: Callable[[int, dict[str, Value]], dict[str, Any]] = lambda number, params: {"trial": number, **params},
        record: Callable[[Event], None] = lambda event: None,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._epochs, self._trials, self._seed = space, epochs, trials, seed
        self._config, self._record, self._may_go_on = config, record, may_go_on
        self._study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        self._asks = 0
        self._open: dict[int, optuna.Trial] = {}
        self._values: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self._number_of: dict[str, int] = {}
        self._proposed = 0
        self._waiting: list[tuple[int, dict[str, Value]]] = []

    def replay(self, events: Iterable[Event]) -> None:
        """Take in the events of a ledger; its unfinished trials will be the first that `suggest` gives."""
        params: dict[int, dict[str, Value]] = {}
        for event in events:
            if isinstance(event, Infeasible):
                self._study.enqueue_trial(event.params)
                self._tell_infeasible(self._ask()[0])
            elif isinstance(event, Proposed):
                self._study.enqueue_trial(event.params)
                self._open[event.trial], params[event.trial] = self._ask()
                self._open[event.trial].set_constraint("buildable", -1.0)
                self._proposed += 1
            elif isinstance(event, Reported):
                self._report(event.trial, event.result.epoch, getattr(event.result, self.metric))
            elif event.outcome != "interrupted":
                self._tell(event.trial, failed=event.outcome in ("failed", "diverged"))
        self._waiting = [(number, params[number]) for number in self._open]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """A configuration for Tune, or Searcher.FINISHED."""
        if not self._may_go_on():
            return Searcher.FINISHED
        if self._waiting:
            number, params = self._waiting.pop(0)
        elif self._proposed >= self._trials or (feasible := self._ask_feasible()) is None:
            return Searcher.FINISHED
        else:
            number, (trial, params) = self._proposed, feasible
            self._proposed += 1
            self._open[number] = trial
            self._record(Proposed(trial=number, params=params))
        self._number_of[trial_id] = number
        return self._config(number, params)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """An epoch's value, for the sampler's view of running trials."""
        self._report(self._number_of[trial_id], result["epoch"], result.get(self.metric))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The trial's state as it truly is: COMPLETE at full length, PRUNED before it, FAIL for errors and NaN."""
        number = self._number_of.pop(trial_id)
        failed = error or not result or bool(result.get("failure"))
        if result and not failed:
            self._report(number, result["epoch"], result.get(self.metric))
        self._tell(number, failed=failed)

    def __reduce__(self) -> Any:
        """Nothing of it is in Tune's snapshots: the ledger is what a search is rebuilt from."""
        return object, ()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, likewise."""

    def _ask(self) -> tuple[optuna.Trial, dict[str, Value]]:
        digest = hashlib.sha256(f"{self._seed}/{self._asks}".encode()).digest()
        self._asks += 1
        self._study.sampler = optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4], "big"), multivariate=True, n_startup_trials=STARTUP
        )
        trial = self._study.ask()
        return trial, self._space.suggest(trial)

    def _ask_feasible(self) -> tuple[optuna.Trial, dict[str, Value]] | None:
        for _ in range(GIVE_UP):
            trial, params = self._ask()
            problem = self._space.problem(params)
            if problem is None:
                trial.set_constraint("buildable", -1.0)
                return trial, params
            self._record(Infeasible(params=params, reason=problem))
            self._tell_infeasible(trial)
        return None

    def _tell_infeasible(self, trial: optuna.Trial) -> None:
        trial.set_constraint("buildable", 1.0)
        self._study.tell(trial, state=TrialState.PRUNED)

    def _report(self, number: int, epoch: int, value: float | None) -> None:
        trial = self._open.get(number)
        if trial is not None and value is not None and math.isfinite(value) and epoch not in self._values[number]:
            trial.report(float(value), epoch)
            self._values[number][epoch] = float(value)

    def _tell(self, number: int, *, failed: bool) -> None:
        trial = self._open.pop(number, None)
        if trial is None:
            return
        values = self._values.pop(number, {})
        if failed or not values:
            self._study.tell(trial, state=TrialState.FAIL)
        elif max(values) >= self._epochs:
            self._study.tell(trial, values[max(values)])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
