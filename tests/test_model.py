"""The Vision Transformer: values worked by hand."""

import pytest
import torch

from vit_search.errors import SpecError
from vit_search.spec.config import ModelConfig
from vit_search.vit.model import ViT, decayed, patchify, sincos2d


def test_a_patch_holds_neighbouring_pixels():
    image = torch.arange(16).reshape(1, 1, 4, 4)  # pixels 0..15, row by row
    assert patchify(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_the_channels_of_a_patch_lie_one_after_another_as_in_a_convolution():
    image = torch.arange(8).reshape(1, 2, 2, 2)
    assert patchify(image, 2)[0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_patch_embedding_equals_a_strided_convolution():
    config = ModelConfig(image_size=(6, 4), in_channels=3, num_classes=2, patch_size=2, dim=8, heads=2)
    model = ViT(config).double()
    images = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    weight = model.embed.weight.reshape(8, 3, 2, 2)
    expected = torch.conv2d(images, weight, model.embed.bias, stride=2).flatten(2).transpose(1, 2)
    assert torch.allclose(model.embed(patchify(images, 2)), expected, atol=1e-12)


def test_sincos_positions_begin_with_sin_0_and_cos_0():
    assert sincos2d(1, 1, 8).tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_mask_hides_the_keys_that_are_false(pool):
    config = ModelConfig(image_size=(4, 4), in_channels=1, num_classes=0, patch_size=2, dim=8, heads=2, pool=pool)
    model = ViT(config).eval()
    images = torch.randn(1, 1, 4, 4)
    changed = images.clone()
    changed[..., 2:, 2:] += 1  # the last patch
    mask = torch.ones(config.tokens, config.tokens, dtype=torch.bool)
    mask[:-1, -1] = False  # nobody but the last token sees the last token
    assert torch.equal(model(images, mask)[:, :-1], model(changed, mask)[:, :-1])
    assert not torch.equal(model(images)[:, :-1], model(changed)[:, :-1])


def test_no_classes_gives_token_features():
    config = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=0, patch_size=2, dim=16, heads=4)
    assert ViT(config)(torch.zeros(3, 1, 8, 8)).shape == (3, 16, 16)


def test_weight_decay_leaves_norms_biases_and_tables_alone():
    config = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=16, heads=4, depth=1, pool="cls")
    model = ViT(config)
    names = {id(p): name for name, p in model.named_parameters()}
    shrunk, spared = decayed(model)
    assert sorted(names[id(p)] for p in shrunk) == [
        "embed.weight",
        "encoder.blocks.0.attention.projection.weight",
        "encoder.blocks.0.attention.qkv.weight",
        "encoder.blocks.0.mlp.down.weight",
        "encoder.blocks.0.mlp.up.weight",
        "head.weight",
    ]
    assert {"cls_token", "positions"} <= {names[id(p)] for p in spared}


def test_heads_that_do_not_divide_dim_are_refused_unless_their_width_is_given():
    shape = {"image_size": (8, 8), "in_channels": 1, "num_classes": 10, "patch_size": 2}
    with pytest.raises(SpecError, match="heads: 5 does not divide dim=64; choose a divisor, or give dim_head"):
        ModelConfig(**shape, dim=64, heads=5)
    assert ViT(ModelConfig(**shape, dim=64, heads=5, dim_head=8))(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_replacement_encoder_is_used():
    class Nothing(torch.nn.Module):
        def forward(self, tokens, mask=None):
            return tokens * 0

    config = ModelConfig(image_size=(4, 4), in_channels=1, num_classes=3, patch_size=2, dim=8, heads=2)
    model = ViT(config, encoder=Nothing())
    assert torch.equal(model(torch.randn(2, 1, 4, 4)), model.head.bias.expand(2, -1))
