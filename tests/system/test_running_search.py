"""Commands to a search that runs, for real: its folder, MLflow's tags, and what becomes of its trials."""

import json
import subprocess
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from helpers.commands import COMMAND, vit_search, vit_search_process
from helpers.servers import until

from vit_search.ledger.events import Commanded, Ended, Proposed, Reported
from vit_search.ledger.file import read_events

FILE = """
name: told
data: {name: digits}
trials: 3
epochs: 500
stopping: {kind: none}
seed: 3
concurrency: 2
model: {patch_size: 2, dim: 32, depth: {int: [1, 2]}, heads: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64}
"""


def say(folder, *words, code=0):
    return vit_search(folder, *words, code=code)  # an unanswered command ends with exit code 2 by itself


def state(folder, search="told-1"):
    return json.loads(vit_search(folder, "status", search, "--json").stdout)


def test_a_running_search_obeys(tmp_path):
    (tmp_path / "told.yaml").write_text(FILE)
    refused = vit_search(tmp_path, "pause", code=None)
    assert refused.returncode == 2
    driver = subprocess.Popen([COMMAND, "run", "told.yaml"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        path = tmp_path / "searches/told-1/ledger.jsonl"

        def events(kind=None):
            return [e for e in read_events(path) if kind is None or isinstance(e, kind)]

        def parent():
            client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
            (run,) = client.search_runs([client.get_experiment_by_name("told").experiment_id], "attributes.run_name = 'told-1'")
            return run

        def reports_of(trial):
            return sum(e.trial == trial for e in events(Reported))

        until(lambda: path.exists() and reports_of(0) >= 2 and reports_of(1) >= 2)

        assert "2 running trials will be held" in say(tmp_path, "pause").stdout
        until(lambda: quiet(path))
        held = len(events(Reported))
        now = state(tmp_path)
        assert (now["state"], now["running"], now["outcomes"]) == ("paused", False, {"held": 2})
        assert "told-1 is paused: 0 of 3 trials over" in say(tmp_path, "status").stdout
        until(lambda: parent().data.tags.get("state") == "paused")
        assert "going on." in say(tmp_path, "continue", "told-1").stdout
        until(lambda: len(events(Reported)) > held + 4)
        for trial in (0, 1):  # no epoch was trained again, none left out
            assert [e.result.epoch for e in events(Reported) if e.trial == trial] == list(range(1, reports_of(trial) + 1))

        assert "trials is now 6, concurrency is now 1" in say(tmp_path, "set", "--trials", "6", "--concurrency", "1").stdout
        bad = say(tmp_path, "set", "--trials", "1", code=None)
        assert bad.returncode == 2
        assert "trials=1 is less than the 2 that have started" in bad.stderr
        assert say(tmp_path, "stop", "told-1/9", code=None).stderr.strip().endswith("trial 9 is not running; running: 0, 1.")

        assert "trial 0 will be stopped" in say(tmp_path, "stop", "told-1/0").stdout
        until(lambda: any(e.trial == 0 for e in events(Ended)))
        assert [(e.outcome, e.reason) for e in events(Ended)] == [("stopped", "stopped by hand")]
        proposed = len(events(Proposed))
        time.sleep(3)
        assert len(events(Proposed)) == proposed  # one at a time is now enough, and trial 1 is running

        (tmp_path / "mine.yaml").write_text("{depth: 2, lr: 0.002}")
        assert "next trial" in say(tmp_path, "add", "mine.yaml", "told-1").stdout
        (tmp_path / "bad.yaml").write_text("{depht: 2}")
        bad = say(tmp_path, "add", "bad.yaml", "told-1", code=None)
        assert (bad.returncode, "depth" in bad.stderr) == (2, True), bad.stderr

        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
        assert "trial 1 will be stopped" in say(elsewhere, "stop", "told-1/1", "--tracking-uri", uri).stdout
        until(lambda: any(e.trial == 1 for e in events(Ended)))
        until(lambda: len(events(Proposed)) == 3)
        assert events(Proposed)[2].params == {"depth": 2, "lr": 0.002}

        client = mlflow.MlflowClient(uri)  # as somebody types it in MLflow's pages
        client.set_tag(parent().info.run_id, "command", "set hours=0.5")
        until(lambda: "command" not in parent().data.tags)
        assert parent().data.tags["command_answer"] == "set hours=0.5: hours is now 0.5."
        until(lambda: reports_of(2) >= 1)

        assert "ending now" in say(tmp_path, "cancel").stdout
        _, said = driver.communicate(timeout=1800)
        assert driver.returncode == 130, said
        assert "Traceback" not in said
    finally:
        driver.kill()
        driver.wait()
    now = state(tmp_path)
    assert (now["running"], now["trials"], now["outcomes"]) == (False, 6, {"stopped": 2, "interrupted": 1})
    assert [c["name"] for c in now["commands"]] == ["pause", "continue", "set", "stop", "add", "stop", "set", "cancel"]
    assert (now["state"], now["reason"], parent().data.tags["state"]) == ("interrupted", "", "interrupted")
    said = say(tmp_path, "status").stdout
    assert "told-1 is interrupted: 2 of 6 trials over" in said
    assert "go on with:  vit-search resume told-1" in said
    refused = say(tmp_path, "pause", code=None)
    assert "no driver runs this search now" in refused.stderr


@pytest.mark.slow
def test_what_waits_for_a_place_starts_neither_in_a_pause_nor_after_a_stop_but_in_a_resume(tmp_path):
    text = FILE.replace("trials: 3", "trials: 5").replace("epochs: 500", "epochs: 20").replace("concurrency: 2", "concurrency: 5")
    (tmp_path / "told.yaml").write_text(text + f"resources: {{cpus: {psutil.cpu_count()}}}\n")
    driver = subprocess.Popen([COMMAND, "run", "told.yaml"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "searches/told-1/ledger.jsonl"

    def reported():
        return [event.trial for event in read_events(path) if isinstance(event, Reported)]

    try:
        until(lambda: path.exists() and len(reported()) >= 2)
        assert "1 running trial will be held" in say(tmp_path, "pause").stdout
        until(lambda: quiet(path))
        held = len(reported())
        say(tmp_path, "continue")
        until(lambda: len(reported()) > held)
        assert "no more trials will start; 1 running trial will go on" in say(tmp_path, "stop").stdout
        _, said = driver.communicate(timeout=1800)
        assert driver.returncode == 0, said
    finally:
        driver.kill()
        driver.wait()
    events = read_events(path)
    pause, going_on = (
        next(i for i, e in enumerate(events) if isinstance(e, Commanded) and e.name == name) for name in ("pause", "continue")
    )
    running = {event.trial for event in events[pause:going_on] if isinstance(event, Reported)}
    assert len(running) <= 1  # the epoch at hand, and no trial that had waited
    begun = len(set(reported()))
    assert begun < 5  # however quick this machine is, some of five still waited
    now = state(tmp_path)
    assert (now["state"], now["outcomes"]) == ("stopped", {"completed": begun, "interrupted": 5 - begun})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (parent,) = client.search_runs([client.get_experiment_by_name("told").experiment_id], "attributes.run_name = 'told-1'")
    assert parent.info.status == "FINISHED"
    vit_search_process(tmp_path, "resume", "told-1")
    assert state(tmp_path)["outcomes"] == {"completed": 5}
    assert sorted(reported()) == sorted([0, 1, 2, 3, 4] * 20)


def quiet(path):
    """Whether no trial has reported for five times as long as its longest epoch took."""
    reports = [event for event in read_events(path) if isinstance(event, Reported)]
    return time.time() - reports[-1].at > 3 + 5 * max(event.result.seconds for event in reports)


SMALL = FILE.replace("epochs: 500", "epochs: 1").replace("trials: 3", "trials: 2")


@pytest.mark.slow
def test_a_finished_search_is_extended_in_the_same_study_and_the_same_parent_run(tmp_path):
    (tmp_path / "told.yaml").write_text(SMALL + "limits: {target: 0.01}\n")
    ended = vit_search_process(tmp_path, "run", "told.yaml")
    assert "reached 0.01; go on with:  vit-search extend told-1 --target …" in ended.stdout
    plan = json.loads((tmp_path / "searches/told-1/plan.json").read_text())
    assert (plan["trials"], plan["trained_epochs"]) == (2, 2)
    assert "planned 2 epochs, trained" in ended.stdout
    assert "planned 2 epochs, trained" in vit_search(tmp_path, "status", "told-1").stdout
    refused = vit_search(tmp_path, "extend", "told-1", "--trials", "4", code=None)
    assert refused.returncode == 2
    assert "told-1 would end at once by limits.target: trial" in refused.stderr
    assert "reached 0.01; add --target with a new limit." in refused.stderr
    (tmp_path / "four.yaml").write_text(SMALL.replace("trials: 2", "trials: 4"))
    vit_search_process(tmp_path, "run", "four.yaml")
    done = vit_search_process(tmp_path, "extend", "told-1", "--trials", "4", "--target", "0.9999")
    assert "4 of 4 trials" in done.stdout
    assert vit_search(tmp_path, "extend", "told-1", "--trials", "2", code=None).returncode == 2

    changed = tmp_path / "searches/told-2/search.yaml"
    changed.write_text(changed.read_text().replace("heads: 2", "heads: 4") + "\n")
    refused = vit_search(tmp_path, "resume", "told-2", code=None)
    assert refused.returncode == 2
    assert "search.yaml:9: 'model: {patch_size: 2, dim: 32, depth: {int: [1, 2]}, heads: 2}' has become" in refused.stderr

    def proposals(search):
        return {e.trial: e.params for e in read_events(tmp_path / f"searches/{search}/ledger.jsonl") if isinstance(e, Proposed)}

    assert proposals("told-1") == proposals("told-2")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name("told").experiment_id], "tags.search = 'told-1'")
    assert len(runs) == 5
    (parent,) = [run for run in runs if run.info.run_name == "told-1"]
    assert (parent.info.status, parent.data.metrics["trials"]) == ("FINISHED", 4)
    path = client.download_artifacts(parent.info.run_id, "plan.json", str(tmp_path))
    assert json.loads(Path(path).read_text())["trials"] == {"predicted": 2, "actual": 4, "ratio": 2}
