"""A registered version as pretrained weights, so that a new search starts from the present champion."""

import json
import shutil

import pytest
from helpers.commands import vit_search
from helpers.models import untrained

from vit_search.config.backbone import read_backbone
from vit_search.data.weight_files import local_file
from vit_search.errors import CheckpointError, PromotionError
from vit_search.registry.weight_versions import Versions
from vit_search.tracking import model_files
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit.checkpoint_files import sha256_of


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store whose model `digits` has two versions, of which the second is the champion."""
    home = tmp_path_factory.mktemp("store")
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    run = client.create_run(client.create_experiment("digits", artifact_location=(home / "artifacts").as_uri())).info.run_id
    client.set_terminated(run)
    client.create_registered_model("digits")
    for number, dim in enumerate((16, 32), 1):
        untrained(home / str(number), dim=dim)
        uri = log_model(home / str(number), run_id=run)
        logged = client.get_logged_model(uri.rpartition("/")[2])
        tags = {model_files.RECORD: logged.tags[model_files.RECORD]} | (
            {"licence": "mit"} if number == 1 else {"pretrained_licence": "cc-by-nc-4.0"}
        )
        client.create_model_version("digits", uri, run, tags=tags, model_id=logged.model_id)
    client.set_registered_model_alias("digits", "champion", "2")
    return home


@pytest.fixture
def registry(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))
    return Versions(f"sqlite:///{home / 'mlruns.db'}")


def test_an_alias_is_pinned_to_its_version_and_needs_no_registry_afterwards(home, registry):
    found = local_file("models:/digits@champion", registry=registry)
    expected = sha256_of(home / "2/model.safetensors")
    assert (found.sha256, found.origin.revision) == (expected, "2")
    assert found.origin.licence == "cc-by-nc-4.0"  # of the weights that it started from
    assert found.pinned == f"models:/digits/2#sha256={expected}"
    backbone = read_backbone(found.path)
    assert (backbone.layout, backbone.dim, backbone.heads) == ("vit_search", 32, 2)
    assert backbone.mean == pytest.approx((0.3,))  # a checkpoint keeps it as float32
    assert local_file(found.pinned).path == found.path


def test_an_alias_that_moved_means_its_new_version(home, registry):
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    pinned = local_file("models:/digits@champion", registry=registry).pinned
    client.set_registered_model_alias("digits", "champion", "1")
    try:
        moved = local_file("models:/digits@champion", registry=registry)
        assert (moved.origin.revision, moved.origin.licence) == ("1", "mit")
        assert local_file(pinned).origin.revision == "2"
        with pytest.raises(CheckpointError, match=r"these are other weights now: version 1 has sha256 .*name the revision that you want"):
            local_file(f"models:/digits@champion#sha256={'0' * 64}", registry=registry)
    finally:
        client.set_registered_model_alias("digits", "champion", "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:/digit@champion", r"model\.pretrained: models:/digit@champion: no registered model named digit; did you mean digits\?"),
        ("models:/digits@champoin", r"digits has no alias champoin; did you mean champion\?"),
        ("models:/digits/7", "digits has no version 7; there are 1, 2"),
    ],
)
def test_a_version_that_is_not_there_is_told_the_nearest(registry, text, message):
    with pytest.raises(PromotionError, match=message):
        local_file(text, registry=registry)


def test_without_a_registry_only_the_cache_is_asked(registry):
    with pytest.raises(
        CheckpointError, match="models:/digits/1: not on this machine; fetch it with `vit-search weights models:/digits/1` first"
    ):
        local_file("models:/digits/1")


def test_a_version_of_another_project_with_the_same_name_is_not_taken(registry, tmp_path, migrated):
    local_file("models:/digits/1", registry=registry)
    shutil.copy(migrated, tmp_path / "mlruns.db")
    with pytest.raises(PromotionError, match="no registered model named digits"):
        local_file("models:/digits/1", registry=Versions(f"sqlite:///{tmp_path / 'mlruns.db'}"))


def test_the_command_prints_version_and_sha256(home, registry, tmp_path):
    where = {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlruns.db'}", "VIT_SEARCH_CACHE": str(tmp_path / "cache")}
    about = json.loads(vit_search(tmp_path, "weights", "models:/digits@champion", "--json", **where).stdout)
    assert (about["revision"], about["dim"]) == ("2", 32)
    lines = vit_search(tmp_path, "weights", "models:/digits/1", **where).stdout.splitlines()
    assert "Version: 1" in lines and "Licence: mit" in lines
