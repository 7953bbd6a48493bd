"""Corrections of what Tune does when a worker dies. tests/system/test_trial_faults.py has workers that die."""

import pickle
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from vit_search.search import tune_faults  # before ray: it sets what ray reads when it is imported

# isort: split
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError


@pytest.mark.parametrize("error", [ActorDiedError(), tune_faults.KilledForMemoryError("the node is low on memory")], ids=["died", "memory"])
def test_a_failure_is_handled_once_for_each_trial_and_no_trial_is_written_with_its_error(error, monkeypatch):
    handled = []
    monkeypatch.setattr(tune_faults, "handle_failure", lambda _, trial, exception: handled.append((trial.trial_id, exception)))
    for name in ("a", "a", "b"):
        tune_faults.handle_failure_once(MagicMock(), SimpleNamespace(trial_id=name), error)
    assert handled == [("a", error), ("b", error)]
    text = str(error)
    written = pickle.loads(pickle.dumps(error))  # as Tune writes it beside the trial
    assert (str(written), vars(written)["handled_for"]) == (text, "b")


def test_the_error_of_rays_memory_monitor_is_one_of_a_worker_that_died():
    error = tune_faults.KilledForMemoryError("the node is low on memory")
    assert isinstance(error, RayActorError) and isinstance(error, OutOfMemoryError)
    assert str(error) == "the node is low on memory"
