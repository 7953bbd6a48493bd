"""A training that starts from pretrained weights: the digits from a model of the digits."""

import shutil
from dataclasses import replace

import pytest
import torch

from vit_search.config import search_file
from vit_search.config.backbone import read_backbone
from vit_search.data import backbones
from vit_search.data.cache import prepare
from vit_search.errors import CheckpointError, SpecError
from vit_search.planning.fixed_file import fixed_file
from vit_search.vit import checkpoint, train_once, training
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.inherit import inherit
from vit_search.vit.pretrained import load, starting_point

HEAD = "name: digits\ndata: {name: digits, train_limit: 200}\ntrials: 1\nepochs: 1\ntraining: {lr: 0.002}\n"
BACKBONE = HEAD + "model: {dim: 32, depth: 2, heads: 4, patch_size: 2, pool: cls, registers: 1}\n"


def pinned(text):
    """As every launch does with a search file."""
    spec = search_file.parse(text)
    return backbones.pinned(spec, backbones.find_all(spec))


def config_of(spec):
    return spec.trial_config({}, in_channels=1, num_classes=10, trial=0)


def trained(text, folder):
    """A search file of one configuration, trained; what the last epoch gave."""
    spec = pinned(text)
    return list(train_once.train(spec, config_of(spec), prepare(spec.data_config), folder))[-1]


def from_weights(path, model="", rest=""):
    return f"{HEAD}{rest}model: {{pretrained: {path}{', ' if model else ''}{model}}}\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a small model of the digits."""
    folder = tmp_path_factory.mktemp("backbone")
    trained(BACKBONE, folder / "digits")
    return folder / "digits" / "model.safetensors"


def test_what_the_file_leaves_out_is_the_backbones_own_and_stands_in_the_pinned_file(weights):
    spec = pinned(from_weights(weights, "depth: 1"))
    config = config_of(spec).model
    assert (config.depth, config.dim, config.patch_size, config.pool, config.registers) == (1, 32, 2, "cls", 1)
    assert config.pretrained == f"{weights}#sha256={checkpoint.weights_sha256(weights.parent)}"
    assert search_file.parse(spec.text) == spec
    assert pinned(spec.text).text == spec.text


def test_the_first_model_is_what_the_weights_and_the_configuration_give(weights):
    config = config_of(pinned(from_weights(weights, "depth: 1")))
    data = prepare(config.data)
    ours, other_seed = (
        training.start(one, Normalisation.of(data.mean, data.std), pretrained=starting_point(one.model.pretrained, data.classes))
        for one in (config, replace(config, seed=7))
    )
    backbone, tensors = load(weights)
    expected = inherit(tensors, backbone, config.model, data.classes)
    for state in (ours, other_seed):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.model.state_dict().items())
    assert torch.equal(expected["head.bias"], tensors["head.bias"])  # the same ten digits


def test_a_model_of_the_same_shape_begins_where_the_weights_ended(weights, tmp_path):
    frozen = HEAD.replace("0.002", "1e-9") + f"model: {{pretrained: {weights}}}\n"
    again = trained(frozen, tmp_path / "again")
    before = checkpoint.load_model(weights.parent)
    assert again.val_accuracy == pytest.approx(trained(BACKBONE, weights.parent).val_accuracy)
    after = checkpoint.load_model(tmp_path / "again")
    images = torch.rand(4, 1, 8, 8)
    assert torch.allclose(after.model(images), before.model(images), atol=1e-5)


def test_the_images_are_normalised_as_the_backbones_were_and_the_served_model_says_so(weights, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(weights.parent, other)
    text = (other / "config.json").read_text()
    backbone = read_backbone(weights)
    (other / "config.json").write_text(text.replace(str(backbone.mean[0]), "0.125").replace(str(backbone.std[0]), "0.5"))
    trained(from_weights(other / "model.safetensors", "depth: 1"), tmp_path / "made")
    served = checkpoint.load_model(tmp_path / "made")
    assert (served.normalisation.mean.tolist(), served.normalisation.std.tolist()) == ([0.125], [0.5])


def test_a_mean_of_three_channels_serves_grey_images_and_the_other_way_round(weights):
    backbone = replace(read_backbone(weights), mean=(0.1, 0.2, 0.6), std=(0.5, 0.5, 0.5))
    assert backbone.normalisation(1) == (pytest.approx((0.3,)), (0.5,))
    assert backbone.normalisation(4)[0] == (0.1, 0.2, 0.6, 0.1)
    assert replace(backbone, mean=(0.4,), std=(0.2,)).normalisation(3) == ((0.4,) * 3, (0.2,) * 3)
    assert replace(backbone, mean=None).normalisation(3) is None


def test_a_training_goes_on_without_its_weights_and_not_with_other_ones(weights, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(weights.parent, theirs)
    text = from_weights(theirs / "model.safetensors", "depth: 1").replace("epochs: 1", "epochs: 3")
    spec = pinned(text)
    whole = list(train_once.train(spec, config_of(spec), prepare(spec.data_config), tmp_path / "whole"))
    half = train_once.train(spec, config_of(spec), prepare(spec.data_config), tmp_path / "half")
    next(half)
    half.close()
    shutil.rmtree(theirs)
    resumed = list(train_once.train(spec, config_of(spec), prepare(spec.data_config), tmp_path / "half"))
    assert [one.train_loss for one in resumed] == [one.train_loss for one in whole]
    other = config_of(pinned(from_weights(weights, "depth: 1").replace("epochs: 1", "epochs: 3")))
    with pytest.raises(CheckpointError, match=r"model\.pretrained was .* when it was saved and is now"):
        list(train_once.train(spec, other, prepare(spec.data_config), tmp_path / "half"))


def test_a_configuration_written_out_gives_the_same_training(weights):
    spec = pinned(from_weights(weights, "depth: 1, dim_head: null"))
    written = fixed_file(config_of(spec), name="again", about=[], rest={})
    assert written.same
    assert config_of(pinned(written.text)) == config_of(spec)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("dim: 64, mlp_dim: 128", r"model\.dim: dim is 64, and the pretrained weights have 32; give at most 32"),
        ("depth: {int: [1, 3]}", r"model\.depth: depth is 3, and the pretrained weights have 2; give at most 2"),
        ("mlp_ratio: {float: [1, 6]}", r"model\.mlp_ratio: mlp_dim \(dim 32 x mlp_ratio 6\) is 192, and .* have 128"),
        ("activation: {choice: [gelu, relu]}", r"model\.activation: activation is relu, .* write activation: gelu"),
        ("patch_size: 3", r"model\.patch_size: 0 of 1 value divide the image of 8x8 pixels"),
    ],
)
def test_a_model_that_cannot_start_from_the_weights_is_refused_with_what_is_possible(weights, model, message):
    with pytest.raises(SpecError, match=message):
        pinned(from_weights(weights, model))


def test_a_condition_may_name_the_weights_and_excludes_what_does_not_fit(weights):
    text = (
        f"{HEAD}model:\n  pretrained: {{choice: ['', '{weights}']}}\n"
        f"  dim: {{choice: [16, 64], when: \"pretrained == ''\", else: 32}}\n  mlp_ratio: 1\n"
        f"start_with: [{{pretrained: '{weights}'}}]\n"
    )
    spec = pinned(text)
    assert spec.start_with[0]["pretrained"] == spec.model.pretrained.choice[1]
    with pytest.raises(SpecError, match=r"model\.dim: dim is 64"):
        pinned(text.replace("pretrained == ''", f"pretrained == '{weights}'"))


def test_weights_that_disagree_leave_a_key_to_the_user(weights, tmp_path):
    trained(BACKBONE.replace("depth: 2", "depth: 1"), tmp_path / "flat")
    both = f"{{choice: [{weights}, {tmp_path / 'flat'}]}}"
    with pytest.raises(
        SpecError, match=r"model\.pretrained: the weights have different values of model\.depth: 2 .* and 1 .*; write model\.depth"
    ):
        pinned(from_weights(both))
    assert config_of(pinned(from_weights(both, "depth: 1")).model_copy(update={"model": pinned(from_weights(weights, "depth: 1")).model}))


def test_what_a_launch_cannot_use_is_one_line(weights, tmp_path):
    shutil.copytree(weights.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / "model.safetensors"
    whole = weights.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "model.safetensors: "),
        (b"\x80\x04\x95" + bytes(200), "model.safetensors: "),
    ):
        copy.write_bytes(content)
        with pytest.raises(SpecError, match=r"^model\.pretrained: [^\n]+$") as caught:
            pinned(from_weights(copy))
        assert message in str(caught.value)
    copy.write_bytes(whole)
    digits = checkpoint.weights_sha256(weights.parent)
    with pytest.raises(SpecError, match=r"model\.pretrained: .*did you mean .*model\.safetensors"):
        pinned(from_weights(copy.with_name("modle.safetensors")))
    with pytest.raises(SpecError, match=r"model\.pretrained: .*sha256"):
        pinned(from_weights(f"'{copy}#sha256={'0' * 64}'"))
    assert pinned(from_weights(f"'{copy}#sha256={digits}'"))
