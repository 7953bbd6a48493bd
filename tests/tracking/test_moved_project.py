"""Projects and searches that are renamed, moved or copied: which MLflow is meant, whose runs are whose, and where artifacts lie."""

import dataclasses
import logging
import shutil

import pytest
from helpers.servers import until
from helpers.synthetic import made

from vit_search.errors import TrackingError
from vit_search.ledger import searches
from vit_search.ledger.file import Ledger
from vit_search.tracking import doctor, mlflow_client, uris
from vit_search.tracking.recorder import Recorder
from vit_search.tracking.sync import sync_search


@pytest.fixture(autouse=True)
def gathered_at_once(monkeypatch):
    monkeypatch.setattr("vit_search.tracking.recorder.GATHER_S", 0.0)
    monkeypatch.setattr("vit_search.tracking.summary.write_report", lambda folder: ())  # a report's pictures take seconds


@pytest.fixture
def project(migrated, tmp_path, monkeypatch):
    """A project with a search that MLflow has, as an older version leaves it: with the full path of its database."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(migrated, folder / "mlruns.db")
    search, _, facts = made(folder / "searches")
    searches.write_facts(search, dataclasses.replace(facts, tracking_uri=f"sqlite:///{folder / 'mlruns.db'}"))
    assert sync_search(search)
    return folder


def runs_of(folder, search):
    """Status, folder and trials of each run of a search in a project's database."""
    client = mlflow_client.client_for(f"sqlite:///{folder / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name("made").experiment_id], f"tags.search = '{search}'")
    own = [run for run in runs if "search_id" in run.data.tags]
    return [(run.info.status, run.data.tags["search_folder"], len(runs) - len(own)) for run in own]


def points_of(folder, search, trial=0):
    client = mlflow_client.client_for(f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("made").experiment_id
    (run,) = client.search_runs([experiment], f"tags.search = '{search}' and tags.trial = '{trial}'")
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, "val_accuracy"))


# Which MLflow is meant


@pytest.fixture
def said(caplog):
    with caplog.at_level(logging.WARNING, "vit_search"):
        yield caplog


def kept(folder, uri):
    """The facts of a search that keeps this address."""
    _, facts = searches.read(folder)
    return dataclasses.replace(facts, tracking_uri=uri)


def test_what_is_given_comes_before_the_environment_and_that_before_what_the_search_keeps(project, monkeypatch, said):
    search, here = project / "searches/made-1", f"sqlite:///{project / 'mlruns.db'}"
    facts = kept(search, "http://127.0.0.1:9")
    assert uris.resolve_uri(None) == here
    assert uris.resolve_uri(None, search, kept(search, "sqlite:///mlruns.db")) == here
    assert not said.text  # all as expected
    assert uris.resolve_uri(None, search, facts) == "http://127.0.0.1:9"
    assert said.messages == ["MLflow: http://127.0.0.1:9, where made-1 has its records; --tracking-uri names another."]
    said.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@127.0.0.1:7")
    assert uris.resolve_uri(None, search, facts) == "http://user:word@127.0.0.1:7"
    assert said.messages == ["MLflow: http://user@127.0.0.1:7, by MLFLOW_TRACKING_URI; made-1 has its records in http://127.0.0.1:9."]
    said.clear()
    assert uris.resolve_uri("sqlite:///other.db", search, facts) == f"sqlite:///{project / 'other.db'}"
    assert not said.text


def test_a_command_without_a_search_means_the_mlflow_of_the_newest(project, said):
    here = f"sqlite:///{project / 'mlruns.db'}"
    assert uris.of_newest(None) == here
    assert not said.text
    searches.write_facts(project / "searches/made-1", kept(project / "searches/made-1", "http://127.0.0.1:9"))
    assert uris.of_newest(None) == "http://127.0.0.1:9"
    assert len(said.messages) == 1
    shutil.rmtree(project / "searches")
    assert uris.of_newest(None) == here


def test_the_database_of_the_project_is_kept_relative_to_it_and_found_from_anywhere(project, tmp_path, monkeypatch):
    search = project / "searches/made-1"
    assert uris.to_keep(f"sqlite:///{project / 'mlruns.db'}", search) == "sqlite:///mlruns.db"
    assert uris.to_keep(f"sqlite:///{tmp_path / 'other.db'}", search) == f"sqlite:///{tmp_path / 'other.db'}"
    assert uris.to_keep("postgresql://me:word@host/db", search) == "postgresql://me@host/db"
    facts = kept(search, "sqlite:///mlruns.db")
    monkeypatch.chdir(tmp_path)
    assert uris.resolve_uri(None, search, facts) == f"sqlite:///{project / 'mlruns.db'}"
    monkeypatch.chdir(search)
    assert uris.resolve_uri(None, search, facts) == f"sqlite:///{project / 'mlruns.db'}"


def test_a_copied_project_writes_to_its_own_mlflow_and_says_so(project, tmp_path, monkeypatch, said):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    before = (project / "mlruns.db").read_bytes()
    facts = searches.read_facts(copy / "searches/made-1")
    assert uris.resolve_uri(None, copy / "searches/made-1", facts) == f"sqlite:///{copy / 'mlruns.db'}"
    assert said.messages[0].startswith(f"MLflow: sqlite:///{copy / 'mlruns.db'}, of this project; made-1 names sqlite:///{project}")
    assert sync_search(copy / "searches/made-1")
    assert (project / "mlruns.db").read_bytes() == before
    assert runs_of(copy, "made-1") == [("FINISHED", str(copy / "searches/made-1"), 6)]  # the same runs, not others beside them
    assert points_of(copy, "made-1") == [1, 2, 3, 4]
    (copy / "mlruns.db").unlink()  # a project without a database of its own goes on in the one that the search names
    assert uris.resolve_uri(None, copy / "searches/made-1", facts) == f"sqlite:///{project / 'mlruns.db'}"


@pytest.mark.parametrize("elsewhere", [True, False], ids=["in a copy", "where it was"])
def test_a_search_whose_run_is_deleted_keeps_its_trials_runs(project, tmp_path, monkeypatch, said, elsewhere):
    folder = project
    if elsewhere:  # what was noted of the original's database says nothing about this one
        folder = shutil.copytree(project, tmp_path / "copy")
        monkeypatch.chdir(folder)
    client = mlflow_client.client_for(f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("made").experiment_id
    (own,) = [run for run in client.search_runs([experiment]) if "search_id" in run.data.tags]
    trials = {run.info.run_id for run in client.search_runs([experiment])} - {own.info.run_id}
    client.delete_run(own.info.run_id)
    assert sync_search(folder / "searches/made-1")
    assert said.messages[-1] == "MLflow has no run of made-1 any more; it is created again, with all records."
    assert runs_of(folder, "made-1") == [("FINISHED", str(folder / "searches/made-1"), 6)]
    (anew,) = [run for run in client.search_runs([experiment]) if "search_id" in run.data.tags]
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{anew.info.run_id}'")
    assert {run.info.run_id for run in below} == trials
    assert points_of(folder, "made-1") == [1, 2, 3, 4]


def test_what_mlflow_is_told_is_not_taken_for_the_users_word(project, monkeypatch):
    mlflow_client.client_for(f"sqlite:///{project / 'mlruns.db'}")
    assert (
        uris.resolve_uri(None, project / "searches/made-1", kept(project / "searches/made-1", "http://127.0.0.1:9")) == "http://127.0.0.1:9"
    )


# Where the artifacts lie


def artifacts_of(folder):
    """Names of the search's artifacts, and the folder in which MLflow says that they are."""
    client = mlflow_client.client_for(f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("made")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'made-1'")
    return {a.path for a in client.list_artifacts(run.info.run_id)}, experiment.artifact_location, run.info.artifact_uri


@pytest.fixture
def apart(monkeypatch):
    """MLflow remembers the place of a run's artifacts for as long as a process lives; each command is one."""
    from mlflow.tracking._tracking_service import utils

    return lambda: utils._artifact_repos_cache.clear()


def test_a_renamed_project_finds_its_artifacts_again_and_never_makes_the_old_folder(project, tmp_path, monkeypatch, said, apart):
    before, _, _ = artifacts_of(project)
    moved = project.rename(tmp_path / "a new näme")
    monkeypatch.chdir(moved)
    apart()
    names, experiment, run = artifacts_of(moved)
    assert names == before >= {"search.yaml", "leaderboard.json"}
    assert experiment == (moved / "mlartifacts/made").as_uri()
    assert run.startswith(f"{experiment}/")
    (line,) = [text for text in said.messages if "artifacts" in text]
    assert str(project / "mlartifacts") in line
    shutil.rmtree(moved / "mlartifacts/made" / run.split("/")[-2])
    assert sync_search(moved / "searches/made-1")
    assert artifacts_of(moved)[0] >= {"leaderboard.json", "ledger.jsonl"}
    assert not project.exists()
    assert len([text for text in said.messages if "artifacts" in text]) == 1  # once


def test_artifacts_that_are_nowhere_are_named_in_one_line_and_nothing_is_made(project, tmp_path, monkeypatch):
    moved = project.rename(tmp_path / "moved")
    (moved / "mlartifacts").rename(tmp_path / "left behind")
    monkeypatch.chdir(moved)
    with pytest.raises(TrackingError, match="were in this folder, and it is gone; bring it to") as refused:
        sync_search(moved / "searches/made-1")
    assert str(moved / "mlartifacts/made") in str(refused.value)
    assert not project.exists()
    shutil.copytree(tmp_path / "left behind", moved / "mlartifacts")
    assert sync_search(moved / "searches/made-1")


# Copied searches


def test_a_copied_search_gets_runs_of_its_own_and_leaves_those_of_its_original_alone(project, said):
    first, copy = project / "searches/made-1", project / "searches/made-1b"
    before = runs_of(project, "made-1")
    shutil.copytree(first, copy)
    assert sync_search(copy)
    (line,) = [text for text in said.messages if "is a copy of" in text]
    assert line == f"{copy} is a copy of {first}, whose runs in MLflow it leaves alone; it gets runs of its own."
    assert runs_of(project, "made-1") == before == [("FINISHED", str(first), 6)]
    assert runs_of(project, "made-1b") == [("FINISHED", str(copy), 6)]
    assert points_of(project, "made-1") == points_of(project, "made-1b") == [1, 2, 3, 4]
    said.clear()
    assert sync_search(copy)  # its own by now
    assert sync_search(first)
    assert not said.text
    assert runs_of(project, "made-1b") == [("FINISHED", str(copy), 6)]


def test_a_search_that_was_moved_keeps_its_runs(project, said):
    moved = (project / "searches/made-1").rename(project / "searches/elsewhere")
    assert sync_search(moved)
    assert not said.text
    assert runs_of(project, "made-1") == [("FINISHED", str(moved), 6)]


def test_doctor_never_closes_the_runs_of_a_running_search(project, said):
    """Neither for a copy of its folder that nobody runs, nor for a folder of the same path on another machine."""
    client, old = mlflow_client.client_for(f"sqlite:///{project / 'mlruns.db'}"), project / "searches/made-1"
    moved = old.rename(project / "searches/made-2")
    spec, facts = searches.read(moved)
    ledger = Ledger(moved / "ledger.jsonl")
    recorder = Recorder.connect(uris.resolve_uri(None, moved, facts), spec.name)
    recorder.open(spec, facts, moved, ledger.events, ledger.sync)
    try:
        until(lambda: recorder.ready and not recorder.behind)
        shutil.copytree(moved, old)  # back to where the runs were made; nobody runs this copy
        assert client.get_run(recorder.parent_run).info.status == "RUNNING"
        assert doctor.zombies(client) == []
        client.set_tag(recorder.parent_run, "search_folder", str(old))
        for _ in range(10):  # the recorder writes its own host now and then
            client.set_tag(recorder.parent_run, "driver_host", "another")
            found = doctor.zombies(client)
            if client.get_run(recorder.parent_run).data.tags["driver_host"] == "another":
                break
        assert found == []
    finally:
        recorder.close("KILLED", None)
        ledger.close()
