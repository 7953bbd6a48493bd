"""No pickle in a model file is run: not by our commands, not in any process that we start, whatever the shell says."""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import numpy as np
import psutil
import pytest
import torch
from helpers import servers
from helpers.commands import COMMAND
from helpers.paths import ROOT
from PIL import Image
from ray import cloudpickle

from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.runtime.pickles import REFUSED
from vit_search.search import launch
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint, checkpoint_files, evaluation, training

GUIDE = (ROOT / "docs/guides/mlflow.md").read_text()
HOSTILE = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
}
"""A shell that asks for pickles by all that torch and MLflow know."""


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def poisoned_archive(path, marker):
    """A torch.export archive that computes what it should; its sample inputs are a pickle that runs a command."""
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path)
    torch.save(Evil(marker), path.with_suffix(".part"))
    with zipfile.ZipFile(path) as sound:
        records = {name: sound.read(name) for name in sound.namelist()}
    (inputs,) = [name for name in records if "sample_inputs" in name]
    records[inputs] = path.with_suffix(".part").read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as poisoned:
        for name, content in records.items():
            poisoned.writestr(name, content)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A registry of crafted models, beside crafted files; what each would leave behind is `marks/NAME`."""
    home = tmp_path_factory.mktemp("pickles")
    (home / "marks").mkdir()
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    mlflow.set_experiment(experiment_id=client.create_experiment("crafted", artifact_location=(home / "artifacts").as_uri()))

    def registered(name, uri):
        model = uri.rpartition("/")[2]
        client.create_registered_model(name)
        client.create_model_version(name, uri, model_id=model)
        return Path(urlsplit(client.get_logged_model(model).artifact_location).path)

    torch.save({"weights": Evil(home / "marks/pt")}, home / "evil.pt")
    poisoned_archive(home / "evil.pt2", home / "marks/pt2")
    with mlflow.start_run():
        place = registered("pyfunc", mlflow.pyfunc.log_model(name="m", python_model=mlflow.pyfunc.PythonModel()).model_uri)
        (place / "python_model.pkl").write_bytes(pickle.dumps(Evil(home / "marks/pyfunc")))
    with mlflow.start_run():
        linear = torch.nn.Linear(2, 2)
        place = registered("pytorch", mlflow.pytorch.log_model(linear, name="m", serialization_format="pickle").model_uri)
        torch.save(Evil(home / "marks/pytorch"), place / "data/model.pth")
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(linear, name="m", serialization_format="pt2", input_example=np.zeros((1, 2), np.float32))
        (archive,) = registered("archive", info.model_uri).rglob("*.pt2")
        poisoned_archive(archive, home / "marks/archive")
    config = TrialConfig(
        data=DataConfig(name="digits"),
        model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=2, dim=16, heads=2, depth=1),
        training=TrainingConfig(epochs=1),
        seed=0,
    )
    checkpoint.save(
        home / "checkpoint", training.start(config, evaluation.Normalisation.of((0.5,), (0.2,))), classes=("a", "b"), data_hash="h"
    )
    with mlflow.start_run() as run:
        pass
    poisoned_archive(
        registered("sound", log_model(home / "checkpoint", run_id=run.info.run_id, pt2=True)) / "artifacts/model.pt2", home / "marks/sound"
    )
    with mlflow.start_run() as run:
        pass
    place = registered("weights", log_model(home / "checkpoint", run_id=run.info.run_id)) / "artifacts/checkpoint"
    torch.save(Evil(home / "marks/weights"), place / "model.safetensors")
    document = json.loads((place / "config.json").read_text())
    document["sha256"]["model.safetensors"] = checkpoint.weights_sha256(place)
    (place / "config.json").write_text(checkpoint_files.signed(document))  # so that its own digests are right
    Image.new("L", (8, 8)).save(home / "image.png")
    return home


def marks(home):
    """What has been run since the last look."""
    found = {path.name for path in (home / "marks").iterdir()}
    for name in found:
        (home / "marks" / name).unlink()
    return found


WITHOUT_DEFENCE = """
import sys, mlflow, torch
from pathlib import Path
def tried(load, *arguments, **options):
    try:
        load(*arguments, **options)
    except Exception as error:
        print(error, file=sys.stderr)
mlflow.set_tracking_uri("sqlite:///mlruns.db")
tried(torch.load, "evil.pt", weights_only=False)
tried(torch.export.load, "evil.pt2")
for name in ("pyfunc", "pytorch", "archive"):
    tried(mlflow.pyfunc.load_model, f"models:/{name}/1")
inside = Path(mlflow.artifacts.download_artifacts("models:/sound/1")) / "artifacts"
tried(torch.export.load, inside / "model.pt2")
inside = Path(mlflow.artifacts.download_artifacts("models:/weights/1")) / "artifacts"
tried(torch.load, (inside / "checkpoint/model.safetensors").open("rb"), weights_only=False)  # by its name torch knows better
"""

ALL = {"pt", "pt2", "pyfunc", "pytorch", "archive", "sound", "weights"}


def python(code, home, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in HOSTILE}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=home, env=clean | environment, capture_output=True, text=True, timeout=1800
    )


@pytest.mark.parametrize("environment", [{}, HOSTILE], ids=["a plain shell", "a shell that allows pickles"])
def test_each_crafted_file_runs_code_where_nothing_defends(environment, home):
    done = python(WITHOUT_DEFENCE, home, **environment)
    assert marks(home) == ALL, done.stderr


@pytest.mark.parametrize("import_", ["from vit_search import run_search", "import vit_search.cli", "from vit_search.vit import model"])
def test_none_runs_once_the_package_is_imported(import_, home):
    done = python(f"{import_}\n{WITHOUT_DEFENCE}", home, **HOSTILE)
    assert marks(home) == set()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Weights only load failed") >= 3


def test_only_a_word_of_its_own_allows_pickles_again(home):
    code = f"import vit_search\n{WITHOUT_DEFENCE}"
    python(code, home, VIT_SEARCH_ALLOW_PICKLE="1")
    assert marks(home) == ALL
    python(code, home, VIT_SEARCH_ALLOW_PICKLE="0", **HOSTILE)
    assert marks(home) == set()


COMMANDS = """
import json, sys
from vit_search import cli
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["vit-search", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""


def test_no_command_of_ours_runs_one(home):
    models = ["evil.pt", "evil.pt2", *(f"models:/{name}/1" for name in ("pyfunc", "pytorch", "archive", "weights"))]
    asked = [["predict", "image.png", "--model", model] for model in models]
    asked += [["predict", name, "--model", "models:/sound/1"] for name in ("evil.pt", "evil.pt2")]
    asked += [["export", model, "--format", "pt2"] for model in models]
    asked += [["config", model] for model in models]
    done = python(COMMANDS, home, json.dumps(asked), **HOSTILE)
    assert marks(home) == set()
    codes = json.loads(done.stdout.splitlines()[-1])
    assert asked[-1] == ["config", "models:/weights/1"]  # whose config.json is sound: its weights are not looked into
    assert codes == [2] * (len(asked) - 1) + [0], done.stderr
    assert done.stderr.count("error: ") == len(asked) - 1
    assert "Traceback" not in done.stderr


def test_a_crafted_archive_beside_a_sound_checkpoint_is_not_looked_at(home, tmp_path):
    asked = [["predict", "image.png", "--model", "models:/sound/1"]]
    asked += [["export", "sound/1", "--format", format, "--output", str(tmp_path / format)] for format in ("safetensors", "pt2", "onnx")]
    asked += [["config", "sound/1"]]
    done = python(COMMANDS, home, json.dumps(asked), **HOSTILE)
    assert json.loads(done.stdout.splitlines()[-1]) == [0] * len(asked), done.stderr
    assert marks(home) == set()
    python("import torch; torch.export.load('pt2')", tmp_path)  # what was exported is our own
    assert marks(home) == set()


def environment_of(process):
    """As it was when the process began."""
    lines = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    return dict(line.decode(errors="replace").split("=", 1) for line in lines if b"=" in line)


def refuses(environment):
    return environment.items() >= REFUSED.items() and "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in environment


def probe(told):
    """A trial that loads all that lies in the folder its search stands in, and then reports an epoch as a trial does."""
    from ray import tune

    home = Path(told["folder"]).parents[3]
    os.chdir(home)
    exec(compile(WITHOUT_DEFENCE, "probe", "exec"), {})
    (home / "worker.json").write_text(json.dumps(environment_of(psutil.Process()) | {"its pid": os.getpid()}))
    values = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5, "val_top5_accuracy": 1.0, "lr": 1e-3}
    values |= {"images_per_s": 1.0, "seconds": 1.0, "peak_memory_bytes": 1}
    tune.report({"trial": told["trial"], **vars(EpochResult(epoch=1, **values))})


SEARCH = """
name: tiny
data: {name: digits, train_limit: 100}
trials: 1
epochs: 1
stopping: {kind: none}
model: {dim: 16, depth: 1, heads: {choice: [1, 2]}}
"""


def test_a_worker_of_a_search_runs_none(home, monkeypatch):
    monkeypatch.chdir(home)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker does not find the tests
    launch.run(search_file.parse(SEARCH), output=home / "searches", tracking_uri=f"sqlite:///{home / 'tiny.db'}", work=probe)
    worker = json.loads((home / "worker.json").read_text())
    assert worker["its pid"] != os.getpid()
    assert refuses(worker)
    assert marks(home) == set()


def test_every_process_of_a_search_is_started_without_pickles(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SEARCH.replace("epochs: 1", "epochs: 400"))
    with subprocess.Popen([COMMAND, "run", "tiny.yaml"], cwd=tmp_path, env=os.environ | HOSTILE, stderr=subprocess.PIPE) as driver:
        try:
            ledger = tmp_path / "searches/tiny-1/ledger.jsonl"
            servers.until(lambda: driver.poll() is not None or (ledger.exists() and b'"epoch"' in ledger.read_bytes()))
            assert driver.poll() is None, driver.stderr.read()
            found = {}
            for process in psutil.Process(driver.pid).children(recursive=True):
                name = process.cmdline()[0].rpartition("/")[2]
                if not name.endswith("Agent"):  # Ray's two write their titles over it, in part or all; they are children of the raylet
                    found[name] = refuses(environment_of(process))
            assert {"raylet", "gcs_server"} <= found.keys()
            assert any(name.startswith("ray::") and "ImplicitFunc" in name for name in found), found
            assert all(found.values()), found
        finally:
            driver.terminate()


def group(process):
    """A server's processes."""
    return [process_ for process_ in psutil.process_iter() if os.getpgid(process_.pid) == process.pid]


def test_mlflow_s_pages_are_served_without_pickles(home):
    port = servers.free_port()
    uri = f"sqlite:///{home / 'mlruns.db'}"
    server = servers.start([COMMAND, "ui", "--tracking-uri", uri, "--port", str(port)], home, port, **HOSTILE)
    try:
        found = [refuses(environment_of(process)) for process in group(server)]
        assert len(found) >= 2  # uvicorn and its worker
        assert all(found)
    finally:
        servers.end(server)


def served_by_guide(home, model, port, *, defended):
    """A script with the lines of the guide to MLflow that serve a model."""
    exports, command = re.search("^(export MLFLOW_TRACKING_URI.*?)^(mlflow models serve .*) &$", GUIDE, re.MULTILINE | re.DOTALL).groups()
    exports = "\n".join(line for line in exports.splitlines() if defended or "PICKLE" not in line)
    assert not defended or all(f"{name}={value}" in exports for name, value in REFUSED.items())
    command = command.replace("models:/digits@champion", model).replace("5001", str(port))
    path = Path(sys.executable).parent
    return ["bash", "-c", f"{exports}\nexport PATH={path}:$PATH\nexec {command} --host 127.0.0.1"]


def test_the_guide_s_server_is_started_without_pickles(home):
    port = servers.free_port()
    server = servers.start(served_by_guide(home, "models:/sound/1", port, defended=True), home, port, **HOSTILE)
    try:
        found = [environment_of(process) for process in group(server)]
        assert len(found) >= 2
        assert all(environment.items() >= REFUSED.items() for environment in found)
    finally:
        servers.end(server)
    assert marks(home) == set()


@pytest.mark.parametrize("defended", [False, True], ids=["without its variables", "as the guide shows it"])
def test_the_guide_s_server_does_not_run_a_pickled_model(defended, home):
    command = served_by_guide(home, "models:/pyfunc/1", servers.free_port(), defended=defended)
    said = home / f"served-{defended}"
    with said.open("wb") as log:
        process = subprocess.Popen(command, cwd=home, env=os.environ | HOSTILE, stdout=log, stderr=log, start_new_session=True)
    try:
        marker, refused = home / "marks/pyfunc", "Deserializing model using pickle is disallowed"
        servers.until(lambda: marker.exists() or process.poll() is not None or refused in said.read_text())
        assert (refused in said.read_text()) == defended, said.read_text()
    finally:
        servers.end(process)
    assert marks(home) == (set() if defended else {"pyfunc"})
