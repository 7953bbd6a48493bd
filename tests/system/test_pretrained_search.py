"""A whole search whose models start from pretrained weights: killed, resumed, promoted and asked, while its file is gone."""

import json
import shutil
import signal
import subprocess

import pytest
from helpers.commands import COMMAND, vit_search, vit_search_process
from helpers.servers import until

from vit_search.data.cache import prepare
from vit_search.ledger import searches
from vit_search.ledger.file import read_trials
from vit_search.tracking.mlflow_client import client_for
from vit_search.vit import checkpoint, train_once
from vit_search.vit.checkpoint_files import describe

DATA = "data: {name: digits, train_limit: 300}\n"
BACKBONE = f"name: backbone\n{DATA}trials: 1\nepochs: 3\nmodel: {{dim: 32, depth: 3, heads: 4, patch_size: 2}}\n"
WAYS = ["head", "last_blocks", "lora", "full"]
SEARCH = f"""name: fine
{DATA}trials: 4
epochs: 5
stopping: {{kind: none}}
sampler: grid
concurrency: 1
keep_checkpoints: 4
model: {{pretrained: weights, depth: 2}}
training: {{tune: {{choice: [{", ".join(WAYS)}]}}, lr: 0.002, batch_size: 8}}
"""
HEADS = f"""name: heads
{DATA}trials: 5
epochs: 3
stopping: {{kind: none}}
sampler: grid
concurrency: 1
keep_checkpoints: 5
resources: {{cpus: 1, gpus: 0}}
model: {{pretrained: weights, depth: 2}}
training: {{tune: head, lr: {{choice: [0.001, 0.003, 0.01, 0.03, 0.1]}}, batch_size: 8}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("pretrained")
    (home / "backbone.yaml").write_text(BACKBONE)
    vit_search_process(home, "train", "backbone.yaml", "--output", "weights")
    (home / "search.yaml").write_text(SEARCH)
    return home


def digests(folder):
    """The sha256 of each trial's model by its way of tuning, and the names of the files that hold it."""
    made = {}
    for trial in read_trials(folder / "ledger.jsonl"):
        assert [result.epoch for result in trial.results] == [1, 2, 3, 4, 5]
        assert trial.outcome == "completed"
        place = searches.trial_folder(folder, trial.number) / "checkpoint"
        files = {path.name for path in place.iterdir()} - {"config.json", "optimiser.safetensors"}
        made[trial.params["tune"]] = (checkpoint.weights_sha256(place), files)
    return made


def test_heads_that_a_worker_trains_one_after_another_have_the_bits_that_each_has_alone_also_after_a_kill(home, tmp_path, monkeypatch):
    (home / "heads.yaml").write_text(HEADS)
    folder = home / "searches" / "heads-1"
    ledger = folder / "ledger.jsonl"

    def reported():
        return ledger.read_text().count('"reported"') if ledger.exists() else 0

    with subprocess.Popen([COMMAND, "run", "heads.yaml"], cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        until(lambda: driver.poll() is not None or reported() >= 7)  # in the third trial, whose worker has trained two
        assert driver.poll() is None, driver.stderr.read()
        driver.send_signal(signal.SIGKILL)
    vit_search_process(home, "resume", "heads-1")
    monkeypatch.chdir(home)  # where the weights are
    spec, _ = searches.read(folder)
    assert {trial.outcome for trial in read_trials(ledger)} == {"completed"}
    for number in range(5):
        together, alone = searches.trial_folder(folder, number) / "checkpoint", tmp_path / str(number)
        config = describe(together).config
        list(train_once.train(spec, config, prepare(config.data), alone))
        assert checkpoint.weights_sha256(together) == checkpoint.weights_sha256(alone)


def test_a_search_from_weights_survives_a_kill_in_each_way_of_tuning_and_the_loss_of_its_file(home):
    ledger = home / "searches" / "fine-1" / "ledger.jsonl"

    def reported():
        return ledger.read_text().count('"reported"') if ledger.exists() else 0

    for kill in range(4):  # in the second or third epoch of each trial
        command = ["run", "search.yaml"] if kill == 0 else ["resume", "fine-1"]
        with subprocess.Popen([COMMAND, *command], cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
            until(lambda driver=driver, least=5 * kill + 2: driver.poll() is not None or reported() >= least)
            assert driver.poll() is None, driver.stderr.read()
            driver.send_signal(signal.SIGKILL)
        if kill == 0:
            shutil.move(home / "weights", home / "elsewhere")
    vit_search_process(home, "resume", "fine-1")
    shutil.copytree(home / "elsewhere", home / "weights")
    vit_search_process(home, "run", "search.yaml")
    shutil.rmtree(home / "weights")
    folder = home / "searches" / "fine-1"
    trials, killed = read_trials(ledger), digests(folder)
    assert killed == digests(home / "searches" / "fine-2")  # to the bit
    assert {way: files for way, (_, files) in killed.items()} == {
        way: {"model.safetensors" if way == "full" else "trained.safetensors"} for way in WAYS
    }
    spec, facts = searches.read(folder)
    sha256 = checkpoint.weights_sha256(home / "elsewhere")
    assert spec.pretrained == [f"weights#sha256={sha256}"]
    assert facts.pretrained[spec.pretrained[0]] == {"source": "weights", "revision": "", "sha256": sha256, "licence": ""}
    kept = [describe(searches.trial_folder(folder, trial.number) / "checkpoint") for trial in trials[:1]]
    assert {(one.config.model.dim, one.config.model.patch_size, one.config.model.pretrained) for one in kept} == {
        (32, 2, spec.pretrained[0])
    }


def test_its_promotion_starts_from_the_same_weights_and_the_version_says_so(home):
    vit_search_process(home, "promote", "fine-1", "--allow-dirty", code=None)
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    [version] = client.search_model_versions("name = 'fine'")
    sha256 = checkpoint.weights_sha256(home / "elsewhere")
    assert (version.tags["pretrained_source"], version.tags["pretrained_sha256"]) == ("weights", sha256)
    assert "starts from" in version.description
    way = client.get_run(version.run_id).data.tags["tune"]
    assert version.tags["tune"] == way
    assert f"; tune {way}" in version.description
    retrained = home / "searches" / "fine-1" / "promotions" / "1"
    assert not (retrained / "weights").exists()
    assert searches.read(retrained)[1].pretrained == searches.read(home / "searches" / "fine-1")[1].pretrained


def test_what_was_promoted_answers_without_any_weights_file(home, tmp_path):
    from PIL import Image

    Image.new("L", (8, 8), 7).save(tmp_path / "x.png")
    trials = [searches.trial_folder(home / "searches" / "fine-1", trial) / "checkpoint" for trial in range(4)]
    for model in trials:  # with the weights of their search
        [answer] = json.loads(vit_search(home, "predict", "--model", model, tmp_path / "x.png", "--json").stdout)
        assert answer["label"] in "0123456789"
    shutil.rmtree(home / "searches" / "fine-1" / "weights")
    [answer] = json.loads(vit_search(home, "predict", "--model", "fine/1", tmp_path / "x.png", "--json").stdout)
    assert answer["label"] in "0123456789"
    said = [vit_search(home, "predict", "--model", model, tmp_path / "x.png", code=None) for model in trials]
    assert sorted(done.returncode for done in said) == [0, 2, 2, 2]
    assert sum("holds only what was trained, and the pretrained weights of its search are gone" in done.stderr for done in said) == 3


def test_a_promotion_that_is_over_restores_lost_weights_from_their_source(home):
    kept = home / "searches" / "fine-1" / "weights"
    assert not kept.exists()
    shutil.copytree(home / "elsewhere", home / "weights")
    vit_search_process(home, "promote", "fine-1", "--allow-dirty", code=None)
    assert [path.name for path in kept.glob("*/model.safetensors")] == ["model.safetensors"]
    shutil.rmtree(home / "weights")
    shutil.rmtree(kept)


def test_a_promotion_whose_weights_are_lost_or_changed_is_one_line_before_anything_is_trained(home):
    assert not (home / "searches" / "fine-1" / "weights").exists()
    done = vit_search_process(home, "promote", "fine-1", "--seeds", "2", "--allow-dirty", code=2)
    assert "model.pretrained: weights: no such file" in done.stderr
    (home / "weights").mkdir()
    content = bytearray((home / "elsewhere" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (home / "weights" / "model.safetensors").write_bytes(content)
    done = vit_search_process(home, "promote", "fine-1", "--seeds", "2", "--allow-dirty", code=2)
    assert "sha256" in done.stderr
    assert "Traceback" not in done.stderr
