"""Our ViT is the paper's: with the weights of timm's, torchvision's and transformers', it gives their logits."""

import functools

import pytest
import timm as timm_library
import torch
from helpers.models import untrained
from helpers.weight_files import randomised
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer as Timm
from torchvision.models.vision_transformer import VisionTransformer as Torchvision
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from vit_search.config.model_config import ModelConfig
from vit_search.errors import CheckpointError
from vit_search.vit.inherit import inherit
from vit_search.vit.model import ViT
from vit_search.vit.pretrained import from_timm, from_torchvision, load

SHAPE = {"image_size": (16, 16), "in_channels": 3, "num_classes": 7, "patch_size": 4, "dim": 24, "depth": 3, "heads": 3, "mlp_dim": 40}
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-4)]


def timm(**fields):
    shape = {"img_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 40 / 24}
    return randomised(Timm(**shape | fields))


def largest_difference(ours, theirs, dtype, size=(16, 16)):
    images = torch.randn(5, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.to(dtype)(images)
        assert expected.std() > 0.1  # not all alike
        return float((ours.to(dtype).eval()(images) - expected).abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"pool": "cls"}),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
        ({"qkv_bias": False, "init_values": 0.1}, {"pool": "cls", "qkv_bias": False, "layer_scale": 0.1}),
        ({"img_size": (8, 16), "in_chans": 3}, {"pool": "cls", "image_size": (8, 16)}),
        ({"num_classes": 0, "global_pool": "", "class_token": False}, {"num_classes": 0}),
    ],
    ids=["class token", "mean pooling", "layer scale, no bias", "oblong images", "token features"],
)
def test_our_logits_are_timms(theirs, ours, dtype, tolerance):
    config = ModelConfig(**SHAPE | ours)
    model, peer = ViT(config), timm(**theirs)
    model.load_state_dict(from_timm(peer.state_dict()))
    assert largest_difference(model, peer, dtype, config.image_size) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_our_logits_are_torchvisions(dtype, tolerance):
    peer = randomised(Torchvision(image_size=16, patch_size=4, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=40, num_classes=7))
    model = ViT(ModelConfig(**SHAPE, pool="cls"))
    model.load_state_dict(from_torchvision(peer.state_dict()))
    assert largest_difference(model, peer, dtype) <= tolerance


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"pre_norm": True}, r"norm_pre\.weight"), ({"fc_norm": True}, "fc_norm"), ({"scale_mlp_norm": True}, r"blocks\.0\.mlp\.norm")],
)
def test_a_model_with_parts_that_ours_has_not_is_refused_by_name(fields, name):
    with pytest.raises(CheckpointError, match=rf"{name}.*: a part that our ViT does not have; load a plain Vision Transformer of timm"):
        from_timm(timm(**fields).state_dict())


EXACT = 1e-8
OF_ALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4, "image_size": 16, "num_labels": 7}
DINOV2 = OF_ALL | {"mlp_ratio": 2}
PEERS = {
    "ViT": lambda: ViTModel(ViTConfig(intermediate_size=80, **OF_ALL)),
    "ViT classifier": lambda: ViTForImageClassification(ViTConfig(intermediate_size=80, id2label=dict(enumerate("abcdefg")), **OF_ALL)),
    "ViT without bias": lambda: ViTModel(ViTConfig(intermediate_size=80, qkv_bias=False, **OF_ALL), add_pooling_layer=False),
    "DINOv2": lambda: Dinov2Model(Dinov2Config(**DINOV2)),
    "DINOv2, gated": lambda: Dinov2Model(Dinov2Config(use_swiglu_ffn=True, **DINOV2)),
    "DINOv2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=3, **DINOV2)),
    "DINOv3": lambda: DINOv3ViTModel(DINOv3ViTConfig(intermediate_size=80, num_register_tokens=3, **OF_ALL)),
    "DINOv3, gated": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(intermediate_size=80, use_gated_mlp=True, hidden_act="silu", num_register_tokens=3, **OF_ALL)
    ),
}


@functools.cache
def saved(kind):
    return randomised(PEERS[kind]()).double()


@torch.no_grad()
def features(peer, model, size=(16, 16)):
    """What the peer and our model make of the same images."""
    images = torch.randn(5, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = peer(images)
    expected = getattr(expected, "logits", getattr(expected, "last_hidden_state", expected))
    assert expected.std() > 0.1  # not all alike
    return model(images), expected


def rebuilt(path, classes=None, **fields):
    """Our model of a file's weights, in the file's own shape."""
    backbone, weights = load(path)
    data = {"image_size": backbone.image_size, "in_channels": backbone.in_channels, "num_classes": len(classes or ())}
    config = ModelConfig(**data | backbone.model_fields | fields)
    model = ViT(config).double().eval()
    model.load_state_dict(inherit(weights, backbone, config, classes))
    return model, backbone


@pytest.mark.parametrize("spelling", ["of the hub", "of version 5"])
@pytest.mark.parametrize("kind", PEERS)
def test_a_file_of_transformers_gives_its_features(kind, spelling, tmp_path):
    """save_pretrained writes the names that files have always had; in memory, modules have others since version 5."""
    peer = saved(kind)
    peer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if spelling == "of version 5":
        save_file(peer.state_dict(), path)
    model, backbone = rebuilt(path, classes=tuple("abcdefg") if kind == "ViT classifier" else None)
    ours, theirs = features(peer, model)
    assert (ours - theirs).abs().max() <= EXACT
    assert (backbone.layout, backbone.heads, backbone.assumed) == ("transformers", 3, ())
    assert backbone.norm_eps == peer.config.layer_norm_eps


def test_a_classifier_that_reads_two_tokens_loses_its_head(tmp_path):
    Dinov2ForImageClassification(Dinov2Config(**DINOV2)).save_pretrained(tmp_path)
    backbone, weights = load(tmp_path / "model.safetensors")
    assert backbone.num_classes == 0
    assert {"classifier.weight", "classifier.bias"} <= set(backbone.left_out)
    assert not any(name.startswith("head") for name in weights)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reg_tokens": 2},
        {"reg_tokens": 2, "no_embed_class": True},
        {"no_embed_class": True},
        {"qk_norm": True, "init_values": 0.1},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ],
    ids=["plain", "positions of registers", "positions of patches only", "the same without registers", "norms", "mean"],
)
def test_a_file_of_timm_gives_its_features(fields, tmp_path):
    """Rows of the table for registers are added to them; a class token without a row gets zeros."""
    peer = timm(embed_dim=128, num_heads=2, num_classes=0, **fields).double()
    save_file(peer.state_dict(), tmp_path / "w.safetensors")
    model, _ = rebuilt(tmp_path / "w.safetensors")
    ours, theirs = features(peer.forward_features, model)
    assert (ours - theirs).abs().max() <= EXACT


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"])
def test_a_file_of_timms_dinov3_gives_its_features(name, tmp_path):
    """timm rounds the angles of its rotations to float32, and ours are exact: hence the tolerance."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0, "global_pool": ""}
    peer = randomised(timm_library.create_model(name, **sizes)).double()
    save_file(peer.state_dict(), tmp_path / "w.safetensors")
    model, backbone = rebuilt(tmp_path / "w.safetensors", image_size=(16, 16))
    ours, theirs = features(peer.forward_features, model)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (backbone.positions, backbone.norm_eps, backbone.activation) == ("rope", 1e-5, "swiglu" if "plus" in name else "gelu")


def test_a_gated_mlp_in_one_matrix_is_taken_apart(tmp_path):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 192, "depth": 1, "num_heads": 3, "num_classes": 0}
    peer = randomised(timm_library.create_model("vit_giant_patch14_reg4_dinov2", **sizes)).double()
    save_file(peer.state_dict(), tmp_path / "w.safetensors")
    model, backbone = rebuilt(tmp_path / "w.safetensors")
    ours, theirs = features(peer.forward_features, model)
    assert backbone.activation == "swiglu"
    assert (ours - theirs).abs().max() <= EXACT


def test_a_file_of_torchvision_gives_its_logits(tmp_path):
    peer = randomised(
        Torchvision(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=40, num_classes=7)
    ).double()
    path = tmp_path / "w.safetensors"
    text = '{"architecture": "vit_b_16", "label_names": ["a", "b", "c", "d", "e", "f", "g"]}'
    save_file(peer.state_dict(), path, metadata={"config": text})
    model, _ = rebuilt(path, tuple("abcdefg"))
    ours, theirs = features(peer, model)
    assert (ours - theirs).abs().max() <= EXACT


def test_a_checkpoint_of_ours_gives_its_logits_and_tells_its_normalisation_and_classes(tmp_path):
    served, folder = untrained(tmp_path / "checkpoint", pool="cls", registers=1)
    backbone, weights = load(folder / "model.safetensors")
    assert (backbone.layout, backbone.heads, backbone.dim_head, backbone.registers) == ("vit_search", 2, 8, 1)
    assert (backbone.mean, backbone.std) == (pytest.approx((0.3,)), pytest.approx((0.4,)))
    assert backbone.classes == tuple("0123456789")
    state = inherit(weights, backbone, served.config.model, backbone.classes)
    assert all(torch.equal(state[name], tensor) for name, tensor in served.model.state_dict().items())


def test_half_precision_becomes_float32_and_weights_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({name: tensor.half() for name, tensor in timm(embed_dim=64, num_heads=1).state_dict().items()}, path)
    assert {tensor.dtype for tensor in load(path)[1].values()} == {torch.float32}
    state = load_file(path)
    state["blocks.1.attn.proj.bias"][3] = torch.nan
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: blocks\.1\.attn\.proj\.bias: holds numbers that are not finite"):
        load(path)
