"""Corrects what Tune 2.60 does when a worker dies: it would end the search, or wait for ever. To import this module corrects it.

1. Ray's memory monitor kills a worker. Tune ends the whole search, because it takes any error but a RayActorError for a fault of its own.
2. A worker dies while it waits for its next trial. Tune learns of it when it gives the worker a trial. Then it handles that trial's failure
   twice, and never starts the trial again, because it takes it for one that is just being given to a worker.
"""

from __future__ import annotations

from typing import Any

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray: it sets what ray reads at import)
from ray._private import serialization
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution.tune_controller import TuneController


class KilledForMemoryError(RayActorError, OutOfMemoryError):
    """Ray's memory monitor has killed a trial's worker."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message)
        self.message = message


handle_failure = TuneController._trial_task_failure


def handle_failure_once(controller: TuneController, trial: Any, exception: Exception) -> None:
    """Handle the failure of a trial's worker or task. Tune tells of a dead worker twice if it had just been given the trial."""
    if getattr(exception, "handled_for", "") == trial.trial_id:
        return
    exception.handled_for = trial.trial_id  # type: ignore[attr-defined]
    controller._resetting_trials.discard(trial)
    handle_failure(controller, trial, exception)


serialization.OutOfMemoryError = KilledForMemoryError  # type: ignore[attr-defined]  # what `ray.get` raises in this process
TuneController._trial_task_failure = handle_failure_once  # type: ignore[method-assign, assignment]
