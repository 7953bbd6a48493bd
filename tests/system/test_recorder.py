"""What MLflow gets of a search: all of it, once, whatever dies in between; on SQLite, PostgreSQL and servers that fail."""

import dataclasses
import json
import logging
import math
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from helpers import servers
from helpers.commands import vit_search
from helpers.paths import ROOT
from helpers.servers import SECRET, until
from helpers.synthetic import FILE, begin, events, made, result
from mlflow.types import Schema

from vit_search.config import search_file
from vit_search.errors import SearchError, TrackingError
from vit_search.ledger import search_state, searches
from vit_search.ledger.events import Broke, Ended, Launched, Left, Proposed, Reported
from vit_search.ledger.file import Ledger, read_trials
from vit_search.ledger.search_state import SearchState
from vit_search.tracking import datasets, doctor, mlflow_client, uris
from vit_search.tracking.recorded_file import RECORDED
from vit_search.tracking.recorder import Recorder
from vit_search.tracking.search_runs import STATUS
from vit_search.tracking.sync import sync_search


@pytest.fixture(autouse=True)
def gathered_at_once(monkeypatch):
    monkeypatch.setattr("vit_search.tracking.recorder.GATHER_S", 0.0)


@pytest.fixture
def uri(migrated, tmp_path, monkeypatch):
    shutil.copy(migrated, tmp_path / "mlruns.db")
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'mlruns.db'}"


def content(uri, search="made-1"):
    """All that MLflow has of a search, without the ids that it gives, and the clock's tags; from a server, which hashes the password
    at each call, two metrics alone."""
    client = mlflow_client.client_for(uri)
    experiment = client.get_experiment_by_name("made").experiment_id
    runs = client.search_runs([experiment], f"tags.search = '{search}'")
    found = []
    for run in runs:
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.") and k not in ("alive_at", "driver_host")}
        points = {}
        if "trial" in tags:
            names = ("epochs", "val_accuracy") if uri.startswith("http") else run.data.metrics
            points = {n: sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, n)) for n in names}
        found.append((run.info.run_name, run.info.status, tags, run.data.params, points))
    return sorted(found, key=lambda run: run[0])


def assert_whole(uri, folder, search="made-1"):
    """One run per trial and one parent, each with its status, each epoch once."""
    trials = {trial.number: trial for trial in read_trials(folder / "ledger.jsonl")}
    found = content(uri, search)
    assert [run[0] for run in found] == sorted([search, *(f"trial {number}" for number in trials)])
    for name, status, tags, params, points in found:
        if name == search:
            assert status == "FINISHED"
            continue
        trial = trials[int(tags["trial"])]
        assert (status, tags["outcome"]) == (STATUS[trial.outcome], trial.outcome)
        assert {key: params[key] for key in trial.params} == {key: str(value) for key, value in trial.params.items()}
        assert [step for step, _, _ in points["val_accuracy"]] == list(range(1, len(trial.results) + 1))
        assert [value for _, _, value in points["val_accuracy"]] == [r.val_accuracy for r in trial.results]
        assert points["epochs"][-1][2] == len(trial.results)
    return found


def test_a_whole_search_is_there_once_and_sending_it_again_changes_nothing(uri, tmp_path):
    folder, _, _ = made(tmp_path)
    assert sync_search(folder, uri)
    before = assert_whole(uri, folder)
    assert sync_search(folder, uri)  # from its notes
    assert content(uri) == before
    (folder / RECORDED).unlink()
    assert sync_search(folder, uri)  # all of it again, into the same runs
    assert content(uri) == before


def test_a_trial_has_about_ten_metrics_and_the_tags_to_filter_by(uri, tmp_path):
    folder, spec, facts = made(tmp_path)
    sync_search(folder, uri)
    client = mlflow_client.client_for(uri)
    experiment = client.get_experiment_by_name("made").experiment_id
    first = client.search_runs([experiment], "tags.trial = '0'")[0]
    trial = read_trials(folder / "ledger.jsonl")[0]
    assert len(first.data.metrics) <= 15
    assert first.data.metrics["best/val_accuracy"] == max(r.val_accuracy for r in trial.results)
    assert first.data.metrics["device_seconds"] == 4 * 2.0 * spec.resources.cpus
    assert first.data.metrics["rung"] == 2  # of the rungs 1 and 2; the fourth epoch is full length
    assert first.data.metrics["params"] == spec.space.cost(trial.params).params
    wanted = {
        "search": "made-1",
        "outcome": "completed",
        "rung": "2",
        "data_hash": "d" * 64,
        "space_hash": facts.space_hash,
        "mlflow.source.git.commit": "c" * 40,
    }
    assert wanted.items() <= first.data.tags.items()
    ranking = sorted((t for t in read_trials(folder / "ledger.jsonl") if t.outcome == "completed"), key=lambda t: -t.value("val_accuracy"))
    found = client.search_runs([experiment], "tags.rank = '1'")
    assert [run.data.tags["trial"] for run in found] == [str(ranking[0].number)]


def test_the_parent_tells_how_the_search_stands_and_links_to_its_trials(uri, tmp_path):
    folder, _, _ = made(tmp_path)
    sync_search(folder, uri)
    client = mlflow_client.client_for(uri)
    experiment = client.get_experiment_by_name("made").experiment_id
    (parent,) = client.search_runs([experiment], "attributes.run_name = 'made-1'")
    text = parent.data.tags["mlflow.note.content"]
    assert "**finished**: 6 of 6 trials over (3 completed, 1 diverged, 2 stopped)" in text
    assert (
        f"#/experiments/{experiment}/runs?searchFilter=tags.search%20%3D%20%27made-1%27%20and%20tags.outcome%20%3D%20%27stopped%27" in text
    )
    points = client.get_metric_history(parent.info.run_id, "best/val_accuracy")
    values = [point.value for point in sorted(points, key=lambda p: p.step)]
    assert values == sorted(values)
    assert values[-1] == max(t.value("val_accuracy") for t in read_trials(folder / "ledger.jsonl") if t.outcome == "completed")
    names = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"search.yaml", "resolved.json", "environment.json", "requirements.txt", "leaderboard.json", "ledger.jsonl"} <= names
    assert {"report.html", "report.md"} <= names
    table = client.load_table(experiment, "leaderboard.json", [parent.info.run_id])
    assert (
        table["trial"].tolist()[0]
        == max((t for t in read_trials(folder / "ledger.jsonl") if t.outcome == "completed"), key=lambda t: t.value("val_accuracy")).number
    )


# What MLflow's pages show of it


def sent(home, uri, trials, **search):
    """A whole search of these trials, each the values of the metric by epoch and the trial's outcome; its runs by name."""
    folder, spec, _ = begin(home, trials=len(trials), **search)
    ledger, at = Ledger(folder / "ledger.jsonl"), 1_700_000_000.0
    for number, (values, outcome) in enumerate(trials):
        ledger.append(Proposed(trial=number, params={"dim": 32, "depth": 1, "lr": 2e-3}, at=at))
        for epoch, value in enumerate(values, 1):
            ledger.append(Reported(trial=number, result=result(epoch, 0.5, **{spec.metric: value}), at=at + epoch))
        ledger.append(Ended(trial=number, outcome=outcome, at=at + 10))
    ledger.close()
    assert sync_search(folder, uri)
    client = mlflow_client.client_for(uri)
    experiment = client.get_experiment_by_name("made").experiment_id
    return folder, client, {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}


def curve(client, run, name):
    """(step, value, seconds since the trial began) of each point."""
    points = client.get_metric_history(run, name)
    return sorted((p.step, p.value, p.timestamp / 1000 - 1_700_000_000) for p in points)


@pytest.mark.parametrize(("mode", "metric", "sign"), [("max", "val_accuracy", 1), ("min", "val_loss", -1)])
def test_a_trials_best_is_a_curve_of_the_epochs_that_improved_it(uri, tmp_path, mode, metric, sign):
    values = [sign * value for value in (0.5, 0.4, 0.6, 0.6)]
    _, client, runs = sent(tmp_path, uri, [(values, "completed"), ([math.nan], "diverged")], more=f"metric: {metric}\nmode: {mode}\n")
    assert curve(client, runs["trial 0"], f"best/{metric}") == [(1, sign * 0.5, 1), (3, sign * 0.6, 3), (4, sign * 0.6, 10)]
    assert curve(client, runs["trial 1"], f"best/{metric}") == []


def test_no_metric_of_a_whole_trial_is_a_lone_point_that_mlflow_draws_as_a_curve(uri, tmp_path):
    """MLflow draws a metric whose last step is 0 as a bar, and every other as a curve."""
    _, client, runs = sent(tmp_path, uri, [([0.1, 0.2, 0.3, 0.4], "completed"), ([0.1, 0.2], "stopped"), ([], "failed")])
    assert curve(client, runs["trial 0"], "epochs") == [(0, 0, 0), (4, 4, 10)]
    assert curve(client, runs["trial 0"], "rung") == [(0, 0, 0), (4, 2, 10)]
    assert curve(client, runs["trial 0"], "device_seconds") == [(0, 0, 0), (4, 8, 10)]
    assert [(step, at) for step, _, at in curve(client, runs["trial 0"], "params")] == [(0, 0)]
    assert curve(client, runs["trial 2"], "epochs") == [(0, 0, 0), (0, 0, 10)]
    for name in ("trial 0", "trial 1", "made-1"):
        for metric in client.get_run(runs[name]).data.metrics:
            points = curve(client, runs[name], metric)
            assert len({step for step, _, _ in points}) > 1 or points[-1][0] == 0, metric
    assert [point[:2] for point in curve(client, runs["made-1"], "best/val_accuracy")] == [(1, 0.4), (3, 0.4)]


def test_mlflow_lists_a_trials_metric_first_and_a_trial_sent_epoch_by_epoch_is_the_same(uri, migrated, tmp_path):
    """MLflow's page of a comparison begins with the first metric that it is given."""
    folder, spec, facts = begin(tmp_path, trials=1)
    ledger, recorder = Ledger(folder / "ledger.jsonl"), Recorder.connect(uri, spec.name)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    for event in events(spec):
        ledger.append(event)
        until(lambda: not recorder.behind)
    assert recorder.close("FINISHED", None)
    ledger.close()
    run = recorder.client.search_runs([recorder.experiment_id], "tags.trial = '0'")[0]
    assert next(iter(run.data.metrics)) == "best/val_accuracy"
    shutil.copy(migrated, tmp_path / "other.db")
    (folder / RECORDED).unlink()
    assert sync_search(folder, f"sqlite:///{tmp_path / 'other.db'}")
    assert content(f"sqlite:///{tmp_path / 'other.db'}")[1:] == content(uri)[1:]  # the trial's run


def data_sets(client, run):
    """(name, digest, context, images) of each data set of a run, in a fixed order."""
    return sorted(
        (used.dataset.name, used.dataset.digest, {tag.key: tag.value for tag in used.tags}["mlflow.data.context"], images(used.dataset))
        for used in client.get_run(run).inputs.dataset_inputs
    )


def images(dataset):
    return json.loads(dataset.profile)["images"]


def test_each_run_names_the_splits_that_it_uses_once(uri, tmp_path):
    folder, client, runs = sent(tmp_path, uri, [([0.5], "stopped")])
    used = [("digits/train", "d" * 32, "train", 1258), ("digits/val", "d" * 32, "val", 179)]
    others = [("digits/holdout", "d" * 32, "holdout", 90), ("digits/test", "d" * 32, "test", 270)]
    for _ in range(2):
        assert data_sets(client, runs["trial 0"]) == used
        assert data_sets(client, runs["made-1"]) == sorted(used + others)
        (folder / RECORDED).unlink()
        assert sync_search(folder, uri)  # all of it again
    first = client.get_run(runs["trial 0"]).inputs.dataset_inputs[0].dataset
    assert (first.source_type, json.loads(first.source)) == ("code", {"tags": {"loader": "sklearn.datasets.load_digits"}})
    assert Schema.from_json(json.dumps(json.loads(first.schema)["mlflow_colspec"])).input_names() == ["image", "label"]
    assert json.loads(first.profile) | {"images": 0} == {"images": 0, "classes": 10, "channels": 1, "height": 8, "width": 8}
    experiment = client.get_run(runs["made-1"]).info.experiment_id
    assert len(client.search_runs([experiment], f"dataset.digest = '{'d' * 32}' and dataset.context = 'train'")) == 2


def test_a_folder_of_images_is_named_by_its_path_and_a_training_on_more_names_more(tmp_path):
    _, _, facts = begin(tmp_path)
    data = {"name": "image_folder", "path": str(tmp_path / "pets")}
    facts = dataclasses.replace(facts, resolved={"data": data, "train_on": "train+val"}, splits={}, image_shape=(), classes=0)
    names = datasets.splits_of_a_trial(facts)
    assert names == ("train", "val", "holdout")
    first = datasets.inputs(facts, names)[0].dataset
    assert (first.name, first.source_type, json.loads(first.source)) == ("pets/train", "local", {"uri": str(tmp_path / "pets")})
    assert (first.schema, first.profile) == (None, "{}")  # of a search of an earlier version
    assert datasets.splits(facts) == ("train", "val")


def columns(client, view):
    experiment = client.get_experiment_by_name("made")
    kept = json.loads(experiment.tags[f"mlflow.sharedViewState.{view}"])
    return json.loads(kept["state"])


def test_an_experiments_page_has_a_column_for_the_newest_searchs_metric(uri, tmp_path):
    _, client, _ = sent(tmp_path, uri, [([0.5], "stopped")])
    tags = client.get_experiment_by_name("made").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert (tags["mlflow.experiment.primaryMetric.name"], tags["mlflow.experiment.primaryMetric.greaterIsBetter"]) == (
        "val_accuracy",
        "true",
    )
    shown = columns(client, "searches")
    assert shown["selectedColumns"] == [
        "metrics.`best/val_accuracy`",
        "metrics.`val_accuracy`",
        "metrics.`epochs`",
        "tags.`outcome`",
        "params.`dim`",
        "params.`depth`",
        "params.`lr`",
    ]
    assert (shown["orderByKey"], shown["orderByAsc"]) == ("attributes.start_time", False)
    assert (columns(client, "trials")["orderByKey"], columns(client, "trials")["orderByAsc"]) == ("metrics.`val_accuracy`", False)
    sent(tmp_path / "b", uri, [([0.5], "stopped")], name="made-2", more="metric: val_loss\nmode: min\n")
    assert "metrics.`best/val_loss`" in columns(client, "searches")["selectedColumns"]
    assert (columns(client, "trials")["orderByKey"], columns(client, "trials")["orderByAsc"]) == ("metrics.`val_loss`", True)
    assert client.get_experiment_by_name("made").tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "false"


def test_a_promotion_leaves_the_columns_as_they_are(uri, tmp_path):
    folder, _, facts = begin(tmp_path, trials=1)
    Ledger(folder / "ledger.jsonl").close()
    searches.write(folder, dataclasses.replace(facts, promotes="made-1"))
    assert sync_search(folder, uri)
    assert not [name for name in mlflow_client.client_for(uri).get_experiment_by_name("made").tags if "View" in name]


def test_the_filters_of_the_guide_find_what_they_say(uri, tmp_path):
    folder, _, _ = made(tmp_path)
    sync_search(folder, uri)
    client = mlflow_client.client_for(uri)
    experiment = client.get_experiment_by_name("made").experiment_id
    guide = (ROOT / "docs/guides/mlflow.md").read_text()
    filters = [line.split("`")[1] for line in guide.partition("| filter |")[2].partition("\n\n")[0].splitlines() if line.startswith("| `")]
    filters = [f.replace("digits-1", "made-1").replace("'9'", "'2'").replace("0120947f…", "d" * 64) for f in filters]
    counts = [len(client.search_runs([experiment], text)) for text in filters]
    small = [t for t in read_trials(folder / "ledger.jsonl") if len(t.results) >= 2 and begin_cost(t) < 1e5]
    assert counts == [2, 5, len(small), 7]  # one of six diverged and has no rank; the search's own run has the data hash, too


def begin_cost(trial):
    return search_file.parse(FILE % (6, 4)).space.cost(trial.params).params


def test_a_sender_that_is_killed_at_any_moment_is_finished_by_the_next(migrated, tmp_path, monkeypatch):
    """Six kills at random moments, each of a process that sends; then one that is let be."""
    monkeypatch.chdir(tmp_path)
    folder, _, _ = made(tmp_path, trials=30)
    for name in ("killed", "whole"):
        shutil.copy(migrated, tmp_path / f"{name}.db")
    uri, rng = f"sqlite:///{tmp_path / 'killed.db'}", random.Random(5)
    code = (
        "import sys, pathlib; from vit_search.tracking import recorder, sync; recorder.GATHER_S = 0; print('at it', flush=True);"
        "print(sync.sync_search(pathlib.Path(sys.argv[1]), sys.argv[2]))"
    )
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", code, folder, uri], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as sender:
            sender.stdout.readline()
            time.sleep(rng.uniform(0.0, 1.2))
            sender.kill()
    assert sync_search(folder, uri)
    found = assert_whole(uri, folder)
    shutil.rmtree(tmp_path / "mlartifacts")
    (folder / RECORDED).unlink()
    assert sync_search(folder, f"sqlite:///{tmp_path / 'whole.db'}")
    assert content(f"sqlite:///{tmp_path / 'whole.db'}") == found


def test_a_search_goes_to_another_store_as_a_whole(uri, migrated, tmp_path):
    folder, _, _ = made(tmp_path)
    sync_search(folder, uri)
    shutil.copy(migrated, tmp_path / "other.db")
    assert sync_search(folder, f"sqlite:///{tmp_path / 'other.db'}")
    assert_whole(f"sqlite:///{tmp_path / 'other.db'}", folder)


def test_runs_that_somebody_has_deleted_are_created_again(uri, migrated, tmp_path):
    folder, _, _ = made(tmp_path)
    sync_search(folder, uri)
    shutil.copy(migrated, tmp_path / "mlruns.db")  # an empty database in its place
    assert sync_search(folder, uri)
    assert_whole(uri, folder)


@pytest.fixture
def without_report(monkeypatch):
    """Its pictures take seconds, and are not what is looked at here."""
    monkeypatch.setattr("vit_search.tracking.summary.write_report", lambda folder: ())


def run_ids(uri, search="made-1"):
    """The runs of a search by their names."""
    client = mlflow_client.client_for(uri)
    experiment = client.get_experiment_by_name("made").experiment_id
    return {run.info.run_name: run.info.run_id for run in client.search_runs([experiment], f"tags.search = '{search}'")}


@pytest.mark.parametrize("names", [["trial 0"], ["trial 0", "trial 5"], ["made-1"], ["made-1", "trial 2"]], ids=" and ".join)
@pytest.mark.usefixtures("without_report")
def test_a_run_that_somebody_deletes_in_mlflow_is_created_again_with_one_line_and_all_else_is_sent(uri, tmp_path, caplog, names):
    folder, _, _ = made(tmp_path)
    assert sync_search(folder, uri)
    before, ids = content(uri), run_ids(uri)
    for name in names:
        mlflow_client.client_for(uri).delete_run(ids[name])
    with caplog.at_level(logging.WARNING):
        assert sync_search(folder, uri)
    of_search = ["MLflow has no run of made-1 any more; it is created again, with all records."]
    assert caplog.messages == (
        of_search if "made-1" in names else [f"MLflow has no run of {name} any more; it is created again." for name in names]
    )
    assert content(uri) == before
    assert_whole(uri, folder)
    after = run_ids(uri)
    assert {name for name in ids if ids[name] != after[name]} == set(names)
    caplog.clear()
    assert sync_search(folder, uri)
    assert not caplog.messages
    assert run_ids(uri) == after


@pytest.mark.usefixtures("without_report")
def test_a_store_that_is_spelled_another_way_is_the_same_store(uri, tmp_path):
    folder, _, _ = made(tmp_path)
    assert sync_search(folder, uri)
    before = content(uri)
    noted = (folder / RECORDED).read_text()
    (folder / RECORDED).write_text(noted.replace(uri, "sqlite:///mlruns.db"))  # as older versions noted it
    mlflow_client.client_for(uri).delete_run(run_ids(uri)["trial 0"])
    assert sync_search(folder, "sqlite:///mlruns.db")
    assert content(uri) == before
    (folder / RECORDED).write_text(noted.partition("\n")[0].replace(uri, "sqlite:///./gone.db") + "\n")
    assert sync_search(folder, uri)  # its runs are found by their tags, and noted
    assert {json.loads(line)["trial"] for line in (folder / RECORDED).read_text().splitlines() if '"run"' in line} == set(range(6))
    mlflow_client.client_for(uri).delete_run(run_ids(uri)["trial 0"])
    assert sync_search(folder, uri)
    assert content(uri) == before


@pytest.mark.usefixtures("without_report")
def test_a_run_that_is_deleted_while_its_search_runs_is_created_again(uri, tmp_path, caplog):
    folder, spec, facts = begin(tmp_path, trials=3)
    ledger, recorder = Ledger(folder / "ledger.jsonl"), Recorder.connect(uri, spec.name)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    with caplog.at_level(logging.WARNING):
        for number, event in enumerate(events(spec)):
            ledger.append(event)
            if number in (4, 12):  # of trial 0 while it trains, and of trial 1 after its end
                name = "trial 0" if number == 4 else "trial 1"
                until(lambda: not recorder.behind)
                until(lambda name=name: name in run_ids(uri))
                recorder.client.delete_run(run_ids(uri)[name])
        assert recorder.close("FINISHED", None)
    ledger.close()
    assert_whole(uri, folder)
    assert sorted(caplog.messages) == [f"MLflow has no run of trial {n} any more; it is created again." for n in (0, 1)]


def test_a_trial_that_goes_on_after_an_interruption_is_shown_as_running_and_then_as_over(uri, tmp_path):
    folder, spec, facts = begin(tmp_path, trials=1)
    ledger = Ledger(folder / "ledger.jsonl")
    for event in (
        Proposed(trial=0, params={"dim": 32, "depth": 1, "lr": 2e-3}),
        Reported(trial=0, result=result(1, 0.5)),
        Ended(trial=0, outcome="interrupted", reason="the driver stopped"),
    ):
        ledger.append(event)
    ledger.close()
    assert sync_search(folder, uri)
    assert [run[1] for run in content(uri)] == ["KILLED", "KILLED"]

    ledger = Ledger(folder / "ledger.jsonl")
    recorder = Recorder.connect(uri, spec.name)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    ledger.append(Reported(trial=0, result=result(2, 0.6)))
    until(lambda: [run[1] for run in content(uri)] == ["RUNNING", "RUNNING"])
    until(lambda: content(uri)[0][2].get("state") == "running")
    description = recorder.client.get_run(recorder.parent_run).data.tags["mlflow.note.content"]
    assert description.startswith("**running**: 0 of 1 trial over (1 running)")
    for event in (*(Reported(trial=0, result=result(e, 0.6)) for e in (3, 4)), Ended(trial=0, outcome="completed")):
        ledger.append(event)
    assert recorder.close("FINISHED", None)
    ledger.close()
    assert_whole(uri, folder)


def test_of_a_dead_driver_mlflow_says_what_status_does(uri, tmp_path):
    folder, spec, facts = begin(tmp_path, trials=2)
    ledger = Ledger(folder / "ledger.jsonl")
    for event in (
        Launched(host="here", pid=1),
        *(Proposed(trial=number, params={"dim": 32, "depth": 1, "lr": 2e-3}) for number in (0, 1)),
        Reported(trial=0, result=result(1, 0.5)),
        Broke(trial=0, reason="its node was lost", again=True),
    ):
        ledger.append(event)
    ledger.close()
    assert search_state.read(folder).state == SearchState("interrupted", "its driver died")
    assert sync_search(folder, uri)
    runs = content(uri)
    assert [run[1] for run in runs] == ["KILLED"] * 3
    parent, first, _ = (run[2] for run in runs)
    assert (parent["state"], first["outcome"]) == ("interrupted", "interrupted")
    assert (first["breakdowns"], first["breakdown_reasons"]) == ("1", "once: its node was lost")
    client = mlflow_client.client_for(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("made").experiment_id], "attributes.run_name = 'made-1'")
    assert found.data.tags["mlflow.note.content"].startswith("**interrupted (its driver died)**: 0 of 2 trials over (2 interrupted)")
    assert "the search is interrupted (its driver died)." in (folder / "report.md").read_text()

    ledger = Ledger(folder / "ledger.jsonl")
    recorder = Recorder.connect(uri, spec.name)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    for event in (Launched(host="here", pid=2), *(Reported(trial=n, result=result(2 - n, 0.6)) for n in (0, 1))):
        ledger.append(event)
    until(lambda: [run[1] for run in content(uri)] == ["RUNNING"] * 3)
    for number in (0, 1):
        ledger.append(Ended(trial=number, outcome="stopped"))
    ledger.append(Left(state="finished"))
    assert recorder.close("FINISHED", None)
    ledger.close()
    assert_whole(uri, folder)


def test_a_driver_at_work_keeps_its_search_to_itself(uri, tmp_path):
    folder, _, _ = made(tmp_path)
    ledger = Ledger(folder / "ledger.jsonl")
    with pytest.raises(SearchError, match="is running this search; wait for it or stop it"):
        sync_search(folder, uri)
    ledger.close()


def test_nothing_is_sent_before_the_disk_has_it(uri, tmp_path):
    folder, spec, facts = begin(tmp_path, trials=2)
    ledger, synced, recorder = Ledger(folder / "ledger.jsonl"), [], Recorder.connect(uri, spec.name)

    def sync_ledger():
        ledger.sync()
        synced.append(len(ledger.events))

    recorder.open(spec, facts, folder, ledger.events, sync_ledger)
    ledger.listeners.append(recorder.wake)
    for event in events(spec):
        ledger.append(event)
    assert recorder.close("FINISHED", None)
    ledger.close()
    taken = [json.loads(line)["taken"] for line in (folder / RECORDED).read_text().splitlines() if "taken" in line]
    assert taken[-1] == len(ledger.events)
    assert all(any(sent <= had for had in synced) for sent in taken)
    assert synced[: len(taken)] == sorted(synced[: len(taken)])


@pytest.mark.parametrize("value", [0.0, -0.0, 1e308, -1e308, 5e-324, 0.1 + 0.2, math.inf, -math.inf, math.nan])
def test_odd_numbers_come_back_as_they_were(uri, tmp_path, value):
    folder, _, _ = begin(tmp_path, trials=1)
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(Proposed(trial=0, params={"dim": 32, "depth": 1, "lr": 2e-3}))
    ledger.append(Reported(trial=0, result=result(1, 0.5, val_loss=value)))
    ledger.append(Ended(trial=0, outcome="stopped"))
    ledger.close()
    assert sync_search(folder, uri)
    (trial,) = [run for run in content(uri) if run[0] == "trial 0"]
    ((_, _, stored),) = trial[4]["val_loss"]
    if math.isinf(value):  # SQL stores have the largest double in its place
        assert stored == math.copysign(sys.float_info.max, value)
    else:
        assert stored == value or (math.isnan(value) and math.isnan(stored))


@pytest.mark.parametrize("seconds", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_a_database_that_is_locked_for_a_while_costs_nothing_and_at_most_one_line(uri, tmp_path, capfd, caplog, seconds):
    """MLflow waits for 20 s by itself."""
    folder, spec, facts = begin(tmp_path)
    ledger, recorder = Ledger(folder / "ledger.jsonl"), Recorder.connect(uri, spec.name)
    with sqlite3.connect(tmp_path / "mlruns.db", isolation_level=None, check_same_thread=False) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        recorder.open(spec, facts, folder, ledger.events, ledger.sync)
        ledger.listeners.append(recorder.wake)
        began = time.monotonic()
        for event in events(spec):
            ledger.append(event)
        assert time.monotonic() - began < 20  # the search does not wait for it: MLflow waits so long for each call
        threading.Timer(seconds, lambda: lock.execute("ROLLBACK")).start()
        assert recorder.close("FINISHED", None)
    ledger.close()
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "sqlalchemy" not in printed
    lines = [message for message in caplog.messages if "locked" in message]
    assert len(lines) == (seconds > 20), lines
    assert all(line.startswith("MLflow does not answer (") and "\n" not in line for line in lines)
    assert_whole(uri, folder)


# Zombies


def test_doctor_finds_runs_of_dead_drivers_and_of_strangers_and_leaves_the_living(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))  # what Ray may have left in this account is not its matter here
    client = mlflow_client.client_for(uri)
    dead, dead_spec, dead_facts = begin(tmp_path / "a", "made-1")
    alive, alive_spec, alive_facts = begin(tmp_path / "b", "made-2")
    ledgers = {}
    for folder, spec, facts in ((dead, dead_spec, dead_facts), (alive, alive_spec, alive_facts)):
        ledger = ledgers[folder] = Ledger(folder / "ledger.jsonl")
        ledger.append(Proposed(trial=0, params={"dim": 32, "depth": 1, "lr": 2e-3}))
        recorder = Recorder.connect(uri, spec.name)
        recorder.open(spec, facts, folder, ledger.events, ledger.sync)
        until(lambda name=folder.name: len(content(uri, name)) == 2)  # and is left as it is, as by a kill
    ledgers[dead].close()
    stranger = client.create_run("0", start_time=int((time.time() - 30 * 3600) * 1000), run_name="stranger").info.run_id
    client.create_run("0", run_name="young stranger")
    found = doctor.zombies(client)
    assert sorted(zombie.name for zombie in found) == ["made-1", "stranger", "trial 0"]
    assert next(z.reason for z in found if z.name == "stranger") == "not of vit_search, and silent for 30 h"
    assert next(z.reason for z in found if z.name == "made-1") == f"nobody runs {dead}"
    listed = vit_search(tmp_path, "doctor", code=None)
    assert listed.returncode == 1
    assert stranger in listed.stdout
    assert client.get_run(stranger).info.status == "RUNNING"
    closed = vit_search(tmp_path, "doctor", "--close", code=None)
    assert (closed.returncode, "closed 3" in closed.stdout) == (0, True), closed.stderr
    assert doctor.zombies(client) == []
    assert [run[1] for run in content(uri)] == ["KILLED", "KILLED"]
    assert [run[2].get("outcome") for run in content(uri)] == [None, "interrupted"]
    assert [run[1] for run in content(uri, "made-2")] == ["RUNNING", "RUNNING"]
    ledgers[alive].close()


def test_a_driver_on_another_machine_is_dead_once_it_has_been_silent_for_long(uri, tmp_path):
    client = mlflow_client.client_for(uri)
    now = time.time()
    tags = {"search": "x-1", "search_id": "x", "search_folder": "/nowhere", "alive_at": str(int(now)), "driver_host": "far"}
    client.create_run("0", run_name="x-1", tags=tags)
    assert doctor.zombies(client, now=now + 300) == []
    assert [zombie.reason for zombie in doctor.zombies(client, now=now + 1200)] == ["its driver on far has been silent for 20 min"]


# Servers, for real


@pytest.fixture(scope="module")
def postgres():
    """The URI of a PostgreSQL of our own, its password included."""
    if servers.POSTGRES is None:
        pytest.skip("PostgreSQL: no server binary here (apt-get install postgresql)")
    with servers.postgres() as uri:
        yield uri


@pytest.fixture(scope="module")
def account():
    """Of the server with basic-auth, where MLflow itself looks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        yield


@pytest.fixture(scope="module")
def server(postgres, account, tmp_path_factory):
    """MLflow's server with basic-auth and artifact proxy, over PostgreSQL."""
    home = tmp_path_factory.mktemp("server")
    with psycopg.connect(postgres, autocommit=True) as database:
        database.execute("CREATE DATABASE served")  # its own: where an experiment's artifacts go stands in the database
    own = postgres.removesuffix("/postgres") + "/served"
    (home / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{home / 'auth.db'}\nadmin_username = admin\n"
        f"admin_password = {SECRET}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test"}
    with servers.mlflow_server(home, own, "--app-name", "basic-auth", **secrets) as uri:
        yield uri


def test_postgresql_gets_all_of_a_search_and_its_password_stays_secret(postgres, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    folder, _, facts = made(tmp_path)
    assert sync_search(folder, postgres)
    assert_whole(postgres, folder)
    assert SECRET not in (folder / RECORDED).read_text() + caplog.text + "".join(capfd.readouterr())
    (folder / RECORDED).unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    (folder / "search.json").write_text(json.dumps(dataclasses.asdict(facts) | {"tracking_uri": uris.public(postgres)}))
    assert sync_search(folder)  # the search keeps no password; the environment has it
    assert_whole(postgres, folder)
    with pytest.raises(TrackingError) as refused:
        mlflow_client.client_for(postgres.replace(SECRET, "wrong-" + SECRET))
    assert SECRET not in str(refused.value)
    client = mlflow_client.client_for(postgres)
    runs = client.search_runs([client.get_experiment_by_name("made").experiment_id])
    assert not any(SECRET in str(run.to_dictionary()) for run in runs)


def test_a_server_with_accounts_and_artifact_proxy_gets_all_of_a_search(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _, _ = made(tmp_path, "made-3")
    assert sync_search(folder, server)
    assert_whole(server, folder, "made-3")
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_wrong_account_gets_one_line_with_the_mend(server, tmp_path, monkeypatch):
    folder, _, _ = made(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account of it"):
        sync_search(folder, server)


class Mischief:
    """A proxy that hands all on to a server, and then cuts some of its answers off, or answers with garbage itself."""

    def __init__(self, server, cut=lambda head: False, garbage=lambda head: False):
        self.to, self.cut, self.garbage, self.cuts = int(server.rpartition(":")[2]), cut, garbage, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                caller, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(caller,), daemon=True).start()

    def carry(self, caller):
        """One request and its answer; the connection is closed after it."""
        with caller, socket.create_connection(("127.0.0.1", self.to)) as server:
            asked = b""
            while b"\r\n\r\n" not in asked:
                if not (more := caller.recv(65536)):
                    return
                asked += more
            head, _, body = asked.partition(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
            while len(body) < length:
                body += caller.recv(65536)
            if self.garbage(head):
                self.cuts += 1
                caller.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>proxy</html>")
                return
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", body]))
            answer = b""
            while more := server.recv(65536):
                answer += more
            if self.cut(head):  # the server has done it, and nobody hears of it
                self.cuts += 1
                return
            caller.sendall(answer)


def test_a_run_whose_reply_was_lost_is_not_made_twice(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = iter(range(100))
    proxy = Mischief(server, cut=lambda head: b"/runs/create" in head and next(calls) % 2 == 0)
    folder, _, _ = made(tmp_path, "made-4")
    assert sync_search(folder, proxy.uri)
    assert proxy.cuts >= 3
    assert_whole(server, folder, "made-4")


def test_a_search_whose_own_run_was_made_unheard_gets_its_files_all_the_same(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    creations, uploads = iter(range(100)), iter(range(100))
    proxy = Mischief(
        server,
        cut=lambda head: b"/runs/create" in head and next(creations) == 0,
        garbage=lambda head: b"search.yaml" in head and next(uploads) == 0,
    )
    folder, _, _ = made(tmp_path, "made-7", trials=1)
    assert sync_search(folder, proxy.uri)
    assert proxy.cuts == 2
    assert_whole(server, folder, "made-7")
    client = mlflow_client.client_for(server)
    (parent,) = client.search_runs([client.get_experiment_by_name("made").experiment_id], "attributes.run_name = 'made-7'")
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"search.yaml", "resolved.json", "environment.json", "requirements.txt"} <= names


def test_answers_that_are_lost_or_garbage_cost_no_point_and_double_none(server, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    calls, mean = iter(range(1000)), (b"/runs/log-batch", b"/runs/update", b"/runs/create", b"/runs/search")
    proxy = Mischief(
        server,
        cut=lambda head: any(part in head for part in mean) and next(calls) % 7 == 3,
        garbage=lambda head: any(part in head for part in mean) and next(calls) % 7 == 5,
    )
    folder, _, _ = made(tmp_path, "made-5")
    with caplog.at_level(logging.WARNING):
        assert sync_search(folder, proxy.uri)
    assert proxy.cuts >= 3
    assert caplog.text.count("MLflow does not answer") == 1  # said once, not each time
    assert_whole(server, folder, "made-5")


def test_a_server_that_never_comes_back_leaves_a_search_that_sync_completes(server, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    away = threading.Event()
    proxy = Mischief(server, garbage=lambda head: away.is_set())
    folder, spec, facts = begin(tmp_path, "made-6")
    ledger, recorder = Ledger(folder / "ledger.jsonl"), Recorder.connect(proxy.uri, spec.name)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    for number, event in enumerate(events(spec)):
        ledger.append(event)
        if number == 6:
            until(lambda: len(content(server, "made-6")) >= 2)
            away.set()
    with caplog.at_level(logging.WARNING):
        assert not recorder.close("FINISHED", None, patience_s=2)
    assert "`vit-search sync made-6` sends it" in caplog.text
    ledger.close()
    assert len(content(server, "made-6")) < 7
    away.clear()
    from vit_search.ledger import searches

    searches.write_hindsight(folder, searches.Hindsight(0, 0, (0.0, 1.0), None))
    done = vit_search(tmp_path, "sync", folder.name, "--output", tmp_path, "--tracking-uri", server, code=None)
    assert (done.returncode, done.stdout) == (0, "MLflow has all of made-6.\n"), done.stderr
    assert_whole(server, folder, "made-6")
