"""A whole search whose models start from pretrained weights: killed, resumed, promoted and asked, while its file is gone."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from helpers.commands import COMMAND, vit_search, vit_search_process

from vit_search.ledger import searches
from vit_search.ledger.file import read_trials
from vit_search.tracking.mlflow_client import client_for
from vit_search.vit import checkpoint
from vit_search.vit.checkpoint_files import describe

DATA = "data: {name: digits, train_limit: 300}\n"
BACKBONE = f"name: backbone\n{DATA}trials: 1\nepochs: 3\nmodel: {{dim: 32, depth: 3, heads: 4, patch_size: 2}}\n"
SEARCH = f"""name: fine
{DATA}trials: 4
epochs: 3
stopping: {{kind: none}}
seed: 3
model:
  pretrained: weights
  depth: {{choice: [1, 2]}}
training: {{lr: {{float: [1e-4, 1e-3], log: true}}}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("pretrained")
    (home / "backbone.yaml").write_text(BACKBONE)
    vit_search_process(home, "train", "backbone.yaml", "--output", "weights")
    (home / "search.yaml").write_text(SEARCH)
    return home


def test_a_search_from_weights_survives_a_kill_and_the_loss_of_its_file(home):
    process = subprocess.Popen([COMMAND, "run", "search.yaml"], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    folder, deadline = home / "searches" / "fine-1", time.monotonic() + 1800
    while not (folder / "ledger.jsonl").exists() or not any(trial.results for trial in read_trials(folder / "ledger.jsonl")):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    shutil.move(home / "weights", home / "elsewhere")
    vit_search_process(home, "resume")
    trials = read_trials(folder / "ledger.jsonl")
    assert [trial.outcome for trial in trials] == ["completed"] * 4
    spec, facts = searches.read(folder)
    sha256 = checkpoint.weights_sha256(home / "elsewhere")
    assert spec.pretrained == [f"weights#sha256={sha256}"]
    assert facts.pretrained[spec.pretrained[0]] == {"source": "weights", "revision": "", "sha256": sha256, "licence": ""}
    kept = [describe(searches.trial_folder(folder, trial.number) / "checkpoint") for trial in trials[:1]]
    assert {(one.config.model.dim, one.config.model.patch_size, one.config.model.pretrained) for one in kept} == {
        (32, 2, spec.pretrained[0])
    }


def test_its_promotion_starts_from_the_same_weights_and_the_version_says_so(home):
    vit_search_process(home, "promote", "--allow-dirty", code=None)
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    [version] = client.search_model_versions("name = 'fine'")
    sha256 = checkpoint.weights_sha256(home / "elsewhere")
    assert (version.tags["pretrained_source"], version.tags["pretrained_sha256"]) == ("weights", sha256)
    assert "starts from" in version.description
    assert version.tags["tune"] == client.get_run(version.run_id).data.tags["tune"] == "full"
    assert "| trained weights | all weights; tune full |" in version.description
    retrained = home / "searches" / "fine-1" / "promotions" / "1"
    assert not (retrained / "weights").exists()
    assert searches.read(retrained)[1].pretrained == searches.read(home / "searches" / "fine-1")[1].pretrained


def test_what_was_promoted_answers_without_any_weights_file(home, tmp_path):
    from PIL import Image

    shutil.rmtree(home / "searches" / "fine-1" / "weights")
    Image.new("L", (8, 8), 7).save(tmp_path / "x.png")
    model = searches.trial_folder(home / "searches" / "fine-1" / "promotions" / "1", 0) / "checkpoint"
    [answer] = json.loads(vit_search(home, "predict", "--model", model, tmp_path / "x.png", "--json").stdout)
    assert answer["label"] in "0123456789"


def test_a_promotion_whose_weights_are_lost_or_changed_is_one_line_before_anything_is_trained(home):
    assert not (home / "searches" / "fine-1" / "weights").exists()
    done = vit_search_process(home, "promote", "--seeds", "2", "--allow-dirty", code=2)
    assert "model.pretrained: weights: no such file" in done.stderr
    (home / "weights").mkdir()
    content = bytearray((home / "elsewhere" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (home / "weights" / "model.safetensors").write_bytes(content)
    done = vit_search_process(home, "promote", "--seeds", "2", "--allow-dirty", code=2)
    assert "sha256" in done.stderr
    assert "Traceback" not in done.stderr
