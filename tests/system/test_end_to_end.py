"""What a search leaves, for real: leaderboard, MLflow, promotion, predictions, a moved project; and the refusals before it."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import mlflow
import numpy as np
import psutil
import pytest
from helpers import servers
from helpers.commands import COMMAND, vit_search, vit_search_process
from helpers.servers import free_port, until
from helpers.walk import FILE, POLICY, rows
from PIL import Image
from sklearn.datasets import load_digits


def test_a_search_ends_with_a_leaderboard_and_the_next_commands(walked):
    _, first, _, _ = walked
    assert "5 of 5 trials" in first.stdout
    assert "vit-search ui" in first.stdout
    assert "vit-search promote small-1" in first.stdout


def test_mlflow_holds_one_parent_and_one_child_per_trial_with_each_epoch_once(walked):
    folder, _, _, _ = walked
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    for search in ("small-1", "small-2"):
        (parent,) = client.search_runs([experiment], f"tags.search = '{search}' and attributes.run_name = '{search}'")
        assert parent.info.status == "FINISHED"
        reports = {"report.html", "report.md", "confusion.csv", "label_errors.csv"}
        assert {"search.yaml", "resolved.json", "environment.json", "leaderboard.json", "plan.json"} | reports <= {
            a.path for a in client.list_artifacts(parent.info.run_id)
        }
        assert len(parent.data.tags["data_hash"]) == 64
        assert parent.data.tags["code_version"].startswith("vit_search ")
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        known = rows(folder, search)
        assert sorted(int(c.data.tags["trial"]) for c in children) == sorted(known)
        for child in children:
            row = known[int(child.data.tags["trial"])]
            assert child.data.tags["outcome"] == row["outcome"]
            assert child.info.status == "FINISHED"
            assert float(child.data.params["lr"]) == row["lr"]
            # an epoch that a killed driver did not hear of comes from the checkpoint, which does not know what it took
            for name in ("val_accuracy", *(["system/process_memory_megabytes"] if search == "small-1" else [])):
                points = client.get_metric_history(child.info.run_id, name)
                assert sorted(p.step for p in points) == list(range(1, row["epochs"] + 1))
        best = sorted((row for row in known.values() if row["outcome"] == "completed"), key=lambda row: -row["val_accuracy"])[:2]
        models = client.search_logged_models([experiment], filter_string=f"tags.search = '{search}'")
        assert sorted(model.tags["trial"] for model in models) == sorted(str(row["trial"]) for row in best)
        assert sorted(model.model_id for model in parent.outputs.model_outputs) == sorted(model.model_id for model in models)
        for model in models:
            run = client.get_run(model.source_run_id)
            assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
            shown = {metric.key: metric.value for metric in model.metrics}
            assert (shown["val_accuracy"], shown["epochs"]) == (run.data.metrics["val_accuracy"], 4)


def test_the_csv_has_a_line_per_trial(walked):
    folder, _, _, _ = walked
    table = list(csv.DictReader(io.StringIO(vit_search(folder, "show", "small-1", "--csv").stdout)))
    assert [row["rank"] for row in table] == ["1", "2", "3", "4", "5"]
    assert set(table[0]) >= {"trial", "outcome", "val_accuracy", "patch_size", "lr"}


def test_a_promotion_says_first_what_it_would_do(promoted):
    _, dry, _ = promoted
    assert "4 training runs: trials" in dry.stdout
    assert "with 2 new seeds each, 4 epochs on training and validation images, measured on the holdout" in dry.stdout
    assert "there is none yet" in dry.stdout
    assert "reading 1 of at most 20" in dry.stdout


def test_a_killed_promotion_goes_on_and_trains_each_finalist_once(promoted):
    folder, _, done = promoted
    assert "small version 1 is now champion" in done.stdout
    assert "reading 1 of this test split" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlruns.db'}")
    (parent,) = client.search_runs([client.get_experiment_by_name("small").experiment_id], "tags.promotes = 'small-1'")
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(child.data.tags["trial"] for child in children) == ["0", "1", "2", "3"]
    for child in children:
        assert sorted(p.step for p in client.get_metric_history(child.info.run_id, "val_accuracy")) == [1, 2, 3, 4]
    assert (parent.info.run_name, parent.data.tags["verdict"]) == ("small-1-promotion-1", "passed")
    assert "## Intended use" in parent.data.tags["mlflow.note.content"]
    version = client.get_model_version_by_alias("small", "champion")
    assert [f"models:/{output.model_id}" for output in parent.outputs.model_outputs] == [version.source]
    assert (str(version.version), version.tags["search"], version.tags["test_reading"]) == ("1", "small-1", "1")
    refused = vit_search(folder, "resume", "searches/small-1/promotions/1", code=None)
    assert refused.returncode == 2
    assert "trainings of a promotion; go on with `vit-search promote small-1`" in refused.stderr
    again = vit_search(folder, "promote", "small-1", "--policy", "policy.yaml")
    assert "version 1 is the champion already; the test split was not read again" in again.stdout


def test_the_gates_can_be_asked_alone_and_the_history_be_read(promoted):
    folder, _, _ = promoted
    kept = sorted(int(path.parent.parent.name) for path in (folder / "searches/small-1/trials").glob("*/checkpoint/config.json"))
    seen = vit_search(folder, "gate", "small-1", str(kept[0]), "--policy", "policy.yaml", "--json")
    assert {one["id"]: one["passed"] for one in json.loads(seen.stdout)}["G1"] is True
    small = (folder / "policy.yaml").read_text() + "limits: {params: 10}\n"
    (folder / "tight.yaml").write_text(small)
    refused = vit_search(folder, "gate", "small-1", str(kept[0]), "--policy", "tight.yaml", code=None)
    assert refused.returncode == 3
    assert "10 are allowed" in refused.stdout
    told = vit_search(folder, "history", "small", "--verify")
    assert "promote" in told.stdout
    assert "The history is complete" in told.stdout
    nothing = vit_search(folder, "rollback", "small", "--reason", "a drill", code=None)
    assert nothing.returncode == 2
    assert "there is no `previous` to roll back to" in nothing.stderr
    unsaid = vit_search(folder, "promote", "small-2", "--force", code=None)
    assert unsaid.returncode == 2
    assert "--force and --reason go together" in unsaid.stderr
    named = vit_search(folder, "promote", "small-2", "--name", "it's", code=None)
    assert named.returncode == 2
    assert """--name: "it's" is no name; give letters, digits""" in named.stderr
    odd = vit_search(folder, "promote", "small-2", "--policy", "small.yaml", code=None)
    assert odd.returncode == 2
    assert "small.yaml:" in odd.stderr


def test_train_makes_the_champion_again_of_what_config_prints(promoted):
    folder, _, _ = promoted
    vit_search(folder, "config", "small@champion", "--output", "fixed.yaml")
    made = vit_search(folder, "train", "fixed.yaml")
    version = mlflow.MlflowClient(f"sqlite:///{folder / 'mlruns.db'}").get_model_version_by_alias("small", "champion")
    assert version.tags["weights_sha256"] in made.stdout.replace("\n", "")


def test_predict_uses_the_champion(promoted):
    folder, _, _ = promoted
    digits = load_digits()
    for i in range(20):
        Image.fromarray(np.round(digits.images[i] * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")
    said = vit_search(folder, "predict", "--model", "models:/small@champion", "--json", *(f"{i}.png" for i in range(20)))
    labels = [p["label"] for p in json.loads(said.stdout)]
    right = sum(label == str(target) for label, target in zip(labels, digits.target, strict=False))
    assert right >= 10  # 2 of 20 is chance; the best small model is right on about 8 of 10
    bad = vit_search(folder, "predict", "--model", "models:/small@champion", "small.yaml", code=None)
    assert bad.returncode == 2
    assert "small.yaml: no image that can be decoded" in bad.stderr


def test_a_project_that_was_moved_goes_on_in_its_new_folder_and_leaves_the_old_one_alone(promoted, tmp_path):
    folder, _, _ = promoted
    moved, image = tmp_path / "moved", tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    predict = ["predict", "--model", "models:/small@champion", "--json", str(image)]
    before = json.loads(vit_search(folder, *predict).stdout)
    shutil.copytree(folder, moved)
    away = folder.rename(folder.with_name("away"))
    try:
        after = vit_search(moved, *predict)
        assert json.loads(after.stdout) == before
        assert after.stderr.count("its artifacts are now read from beside the database") == 1
        assert "The history is complete" in vit_search(moved, "history", "small", "--verify").stdout
        vit_search(moved, "export", "small@champion", "--format", "safetensors")
        done = vit_search_process(moved, "extend", "small-2", "--trials", "6", "--tracking-uri", "sqlite:///mlruns.db")
        assert "6 of 6 trials" in done.stdout
        assert done.stderr.count("MLflow") == done.stderr.count("sending the last records to MLflow …") == 1  # no trouble with it
        assert not folder.exists()
    finally:
        away.rename(folder)
    client = mlflow.MlflowClient(f"sqlite:///{moved / 'mlruns.db'}")
    (parent,) = client.search_runs([client.get_experiment_by_name("small").experiment_id], "attributes.run_name = 'small-2'")
    assert parent.info.artifact_uri.startswith((moved / "mlartifacts").as_uri())
    assert (parent.info.status, parent.data.tags["search_folder"]) == ("FINISHED", str(moved / "searches/small-2"))
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    known = rows(moved, "small-2")
    assert sorted(int(child.data.tags["trial"]) for child in children) == sorted(known) == list(range(6))
    for child in children:
        points = client.get_metric_history(child.info.run_id, "val_accuracy")
        assert sorted(p.step for p in points) == list(range(1, known[int(child.data.tags["trial"])]["epochs"] + 1))


def test_what_is_served_equals_what_was_trained_to_the_bit(walked):
    folder, _, _, _ = walked
    code = """
import sys, mlflow, numpy as np, torch
from vit_search.config import search_file
from vit_search.ledger.events import Ended, Infeasible, Proposed, Reported
from vit_search.ledger.file import read_events
from vit_search.vit import checkpoint, training, augment
from vit_search.data.cache import prepare, read_split
mlflow.set_tracking_uri("sqlite:///mlruns.db")
client = mlflow.MlflowClient()
experiment = [client.get_experiment_by_name("small").experiment_id]
best = int(client.search_runs(experiment, "attributes.run_name = 'small-1'")[0].data.tags["best_trial"])
child = client.search_runs(experiment, f"tags.search = 'small-1' and tags.trial = '{best}'")[0]
(model,) = client.search_logged_models([child.info.experiment_id], filter_string=f"source_run_id = '{child.info.run_id}'")
loaded = mlflow.pyfunc.load_model(model.model_uri)
assert loaded.metadata.signature is not None
from pathlib import Path
served = checkpoint.load_model(Path(f"searches/small-1/trials/{best:04d}/checkpoint"))
images, _ = read_split(prepare(served.config.data), "val")
with torch.inference_mode():
    logits = served.model(augment.normalise(torch.tensor(images), served.normalisation.mean, served.normalisation.std))
expected = logits.softmax(-1).double().numpy()
given = loaded.predict(np.ascontiguousarray(np.asarray(images).transpose(0, 2, 3, 1)))
assert (given[[f"p_{c}" for c in served.classes]].to_numpy() == expected).all()
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.stdout.strip().endswith("equal"), done.stderr


def test_a_loss_that_becomes_nan_is_told_as_diverged_and_never_wins(tmp_path):
    wild = FILE.replace("lr: {float: [1e-3, 1e-2], log: true}", "lr: 10, weight_decay: 10, clip_norm: null").replace(
        "trials: 5", "trials: 2"
    )
    wild = wild.replace("train_limit: 1000", "train_limit: 300").replace("[32, 64], step: 32}, depth: 2", "[16, 32], step: 16}, depth: 1")
    (tmp_path / "wild.yaml").write_text(wild)
    done = vit_search_process(tmp_path, "run", "wild.yaml", code=None)
    assert done.returncode == 4
    assert "none of 2 trials reached full length; the first reason: the validation loss is nan after epoch 1" in done.stderr
    assert {row["outcome"] for row in rows(tmp_path, "small-1").values()} == {"diverged"}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"] * 3
    refused = vit_search(tmp_path, "promote", code=None)
    assert refused.returncode == 2
    assert "no trial has reached full length yet" in refused.stderr


def test_a_tracking_server_that_dies_costs_no_point_and_doubles_none(tmp_path):
    (tmp_path / "small.yaml").write_text(FILE)
    uri = f"http://127.0.0.1:{free_port()}"
    first = serve_mlflow(tmp_path, uri)
    try:
        with subprocess.Popen(
            [COMMAND, "run", "small.yaml", "--tracking-uri", uri], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as driver:
            ledger = tmp_path / "searches/small-1/ledger.jsonl"
            until(lambda: ledger.exists() and ledger.read_text().count('"reported"') >= 2)
            servers.end(first)
            until(lambda: ledger.read_text().count('"ended"') >= 2)  # the search goes on meanwhile
            second = serve_mlflow(tmp_path, uri)
            out, err = driver.communicate(timeout=1800)
        assert driver.returncode == 0, err
        assert err.count("MLflow does not answer") <= 1
        assert "🏃" not in out + err
        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name("small").experiment_id
        runs = client.search_runs([experiment])
        assert len(runs) == 6
        known = rows(tmp_path, "small-1")
        for run in runs:
            assert run.info.status == "FINISHED"
            if "trial" in run.data.tags:
                points = client.get_metric_history(run.info.run_id, "val_accuracy")
                assert sorted(p.step for p in points) == list(range(1, known[int(run.data.tags["trial"])]["epochs"] + 1))
        (tmp_path / "policy.yaml").write_text(POLICY)
        promoted = vit_search_process(
            tmp_path, "promote", "--policy", "policy.yaml", "--top", "1", "--seeds", "1"
        )  # the search remembers its server
        assert "small version 1 is now champion" in promoted.stdout
    finally:
        for server in (first, locals().get("second")):
            servers.end(server)


@pytest.mark.slow
def test_a_server_that_never_comes_back_is_told_by_exit_code_5_and_sync_sends_the_rest(tmp_path):
    (tmp_path / "small.yaml").write_text(FILE)
    uri = f"http://127.0.0.1:{free_port()}"
    server = serve_mlflow(tmp_path, uri)
    command = [COMMAND, "run", "small.yaml", "--tracking-uri", uri]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        ledger = tmp_path / "searches/small-1/ledger.jsonl"
        until(lambda: ledger.exists() and ledger.read_text().count('"reported"') >= 2)
        servers.end(server)
        out, err = driver.communicate(timeout=1800)
    assert driver.returncode == 5, err
    assert "5 of 5 trials" in out
    assert "vit-search sync small-1" in err
    server = serve_mlflow(tmp_path, uri)
    try:
        assert vit_search(tmp_path, "sync").stdout == "MLflow has all of small-1.\n"
        client = mlflow.MlflowClient(uri)
        runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
        assert len(runs) == 6
        assert {run.info.status for run in runs} == {"FINISHED"}
    finally:
        servers.end(server)


def serve_mlflow(folder, uri):
    """A real MLflow server with artifact proxy over SQLite, once it answers."""
    return servers.start_mlflow(folder, f"sqlite:///{folder / 'server.db'}", uri.rpartition(":")[2])


@pytest.fixture
def hostile(walked):
    """Modules in the folder of the search that leave a mark when they are imported; the mark."""
    folder = walked[0]
    places = [folder / "random.py", folder / "numpy.py", folder / "mlflow" / "__init__.py"]
    for path in places:
        path.parent.mkdir(exist_ok=True)
        path.write_text("open('mark', 'a').write(__name__)")
    yield folder / "mark"
    for path in places:
        path.unlink()
    (folder / "mlflow").rmdir()


def test_ui_answers_on_loopback_alone_to_its_own_name_alone_and_imports_nothing_from_the_current_folder(walked, hostile):
    folder, _, _, _ = walked
    port = free_port()
    with subprocess.Popen([COMMAND, "ui", "--port", str(port)], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:

            def asked(host, method="GET", path="/"):
                body = b"{}" if method == "PUT" else None
                headers = {"Host": host, "Content-Type": "application/json"}
                request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers, method=method)
                try:
                    with urllib.request.urlopen(request, timeout=5) as answer:
                        return answer.status
                except urllib.error.HTTPError as refused:
                    return refused.code
                except OSError:
                    return None

            until(lambda: asked(f"127.0.0.1:{port}") == 200)
            assert asked("10.evil.example") == 403
            assert asked(f"127.0.0.1:{port}", "PUT", "/ajax-api/3.0/mlflow/assistant/config") == 403  # it would run commands
            processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            listening = {c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
            assert listening == {"127.0.0.1"}
            assert not hostile.exists(), hostile.read_text()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=1800)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "nosuch.yaml"], "nosuch.yaml: cannot be read (No such file or directory); name a YAML file."),
        (["run", "small.yaml", "--tracking-uri", "http://127.0.0.1:9"], "http://127.0.0.1:9: the tracking server does not answer"),
        (["run", "small.yaml", "--tracking-uri", "http://me:secret@127.0.0.1:9"], "the tracking URI carries a password; drop it"),
        (["run", "small.yaml", "--output", "small.yaml/x"], "small.yaml/x: cannot be written (Not a directory); name another folder"),
        (["run", "folder.yaml"], "nowhere: missing; data.path names a folder of class folders."),
        (["run", "mnist.yaml"], ": the files of mnist are not there, or damaged; name their folder as data.path, or add --download."),
        (["show"], "searches: no search here; start one with `vit-search run FILE`."),
        (["promote", "nosuch"], "searches: no search here; start one with `vit-search run FILE`."),
        (["predict", "--model", "models:/nobody@champion", "x.png"], "models:/nobody@champion: no registered model named nobody"),
    ],
)
def test_a_refusal_is_one_line_with_exit_code_2_and_leaves_no_search(tmp_path, arguments, line):
    (tmp_path / "small.yaml").write_text(FILE)
    (tmp_path / "x.png").touch()
    folder = FILE.replace("{name: digits, train_limit: 1000}", "{name: image_folder, path: nowhere, image_size: 8}")
    (tmp_path / "folder.yaml").write_text(folder)
    (tmp_path / "mnist.yaml").write_text(
        FILE.replace("{name: digits, train_limit: 1000}", "{name: mnist, path: .}").replace("[2, 4]", "[4, 7]")
    )
    done = vit_search(tmp_path, *arguments, code=None)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert "secret" not in done.stderr
    assert not list(tmp_path.glob("searches/*"))


def test_a_space_that_is_mostly_impossible_is_said_to_be_so_at_the_start(tmp_path):
    (tmp_path / "rare.yaml").write_text(FILE.replace("{int: [32, 64], step: 32}", "{int: [32, 96]}").replace("[1, 2]", "[64]"))
    done = vit_search(tmp_path, "run", "rare.yaml", "--output", "rare.yaml/x", code=None)
    assert done.stderr.startswith("note: only 1."), done.stderr  # 64 divides one width of 65


def test_help_answers_before_any_heavy_library_is_loaded(tmp_path):
    said = vit_search(tmp_path, "--help").stdout
    for command in ("run", "resume", "show", "ui", "promote", "predict", "schema"):
        assert f"  {command} " in said


def test_the_schema_command_prints_json(tmp_path):
    assert json.loads(vit_search(tmp_path, "schema").stdout)["title"] == "SearchSpec"


def test_more_gpus_than_there_are_is_refused_before_the_first_trial(tmp_path):
    (tmp_path / "small.yaml").write_text(FILE + "resources: {cpus: 1, gpus: 3}\n")
    done = vit_search(tmp_path, "run", "small.yaml", code=None)
    assert done.returncode == 2
    assert "resources.gpus: a trial asks for 3 GPUs and this machine has" in done.stderr
