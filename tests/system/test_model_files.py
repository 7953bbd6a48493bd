"""The files of a model are those that were registered, whichever command loads it; and none of them runs its code."""

import contextlib
import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from helpers.commands import vit_search
from PIL import Image

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.errors import PromotionError, ServingError
from vit_search.promotion import export
from vit_search.promotion.candidate import Candidate
from vit_search.promotion.champion_model import fetched_champion
from vit_search.promotion.finalists import Finalist
from vit_search.promotion.registration import log_candidate
from vit_search.registry import configuration, references
from vit_search.registry.champion import move_champion
from vit_search.registry.version_files import fetch_logged, load_version
from vit_search.serving import alias_follower, prediction
from vit_search.tracking import model_files
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint, evaluation, training
from vit_search.vit.checkpoint_files import copy_for_serving, signed

CONFIG, WEIGHTS = "artifacts/checkpoint/config.json", "artifacts/checkpoint/model.safetensors"


def trained(folder, seed):
    config = TrialConfig(
        data=DataConfig(name="digits"),
        model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=2, patch_size=4, dim=16, heads=2, depth=1),
        training=TrainingConfig(epochs=1),
        seed=seed,
    )
    state = training.start(config, evaluation.Normalisation.of((0.4,), (0.2,)))
    checkpoint.save(folder, state, classes=("cat", "dog"), data_hash="h")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store whose model `pets` has one version, the champion, and two checkpoints: that of the version, and another."""
    home = tmp_path_factory.mktemp("files")
    trained(home / "own", 1), trained(home / "other", 2)
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    run = client.create_run(client.create_experiment("pets", artifact_location=(home / "artifacts").as_uri())).info.run_id
    client.set_terminated(run)
    uri = log_model(home / "own", run_id=run)
    logged = client.get_logged_model(uri.rpartition("/")[2])
    client.create_registered_model("pets")
    tags = {"verdict": "passed", model_files.RECORD: logged.tags[model_files.RECORD]}
    client.create_model_version("pets", uri, run, tags=tags, model_id=logged.model_id)
    move_champion(client, "pets", "1", action="promote", expected=None, by="ann")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(home / "a.png")
    shutil.copytree(model_of(client), home / "sound")
    return home


def model_of(client):
    """The folder of the model in the store."""
    return Path(client.get_logged_model(logged_uri(client).rpartition("/")[2]).artifact_location.removeprefix("file://"))


@pytest.fixture
def store(home, monkeypatch):
    """The client of a store whose files are as they were registered; what a test does to them is taken back."""
    monkeypatch.chdir(home)
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    yield client
    shutil.rmtree(model_of(client))
    shutil.copytree(home / "sound", model_of(client))


def served(home, place):
    said = []
    follower = alias_follower.AliasFollower(references.parse("pets@champion"), None, place / "state.json", place / "cache", said.append)
    return follower.start()


def rejudged(home, place):
    client = client_for(None)
    with fetched_champion(client, client.get_model_version("pets", "1")) as rival:
        return rival


LOADS = {
    "predict": lambda home, place: prediction.predict("pets@champion", [home / "a.png"]),
    "predict a logged model": lambda home, place: fetch_logged(client_for(None), logged_uri(), place),
    "predict a run's model": lambda home, place: fetch_logged(client_for(None), run_uri(), place),
    "export": lambda home, place: export.export("pets/1", "safetensors", place / "out"),
    "config": lambda home, place: configuration.configuration("pets@champion"),
    "serve": served,
    "promote": rejudged,
    "rollback": lambda home, place: load_version(client_for(None), client_for(None).get_model_version("pets", "1")),
}


def logged_uri(client=None):
    return (client or client_for(None)).get_model_version("pets", "1").source


def run_uri():
    return f"runs:/{client_for(None).get_model_version('pets', '1').run_id}/model"


def swap_class_names(home, model):
    document = json.loads((model / CONFIG).read_text())
    document["classes"] = document["classes"][::-1]
    (model / CONFIG).write_text(signed(document))  # so that the checkpoint's own digests are right


def replace_weights(home, model):
    shutil.rmtree(model / "artifacts/checkpoint")
    copy_for_serving(home / "other", model / "artifacts/checkpoint")


def run_code(home, model):
    """An MLmodel that has MLflow import a module of code/."""
    (model / "code/evil.py").write_text(f"open({str(home / 'ran')!r}, 'w').close()\ndef _load_pyfunc(path): return None\n")
    document = yaml.safe_load((model / "MLmodel").read_text())
    document["flavors"]["python_function"] = {"loader_module": "evil", "code": "code"}
    (model / "MLmodel").write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize(("attack", "file"), [(swap_class_names, CONFIG), (replace_weights, CONFIG)], ids=["class names", "weights"])
def test_no_command_takes_another_checkpoint_than_was_registered(attack, file, load, home, store, tmp_path):
    attack(home, model_of(store))
    with pytest.raises((PromotionError, ServingError), match=rf"holds another {file} than was registered \(sha256 [0-9a-f]{{12}}…\)"):
        load(home, tmp_path)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_no_command_runs_the_code_of_a_model(load, home, store, tmp_path):
    run_code(home, model_of(store))
    load(home, tmp_path)
    assert not (home / "ran").exists()


def test_mlflow_s_own_loader_would_have_run_that_code(home, store):
    run_code(home, model_of(store))
    with contextlib.suppress(Exception):
        mlflow.pyfunc.load_model("models:/pets/1")
    assert (home / "ran").exists()
    (home / "ran").unlink()


@pytest.fixture
def verified(store):
    """What `history --verify` says: exit code, stdout, stderr."""

    def answer():
        done = vit_search(".", "history", "pets", "--verify", code=None)
        return done.returncode, done.stdout, done.stderr

    return answer


def test_verify_covers_every_file(home, store, verified):
    code, shown, said = verified()
    assert (code, said) == (0, "")
    assert shown.endswith("and all files of its versions are those that were registered.\n")
    model = model_of(store)
    for path in sorted(path for path in model.rglob("*") if path.is_file() and path.name != "registered_model_meta"):
        whole = path.read_bytes()
        path.write_bytes(whole + b" ")
        named = path.relative_to(model).as_posix()
        with pytest.raises(PromotionError, match=f"another {'code/' if named.startswith('code/') else named} than was registered"):
            model_files.check(model, store.get_model_version("pets", "1").tags, "pets: version 1", inside="")
        path.write_bytes(whole)
    swap_class_names(home, model)
    code, _, said = verified()
    assert (code, said[:60]) == (1, "error: pets: version 1 holds another artifacts/checkpoint/config.json"[:60])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: (model / "extra.py").write_text("x"), "pets: version 1 holds extra.py, which was not registered with it"),
        (lambda model: (model / "requirements.txt").unlink(), "pets: version 1 has lost requirements.txt, which was registered with it"),
        (lambda model: (model / "code/evil.py").write_text("x"), "pets: version 1 holds another code/ than was registered"),
    ],
    ids=["added", "lost", "code"],
)
def test_verify_tells_what_was_added_or_lost(change, said, store, verified):
    change(model_of(store))
    code, _, told = verified()
    assert (code, said in told.replace("\n", " ")) == (1, True), told


def test_compiled_python_is_covered_by_nothing_and_verify_says_so(store, verified):
    place = model_of(store) / "code/vit_search/__pycache__"
    place.mkdir(exist_ok=True)
    (place / "errors.cpython-312.pyc").write_bytes(b"x")
    code, shown, said = verified()
    assert code == 0
    assert said.startswith("note: pets: version 1: holds compiled Python (__pycache__), which nothing covers")
    assert "as far as covered" in shown


@pytest.mark.parametrize(
    ("tags", "said"),
    [({"weights_sha256"}, "only the weights are covered"), (set(), "no sha256 was recorded, so nothing vouches for its files")],
    ids=["weights", "nothing"],
)
def test_versions_of_earlier_vit_search_load_with_what_they_have(tags, said, home, store, verified, tmp_path):
    before = store.get_model_version("pets", "1").tags[model_files.RECORD]
    store.delete_model_version_tag("pets", "1", model_files.RECORD)
    if tags:
        store.set_model_version_tag("pets", "1", "weights_sha256", checkpoint.weights_sha256(home / "own"))
    try:
        code, _, told = verified()
        assert (code, told.startswith(f"note: pets: version 1: {said}")) == (0, True), told
        assert prediction.predict("pets/1", [home / "a.png"])
        replace_weights(home, model_of(store))
        if tags:
            with pytest.raises(PromotionError, match="pets: version 1 holds other weights than were registered"):
                prediction.predict("pets/1", [home / "a.png"])
    finally:
        store.set_model_version_tag("pets", "1", model_files.RECORD, before)
        if tags:
            store.delete_model_version_tag("pets", "1", "weights_sha256")


def test_a_model_without_a_record_is_told(home, store):
    said = []
    assert prediction.predict(logged_uri(), [home / "a.png"], say=said.append)
    assert said == []
    model_id = logged_uri().rpartition("/")[2]
    before = store.get_logged_model(model_id).tags[model_files.RECORD]
    store.delete_logged_model_tag(model_id, model_files.RECORD)
    try:
        assert prediction.predict(logged_uri(), [home / "a.png"], say=said.append)
    finally:
        store.set_logged_model_tags(model_id, {model_files.RECORD: before})
    assert said == [
        f"models:/{model_id}: no sha256 of its files is recorded; whoever may write to MLflow's artifacts could have changed them."
    ]


def test_a_promotion_runs_no_code_of_a_logged_model_that_was_changed(home, store):
    run = store.get_model_version("pets", "1").run_id
    finalist = Finalist(0, {}, 0.9, (1,), (0.9,), (home / "own",), (0,), (0.9,))
    own = checkpoint.load_model(home / "own")
    candidate = Candidate(finalist, 0, own, home / "own", "", run, "", "")
    assert log_candidate(store, candidate, None).uri == logged_uri()  # used again, as after a promotion that was killed
    run_code(home, model_of(store))
    with pytest.raises(PromotionError, match=rf"^{logged_uri()} holds another MLmodel than was registered"):
        log_candidate(store, candidate, None)
    assert not (home / "ran").exists()


def test_a_record_that_cannot_be_read_is_refused(store, home):
    for text, said in (("{", "cannot be read"), ("[]", "cannot be read"), ("{}", "does not name config.json and model.safetensors")):
        with pytest.raises(PromotionError, match=said):
            model_files.check(model_of(store), {model_files.RECORD: text}, "pets: version 1", inside="")
