"""A model starts from pretrained weights: what fits is copied, what is smaller is selected, what is larger is refused."""

from dataclasses import replace

import pytest
import torch
from helpers.weight_files import randomised
from torch import Tensor

from vit_search.config.backbone import Backbone
from vit_search.config.model_config import ModelConfig
from vit_search.errors import SpecError
from vit_search.vit.inherit import evenly, inherit, map_channels, resize_matrix, resize_patches
from vit_search.vit.model import ViT, shapes

NAMES = ("ant", "bee", "cat", "dog", "elk")
SHAPE = {"image_size": (16, 16), "in_channels": 3, "num_classes": 5, "patch_size": 4, "dim": 24, "depth": 4, "heads": 4, "mlp_dim": 40}
PARENT = ModelConfig(**SHAPE, pool="cls", layer_scale=0.1)


def backbone_of(config: ModelConfig, **fields) -> Backbone:
    """The facts of our own model."""
    same = ("in_channels", "patch_size", "dim", "depth", "heads", "pool", "registers", "positions", "grid", "activation", "norm")
    same += ("norm_eps", "rope_base", "qkv_bias", "qk_norm", "num_classes", "image_size")
    facts = {name: getattr(config, name) for name in same}
    facts |= {"layout": "vit_search", "dim_head": config.head_width, "mlp_dim": config.mlp_width, "classes": NAMES[: config.num_classes]}
    facts |= {"layer_scale": config.layer_scale is not None, "mean": None, "std": None, "interpolation": None, "licence": None}
    return Backbone(**facts | {"assumed": (), "left_out": ()} | fields)


def parent(config: ModelConfig = PARENT) -> tuple[ViT, Backbone, dict[str, Tensor]]:
    model = randomised(ViT(config)).double()
    return model, backbone_of(config), model.state_dict()


def child(config: ModelConfig, of: ModelConfig = PARENT, classes=NAMES, **options) -> ViT:
    _, backbone, weights = parent(of)
    model = ViT(config).double()
    model.load_state_dict(inherit(weights, backbone, config, classes, **options))
    return model.eval()


def images(channels=3, size=16):
    return torch.randn(4, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_things_are_selected_in_equal_steps_from_the_first_on():
    assert evenly(6, 3) == [0, 2, 4]
    assert evenly(5, 3) == [0, 1, 3]
    assert evenly(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "mean"},
        {"qkv_bias": False, "layer_scale": None},
        {"norm": "post"},
        {"positions": "sincos2d"},
        {"dim_head": 10},
        {"num_classes": 0},
        {"registers": 3, "qk_norm": True, "activation": "swiglu"},
        {"positions": "rope", "dim_head": 8, "norm_eps": 1e-5},
    ],
)
def test_the_same_shape_gives_the_same_logits_to_the_bit(changes):
    config = replace(PARENT, **changes)
    model, backbone, weights = parent(config)
    inherited = inherit(weights, backbone, config, NAMES[: config.num_classes])
    assert all(torch.equal(inherited[name], tensor) for name, tensor in weights.items())
    assert torch.equal(child(config, config, NAMES[: config.num_classes])(images()), model(images()))


@pytest.mark.parametrize("blocks", ["first", "even"])
def test_each_weight_of_a_smaller_model_is_the_selected_part_of_the_backbones(blocks):
    """dim 24 to 12: every second channel. 4 heads of 6 to 2 of 3: heads 0 and 2, their channels 0, 2, 4. MLP 40 to 10: every fourth."""
    config = replace(PARENT, dim=12, depth=2, heads=2, dim_head=3, mlp_dim=10)
    weights = parent()[2]
    state = child(config, blocks=blocks).state_dict()
    rows = [0, 2, 4, 12, 14, 16]
    for new, old in {0: 0, 1: 1 if blocks == "first" else 3}.items():
        mine, theirs = f"encoder.blocks.{new}.", f"encoder.blocks.{old}."
        all_rows = [24 * part + row for part in range(3) for row in rows]
        assert torch.equal(state[mine + "attention.qkv.weight"], weights[theirs + "attention.qkv.weight"][all_rows][:, ::2])
        assert torch.equal(state[mine + "attention.qkv.bias"], weights[theirs + "attention.qkv.bias"][all_rows])
        assert torch.equal(state[mine + "attention.projection.weight"], weights[theirs + "attention.projection.weight"][::2][:, rows])
        assert torch.equal(state[mine + "mlp.up.weight"], weights[theirs + "mlp.up.weight"][::4, ::2])
        assert torch.equal(state[mine + "mlp.down.weight"], weights[theirs + "mlp.down.weight"][::2, ::4])
        assert torch.equal(state[mine + "mlp.up.bias"], weights[theirs + "mlp.up.bias"][::4])
        for name in ("norm1.weight", "norm2.bias", "scale1.factor", "mlp.down.bias"):
            assert torch.equal(state[mine + name], weights[theirs + name][::2])
    for name in ("positions", "cls_token", "encoder.norm.weight", "head.weight"):
        assert torch.equal(state[name], weights[name][..., ::2])
    assert torch.equal(state["embed.weight"], weights["embed.weight"][::2])


def test_a_model_of_zeros_but_for_the_selected_parts_gives_what_the_smaller_one_gives():
    """Heads and hidden units that contribute nothing can be left out: the law holds for whole heads and for the MLP."""
    config = replace(PARENT, heads=2, dim_head=6, mlp_dim=20)
    model, backbone, weights = parent()
    for block in (f"encoder.blocks.{i}." for i in range(4)):
        weights[block + "attention.projection.weight"][:, 6:12] = weights[block + "attention.projection.weight"][:, 18:] = 0
        weights[block + "mlp.down.weight"][:, 1::2] = 0
    model.load_state_dict(weights)
    small = ViT(config).double().eval()
    small.load_state_dict(inherit(weights, backbone, config, NAMES))
    assert torch.allclose(small(images()), model(images()), atol=1e-12, rtol=0)


def test_a_model_without_layer_scale_gives_the_logits_of_the_backbone_with_it():
    assert torch.allclose(child(replace(PARENT, layer_scale=None))(images()), parent()[0](images()), atol=1e-10, rtol=0)


def test_layer_scale_and_a_bias_that_the_backbone_lacks_change_nothing_at_first():
    bare = replace(PARENT, layer_scale=None, qkv_bias=False)
    model = child(PARENT, bare)
    assert torch.allclose(model(images()), parent(bare)[0](images()), atol=1e-12, rtol=0)


def test_grey_images_have_the_logits_of_the_same_images_in_three_channels():
    grey = images(1)
    assert torch.allclose(child(replace(PARENT, in_channels=1))(grey), parent()[0](grey.expand(-1, 3, -1, -1)), atol=1e-10, rtol=0)
    one = replace(PARENT, in_channels=1)
    assert torch.allclose(child(PARENT, one)(grey.expand(-1, 3, -1, -1)), parent(one)[0](grey), atol=1e-10, rtol=0)


def test_channels_are_added_up_or_divided_evenly():
    weight = torch.tensor([3.0, 6.0, 9.0]).reshape(1, 3, 1, 1)
    assert map_channels(weight, 1).flatten().tolist() == [18]
    assert map_channels(weight, 2).flatten().tolist() == [3 + 9, 6]
    assert map_channels(weight, 4).flatten().tolist() == [1.5, 6, 9, 1.5]
    assert map_channels(weight[:, :1], 3).flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("after", [5, 8, 16])
def test_on_a_patch_made_larger_the_embedding_is_what_it_was(after):
    weight, patches = torch.randn(7, 2, 4, 4, dtype=torch.float64), torch.randn(9, 2, 4, 4, dtype=torch.float64)
    resize = resize_matrix(4, after)
    larger = (patches.flatten(2) @ resize.T).flatten(1)
    assert torch.allclose(larger @ resize_patches(weight, after).flatten(1).T, patches.flatten(1) @ weight.flatten(1).T, atol=1e-10)


def test_patches_resized_there_and_back_by_the_same_map_are_unchanged():
    """Up by the pseudo-inverse, down by the transpose of the resize: the one undoes the other."""
    weight = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    back = resize_patches(weight, 8).flatten(2) @ resize_matrix(4, 8)
    assert torch.allclose(back.unflatten(2, (4, 4)), weight, atol=1e-10)


def test_a_flat_patch_made_smaller_keeps_its_embedding():
    """Halving averages pairs of rows and of columns: of a weight that is alike in each 2x2 square, nothing is lost."""
    weight = torch.arange(4.0, dtype=torch.float64).reshape(1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    resize = resize_matrix(4, 2)
    smaller = resize_patches(weight, 2)
    assert smaller.shape == (1, 1, 2, 2)
    assert torch.allclose(smaller.flatten() @ resize, torch.linalg.pinv(resize) @ resize @ weight.flatten(), atol=1e-10)
    assert torch.equal(resize_patches(weight, 4), weight)


def test_a_new_patch_size_and_image_size_make_a_whole_state():
    config = replace(PARENT, patch_size=8, image_size=(32, 24), dim=16)
    state = inherit(parent()[2], parent()[1], config)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(config)


def test_larger_images_take_interpolated_positions_and_the_row_of_the_class_token():
    weights = parent()[2]
    table = inherit(weights, parent()[1], replace(PARENT, image_size=(32, 32)))["positions"]
    assert table.shape == (1, 65, 24)
    assert torch.equal(table[:, 0], weights["positions"][:, 0])
    flat = {**weights, "positions": torch.ones(1, 17, 24, dtype=torch.float64)}
    assert torch.allclose(inherit(flat, parent()[1], replace(PARENT, image_size=(32, 32)))["positions"].mean(), torch.tensor(1.0).double())


def test_pooling_adds_or_drops_the_class_token_and_the_head_is_then_new():
    weights = parent()[2]
    mean = inherit(weights, parent()[1], replace(PARENT, pool="mean"), NAMES)
    assert "cls_token" not in mean
    assert torch.equal(mean["positions"], weights["positions"][:, 1:])
    assert not mean["head.weight"].any()
    pooled = replace(PARENT, pool="mean")
    _, backbone, weights = parent(pooled)
    with_token = inherit(weights, backbone, PARENT, NAMES)
    assert not with_token["cls_token"].any()
    assert torch.equal(with_token["positions"][:, 1:], weights["positions"])


def test_the_head_is_kept_in_the_order_of_the_classes_and_new_for_others():
    weights = parent()[2]
    turned = inherit(weights, parent()[1], PARENT, ["elk", "ant", "bee", "cat", "dog"])
    assert torch.equal(turned["head.weight"], weights["head.weight"][[4, 0, 1, 2, 3]])
    assert torch.equal(turned["head.bias"], weights["head.bias"][[4, 0, 1, 2, 3]])
    for classes in (None, ["ant", "bee", "cat", "dog", "fox"], ["ant", "ant", "cat", "dog", "elk"]):
        new = inherit(weights, parent()[1], PARENT, classes)
        assert not new["head.weight"].any()
        assert not new["head.bias"].any()
    assert inherit(weights, parent()[1], replace(PARENT, num_classes=2), NAMES[:2])["head.weight"].shape == (2, 24)


def test_inheriting_twice_gives_the_same_bits_and_no_view_of_the_backbone():
    config = replace(PARENT, dim=16, patch_size=8)
    first, second = (inherit(parent()[2], parent()[1], config) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    _, backbone, weights = parent()
    for tensor in inherit(weights, backbone, PARENT, NAMES).values():
        tensor.zero_()
    assert all(tensor.any() for tensor in weights.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 48}, "dim is 48, and the pretrained weights have 24; give at most 24"),
        ({"depth": 5}, "depth is 5, .* give at most 4"),
        ({"heads": 6, "dim_head": 4}, "heads is 6, .* give at most 4"),
        ({"heads": 2}, r"dim_head \(dim 24 / 2 heads\) is 12, .* give at most 6"),
        ({"dim_head": 8}, "dim_head is 8, .* give at most 6"),
        ({"mlp_dim": None}, r"mlp_dim \(dim 24 x mlp_ratio 4\) is 96, .* give at most 40"),
        ({"activation": "relu"}, "activation is relu, and the pretrained weights have gelu; write activation: gelu"),
        ({"norm": "post"}, "norm is post, .* write norm: pre"),
        ({"qkv_bias": False}, "write qkv_bias: true"),
        ({"positions": "sincos2d"}, "write positions: learned"),
        ({"positions": "rope", "dim_head": 4}, "positions is rope, .* write positions: learned"),
        ({"registers": 1}, "registers is 1, and the pretrained weights have 0; give at most 0"),
        ({"qk_norm": True}, "qk_norm is true, .* write qk_norm: false"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05, .* write norm_eps: 1e-06"),
    ],
)
def test_what_the_backbone_cannot_give_is_refused_with_what_it_can(changes, message):
    _, backbone, weights = parent()
    with pytest.raises(SpecError, match=message):
        inherit(weights, backbone, replace(PARENT, **changes))


def test_fixed_positions_of_another_width_start_as_learned_ones():
    fixed = replace(PARENT, positions="sincos2d")
    _, backbone, weights = parent(fixed)
    with pytest.raises(SpecError, match="sincos2d positions for dim: 24; write positions: learned"):
        inherit(weights, backbone, replace(fixed, dim=12))
    learned = inherit(weights, backbone, replace(fixed, dim=12, positions="learned"))
    assert torch.equal(learned["positions"], weights["positions"][..., ::2])


def test_of_registers_norms_and_gates_the_same_parts_are_selected():
    """3 registers to 2: the first two. The norm of queries follows the channels in a head: of 6 the first, third and fifth."""
    rich = replace(PARENT, registers=3, qk_norm=True, activation="swiglu")
    _, backbone, weights = parent(rich)
    state = inherit(weights, backbone, replace(rich, registers=2, dim=12, heads=2, dim_head=3, mlp_dim=10))
    block = "encoder.blocks.2."
    assert torch.equal(state["registers"], weights["registers"][:, :2, ::2])
    assert torch.equal(state[block + "attention.key_norm.bias"], weights[block + "attention.key_norm.bias"][[0, 2, 4]])
    assert torch.equal(state[block + "mlp.gate.weight"], weights[block + "mlp.gate.weight"][::4, ::2])


def test_heads_with_rotary_positions_keep_their_width():
    """Each channel of a head has its own frequency."""
    rotary = replace(PARENT, positions="rope", dim_head=8)
    _, backbone, weights = parent(rotary)
    with pytest.raises(SpecError, match="rotary positions for 8; write dim_head: 8"):
        inherit(weights, backbone, replace(rotary, dim_head=4))
    with pytest.raises(SpecError, match="rope_base is 50"):
        inherit(weights, backbone, replace(rotary, rope_base=50.0))
    assert "positions" not in inherit(weights, backbone, replace(rotary, heads=2, image_size=(32, 32)))
