"""Commands to a search that runs, for real: its folder, MLflow's tags, and what becomes of its trials."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from helpers.commands import COMMAND, vit_search, vit_search_process
from helpers.servers import until
from helpers.simulation import MemoryLedger, driver_of, result

from vit_search.config import search_file
from vit_search.errors import SearchError
from vit_search.ledger.events import Commanded, Ended, Proposed, Reported
from vit_search.ledger.file import read_events
from vit_search.ledger.trials import Progress
from vit_search.search import control, execution, resume_checks, search_folder
from vit_search.search.commands import Commands, Settings
from vit_search.search.limits import SearchLimits

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


# Without Ray


@pytest.mark.parametrize("text", ["pause", "set trials=40 hours=2.5", "stop trial=3", "add pool=cls dim=64 lr=0.001 qkv_bias=true"])
def test_words_and_commands_are_inverses(text):
    name, arguments = control.parse(text)
    assert control.parse(control.in_words(name, arguments)) == (name, arguments)
    assert control.parse("set trials=40 hours=2.5") == ("set", {"trials": 40, "hours": 2.5})


@pytest.fixture
def driver():
    """A driver whose first trial runs, and its events."""
    book = MemoryLedger()
    made = driver_of(search_file.parse(FILE.replace("trials: 3", "trials: 8")), book)
    made.started(made.propose().trial)
    return made, book


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("puase", "unknown command 'puase'; did you mean pause?"),
        ("pause now", "'pause now': 'now' has no value; after pause write NAME=VALUE, or nothing."),
        ("fly away", "unknown command 'fly'; choose from pause, continue, stop, cancel, set, add."),
        ("set target=7", "target: 7 cannot be reached, since val_accuracy is a fraction in [0, 1]; write 0.07."),
        ("set", "set what? give trials, concurrency, hours, device_hours, target or patience."),
        ("set trails=9", "set: unknown argument 'trails'; did you mean trials?"),
        ("set trials=nine", "trials is 'nine'; give a whole number above 0."),
        ("set trials=2.5", "trials is 2.5; give a whole number above 0."),
        ("set hours=-1", "hours is -1; give a number above 0."),
        ("set hours=nan", "hours is nan; give a number above 0."),
        ("set hours=inf", "hours is inf; give a number above 0."),
        ("set target=high", "target is 'high'; give a number."),
        ("set patience=2.5", "patience is 2.5; give a whole number above 0."),
        ("stop trial=7", "trial 7 is not running; running: 0."),
        ("add lr=1", "add.lr: 1 lies outside 0.001 to 0.01; choose a value inside, or widen the range."),
        ("", "an empty line is no command; write e.g. `set trials=40`."),
        ("add 'a", '"add \'a" is no command (No closing quotation); write e.g. `set trials=40`.'),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_and_changes_nothing(driver, text, answer):
    made, book = driver
    before = list(book.events)
    assert control.obey_text(made, text, by="me") == answer
    assert made.settings == Settings(8, 2)
    assert book.events == before


def test_settings_are_rebuilt_from_the_ledger(driver):
    made, book = driver
    control.obey_text(made, "set trials=40", by="me")
    control.obey_text(made, "set hours=2 concurrency=3", by="me")
    assert Settings.of(search_file.parse(FILE), book.events) == made.settings == Settings(40, 3, 2)


def _fed(limits, outcomes, mode="max", seconds=0.0):
    progress = Progress(4)
    made = SearchLimits(Commands(Settings(50, 1, **limits), "val_accuracy"), progress, metric="val_accuracy", mode=mode, devices=2)
    for number, (value, outcome) in enumerate(outcomes):
        for event in (
            Proposed(trial=number, params={}, at=10.0 * number),
            Reported(trial=number, result=result(1, value, seconds=seconds), at=10.0 * number + 9),
            Ended(trial=number, outcome=outcome, at=10.0 * number + 10),
        ):
            progress.apply(event)
            made.apply(event)
    return made.ending or None


@pytest.mark.parametrize(
    ("asked", "mode", "outcomes", "reached"),
    [
        ({}, "max", [(0.9, "completed")] * 50, None),
        ({"target": 0.8}, "max", [(0.9, "stopped"), (0.7, "completed")], None),
        ({"target": 0.8}, "max", [(0.8, "completed")], "limits.target: trial 0 reached 0.8"),
        ({"target": 0.2}, "min", [(0.8, "completed")], None),
        ({"target": 0.2}, "min", [(0.8, "completed"), (0.1, "completed")], "limits.target: trial 1 reached 0.2"),
        ({"patience": 2}, "max", [(0.5, "completed"), (0.4, "stopped"), (0.6, "stopped"), (0.1, "failed")], None),
        ({"patience": 2}, "max", [(0.5, "completed"), (0.4, "stopped"), (0.1, "failed")], "limits.patience: no improvement in 2 trials"),
        ({"hours": 29 / 3600}, "max", [(0.5, "stopped")] * 2, None),
        ({"hours": 19.5 / 3600}, "max", [(0.5, "stopped")] * 2, "limits.hours: 0.00541667 h are over"),
        ({"device_hours": 20 / 3600}, "max", [(0.5, "stopped")] * 2, "limits.device_hours: 0.00555556 h are spent"),
        ({"device_hours": 21 / 3600}, "max", [(0.5, "stopped")] * 2, None),
    ],
)
def test_limits(asked, mode, outcomes, reached):
    assert _fed(asked, outcomes, mode, seconds=5.0) == reached


@pytest.mark.parametrize(("before", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)], ids=["terminal", "nohup"])
def test_a_lost_terminal_ends_a_search_as_sigterm_does_but_not_under_nohup(driver, before, ends):
    made, _ = driver
    around = signal.signal(signal.SIGHUP, before)
    try:
        with execution.end_on_signals(made):
            os.kill(os.getpid(), signal.SIGHUP)
            assert made.cancelled == ends
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, around)


def test_an_account_without_a_name_is_called_by_its_number():
    code = "import os; from vit_search.runtime.user import user_name; os.setuid(12345); print(user_name())"
    if os.getuid() != 0:
        pytest.skip("only root may take another account")
    nameless = {k: v for k, v in os.environ.items() if k not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    done = subprocess.run([sys.executable, "-c", code], env=nameless, capture_output=True, text=True, check=True)
    assert done.stdout == "uid-12345\n"


def test_a_last_newline_is_no_change_of_the_search_file(tmp_path):
    file = tmp_path / "search.yaml"
    for began, now in (("a: 1\n", "a: 1"), ("a: 1", "a: 1\n"), ("a: 1\n", "a: 1\n\n"), ("a: 1\r\n", "a: 1\n")):
        file.write_text(now)
        resume_checks.check_unchanged(file, began)
    file.write_text("a: 1\n")
    with pytest.raises(SearchError, match=r"search\.yaml:2: 'b: 2' has become ''"):
        resume_checks.check_unchanged(file, "a: 1\nb: 2\n")


def test_of_a_refused_search_only_what_a_cluster_had_put_there_stays(tmp_path):
    folder = tmp_path / "told-1"
    (folder / "tune").mkdir(parents=True)
    for name in ("submitted.json", "search.json", "ledger.jsonl"):
        (folder / name).touch()
    search_folder.remove(folder, {folder / "submitted.json"})
    assert [path.name for path in folder.iterdir()] == ["submitted.json"]
    search_folder.remove(folder, ())
    assert not folder.exists()
