"""One way to name a model, understood by every command; and the folder that `train` makes, from its training to its promotion."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import COMMAND
from PIL import Image

from vit_search.errors import DataError, PromotionError, SearchError
from vit_search.ledger import searches
from vit_search.ledger.file import read_trials
from vit_search.promotion import adopted, export, finalists
from vit_search.registry import references
from vit_search.registry.champion import move_champion
from vit_search.registry.configuration import configuration
from vit_search.serving import alias_follower, prediction
from vit_search.serving.state import read_state
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint

FILE = """
name: pets
data: {name: digits, train_limit: 200}
metric: val_loss
trials: 1
epochs: 2
stopping: {kind: none}
model: {patch_size: 4, dim: 16, depth: 1, heads: 2}
training: {lr: 0.003}
"""
FORMS = ["pets@champion", "pets/1", "models:/pets@champion", "models:/pets/1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which `train` has made trained/pets, and a registry that has it as version 1 of pets, the champion."""
    home = tmp_path_factory.mktemp("named")
    (home / "pets.yaml").write_text(FILE)
    subprocess.run([COMMAND, "train", "pets.yaml"], cwd=home, check=True, capture_output=True, timeout=1800)
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    experiment = client.create_experiment("pets", artifact_location=(home / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    client.set_terminated(run)
    uri = log_model(home / "trained/pets", run_id=run)
    client.create_registered_model("pets")
    client.create_model_version("pets", uri, run, tags={"verdict": "passed"}, model_id=uri.rpartition("/")[2])
    move_champion(client, "pets", "1", action="promote", expected=None, by="ann")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(home / name)
    return home


@pytest.fixture
def inside(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlruns.db'}")
    return home


@pytest.mark.parametrize("form", [*FORMS, "trained/pets", "./trained/pets/"])
def test_every_command_understands_a_name(form, inside, tmp_path):
    own = prediction.classify(Path("trained/pets"), [Path("a.png"), Path("b.png")], source="")
    assert prediction.predict(form, [Path("a.png"), Path("b.png")]) == own
    assert "lr: 0.003" in configuration(form).text
    assert export.export(form, "safetensors", tmp_path / "out").difference == 0
    if "trained" not in form:
        assert references.name_of(form) == "pets"
        assert str(references.parse(form)) in ("pets@champion", "pets/1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pats@champion", "pats@champion: no registered model named pats; did you mean pets?"),
        ("pets@champoin", "pets@champoin: pets has no alias champoin; did you mean champion?"),
        ("models:/pets/7", "models:/pets/7: pets has no version 7; there are 1."),
        ("pets", "pets: names no version; write pets@champion, or pets/1 for one version."),
        ("trained/pet", "trained/pet: no such folder; did you mean trained/pets?"),
        ("trained", "trained: a folder without a model; `vit-search train FILE` makes one."),
        ("pets/one", "pets/one: no such folder, and no version: that is a number, as in digits/3. An alias stands behind @."),
        ("a/b/c", "a/b/c: no such folder; `vit-search train FILE` makes one."),
    ],
)
def test_a_slip_gets_the_nearest_name(name, said, inside):
    for ask in (lambda: prediction.predict(name, [Path("a.png")]), lambda: configuration(name), lambda: export.export(name, "pt2")):
        with pytest.raises(PromotionError, match=f"^{re.escape(said)}$"):
            ask()


def test_a_name_that_the_database_does_not_have_is_refused_without_mlflow(inside):
    uri = f"sqlite:///{inside / 'mlruns.db'}"
    with pytest.raises(PromotionError, match=r"^pats@champion: no registered model named pats; did you mean pets\?$"):
        references.check_known(uri, "pats@champion")
    for known in ("pets", "pets/7", "models:/pets@champion", "models:/m-123"):
        references.check_known(uri, known)


def test_a_damaged_image_is_told_by_the_second_process_too(inside):
    for model in ("pets@champion", "trained/pets"):
        with pytest.raises(DataError, match=r"^pets.yaml: no image that can be decoded"):
            prediction.predict(model, [Path("pets.yaml")])


def test_history_takes_any_name_of_the_model(inside):
    asked = [[COMMAND, "history", name, "--json"] for name in ("pets", *FORMS[:3])]
    told = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in asked]
    assert len(set(told)) == 1
    assert json.loads(told[0])[0]["version"] == "1"


def test_a_trained_folder_is_served_as_it_was_when_serving_began(inside, tmp_path):
    said = []
    shutil.copytree("trained/pets", tmp_path / "pets")
    follower = alias_follower.FixedModel(tmp_path / "pets", tmp_path / "state.json", said.append)
    state = follower.start()
    shutil.rmtree(tmp_path / "pets")
    follower.poll()
    assert checkpoint.weights_sha256(Path(state.version.folder)) == checkpoint.weights_sha256(Path("trained/pets"))
    assert "no gate has judged" in said[0]
    follower.drain()
    assert read_state(tmp_path / "state.json").draining


def test_a_trained_folder_becomes_a_search_of_one_trial_once(inside, tmp_path):
    folder = adopted.adopt(Path("trained/pets"), tmp_path)
    assert folder == adopted.adopt(Path("trained/pets"), tmp_path) == tmp_path / "pets-1"
    spec, facts = searches.read(folder)
    assert (spec.metric, spec.mode, facts.data_hash) == ("val_loss", "min", checkpoint.load_model(Path("trained/pets")).data_hash)
    (trial,) = read_trials(folder / "ledger.jsonl")
    assert (trial.outcome, [result.epoch for result in trial.results]) == ("completed", [1, 2])
    plan = finalists.plan(folder, top=3, seeds=2)
    assert plan.trainings == [({}, plan.seeds[0]), ({}, plan.seeds[1])]
    own = plan.spec.trial_config({}, in_channels=1, num_classes=10, trial=0)
    assert own.model == checkpoint.load_model(Path("trained/pets")).config.model


def test_a_folder_that_its_file_does_not_tell_of_is_not_promoted(inside, tmp_path):
    shutil.copytree("trained/pets", tmp_path / "pets")
    (tmp_path / "pets/search.yaml").write_text(FILE.replace("0.003", "0.002"))
    with pytest.raises(SearchError, match="not the file that this model was trained from"):
        adopted.adopt(tmp_path / "pets", tmp_path)
    (tmp_path / "pets/search.yaml").unlink()
    with pytest.raises(SearchError, match=r"no search\.yaml beside the model"):
        adopted.adopt(tmp_path / "pets", tmp_path)
    assert list(tmp_path.glob("pets-*")) == []


@pytest.mark.parametrize("text", ["", "  "])
def test_a_model_without_a_name_is_refused_with_the_forms_that_there_are(text):
    with pytest.raises(PromotionError, match="no model is named; write it like digits@champion, digits/3 or trained/digits"):
        references.folder_of(text)


@pytest.mark.parametrize("text", ["trained/pets", "a/b", "", "pets@"])
def test_what_is_no_name_of_a_registered_model_has_no_history(text):
    with pytest.raises(PromotionError, match="not the name of a registered model; give it without a folder, like digits"):
        references.name_of(text)
