"""Checkpoints of trainings that leave blocks of pretrained weights as they are: they hold the rest alone, and nothing else is different."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import models
from helpers.remote_files import http_server
from safetensors.torch import load_file, save_file

from vit_search.config import search_file
from vit_search.config.cost import saved_params
from vit_search.config.model_config import ModelConfig
from vit_search.data import backbones
from vit_search.data.batches import Split
from vit_search.data.cache import prepare
from vit_search.data.weight_files import Version, local_file
from vit_search.errors import CheckpointError, DamagedCheckpointError, LostWeightsError
from vit_search.registry.configuration import configuration
from vit_search.vit import checkpoint, partial_checkpoint, train_once, tuning
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


def forged(folder, change):
    """Change the tensors of a checkpoint that leaves blocks out, and its sha256 values with them."""
    tensors = load_file(folder / checkpoint.TRAINED)
    change(tensors)
    save_file(tensors, folder / checkpoint.TRAINED)
    signed(folder, lambda document: document["sha256"].update({checkpoint.TRAINED: sha256_of(folder / checkpoint.TRAINED)}))


def signed(folder, change):
    """Change config.json, and take its own sha256 away."""
    document = json.loads((folder / "config.json").read_text())
    del document["sha256"]["config.json"]
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


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
    assert checkpoint.weights_sha256(part) == describe(whole).fingerprint == digest
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
    for load in (checkpoint.load_model, checkpoint.weights_sha256, lambda path: checkpoint.copy_for_serving(path, tmp_path / "x")):
        with pytest.raises(CheckpointError, match=rf"the pretrained weights of its search are gone; put .* into weights/{digest} in"):
            load(folder)
    assert not (tmp_path / "x").exists()
    kept = shutil.copytree(search[1].parent, tmp_path / "weights" / digest)
    assert checkpoint.weights_sha256(folder) == checkpoint.weights_sha256(saved(state, tmp_path / "whole", whole=True))
    with (kept / checkpoint.MODEL).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CheckpointError, match=r"weights/[0-9a-f]{64}/model\.safetensors: its sha256 is not the one in its folder's name"):
        checkpoint.load_model(folder)


def test_what_reads_only_the_configuration_needs_no_weights(search, tmp_path, monkeypatch):
    state, rest = begun(search, {"tune": "last_blocks", "tuned_blocks": 1})
    folder, whole = tmp_path / "trials/0000/checkpoint", saved(state, tmp_path / "whole", whole=True)
    saved(state, folder)
    monkeypatch.setattr(checkpoint, "load_model", None)
    assert describe(folder).config == state.config
    assert describe(folder).fingerprint != describe(whole).fingerprint
    assert checkpoint.model_bytes(folder) == (whole / checkpoint.MODEL).stat().st_size
    assert not train_once.is_done(folder, state.config)
    list(rest)
    saved(state, folder)
    assert train_once.is_done(folder, state.config)
    written = configuration(str(folder)).text
    assert "tuned_blocks: 1" in written
    assert f"weights: those of model.pretrained, and trained.safetensors with sha256 {sha256_of(folder / checkpoint.TRAINED)}" in written


def test_a_model_file_that_somebody_has_put_beside_what_was_trained_is_not_taken_for_the_model(search, tmp_path):
    state, _ = begun(search, {"tune": "head"})
    folder = saved(state, search[0] / "trials" / tmp_path.name / "checkpoint")
    digest, size = checkpoint.weights_sha256(folder), checkpoint.model_bytes(folder)
    _, other = models.untrained(tmp_path / "other", dim=8)
    shutil.copy(other / checkpoint.MODEL, folder)
    assert (checkpoint.weights_sha256(folder), checkpoint.model_bytes(folder)) == (digest, size)
    assert bits(checkpoint.load_model(folder).model.state_dict()) == bits(state.outcome.state_dict())


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


class OneModel:
    """A registry with one version, whose files are in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def look_up(self, source):
        return Version(source.place, "1", self.folder.name, None)

    def fetch(self, version, folder):
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("kind", ["url", "models"])
def test_a_copy_in_the_cache_takes_the_place_of_lost_weights_and_no_server_is_asked(search, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))
    with http_server(search[1].parent) as served:
        source = f"{served.url}/model.safetensors" if kind == "url" else "models:/digits/1"
        found = local_file(source, registry=OneModel(search[1].parent))
        config = config_of(search[1], {"tune": "head"})
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=found.pinned))
        state = start(config, PLAIN, pretrained=read_pretrained(search[1], CLASSES))
        folder, gets = saved(state, tmp_path / "checkpoint"), len(served.gets)
        assert bits(checkpoint.load_model(folder).model.state_dict()) == bits(state.outcome.state_dict())
        found.path.write_bytes(found.path.read_bytes()[:-1] + b"\x7f")
        with pytest.raises(LostWeightsError, match="weights of its search are gone"):
            checkpoint.load_model(folder)
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(LostWeightsError, match="weights of its search are gone"):
            checkpoint.load_model(folder)
        assert len(served.gets) == gets


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
    signed(folder, lambda document: document["left_out"].update(backbone=backbone))
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
    forged(folder, change)
    for load in (checkpoint.load_model, lambda path: checkpoint.load_training(path, state.config)):
        with pytest.raises(DamagedCheckpointError, match=r"trained\.safetensors: does not fit its config\.json \(" + message):
            load(folder)


@pytest.mark.parametrize(("fields", "name"), [({"tune": "head"}, "head.bias"), ({"tune": "lora"}, "encoder.norm.weight")], ids=str)
def test_numbers_that_are_not_finite_are_told_with_the_file_that_holds_them(search, fields, name, tmp_path):
    folder = saved(begun(search, fields)[0], search[0] / "trials" / tmp_path.name / "checkpoint")
    forged(folder, lambda tensors: tensors[name].fill_(float("nan")))
    with pytest.raises(DamagedCheckpointError, match=rf"/trained\.safetensors: {name} holds numbers that are not finite"):
        checkpoint.load_model(folder)


def test_other_settings_beside_the_weights_change_nothing_of_a_training_that_has_begun(search, tmp_path):
    kept = shutil.copytree(search[1].parent, tmp_path / "weights" / search[1].parent.name) / checkpoint.MODEL
    state, rest = begun((tmp_path, kept), {"tune": "last_blocks", "tuned_blocks": 1})
    folder = saved(state, tmp_path / "trials/0000/checkpoint")
    kept.with_name("preprocessor_config.json").write_text(json.dumps({"image_mean": [0.9], "image_std": [0.9]}))
    other = read_pretrained(kept, CLASSES)
    assert other.backbone.normalisation(1) == ((0.9,), (0.9,))
    for pretrained in (None, other):
        resumed = checkpoint.load_training(folder, state.config, pretrained=pretrained)
        assert (resumed.normalisation.mean.tolist(), resumed.normalisation.std.tolist()) == (PLAIN.mean.tolist(), PLAIN.std.tolist())
    assert checkpoint.load_model(folder).normalisation.mean.tolist() == PLAIN.mean.tolist()
    for one in (rest, fit(resumed, images(24), images(20))):
        list(one)
    assert bits(resumed.model.state_dict()) == bits(state.model.state_dict())


def test_weights_that_cannot_be_read_are_told_unless_there_are_others(search, tmp_path, monkeypatch):
    folder = saved(begun(search, {"tune": "head"})[0], tmp_path / "trials/0000/checkpoint")
    (tmp_path / "weights").symlink_to("a" * 300)  # nobody can look into it, not even root
    with pytest.raises(LostWeightsError, match=r"/weights/[0-9a-f]{64}/model\.safetensors: cannot be read \(File name too long\), and the"):
        checkpoint.load_model(folder)
    shutil.copy(search[1], tmp_path / "digits.safetensors")
    shutil.copy(search[1].with_name("config.json"), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert checkpoint.load_model(folder).classes == CLASSES


# Forged files


HUGE = {
    "a deep model": ({"depth": 256}, r"its pretrained weights do not fit \(depth is 256, and the pretrained weights have 3"),
    "a wide MLP": ({"mlp_dim": 65536}, r"its pretrained weights do not fit \(mlp_dim is 65536, and"),
    "wide heads": ({"dim_head": 4096}, r"its pretrained weights do not fit \(dim_head is 4096, and"),
    "a wide model": ({"dim": 16384, "heads": 1}, r"trained\.safetensors: does not fit its config\.json \("),
    "a large image": (
        {"image_size": [1024, 1024]},
        r"trained\.safetensors: does not fit its config\.json \(positions: F32",
    ),
}


@pytest.mark.parametrize(("model", "message"), HUGE.values(), ids=HUGE)
def test_forged_sizes_are_refused_before_a_model_is_built(search, model, message, tmp_path, monkeypatch):
    state, _ = begun(search, {"tune": "head"})
    folder = saved(state, search[0] / "trials" / tmp_path.name / "checkpoint")
    signed(folder, lambda document: document["config"]["model"].update(model))
    for name in ("ViT", "start"):
        monkeypatch.delattr(partial_checkpoint, name)  # whoever builds one fails
    shape = dataclasses.asdict(state.config.model) | model | ({"image_size": (1024, 1024)} if "image_size" in model else {})
    config = dataclasses.replace(state.config, model=ModelConfig(**shape))
    for load in (checkpoint.load_model, lambda path: checkpoint.load_training(path, config)):
        with pytest.raises(CheckpointError, match=message) as refused:
            load(folder)
        assert "\n" not in str(refused.value)


FORGED = {
    "unknown blocks": (lambda d: d["left_out"].update(blocks="0" * 64), "its frozen blocks came from other pretrained weights"),
    "no frozen block": (lambda d: d["config"]["training"].update(tune="full"), "its frozen blocks came from other pretrained weights"),
    "other weights": (lambda d: d["left_out"].update(backbone="0" * 64), f"are gone; put .* into weights/{'0' * 64} in the folder"),
    "no blocks": (lambda d: d["left_out"].pop("blocks"), r"config\.json: damaged \(left_out\.blocks: missing"),
    "more than that": (lambda d: d["left_out"].update(more="1"), r"config\.json: damaged \(left_out\.more: unknown"),
    "a list": (lambda d: d.update(left_out=[]), r"config\.json: damaged \(left_out"),
    "files elsewhere": (lambda d: d.update(sha256={"../../x": "0" * 64}), r"config\.json: damaged \('trained\.safetensors'\)"),
    "whole": (lambda d: d.pop("left_out"), r"model\.safetensors: missing"),
}


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_config_json_is_one_line(search, change, message, tmp_path):
    folder = saved(begun(search, {"tune": "head"})[0], search[0] / "trials" / tmp_path.name / "checkpoint")
    signed(folder, change)
    with pytest.raises(CheckpointError, match=message) as refused:
        checkpoint.load_model(folder)
    assert str(refused.value).startswith(str(folder)) and "\n" not in str(refused.value)


TENSORS = {
    "a block": ({"tune": "last_blocks", "tuned_blocks": 1}, {"encoder.blocks.2.norm1.weight": torch.ones(3)}, r"encoder\.blocks\.2\.norm1"),
    "a rank": ({"tune": "lora", "lora_rank": 2}, {"encoder.blocks.0.attention.qkv.lora_a": torch.ones(3, 16)}, r"encoder\.blocks\.0"),
    "a frozen block": ({"tune": "head"}, {"encoder.blocks.0.norm1.weight": torch.ones(16)}, r"encoder\.blocks\.0\.norm1\.weight: torch"),
    "a block more": ({"tune": "head"}, {"encoder.blocks.7.norm1.weight": torch.ones(16)}, r"encoder\.blocks\.7\.norm1\.weight: torch"),
    "a path": ({"tune": "head"}, {"../../../x": torch.ones(1)}, r"\.\./\.\./\.\./x: torch\.float32 of \[1\], and nothing belongs there"),
}


@pytest.mark.parametrize(("fields", "tensors", "message"), TENSORS.values(), ids=TENSORS)
def test_forged_tensors_are_damage(search, fields, tensors, message, tmp_path):
    folder = saved(begun(search, fields)[0], search[0] / "trials" / tmp_path.name / "checkpoint")
    forged(folder, lambda held: held.update(tensors))
    with pytest.raises(DamagedCheckpointError, match=r"trained\.safetensors: does not fit its config\.json \(" + message):
        checkpoint.load_model(folder)


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
