"""Pretrained weights in a search file, as the commands meet them: what cannot be used is one line with the place and the mend."""

import hashlib
import json
import re
import socket
import struct

import pytest
import torch
from helpers.commands import vit_search
from helpers.hub import hub_server
from helpers.remote_files import http_server
from helpers.weight_files import timm_shapes, write_file
from safetensors.torch import load_file, save_file

SHAPES = timm_shapes(dim=64, depth=2, hidden=96, patch=4, tokens=5, classes=3)
SEARCH = "name: small\ndata: {name: digits, train_limit: 100}\ntrials: 1\nepochs: 1\nmodel:\n  pretrained: weights/a.safetensors\n"
WRITTEN = "  patch_size: 4\n  dim: 32\n  depth: 1\n  heads: 2\n  dim_head: null\n  mlp_dim: 64\n  pool: cls\n  registers: 0\n"
WRITTEN += (
    "  positions: learned\n  activation: gelu\n  norm: pre\n  norm_eps: 1e-6\n  qkv_bias: true\n  qk_norm: false\n  layer_scale: null\n"
)
"""All that weights would decide."""

COMMANDS = ("lint", "plan", "run", "train")


@pytest.fixture
def home(tmp_path):
    (tmp_path / "weights").mkdir()
    write_file(tmp_path / "weights" / "a.safetensors", SHAPES)
    (tmp_path / "s.yaml").write_text(SEARCH)
    return tmp_path


def refused(home, words, text=None, **environment):
    """The one line with which a command ends."""
    if text is not None:
        (home / "s.yaml").write_text(text)
    done = vit_search(home, *words, "s.yaml", code=2, **environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert not (home / "searches").exists() or not list((home / "searches").iterdir())
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_names_the_line_and_the_largest_model(home, command):
    line = refused(home, [command], SEARCH + "  heads: 1\n  dim: 128\n")
    assert line == "error: s.yaml:8: model.dim: dim is 128, and the pretrained weights have 64; give at most 64."


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_misspelt_file_gets_the_nearest_name(home, command):
    line = refused(home, [command], SEARCH.replace("a.safetensors", "aa.safetensors"))
    assert line.startswith("error: s.yaml:6: model.pretrained: weights/aa.safetensors: no such file; did you mean ")
    assert "weights/a.safetensors" in line


def test_a_plan_without_the_weights_needs_the_keys_that_they_decide(home):
    (home / "weights" / "a.safetensors").unlink()
    line = refused(home, ["plan"])
    assert re.search(
        r"a\.safetensors: no such file; .*\. Only these weights have the values of the keys that the section model leaves out: patch_size",
        line,
    )
    (home / "s.yaml").write_text(SEARCH + WRITTEN)
    for command in ("plan", "lint"):
        done = vit_search(home, command, "s.yaml")
        assert "note: model.pretrained: weights/a.safetensors: no such file; " in done.stderr
        assert "`run` needs it." in done.stderr


def convnet(path):
    save_file({"conv1.weight": torch.ones(8, 3, 3, 3), "fc.weight": torch.ones(3, 8), "fc.bias": torch.ones(3)}, path)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-10])


def pickled(path):
    torch.save({"a": torch.ones(2)}, path)


def not_finite(path):
    tensors = load_file(path)
    tensors["blocks.1.mlp.fc1.weight"][3, 4] = torch.nan
    save_file(tensors, path)


def of_halves(path):
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    tensors["norm.bias"][5] = torch.inf
    save_file(tensors, path)


def a_folder(path):
    path.unlink()
    path.mkdir()


def no_header(path):
    path.write_bytes(struct.pack("<Q", 10) + b"not a json" + bytes(8))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_off, "truncated"),
        (pickled, "a pickle of PyTorch, whatever its name; write `vit-search convert-weights"),
        (convnet, "another kind of network, which has "),
        (not_finite, "blocks.1.mlp.fc1.weight: holds numbers that are not finite; use other weights."),
        (of_halves, "norm.bias: holds numbers that are not finite; use other weights."),
        (a_folder, "this folder has no .safetensors file"),
        (no_header, "damaged header"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_made(home, damage, said):
    damage(home / "weights" / "a.safetensors")
    line = refused(home, ["run"])
    assert line.startswith("error: s.yaml:6: model.pretrained: weights/a.safetensors: ")
    assert said in line


def elsewhere(source):
    """The search file with weights from Hugging Face."""
    return SEARCH.replace("weights/a.safetensors", source)


@pytest.fixture
def hub(home, tmp_path_factory, monkeypatch):
    """A server of its own; huggingface_hub reads the variables at each request."""
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.commit("org/repo", {"model.safetensors": (home / "weights" / "a.safetensors").read_bytes()})
        yield hub


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:org/gone", "hf:org/gone: no repository org/gone, or a private one; check the name, or set HF_TOKEN"),
        ("timm:vit_tiny", "timm:vit_tiny: no repository timm/vit_tiny, or a private one; check the name (names of timm have a tag: "),
        ("hf:org/repo@v9", "hf:org/repo@v9: org/repo has no revision v9; name one of its branches, tags or commits"),
        ("hf:org/repo/a.safetensors", "hf:org/repo/a.safetensors: the repository has no file a.safetensors; "),
    ],
)
def test_what_hugging_face_does_not_have_is_refused_with_its_name(home, hub, command, source, said):
    line = refused(home, [command, "--download"], elsewhere(source))
    assert line.startswith(f"error: s.yaml:6: model.pretrained: {said}")
    assert hub.fetched == []


def test_a_revision_that_moved_is_refused_with_both_checksums(home, hub):
    first = hashlib.sha256((home / "weights" / "a.safetensors").read_bytes()).hexdigest()
    other = write_file(home / "weights" / "b.safetensors", SHAPES, metadata={"seed": "1"}).read_bytes()
    hub.commit("org/repo", {"model.safetensors": other})
    line = refused(home, ["run", "--download"], elsewhere(f"'hf:org/repo@main#sha256={first}'"))
    assert line.startswith("error: s.yaml:6: model.pretrained: hf:org/repo@main: these are other weights now: revision ")
    assert f"has sha256 {hashlib.sha256(other).hexdigest()[:12]}…, and {first[:12]}… is expected; " in line
    assert line.endswith("name the revision that you want, or remove #sha256=… to use them.")
    assert hub.fetched == []


def test_without_network_the_weights_that_are_missing_are_one_line(home, hub):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    line = refused(home, ["run", "--download"], elsewhere("hf:org/repo"), HF_ENDPOINT=nobody)
    assert line.startswith("error: s.yaml:6: model.pretrained: hf:org/repo: Hugging Face cannot be reached (")
    assert line.endswith("check the network, and HF_ENDPOINT if you set it.")
    line = refused(home, ["run"])
    mend = "fetch it with `vit-search weights hf:org/repo --download`"
    assert line == f"error: s.yaml:6: model.pretrained: hf:org/repo: not on this machine; {mend}."


def test_a_name_that_means_no_source_is_refused(home):
    line = refused(home, ["run"], elsewhere("'timm:'"))
    assert line.startswith("error: s.yaml:6: model.pretrained: timm: '' is no name of a timm model; write timm:NAME with a name of timm")


def test_another_sha256_is_refused(home):
    line = refused(home, ["train"], SEARCH.replace("a.safetensors", f"a.safetensors#sha256={'0' * 64}"))
    assert line.startswith("error: s.yaml:6: model.pretrained: weights/a.safetensors: ")
    assert "sha256" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_other_weights_behind_a_pinned_url_are_refused_and_no_note(home, command):
    with http_server(home / "weights") as served:
        source = f"{served.url}/a.safetensors#sha256={'0' * 64}"
        line = refused(home, [command], SEARCH.replace("weights/a.safetensors", source) + WRITTEN)
    assert line.startswith(
        f"error: s.yaml:6: model.pretrained: {served.url}/a.safetensors: these are other weights now: the file has sha256 "
    )
    assert line.endswith(f", and {'0' * 12}… is expected; remove #sha256=… to use them.") or "name the revision" in line


def test_weights_of_three_channels_start_a_model_of_grey_images_and_train_names_what_it_wrote(home):
    (home / "weights" / "config.json").write_text(
        json.dumps({"architecture": "vit", "pretrained_cfg": {"mean": [0.2, 0.4, 0.9], "std": [0.5, 0.5, 0.5], "input_size": [3, 8, 8]}})
    )
    vit_search(home, "train", "s.yaml")
    made = json.loads((home / "trained" / "small" / "config.json").read_text())
    assert made["normalisation"] == {"mean": [pytest.approx(0.5)], "std": [0.5]}
    assert made["config"]["model"]["in_channels"] == 1
    assert made["config"]["model"]["pretrained"].startswith("weights/a.safetensors#sha256=")
    again = vit_search(home, "train", "s.yaml")
    assert "nothing was trained" in again.stdout
