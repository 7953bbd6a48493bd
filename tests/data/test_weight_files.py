"""Pretrained weights by their source: found, fetched once, checked and pinned. Hugging Face is a real server on 127.0.0.1."""

import hashlib
import json
import logging
import os
import re
import shutil
import socket

import pytest
from helpers.commands import vit_search, vit_search_process
from helpers.hub import TOKEN, hub_server
from helpers.remote_files import http_server
from helpers.weight_files import timm_shapes, write_file
from huggingface_hub import constants as hub_constants

from vit_search.config import search_file
from vit_search.config.backbone import read_backbone
from vit_search.data import backbones, fetch, remote, weight_cache
from vit_search.data.weight_files import Version, local_file
from vit_search.errors import CheckpointError, DataError, OtherWeightsError, SpecError

CONFIG = {
    "architecture": "vit_small_patch16_224",
    "model_args": {"num_heads": 4},
    "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "crop_pct": 0.9},
}


def content(seed=0, **shapes):
    """A file of weights as bytes; each seed gives others."""
    path = write_file(content.folder / f"{seed}.safetensors", timm_shapes(**shapes), metadata={"seed": str(seed)})
    return path.read_bytes()


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A cache and a home of huggingface_hub of this test's own, and no waiting between tries."""
    content.folder = tmp_path / "made"
    content.folder.mkdir()
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PAUSES_S", (0.01, 0.01))
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def hub(monkeypatch):
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def sha256(data):
    return hashlib.sha256(data).hexdigest()


# Files


def test_a_file_is_found_hashed_and_pinned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = content()
    (tmp_path / "a.safetensors").write_bytes(data)
    found = local_file("a.safetensors")
    assert (found.sha256, found.pinned) == (sha256(data), f"a.safetensors#sha256={sha256(data)}")
    assert local_file(found.pinned) == found
    assert (found.origin.source, found.origin.revision, found.origin.licence) == ("a.safetensors", "", None)


def test_a_folder_means_the_weights_in_it(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(content())
    assert local_file(str(tmp_path)).path == tmp_path / "b.safetensors"
    (tmp_path / "c.safetensors").write_bytes(content())
    with pytest.raises(CheckpointError, match=r"has 2 \.safetensors files \(b\.safetensors, c\.safetensors\); name the file itself"):
        local_file(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(content())
    assert local_file(str(tmp_path)).path == tmp_path / "model.safetensors"


def test_what_a_checkpoint_has_trained_is_told_how_to_make_a_whole_model_also_by_the_name_of_the_file(tmp_path):
    path, settings = tmp_path / "trained.safetensors", tmp_path / "config.json"
    path.write_bytes(content())
    for text in ("", "no JSON", "[1]", json.dumps(CONFIG)):  # somebody's own file of this name
        settings.write_text(text) if text else None
        assert local_file(str(path)).path == local_file(str(tmp_path)).path == path
    settings.write_text(json.dumps({"left_out": {"backbone": "0" * 64, "blocks": "1" * 64}}))
    line = (
        f"{tmp_path}: this checkpoint leaves out blocks of its pretrained weights; make a whole one: vit-search export {tmp_path} --format"
    )
    for named in (path, tmp_path):
        with pytest.raises(CheckpointError, match=re.escape(line)):
            local_file(str(named))
    (tmp_path / "model.safetensors").write_bytes(content())
    assert local_file(str(tmp_path)).path == tmp_path / "model.safetensors"


def test_a_missing_file_is_told_the_nearest_name(tmp_path):
    (tmp_path / "vit_small.safetensors").write_bytes(content())
    with pytest.raises(CheckpointError, match=r"model\.pretrained: .*no such file; did you mean .*/vit_small\.safetensors\?"):
        local_file(str(tmp_path / "vit_smal.safetensors"))
    with pytest.raises(CheckpointError, match=r"for a registered model, write models:/digits@champion"):
        local_file("digits@champion")


@pytest.mark.parametrize(
    ("place", "fact"),
    [
        ("~no-such-account/a.safetensors", r"cannot be looked at \(.*\); name a \.safetensors file"),
        (f"{'a' * 300}.safetensors", r"cannot be looked at \(File name too long\)"),
        ("/dev/zero", "neither a file nor a folder"),
    ],
)
def test_a_path_that_names_no_file_is_one_line(place, fact):
    with pytest.raises(CheckpointError, match=rf"model\.pretrained: .*: {fact}"):
        local_file(place)
    with pytest.raises(SpecError, match=rf"model\.pretrained: .*: {fact}"):
        backbones.find(place)


def test_settings_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content())
    (tmp_path / "config.json").symlink_to("/proc/self/mem")  # root, too, gets an error from it
    with pytest.raises(SpecError, match=r"config\.json: cannot be read \("):
        backbones.find(str(tmp_path))


def test_a_pinned_file_that_has_changed_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content(1))
    pinned = local_file(str(path)).pinned
    path.write_bytes(content(2))
    with pytest.raises(CheckpointError, match=r"the file has changed: its sha256 is .*; put the former file there, or remove #sha256="):
        local_file(pinned)


# Hugging Face


def test_nothing_is_fetched_without_download(hub):
    hub.commit("timm/vit_tiny.a", {"model.safetensors": content()})
    with pytest.raises(
        CheckpointError, match=r"timm:vit_tiny\.a: not on this machine; fetch it with `vit-search weights timm:vit_tiny\.a --download`"
    ):
        local_file("timm:vit_tiny.a")
    assert hub.asked == []


def test_a_repository_is_fetched_once_pinned_to_its_commit_and_then_needs_no_network(hub, monkeypatch):
    data = content()
    files = {"model.safetensors": data, "config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": b"\x80\x02", "README.md": b"#"}
    commit = hub.commit("timm/vit_tiny.a", files, card={"license": "apache-2.0"})
    found = local_file("timm:vit_tiny.a", download=True)
    assert (found.sha256, found.path.read_bytes()) == (sha256(data), data)
    assert (found.origin.source, found.origin.revision, found.origin.licence) == ("timm:vit_tiny.a", commit, "apache-2.0")
    assert found.pinned == f"timm:vit_tiny.a@{commit}#sha256={sha256(data)}"
    assert sorted(path.name for path in found.path.parent.iterdir()) == ["config.json", "model.safetensors"]
    hub.asked.clear()
    for text in (found.pinned, f"timm:vit_tiny.a@{commit}", f"timm:vit_tiny.a#sha256={found.sha256}"):
        assert local_file(text, download=True).path == found.path
    assert local_file("timm:vit_tiny.a").path == found.path
    assert hub.asked == []
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert local_file("timm:vit_tiny.a", download=True).path == found.path


def test_settings_come_with_the_weights(hub):
    hub.commit("org/repo", {"model.safetensors": content(), "config.json": json.dumps(CONFIG).encode()})
    backbone = read_backbone(local_file("hf:org/repo", download=True).path)
    assert (backbone.heads, backbone.image_size, backbone.interpolation) == (4, (16, 16), "bicubic")
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.25,) * 3)


def test_what_an_interrupted_fetch_has_brought_is_not_fetched_again(hub):
    data = content()
    hub.commit("org/repo", {"model.safetensors": data})
    hub.down = True
    with pytest.raises(
        DataError, match=r"the connection broke; .*what has arrived stays in the cache, and the next start goes on from there"
    ):
        local_file("hf:org/repo", download=True)
    hub.down = False
    hub.fetched.clear()
    assert local_file("hf:org/repo", download=True).path.read_bytes() == data
    assert len(hub.fetched) == 1 and hub.fetched[0][0].startswith("bytes=") and hub.fetched[0][0] > "bytes=1"


def test_a_connection_that_is_cut_goes_on_at_once(hub):
    data = content()
    hub.commit("org/repo", {"model.safetensors": data})
    hub.cut_after = [1000]
    assert local_file("hf:org/repo", download=True).path.read_bytes() == data
    assert [asked for asked, _ in hub.fetched] == [None, "bytes=1000-"]


def test_weights_that_arrive_damaged_are_never_used(hub, tmp_path):
    good, bad = content(), content()[:-4] + b"\1\2\3\4"
    hub.commit("org/repo", {"model.safetensors": good})
    hub.stored[sha256(good)] = bad
    with pytest.raises(DataError, match="it arrived damaged: its sha256 is another one than the server's"):
        local_file("hf:org/repo", download=True)
    hub.stored.clear()
    assert local_file("hf:org/repo", download=True).path.read_bytes() == good


def test_a_branch_that_moved_is_followed_unless_it_is_pinned(hub):
    first, second = content(1), content(2)
    hub.commit("org/repo", {"model.safetensors": first})
    old = local_file("hf:org/repo@main", download=True)
    commit = hub.commit("org/repo", {"model.safetensors": second})
    assert local_file("hf:org/repo@main").sha256 == sha256(first)
    assert local_file("hf:org/repo@main", download=True).origin.revision == commit
    assert local_file(old.pinned).path.read_bytes() == first
    assert local_file(f"hf:org/repo@main#sha256={sha256(first)}").path.read_bytes() == first


def test_a_pinned_revision_that_moved_before_it_was_fetched_here_is_one_line(hub):
    hub.commit("org/repo", {"model.safetensors": content(1)})
    hub.commit("org/repo", {"model.safetensors": content(2)})
    text = f"hf:org/repo@main#sha256={sha256(content(1))}"
    with pytest.raises(CheckpointError, match=r"these are other weights now: revision .* name the revision that you want"):
        local_file(text, download=True)
    assert hub.fetched == []


def test_weights_in_the_cache_that_were_changed_are_not_used(hub):
    hub.commit("org/repo", {"model.safetensors": content()})
    found = local_file("hf:org/repo", download=True)
    found.path.write_bytes(content(3))
    with pytest.raises(CheckpointError, match="not on this machine"):
        local_file("hf:org/repo")
    with pytest.raises(DataError, match=r"not what was fetched there; remove .*, and it is fetched again") as raised:
        local_file("hf:org/repo", download=True)
    shutil.rmtree(str(raised.value).partition("remove ")[2].partition(", and")[0])
    assert local_file("hf:org/repo", download=True).sha256 == sha256(content())


REFUSED = {
    "no repository": ("hf:org/gone", r"hf:org/gone: no repository org/gone, or a private one; check the name, or set HF_TOKEN"),
    "no tag": ("timm:vit_tiny", r"names of timm have a tag: timm:vit_small_patch16_224\.augreg_in21k"),
    "no revision": ("hf:org/repo@v9", r"org/repo has no revision v9; name one of its branches, tags or commits"),
    "no file": ("hf:org/repo/mdoel.safetensors", r"has no file mdoel\.safetensors; did you mean model\.safetensors\?"),
    "pickles": (
        "hf:org/pickles",
        r"has only pickles \(pytorch_model\.bin\), which can hold programs; fetch one yourself, .*convert-weights",
    ),
    "several": ("hf:org/several", r"has no model\.safetensors, but a\.safetensors, b\.safetensors; write hf:org/several/FILE\.safetensors"),
    "shards": ("hf:org/shards", "its weights are in 2 files, which are not read"),
    "empty": ("hf:org/empty", r"has no \.safetensors file; name another"),
    "gated": ("hf:org/gated", "its owner grants access to it one by one; accept its terms on the page of org/gated, and set HF_TOKEN"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_fetched_is_one_line(hub, text, message):
    data = content()
    hub.commit("org/repo", {"model.safetensors": data})
    hub.commit("org/pickles", {"pytorch_model.bin": data})
    hub.commit("org/several", {"a.safetensors": data, "b.safetensors": data})
    hub.commit("org/shards", {"model-1.safetensors": data, "model-2.safetensors": data, "model.safetensors.index.json": b"{}"})
    hub.commit("org/empty", {"README.md": b"#"})
    hub.commit("org/gated", {"model.safetensors": data}, gated=True)
    with pytest.raises(DataError, match=message) as raised:
        local_file(text, download=True)
    assert "\n" not in str(raised.value)
    assert hub.fetched == []


def test_a_gated_repository_is_fetched_with_a_token_that_nobody_else_gets(hub, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    data = content()
    hub.commit("org/gated", {"model.safetensors": data, "config.json": b"{}"}, gated=True)
    assert local_file("hf:org/gated", download=True).path.read_bytes() == data
    assert hub.fetched == [(None, False)]  # the server of large files gets no token
    assert all(token for *_, token in hub.asked)
    with pytest.raises(DataError) as raised:
        local_file("hf:org/gone", download=True)
    assert TOKEN not in str(raised.value) + caplog.text
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_no_network_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(DataError, match=r"hf:org/repo: Hugging Face cannot be reached \(.*\); check the network, and HF_ENDPOINT"):
        local_file("hf:org/repo", download=True)


def test_a_server_that_is_not_hugging_face_is_one_line(monkeypatch, tmp_path):
    with http_server(tmp_path) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        with pytest.raises(DataError, match=r"hf:org/repo: .*HTTP 404"):
            local_file("hf:org/repo", download=True)
        (tmp_path / "api/models/org").mkdir(parents=True)
        (tmp_path / "api/models/org/repo").write_text("<html>")
        with pytest.raises(DataError, match=r"the answer of the server is not understood .*check HF_ENDPOINT"):
            local_file("hf:org/repo", download=True)


def test_a_file_in_a_folder_of_a_repository_keeps_its_settings(hub):
    files = {"model.safetensors": content(1), "small/model.safetensors": content(2), "small/config.json": json.dumps(CONFIG).encode()}
    hub.commit("org/repo", files)
    found = local_file("hf:org/repo/small/model.safetensors", download=True)
    assert found.sha256 == sha256(content(2)) and read_backbone(found.path).heads == 4


@pytest.mark.parametrize("stated", ["mit", ["mit", "apache-2.0"]])
def test_a_licence_is_that_of_the_card(hub, stated):
    hub.commit("org/repo", {"model.safetensors": content()}, card={"license": stated})
    assert local_file("hf:org/repo", download=True).origin.licence == ("mit" if stated == "mit" else "mit, apache-2.0")


def test_a_licence_of_their_own_has_its_name(hub):
    hub.commit("org/repo", {"model.safetensors": content()}, card={"license": "other", "license_name": "dinov3-license"})
    assert local_file("hf:org/repo", download=True).origin.licence == "dinov3-license"


# URLs


def test_weights_behind_a_url_are_fetched_with_their_settings(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    data = content()
    (folder / "vit.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with http_server(folder) as served:
        url = f"{served.url}/vit.safetensors"
        served.drops["/vit.safetensors"] = 1
        found = local_file(url)
        assert (found.path.read_bytes(), read_backbone(found.path).heads) == (data, 4)
        assert found.pinned == f"{url}#sha256={sha256(data)}"
        gets = len(served.gets)
        assert local_file(found.pinned).path == found.path and len(served.gets) == gets
    assert local_file(found.pinned).path == found.path
    assert local_file(url).path == found.path  # the server is gone


def test_a_url_with_other_weights_than_pinned_or_without_any_is_one_line(tmp_path):
    (tmp_path / "vit.safetensors").write_bytes(content())
    with http_server(tmp_path) as served:
        with pytest.raises(OtherWeightsError, match=r"these are other weights now: .*remove #sha256="):
            local_file(f"{served.url}/vit.safetensors#sha256={'0' * 64}")
        with pytest.raises(DataError, match="not there"):
            local_file(f"{served.url}/gone.safetensors")


def test_a_server_that_shows_nobody_what_it_has_is_taken_to_have_no_settings(tmp_path):
    (tmp_path / "vit.safetensors").write_bytes(content())
    with http_server(tmp_path) as served:
        served.status["/config.json"] = 403
        assert local_file(f"{served.url}/vit.safetensors").sha256 == sha256(content())
        served.status["/config.json"] = 503
        with pytest.raises(DataError, match=r"config\.json: the server refuses it"):
            local_file(f"{served.url}/vit.safetensors")


def test_a_copy_of_a_url_that_was_changed_in_the_cache_is_not_taken_for_new_weights(tmp_path):
    (tmp_path / "vit.safetensors").write_bytes(content())
    with http_server(tmp_path) as served:
        url = f"{served.url}/vit.safetensors"
        found = local_file(url)
        found.path.write_bytes(content(3))
        for text in (url, found.pinned):
            with pytest.raises(DataError, match=r"not what was fetched there; remove .*, and it is fetched again") as raised:
                local_file(text)
        shutil.rmtree(str(raised.value).partition("remove ")[2].partition(", and")[0])
        assert local_file(url).sha256 == found.sha256


def test_a_cache_that_holds_the_weights_already_is_only_read(tmp_path, hub):
    hub.commit("org/repo", {"model.safetensors": content()})
    (tmp_path / "vit.safetensors").write_bytes(content())
    with http_server(tmp_path) as served:
        sources = {f"{served.url}/vit.safetensors": False, "hf:org/repo": True}
        for source, download in sources.items():
            local_file(source, download=download)
        records = {path: path.stat().st_ino for path in (tmp_path / "cache" / "weights").glob("*.json")}
        assert len(records) == 6
        for source, download in sources.items():
            local_file(source, download=download)
        assert {path: path.stat().st_ino for path in (tmp_path / "cache" / "weights").glob("*.json")} == records


def test_no_other_account_can_change_what_was_fetched_whatever_the_umask_is(hub, tmp_path):
    hub.commit("org/repo", {"large/a.safetensors": content(), "large/config.json": json.dumps(CONFIG).encode()})
    before = os.umask(0)
    try:
        found = local_file("hf:org/repo/large/a.safetensors", download=True)
    finally:
        os.umask(before)
    inside = [found.path, found.path.with_name("config.json"), *found.path.parents]
    assert [path for path in inside if path.is_relative_to(tmp_path / "cache") and path.stat().st_mode & 0o022] == []


def test_what_a_killed_process_left_of_a_registered_version_is_removed(tmp_path):
    left = tmp_path / "cache" / "weights" / ".new-left"
    left.mkdir(parents=True)
    weight_cache.put("0" * 64, tmp_path / "cache", lambda fresh: (fresh / "model.safetensors").write_bytes(b""))
    assert not left.exists()


class TwoModels:
    """A registry with two models of the same weights and another number of heads."""

    def look_up(self, source):
        return Version(source.place, "1", sha256(content()), None)

    def fetch(self, version, folder):
        (folder / "model.safetensors").write_bytes(content())
        heads = {"wide": 2, "narrow": 4}[version.name]
        (folder / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": heads}))


def test_versions_with_the_same_weights_keep_their_own_settings(tmp_path):
    found = {name: local_file(f"models:/{name}/1", registry=TwoModels()) for name in ("wide", "narrow")}
    assert [read_backbone(found[name].path).heads for name in ("wide", "narrow")] == [2, 4]
    assert [read_backbone(local_file(found[name].pinned).path).heads for name in ("wide", "narrow")] == [2, 4]
    text = "name: a\ndata: {name: digits}\ntrials: 1\nepochs: 1\nmodel: {pretrained: {choice: ['%s', '%s']}, patch_size: 4, heads: 2}\n"
    spec = search_file.parse(text % tuple(one.pinned for one in found.values()))
    with pytest.raises(SpecError, match=r"models:/wide/1 and models:/narrow/1 are the same weights with a different config\.json"):
        backbones.pinned(spec, backbones.find_all(spec))


def test_the_record_of_weights_does_not_depend_on_who_pins_them(hub):
    commit = hub.commit("timm/vit_tiny.a", {"model.safetensors": content()})
    found = backbones.find("timm:vit_tiny.a", download=True)
    assert found.record["source"] == f"timm:vit_tiny.a@{commit}"
    assert backbones.find(found.file.pinned).record == found.record  # as `vit-search run` looks for them again


# The command


def test_the_command_prints_source_commit_licence_and_sha256(hub, tmp_path):
    commit = hub.commit(
        "timm/vit_tiny.a", {"model.safetensors": content(), "config.json": json.dumps(CONFIG).encode()}, card={"license": "mit"}
    )
    surroundings = {"HF_ENDPOINT": hub.url, "VIT_SEARCH_CACHE": os.environ["VIT_SEARCH_CACHE"]}
    lines = vit_search(tmp_path, "weights", "timm:vit_tiny.a", "--download", **surroundings).stdout.splitlines()
    pinned = f"timm:vit_tiny.a@{commit}#sha256={sha256(content())}"
    for line in ("Licence: mit", "Source:  timm:vit_tiny.a", f"Commit:  {commit}", f"SHA-256: {sha256(content())}", f"Pinned:  {pinned}"):
        assert line in lines
    about = json.loads(vit_search(tmp_path, "weights", pinned, "--json", **surroundings).stdout)
    assert (about["pinned"], about["licence"], about["heads"]) == (pinned, "mit", 4)


def test_a_bad_source_on_the_command_line_is_one_line_and_exit_code_2(tmp_path):
    done = vit_search(tmp_path, "weights", "tim:vit", code=2)
    assert done.stderr.strip().startswith("error: SOURCE: tim:vit: unknown kind of source 'tim'; did you mean timm?")


def test_damaged_weights_from_elsewhere_are_called_by_their_source(hub, tmp_path):
    hub.commit("org/repo", {"model.safetensors": b"version https://git-lfs"})
    done = vit_search(tmp_path, "weights", "hf:org/repo", "--download", code=2)
    assert done.stderr.strip().startswith("error: hf:org/repo: a pointer of Git LFS")


def test_a_process_asks_the_server_for_the_repository_alone(hub, tmp_path):
    """huggingface_hub would also report which programs run, and ask for a list of them."""
    hub.commit("org/repo", {"model.safetensors": content()})
    vit_search_process(tmp_path, "weights", "hf:org/repo", "--download", HF_TOKEN=TOKEN, HF_ENDPOINT=hub.url)
    assert {path.split("/")[1] for _, path, _ in hub.asked} == {"api", "org"}
    assert not [path for _, path, _ in hub.asked if "harness" in path]
    assert [path.name for path in (tmp_path / "hf").rglob("*")] == []


def unused_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_the_names_of_the_environment_hide_a_token_of_hugging_face(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert remote.without_secrets(f"Bearer {TOKEN}") == "Bearer $HF_TOKEN"


def test_the_signature_of_a_link_is_hidden():
    assert remote.without_secrets("0, url='https://store/a?X-Amz-Signature=abc&x=1'") == "0, url='https://store/a?…'"


def test_an_endpoint_with_a_password_is_refused(monkeypatch, hub):
    hub.commit("org/repo", {"model.safetensors": content()})
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http://", "http://ann:secret@"))
    with pytest.raises(SpecError, match="HF_ENDPOINT: the http URL has a user name or a password") as raised:
        local_file("hf:org/repo", download=True)
    assert "secret" not in str(raised.value)
