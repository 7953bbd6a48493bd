"""The whole walk with real processes: search, SIGKILL, resume, report, promote, predict, serve. `make test-system` has all the rest."""

import json
import urllib.request

import mlflow
import numpy as np
import pytest
from helpers import servers
from helpers.commands import COMMAND, vit_search, vit_search_process
from helpers.servers import free_port
from helpers.walk import FILE, POLICY, killed_and_resumed, rows
from PIL import Image
from sklearn.datasets import load_digits

from vit_search.ledger.events import Reported
from vit_search.ledger.file import read_events

IMAGES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project with a search that was killed and resumed, then promoted."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "small.yaml").write_text(FILE)
    (folder / "policy.yaml").write_text(POLICY)
    assert len(killed_and_resumed(folder, "small-1", kills=1, seed=0)) == 1
    vit_search_process(folder, "resume", "small-1")
    vit_search_process(folder, "promote", "small-1", "--policy", "policy.yaml")
    digits = load_digits()
    for i in range(IMAGES):
        Image.fromarray(np.round(digits.images[i] * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def predictions(folder):
    """What `predict` says of the images, by their names."""
    answer = vit_search(folder, "predict", "--model", "small@champion", "--json", *(f"{i}.png" for i in range(IMAGES))).stdout
    return {prediction["image"]: prediction for prediction in json.loads(answer)}


def test_a_search_that_was_killed_trains_each_epoch_once_and_mlflow_has_each_trial_once(folder):
    reported = [(e.trial, e.result.epoch) for e in read_events(folder / "searches/small-1/ledger.jsonl") if isinstance(e, Reported)]
    assert len(reported) == len(set(reported))
    lengths = {number: row["epochs"] for number, row in rows(folder, "small-1").items()}
    assert sorted(lengths) == list(range(5)) and 4 in lengths.values()
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db")
    (parent,) = client.search_runs([client.get_experiment_by_name("small").experiment_id], "attributes.run_name = 'small-1'")
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {int(child.data.tags["trial"]): len(client.get_metric_history(child.info.run_id, "val_loss")) for child in children} == lengths


def test_its_report_is_written(folder):
    assert "# small-1: report" in vit_search(folder, "report", "small-1").stdout
    assert "<title>" in (folder / "searches/small-1/report.html").read_text()


def test_its_champion_knows_the_digits(predictions):
    right = sum(predictions[f"{i}.png"]["label"] == str(target) for i, target in enumerate(load_digits().target[:IMAGES]))
    assert right >= 10  # 2 of 20 is chance; the best small model is right on about 8 of 10


def test_a_server_answers_what_predict_says(folder, predictions):
    port = free_port()
    server = servers.start([COMMAND, "serve", "small@champion", "--port", str(port)], folder, port, health="readyz")
    try:
        for name in ("0.png", "7.png"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict", data=(folder / name).read_bytes(), headers={"Content-Type": "image/png"}
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                (served,) = json.load(reply)["predictions"]
            predicted = predictions[name]
            assert (served["label"], served["probability"]) == (predicted["label"], pytest.approx(predicted["probability"], abs=1e-6))
    finally:
        servers.end(server)
