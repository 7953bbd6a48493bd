"""What MLflow gets of a search whose pretrained weights are lost, so that checkpoints which leave blocks out cannot be read."""

import logging
import shutil

import pytest
from helpers.trained import search_from_weights

from vit_search.tracking import mlflow_client
from vit_search.tracking.sync import sync_search


@pytest.fixture
def uri(migrated, tmp_path, monkeypatch):
    shutil.copy(migrated, tmp_path / "mlruns.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vit_search.tracking.recorder.GATHER_S", 0.0)
    return f"sqlite:///{tmp_path / 'mlruns.db'}"


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("vit_search")]


def models_of(client):
    """The trials whose models MLflow has, and the status of every run by its name."""
    experiment = client.get_experiment_by_name("fine").experiment_id
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    return {model.tags["trial"] for model in client.search_logged_models([experiment])}, statuses


def test_all_else_is_recorded_and_one_line_says_which_models_are_missing_until_the_weights_are_back(uri, tmp_path, caplog):
    folder = search_from_weights(tmp_path, ("head", "full", "last_blocks"))
    weights, aside = folder / "weights", tmp_path / "aside"
    weights.rename(aside)
    (tmp_path / "backbone").rename(tmp_path / "elsewhere")
    client = mlflow_client.client_for(uri)
    caplog.set_level(logging.WARNING)
    assert not sync_search(folder, uri)
    [line] = warnings(caplog)
    assert line.startswith(
        "MLflow did not get all of the summary (no model of trial 0 and trial 2: holds only what was trained, and the pretrained weights of"
    )
    assert line.endswith("`vit-search sync fine-1` sends it again.")
    finished = {"fine-1": "FINISHED", "trial 0": "FINISHED", "trial 1": "FINISHED", "trial 2": "FINISHED"}
    assert models_of(client) == ({"1"}, finished)
    [parent] = client.search_runs([client.get_experiment_by_name("fine").experiment_id], "attributes.run_name = 'fine-1'")
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.json", "ledger.jsonl", "report.html"} <= names
    aside.rename(weights)
    caplog.clear()
    assert sync_search(folder, uri)
    assert not warnings(caplog)
    assert models_of(client) == ({"0", "1", "2"}, finished)
