"""The Vision Transformer: values worked by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vit_search.config.model_config import ModelConfig
from vit_search.errors import SpecError
from vit_search.vit.model import DropPath, ViT, decayed, interpolate, patchify, resized, shapes, sincos2d


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
    config = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=16, heads=4, depth=1, pool="cls", registers=2)
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
    assert {"cls_token", "positions", "registers"} <= {names[id(p)] for p in spared}


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


@pytest.mark.parametrize("lead", [(), (3, 1), (3, 2)], ids=["for all", "of each image", "of each head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_broadcast_over_what_it_does_not_name(lead, dtype):
    config = ModelConfig(image_size=(4, 6), in_channels=1, num_classes=0, patch_size=2, dim=8, heads=2)
    model, images = ViT(config).eval().to(dtype), torch.randn(3, 1, 4, 6).to(dtype)
    mask = torch.rand(*lead, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    mask |= torch.eye(6, dtype=torch.bool)  # each sees itself
    whole = mask.expand(3, 2, 6, 6)
    assert torch.equal(model(images, mask), model(images, whole.clone()))
    assert not torch.equal(model(images, mask), model(images))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_half_precision_is_that_of_float32_but_for_rounding(masked):
    config = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=0, patch_size=2, dim=32, heads=4)
    attention = ViT(config).eval().encoder.blocks[0].attention
    tokens = torch.randn(3, 16, 32)
    mask = torch.ones(16, 16, dtype=torch.bool).tril() if masked else None
    exact = attention(tokens, mask)
    rounded = attention.bfloat16()(tokens.bfloat16(), mask).float()
    assert float((rounded - exact).abs().max()) < 0.03 * float(exact.abs().max())  # bfloat16 keeps 8 bits


def test_positions_of_the_same_grid_stay_as_they_are():
    table = torch.randn(1, 7, 4)
    assert interpolate(table, (2, 3), (2, 3)) is table


def test_positions_are_interpolated_in_two_dimensions_and_the_class_token_is_left_alone():
    ramp = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij"), -1).reshape(1, 48, 2)  # (row, col)
    token = torch.full((1, 1, 2), 99.0)
    finer = interpolate(torch.cat([token, ramp], 1), (8, 6), (16, 12))
    assert torch.equal(finer[:, :1], token)
    grid = finer[0, 1:].reshape(16, 12, 2)
    # a fine pixel's centre lies at (i + 1/2) / 2 - 1/2 of the coarse grid; the border, where the kernel is cut, left out
    assert torch.allclose(grid[4:12, 4:8, 0], ((torch.arange(4.0, 12) + 0.5) / 2 - 0.5)[:, None].expand(8, 4), atol=1e-4)
    assert torch.allclose(grid[4:12, 4:8, 1], ((torch.arange(4.0, 8) + 0.5) / 2 - 0.5)[None].expand(8, 4), atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "cls"},
        {"positions": "sincos2d"},
        {"positions": "sincos2d", "pool": "cls"},
        {"pool": "cls", "registers": 2},
        {"positions": "sincos2d", "registers": 2},
    ],
    ids=str,
)
def test_a_model_resized_there_and_back_keeps_all_but_its_positions(fields):
    config = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=3, patch_size=2, dim=16, heads=2, **fields)
    model = ViT(config).eval()
    larger = resized(model, (12, 16))
    assert larger.config.image_size == (12, 16)
    assert not larger.training
    assert larger(torch.randn(2, 1, 12, 16)).shape == (2, 3)
    assert torch.equal(resized(model, (8, 8))(images := torch.randn(2, 1, 8, 8)), model(images))
    for name, weight in larger.state_dict().items():
        assert name == "positions" or torch.equal(weight, model.state_dict()[name])
    if config.positions == "sincos2d":
        assert torch.equal(resized(larger, (8, 8)).positions, model.positions)


def test_an_image_size_that_the_patches_do_not_divide_is_refused():
    model = ViT(ModelConfig(image_size=(8, 8), in_channels=1, num_classes=3, patch_size=4, dim=8, heads=2))
    with pytest.raises(SpecError, match="patch_size: 4 does not divide the image of 10x8 pixels"):
        resized(model, (10, 8))


def test_each_dropout_is_set_apart_and_the_common_one_fills_the_gaps():
    rates = {"embedding_dropout": 0.1, "attention_dropout": 0.2, "projection_dropout": 0.3, "mlp_dropout": 0.4}
    shape = {"image_size": (8, 8), "in_channels": 1, "num_classes": 3, "patch_size": 4, "dim": 8, "heads": 2, "depth": 1}

    def rates_of(model):
        block = model.encoder.blocks[0]
        return [model.dropout.p, block.attention.attention_dropout, block.attention.projection_dropout.p, block.mlp.dropout.p]

    assert rates_of(ViT(ModelConfig(**shape, **rates))) == [0.1, 0.2, 0.3, 0.4]
    assert rates_of(ViT(ModelConfig(**shape, dropout=0.5, attention_dropout=0.0))) == [0.5, 0.0, 0.5, 0.5]


def test_drop_path_skips_whole_samples_keeps_the_mean_and_grows_with_depth():
    drop = DropPath(0.25).train()
    torch.manual_seed(0)
    out = drop(torch.ones(4000, 3, 2))
    assert sorted(set(out.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert torch.equal(out.amin((1, 2)), out.amax((1, 2)))
    assert float(out.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(5, 3, 2)), torch.ones(5, 3, 2))
    config = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=3, patch_size=4, dim=8, heads=2, depth=3, drop_path=0.2)
    assert [block.drop_path.rate for block in ViT(config).encoder.blocks] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize(("init", "std"), [("trunc_normal_02", 0.02), ("xavier", math.sqrt(2 / (128 + 512)))])
def test_weights_begin_as_the_config_says(init, std):
    config = ModelConfig(
        image_size=(32, 32), in_channels=3, num_classes=10, patch_size=2, dim=128, heads=4, pool="cls", init=init, pos_init_std=0.02
    )
    model = ViT(config)
    assert float(model.encoder.blocks[0].mlp.up.weight.std()) == pytest.approx(std, rel=0.05)
    assert float(model.positions.std()) == pytest.approx(0.02, rel=0.05)
    assert all(not module.bias.any() for module in model.modules() if isinstance(module, nn.Linear))


def test_relu_and_post_norm_are_what_their_names_say():
    config = ModelConfig(
        image_size=(4, 4), in_channels=1, num_classes=0, patch_size=2, dim=8, heads=2, depth=1, activation="relu", norm="post"
    )
    model = ViT(config).eval()
    block, tokens = model.encoder.blocks[0], torch.randn(2, 4, 8)
    after = block.norm1(tokens + block.attention(tokens))
    expected = block.norm2(after + block.mlp.down(block.mlp.up(after).clamp(min=0)))
    assert torch.allclose(model.encoder(tokens), expected, atol=1e-6)
    assert isinstance(model.encoder.norm, nn.Identity)  # a post-norm block ends in its own


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "cls", "layer_scale": 0.1, "qkv_bias": False},
        {"norm": "post", "positions": "sincos2d", "dim_head": 5, "num_classes": 0},
        {"mlp_dim": 7, "depth": 3, "image_size": (8, 12), "in_channels": 3},
        {"registers": 2, "pool": "cls", "qk_norm": True},
        {"registers": 3, "positions": "rope", "activation": "swiglu"},
        {"registers": 1, "positions": "sincos2d"},
    ],
    ids=str,
)
def test_the_shapes_of_a_model_are_told_without_making_it(fields):
    config = ModelConfig(**{"image_size": (8, 8), "in_channels": 1, "num_classes": 5, "patch_size": 4, "dim": 16, "heads": 2} | fields)
    assert shapes(config) == {name: tuple(weight.shape) for name, weight in ViT(config).state_dict().items()}


TINY = {"image_size": (4, 4), "in_channels": 1, "num_classes": 3, "patch_size": 2, "dim": 8, "heads": 2, "depth": 1}


class Unchanged(nn.Module):
    """An encoder that leaves tokens as they are, so that a test sees what the head gets."""

    def forward(self, tokens, mask=None):
        return tokens


def test_the_head_sees_the_patches_or_the_class_token_and_no_register():
    images = torch.randn(2, 1, 4, 4)
    for fields in ({}, {"pool": "cls"}):
        model = ViT(ModelConfig(**TINY, registers=3, **fields), encoder=Unchanged()).eval()
        before = model(images)
        nn.init.normal_(model.registers, std=10)
        assert torch.equal(model(images), before)


def test_registers_stand_behind_the_class_token_without_a_position_and_attention_sees_them():
    model = ViT(ModelConfig(**TINY | {"num_classes": 0}, registers=3, pool="cls"), encoder=Unchanged()).eval()
    tokens = model(torch.randn(2, 1, 4, 4))
    assert torch.equal(tokens[:, 1:4], model.registers.expand(2, 3, 8))
    assert torch.equal(tokens[:, 0], (model.cls_token + model.positions[:, :1])[:, 0].expand(2, 8))
    assert model.positions.shape == (1, 5, 8)
    whole, images = ViT(ModelConfig(**TINY, registers=3)).eval(), torch.randn(2, 1, 4, 4)
    before = whole(images)
    nn.init.normal_(whole.registers, std=10)
    assert not torch.allclose(whole(images), before)


def test_swiglu_by_hand():
    mlp = ViT(ModelConfig(**TINY | {"dim": 1, "heads": 1}, mlp_dim=1, activation="swiglu")).eval().encoder.blocks[0].mlp
    with torch.no_grad():
        for layer, weight, bias in ((mlp.gate, 1.0, 0.5), (mlp.up, 3.0, -1.0), (mlp.down, 2.0, 0.25)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    gate, up = 2.5, 5.0  # of the token 2
    assert float(mlp(torch.full((1, 1, 1), 2.0))) == pytest.approx(2 * gate / (1 + math.exp(-gate)) * up + 0.25)


def test_with_query_and_key_norms_attention_does_not_grow_with_its_weights():
    attention = ViT(ModelConfig(**TINY, qk_norm=True)).double().eval().encoder.blocks[0].attention
    tokens = torch.randn(2, 4, 8, dtype=torch.float64)
    before = attention(tokens)
    with torch.no_grad():
        attention.qkv.weight[:16] *= 100  # queries and keys, not values
    assert torch.allclose(attention(tokens), before, atol=1e-4)  # but for eps
    with pytest.raises(SpecError, match=r"qk_norm: dim=8 and heads=8 give heads of width 1, which a norm makes all alike"):
        ModelConfig(**TINY | {"heads": 8}, qk_norm=True)


@pytest.mark.parametrize("fields", [{"positions": "rope"}, {"positions": "rope", "registers": 1, "qk_norm": True}], ids=str)
def test_under_autocast_the_sum_of_the_branches_stays_in_float32(fields):
    sums = []
    model = ViT(ModelConfig(**TINY, **fields)).eval()
    model.encoder.blocks[0].register_forward_hook(lambda module, inputs, output: sums.extend([inputs[0].dtype, output.dtype]))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 1, 4, 4))
    assert sums == [torch.float32, torch.float32]


def test_the_default_model_is_bit_for_bit_the_plain_vit_that_it_was():
    """Each step as version 0.1 had it: checkpoints of then give the same logits."""
    torch.manual_seed(3)
    model, images = ViT(ModelConfig(**TINY)).eval(), torch.randn(5, 1, 4, 4)
    state = model.state_dict()
    assert float(state["head.weight"].double().sum()) == pytest.approx(3.17863659420982, rel=1e-5)  # drawn by version 0.1
    assert float(state["positions"].double().sum()) == pytest.approx(-1.2337321932427585, rel=1e-5)
    tokens = F.linear(patchify(images, 2), state["embed.weight"], state["embed.bias"]) + state["positions"]
    of = {name.removeprefix("encoder.blocks.0."): weight for name, weight in state.items()}
    normed = F.layer_norm(tokens, (8,), of["norm1.weight"], of["norm1.bias"], 1e-6)
    heads = F.linear(normed, of["attention.qkv.weight"], of["attention.qkv.bias"]).chunk(3, dim=-1)
    mixed = F.scaled_dot_product_attention(*(part.unflatten(-1, (2, 4)).transpose(1, 2) for part in heads)).transpose(1, 2).flatten(2)
    tokens = tokens + F.linear(mixed, of["attention.projection.weight"], of["attention.projection.bias"])
    normed = F.layer_norm(tokens, (8,), of["norm2.weight"], of["norm2.bias"], 1e-6)
    hidden = F.gelu(F.linear(normed, of["mlp.up.weight"], of["mlp.up.bias"]))
    tokens = tokens + F.linear(hidden, of["mlp.down.weight"], of["mlp.down.bias"])
    pooled = F.layer_norm(tokens, (8,), state["encoder.norm.weight"], state["encoder.norm.bias"], 1e-6).mean(dim=1)
    with torch.no_grad():
        assert torch.equal(model(images), F.linear(pooled, state["head.weight"], state["head.bias"]))
