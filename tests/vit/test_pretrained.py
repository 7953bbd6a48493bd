"""Our ViT is the paper's: with the weights of timm's and torchvision's, it gives their logits."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as Timm
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as Torchvision

from vit_search.config.model_config import ModelConfig
from vit_search.errors import CheckpointError
from vit_search.vit.model import ViT
from vit_search.vit.pretrained import from_timm, from_torchvision

SHAPE = {"image_size": (16, 16), "in_channels": 3, "num_classes": 7, "patch_size": 4, "dim": 24, "depth": 3, "heads": 3, "mlp_dim": 40}
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-4)]


def timm(**fields):
    shape = {"img_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 40 / 24}
    return randomised(Timm(**shape | fields))


def randomised(model):
    """Weights from which every part of the model matters: norms, biases and scales start as ones and zeros."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


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
    [({"qk_norm": True}, r"blocks\.0\.attn\.q_norm\.weight"), ({"reg_tokens": 2}, "reg_token"), ({"fc_norm": True}, "fc_norm")],
)
def test_a_model_with_parts_that_ours_has_not_is_refused_by_name(fields, name):
    with pytest.raises(CheckpointError, match=rf"{name}.*: no counterpart in our ViT; load a plain Vision Transformer of timm"):
        from_timm(timm(**fields).state_dict())
