"""The adapters to Ray Tune: a searcher, a scheduler and a callback. They ask the driver and decide nothing themselves.

Tune's snapshots leave them out, because a search is rebuilt from its ledger.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from vit_search.search.driver import Driver
from vit_search.search.messages import Continue, Finished, Hold, Move, Stop, TrialOrder, Wait, decode

NODE_ID = "ray.io/node-id"


class TuneSearcher(Searcher):
    """Gives Tune the next trial."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric="epoch", mode="max")  # Tune requires them, but nothing uses them
        self._driver = driver

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next configuration; None for "not now"; Searcher.FINISHED for "never again"."""
        order = self._driver.propose()
        if isinstance(order, Wait):
            return None
        return Searcher.FINISHED if isinstance(order, Finished) else order.encode()

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: TuneCallback handles the end of a trial."""

    def __reduce__(self) -> Any:
        """Keep it out of Tune's snapshots."""
        return object, ()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing: the search is rebuilt from its ledger."""


class TuneScheduler(FIFOScheduler):
    """Tells Tune what to do with a trial that has reported or broken down, and which trial runs next."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = driver

    def __reduce__(self) -> Any:
        """Keep it out of Tune's snapshots."""
        return object, ()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP, CONTINUE, or NOOP for a trial that is paused or moved."""
        decision = self._driver.report(number_of(trial), decode(result))
        if isinstance(decision, Continue):
            return str(TrialScheduler.CONTINUE)
        if isinstance(decision, Stop):
            return str(TrialScheduler.STOP)
        # Not PAUSE: Tune would then ask its worker to save. Our workers restore themselves from their own checkpoints.
        tune_controller.pause_trial(trial, should_checkpoint=False)
        if not isinstance(decision, Hold):
            # Only after the pause. While a trial runs or waits, Tune stores it under its resources, and would reuse the worker that the
            # trial is to leave.
            redirect(trial, decision)
        return str(TrialScheduler.NOOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A trial's process died, and Tune is about to queue the trial again."""
        decision = self._driver.broke(number_of(trial), last_error(trial))
        if isinstance(decision, Move):
            redirect(trial, decision)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The oldest trial that waits; None while the search is paused or cancelled. Trials that must end now end here.

        It looks at live trials only. Tune's own scheduler looks through all trials at each step.
        """
        live = sorted(tune_controller.get_live_trials(), key=number_of)
        for trial in live:
            if self._driver.must_end(number_of(trial)):
                tune_controller.stop_trial(trial)
        if self._driver.paused and not any(trial.status == Trial.RUNNING for trial in live):
            time.sleep(0.1)  # if nothing runs, Tune does not wait either, and would keep a core busy
        if self._driver.cancelled or self._driver.paused:
            return None
        return next((trial for trial in live if trial.status in (Trial.PENDING, Trial.PAUSED)), None)


class TuneCallback(Callback):
    """Tells the driver when a process starts or ends, and that time has passed."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __reduce__(self) -> Any:
        """Keep it out of Tune's snapshots."""
        return object, ()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Kill the processes that hang. Tune then reports that they died."""
        kills = {action.trial for action in self._driver.tick()}
        for trial in trials if kills else ():
            if number_of(trial) in kills and trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A process starts to run the trial."""
        self._driver.started(number_of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """No process runs the trial any more."""
        self._driver.released(number_of(trial))


class NoProgress(TrialProgressCallback):
    """Replaces Tune's reporter, which prints each trial that ends without a result, even with `verbose=0`."""

    def _print(self, msg: str) -> None:
        pass


def number_of(trial: Any) -> int:
    """The number of a trial, from Tune's object."""
    return int(trial.config["trial"])


def request(order: TrialOrder, avoid: Collection[str] = ()) -> PlacementGroupFactory:
    """The resources that Tune asks Ray for: the trial's devices, on any node except those to avoid."""
    bundles = [{"CPU": order.cpus, "GPU": order.gpus}]
    if not avoid:
        return PlacementGroupFactory(bundles)
    return PlacementGroupFactory(bundles, bundle_label_selector=[{NODE_ID: f"!in({', '.join(sorted(avoid))})"}])


def redirect(trial: Any, move: Move) -> None:
    """Have Tune start the trial again with its new order."""
    trial.set_config(trial.config | move.order.encode())
    trial.placement_group_factory = request(move.order, move.avoid)
    trial.invalidate_json_state()


def last_error(trial: Any) -> str:
    """The error that Tune wrote when a trial's process failed. Tune's own `get_error` reads a place where the file appears only later."""
    path = Path(trial.error_file or "")
    return path.read_text(encoding="utf-8", errors="replace").rpartition("Failure #")[2].strip() if path.is_file() else ""


def resources_of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """The resources of a trial, from its configuration."""
    return request(TrialOrder.decode(config))
