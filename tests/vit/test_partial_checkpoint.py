"""Checkpoints of trainings that leave blocks of pretrained weights as they are: they hold the rest alone, and nothing else is different."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import models
from safetensors.torch import load_file, save_file

from vit_search.config import search_file
from vit_search.config.cost import saved_params
from vit_search.config.model_config import ModelConfig
from vit_search.data import backbones
from vit_search.data.batches import Split
from vit_search.data.cache import prepare
from vit_search.errors import CheckpointError, DamagedCheckpointError
from vit_search.vit import checkpoint, train_once, tuning
from vit_search.vit.checkpoint_files import describe, model_bytes, sha256_of
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.pretrained import read_pretrained
from vit_search.vit.training import fit, start

PLAIN = Normalisation.of((0.3,), (0.4,))
CLASSES = tuple("0123456789")
SHAPE = {"dim": 16, "depth": 3, "heads": 2, "patch_size": 2}
WAYS = [
    {"tune": "head"},
    {"tune": "head", "ema_decay": 0.9},
    {"tune": "last_blocks", "tuned_blocks": 1, "ema_decay": 0.9},
    {"tune": "lora", "lora_rank": 2},
    {"tune": "lora", "lora_rank": 2, "lora_layers": "all", "ema_decay": 0.9},
]


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """The folder of a search with the weights of a small model, as every search keeps them, and their file."""
    folder = tmp_path_factory.mktemp("search")
    _, made = models.untrained(folder / "made", **SHAPE)
    digest = sha256_of(made / checkpoint.MODEL)
    kept = shutil.copytree(made, folder / "weights" / digest)
    return folder, kept / checkpoint.MODEL


def config_of(path, fields, **model):
    plain = models.config(epochs=2)
    shape = dataclasses.asdict(plain.model) | SHAPE | model | {"pretrained": f"digits.safetensors#sha256={path.parent.name}"}
    training = dataclasses.replace(plain.training, precision="float32", batch_size=8, **fields)
    return dataclasses.replace(plain, model=ModelConfig(**shape), training=training)


def images(count):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(count) % 10, CLASSES)


def begun(search, fields, **model):
    """A training after the first of its two epochs, and the rest of it."""
    _, path = search
    state = start(config_of(path, fields, **model), PLAIN, pretrained=read_pretrained(path, CLASSES))
    rest = fit(state, images(24), images(20))
    next(rest)
    return state, rest


def saved(state, folder, **how):
    checkpoint.save(folder, state, classes=CLASSES, data_hash="h", **how)
    return folder


def bits(weights):
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


@pytest.mark.parametrize("fields", WAYS, ids=str)
@pytest.mark.parametrize("model", [{}, {"dim": 8, "depth": 2, "patch_size": 4}], ids=["same shape", "smaller"])
def test_it_holds_no_frozen_block_and_goes_on_to_the_same_bits(search, fields, model, tmp_path):
    state, rest = begun(search, fields, **model)
    folder = saved(state, search[0] / "trials" / tmp_path.name / "checkpoint")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "optimiser.safetensors", "trained.safetensors"]
    frozen = tuning.frozen_blocks(state.model)
    assert frozen
    held = load_file(folder / checkpoint.TRAINED)
    assert not {name.rpartition("/")[0] or name for path in folder.glob("*.safetensors") for name in load_file(path)} & frozen.keys()
    assert held.keys() == (state.average or state.model).state_dict().keys() - frozen.keys()
    assert sum(tensor.numel() for tensor in held.values()) == saved_params(state.config.model, state.config.training.tuning)
    resumed = checkpoint.load_training(folder, state.config)
    for one in (rest, fit(resumed, images(24), images(20))):
        list(one)
    assert bits(resumed.outcome.state_dict()) == bits(state.outcome.state_dict())
    assert bits(resumed.model.state_dict()) == bits(state.model.state_dict())
    assert [result.val_loss for result in resumed.history] == [result.val_loss for result in state.history]


@pytest.mark.parametrize("fields", WAYS, ids=str)
def test_the_model_that_is_served_is_the_one_of_a_whole_checkpoint(search, fields, tmp_path):
    state, _ = begun(search, fields)
    part = saved(state, search[0] / "trials" / tmp_path.name / "checkpoint")
    whole = saved(state, tmp_path / "whole", whole=True)
    digest = sha256_of(whole / checkpoint.MODEL)
    assert checkpoint.weights_sha256(part) == describe(part).weights_sha256 == digest
    assert checkpoint.model_bytes(part) == model_bytes(whole) == (whole / checkpoint.MODEL).stat().st_size
    served = checkpoint.load_model(part)
    assert not served.model.training
    assert not tuning.has_lora(served.model)
    assert bits(served.model.state_dict()) == bits(state.outcome.state_dict())
    checkpoint.copy_for_serving(part, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors"]
    checkpoint.copy_for_serving(whole, tmp_path / "copy of whole")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "copy of whole" / name).read_bytes()
    assert bits(checkpoint.load_model(tmp_path / "copy").model.state_dict()) == bits(served.model.state_dict())


@pytest.mark.parametrize("fields", [{"tune": "full"}, {"tune": "full", "layer_decay": 0.5}], ids=str)
def test_where_everything_is_trained_everything_is_held(search, fields, tmp_path):
    state, _ = begun(search, fields)
    saved(state, tmp_path / "c")
    assert load_file(tmp_path / "c" / checkpoint.MODEL).keys() == state.model.state_dict().keys()


def test_frozen_random_weights_are_held_since_nothing_else_has_them(tmp_path):
    plain = models.config()
    state = start(dataclasses.replace(plain, training=dataclasses.replace(plain.training, tune="head")), PLAIN)
    assert (saved(state, tmp_path / "c") / checkpoint.MODEL).is_file()


@pytest.mark.parametrize(("out", "into"), [(24, 40), (500, 300), (2, 70_000)], ids=["at once", "in parts", "a row at a time"])
def test_a_merged_weight_is_a_sum_in_a_fixed_order_so_every_machine_gets_its_bits(out, into, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    generator = torch.Generator().manual_seed(3)
    layer = tuning.LoraLinear(torch.nn.Linear(into, out), rank=5, alpha=3.0, generator=generator)
    layer.lora_b.data.normal_(generator=generator)
    a, b, total = layer.lora_a.detach().numpy(), layer.lora_b.detach().numpy(), np.zeros((out, into), np.float32)
    for i in range(5):
        total = total + b[:, i : i + 1] * a[i : i + 1]
    assert layer.merged().weight.numpy().tobytes() == (layer.weight.detach().numpy() + np.float32(3 / 5) * total).tobytes()


# What is missing, damaged or another


def test_other_pretrained_weights_are_refused_and_nothing_is_changed(search, tmp_path):
    state, _ = begun(search, {"tune": "head"})
    folder = saved(state, tmp_path / "checkpoint")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    _, made = models.untrained(tmp_path / "other", **SHAPE, dim_head=4)
    other = read_pretrained(made / checkpoint.MODEL, CLASSES)
    same_shape, path = read_pretrained(search[1], CLASSES), search[1]
    changed = dict(same_shape.read())
    changed["encoder.blocks.0.norm1.weight"] = changed["encoder.blocks.0.norm1.weight"] + 1
    with pytest.raises(CheckpointError, match=r"checkpoint: its frozen blocks came from other pretrained weights, or from another version"):
        checkpoint.load_training(folder, state.config, pretrained=dataclasses.replace(same_shape, read=lambda: changed))
    with pytest.raises(CheckpointError, match=r"model\.pretrained was '.*' when it was saved and is now"):
        elsewhere = dataclasses.replace(state.config.model, pretrained="digits.safetensors#sha256=" + "0" * 64)
        checkpoint.load_training(folder, dataclasses.replace(state.config, model=elsewhere), pretrained=other)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert checkpoint.load_training(folder, state.config, pretrained=read_pretrained(path, CLASSES)).epoch == 1


def test_without_the_weights_of_its_search_a_checkpoint_says_which_it_needs(search, tmp_path):
    state, _ = begun(search, {"tune": "head"})
    folder = saved(state, tmp_path / "trials/0000/checkpoint")
    digest = search[1].parent.name
    for load in (
        checkpoint.load_model,
        checkpoint.weights_sha256,
        describe,
        lambda path: checkpoint.copy_for_serving(path, tmp_path / "x"),
    ):
        with pytest.raises(CheckpointError, match=rf"the pretrained weights of its search are gone; put .* into weights/{digest} in"):
            load(folder)
    kept = shutil.copytree(search[1].parent, tmp_path / "weights" / digest)
    assert describe(folder).weights_sha256 == checkpoint.weights_sha256(folder)
    with (kept / checkpoint.MODEL).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CheckpointError, match=r"weights/[0-9a-f]{64}/model\.safetensors: its sha256 is not the one in its folder's name"):
        checkpoint.load_model(folder)


def test_a_checkpoint_that_was_moved_finds_the_weights_that_its_search_file_named(search, tmp_path, monkeypatch):
    state, _ = begun(search, {"tune": "lora"})
    folder = saved(state, search[0] / "trials" / tmp_path.name / "checkpoint")
    moved = shutil.copytree(folder, tmp_path / "moved")
    shutil.copy(search[1], tmp_path / "digits.safetensors")
    shutil.copy(search[1].parent / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="weights of its search are gone"):
        checkpoint.load_model(moved)
    monkeypatch.chdir(tmp_path)
    assert checkpoint.weights_sha256(moved) == checkpoint.weights_sha256(folder)


def test_weights_without_their_config_json_are_said(search, tmp_path):
    _, made = models.untrained(tmp_path / "made", dim=64, depth=2, heads=4, patch_size=2)
    bare = tmp_path / "weights" / sha256_of(made / checkpoint.MODEL) / checkpoint.MODEL
    shutil.copytree(made, bare.parent)
    state, _ = begun((tmp_path, bare), {"tune": "head"}, dim=64, depth=2, heads=4)
    folder = saved(state, tmp_path / "trials/0000/checkpoint")
    (bare.parent / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"its pretrained weights do not fit \(.*\); is their config\.json beside them\?"):
        checkpoint.load_model(folder)


@pytest.mark.parametrize("backbone", ["../../elsewhere", "0" * 63])
def test_a_name_that_is_no_sha256_is_damage(search, backbone, tmp_path):
    folder = saved(begun(search, {"tune": "head"})[0], tmp_path / "checkpoint")
    document = json.loads((folder / "config.json").read_text())
    document["left_out"]["backbone"] = backbone
    del document["sha256"]["config.json"]
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(DamagedCheckpointError, match=r"left_out\.backbone is no sha256"):
        checkpoint.load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("head.bias"), r"head\.bias: nothing, and F32 of \[10\] belongs there"),
        (lambda tensors: tensors.update(new=torch.zeros(1)), r"new: torch\.float32 of \[1\], and nothing belongs there"),
        (
            lambda tensors: tensors.update({"head.bias": torch.zeros(3)}),
            r"head\.bias: F32 of \[3\], and F32 of \[10\] belongs there",
        ),
        (lambda tensors: tensors.update({"head.bias": torch.zeros(10).double()}), r"head\.bias: F64 of \[10\]"),
    ],
)
def test_other_weights_than_config_json_asks_for_are_damage(search, change, message, tmp_path):
    state, _ = begun(search, {"tune": "head"})
    folder = saved(state, search[0] / "trials" / tmp_path.name / "checkpoint")
    tensors = load_file(folder / checkpoint.TRAINED)
    change(tensors)
    save_file(tensors, folder / checkpoint.TRAINED)
    document = json.loads((folder / "config.json").read_text())
    document["sha256"][checkpoint.TRAINED] = sha256_of(folder / checkpoint.TRAINED)
    del document["sha256"]["config.json"]
    (folder / "config.json").write_text(json.dumps(document))
    for load in (checkpoint.load_model, lambda path: checkpoint.load_training(path, state.config)):
        with pytest.raises(DamagedCheckpointError, match=r"trained\.safetensors: does not fit its config\.json \(" + message):
            load(folder)


# `vit-search train`


@pytest.mark.parametrize("fields", ["tune: head", "tune: last_blocks", "tune: lora"])
def test_a_training_by_hand_is_whole_at_its_end_and_resumes_only_with_its_weights(search, fields, tmp_path):
    theirs = shutil.copytree(search[1].parent, tmp_path / "theirs")
    spec = search_file.parse(
        f"name: d\ndata: {{name: digits, train_limit: 64}}\ntrials: 1\nepochs: 2\ntraining: {{lr: 0.01, {fields}}}\n"
        f"model: {{pretrained: {theirs / checkpoint.MODEL}}}\n"
    )
    spec = backbones.pinned(spec, backbones.find_all(spec))
    config, data = spec.trial_config({}, in_channels=1, num_classes=10, trial=0), prepare(spec.data_config)
    list(train_once.train(spec, config, data, tmp_path / "undisturbed"))
    half = train_once.train(spec, config, data, tmp_path / "half")
    next(half)
    half.close()
    assert (tmp_path / "half" / checkpoint.TRAINED).is_file()
    away = theirs.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"^model\.pretrained: .*theirs/model\.safetensors: no such file"):
        list(train_once.train(spec, config, data, tmp_path / "half"))
    away.rename(theirs)
    list(train_once.train(spec, config, data, tmp_path / "half"))
    shutil.rmtree(theirs)
    assert train_once.is_done(tmp_path / "half", config)
    assert checkpoint.weights_sha256(tmp_path / "half") == checkpoint.weights_sha256(tmp_path / "undisturbed")
    assert (tmp_path / "half" / checkpoint.MODEL).is_file()
