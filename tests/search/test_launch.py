"""How a launch comes out: what it leaves in the ledger, in MLflow and in the folder when it ends."""

import json

import mlflow
import pytest
from helpers.servers import until
from helpers.simulation import driver_of
from helpers.synthetic import begin

from vit_search.ledger import search_state, searches
from vit_search.ledger.events import Ended, Launched
from vit_search.ledger.file import Ledger
from vit_search.planning import plan as planning
from vit_search.planning.speed import stated_speed
from vit_search.search import launch
from vit_search.search.control import obey_text
from vit_search.search.hindsight import PLAN
from vit_search.tracking.recorder import Recorder


@pytest.fixture
def resumed(tmp_path):
    """A search of two trials that was killed before it had a result, taken up again."""
    folder, spec, facts = begin(tmp_path, trials=2)
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(Launched(host="here", pid=1))
    first = driver_of(spec, ledger)
    first.propose()
    ledger.append(Launched(host="here", pid=2))
    ledger.listeners.clear()
    recorder = Recorder.connect(f"sqlite:///{tmp_path / 'mlruns.db'}", spec.name)
    driver = driver_of(spec, ledger)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    yield spec, folder, ledger, driver, recorder
    ledger.close()


@pytest.mark.parametrize("ordered", [0, 1])
def test_a_stop_before_any_trial_has_begun_leaves_a_search_that_can_be_resumed_and_has_not_failed(resumed, ordered, tmp_path):
    spec, folder, ledger, driver, recorder = resumed
    for _ in range(ordered):
        number = driver.propose().trial
        obey_text(driver, "stop", by="me")
        assert driver.must_end(number)  # it waits for a place, and Tune takes it away
        driver.released(number)
        obey_text(driver, "continue", by="me")
    obey_text(driver, "stop", by="me")
    end = launch.finish(spec, folder, ledger, driver, recorder, ended=True, refused=False)
    assert (end.interrupted, end.nothing_completed, end.recorded) == (False, False, True)
    assert [trial.outcome for trial in end.trials] == ["interrupted"]
    assert search_state.read(folder).state.word == "stopped"
    parent = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}").get_run(recorder.parent_run)
    assert (parent.info.status, parent.data.tags["state"]) == ("FINISHED", "stopped")


def test_the_wall_time_beside_the_plan_is_the_one_of_the_summary(resumed):
    spec, folder, ledger, driver, recorder = resumed
    (folder / PLAN).write_text(json.dumps(planning.plan(spec, stated_speed(1e9)).to_dict()))
    obey_text(driver, "stop", by="me")
    launch.finish(spec, folder, ledger, driver, recorder, ended=True, refused=False)
    spent = search_state.read(folder).spent.wall_seconds
    assert searches.read_hindsight(folder).plan["wall_seconds"]["actual"] == spent == driver.progress.spent.wall_seconds > 0


@pytest.mark.parametrize("step", ["_last_steps", "close"])
def test_a_second_ctrl_c_while_the_last_records_are_sent_leaves_no_run_open(resumed, step, tmp_path, monkeypatch):
    spec, folder, ledger, driver, recorder = resumed
    number = driver.propose().trial
    driver.started(number)
    until(lambda: recorder.ready and not recorder.behind)
    driver.cancel()

    def interrupt(*args, **words):
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        launch.finish(spec, folder, ledger, driver, recorder, ended=True, refused=False)
    assert [event.outcome for event in ledger.events if isinstance(event, Ended)] == ["interrupted"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name(spec.name).experiment_id])
    assert sorted(run.info.status for run in runs) == ["KILLED"] * 2  # the trial's and its parent
    assert client.get_run(recorder.parent_run).data.tags["state"] == "interrupted"
