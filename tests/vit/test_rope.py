"""Rotary positions: angles worked by hand, and what makes them positions."""

import math

import pytest
import torch

from vit_search.config.model_config import ModelConfig
from vit_search.errors import SpecError
from vit_search.vit.model import ViT, resized
from vit_search.vit.rope import Rope, rope_angles

SHAPE = {"in_channels": 1, "patch_size": 2, "dim": 16, "heads": 2, "positions": "rope"}


def rope(**fields):
    return Rope(ModelConfig(**SHAPE | {"image_size": (8, 12), "num_classes": 0} | fields))


def test_an_image_is_half_a_turn_wide_on_each_side_of_its_middle():
    assert rope_angles(1, 2, 4, base=100).tolist() == [pytest.approx(pair) for pair in ([0, -math.pi], [0, math.pi])]


def test_each_pair_of_values_turns_at_its_own_speed_the_first_half_by_the_row_the_second_by_the_column():
    slow, slower = math.pi, math.pi / 10  # base 100: 1 / 100 ** (1 / 2)
    assert rope_angles(2, 1, 8, base=100).tolist() == [pytest.approx(row) for row in ([-slow, -slower, 0, 0], [slow, slower, 0, 0])]


def test_a_quarter_of_a_turn_moves_a_value_to_the_other_of_its_pair():
    heads = torch.tensor([0.0, 1, 0, 0]).expand(1, 4, 1, 4)  # 4 patches in a row stand at -3/4, -1/4, 1/4 and 3/4 of a turn
    turned = rope(image_size=(2, 8), dim=4, heads=1)(heads)[0, :, 0]
    assert torch.allclose(turned[1], torch.tensor([0.0, 0, 0, -1]), atol=1e-6)
    assert torch.allclose(turned[2], torch.tensor([0.0, 0, 0, 1]), atol=1e-6)


def test_attention_depends_only_on_how_far_patches_are_apart():
    query, key = torch.randn(2, 8, dtype=torch.float64)
    queries, keys = (rope().double()(one.expand(1, 24, 1, 8))[0, :, 0] for one in (query, key))
    scores = (queries @ keys.T).reshape(4, 6, 4, 6)  # row and column of the query, then of the key
    for row, col in ((0, 0), (1, 0), (0, 2), (2, 3)):
        same = torch.stack([scores[i, j, i + row, j + col] for i in range(4 - row) for j in range(6 - col)])
        assert torch.allclose(same, same[0].expand(len(same)), atol=1e-6)  # frequencies are those of float32
    assert abs(scores[0, 0, 1, 0] - scores[0, 0, 0, 1]) > 1e-3


def test_the_class_token_and_registers_are_not_rotated():
    heads = torch.randn(2, 27, 2, 8)
    turned = rope(pool="cls", registers=2)(heads)
    assert torch.equal(turned[:, :3], heads[:, :3])
    assert not torch.isclose(turned[:, 3:], heads[:, 3:]).all(-1).any()


def test_a_rotation_keeps_lengths():
    heads = torch.randn(2, 24, 2, 8, dtype=torch.float64)
    assert torch.allclose(rope().double()(heads).norm(dim=-1), heads.norm(dim=-1))


def test_the_tables_of_a_model_in_float64_are_not_those_of_float32():
    angles = rope_angles(4, 6, 8, base=100)
    assert torch.equal(rope().double().cosines[:, 0], angles.cos())
    assert torch.equal(rope().double().float().sines[:, 0], angles.sin().float())


def test_without_rotation_a_model_does_not_know_where_a_patch_is_and_with_it_it_does():
    model = ViT(ModelConfig(**SHAPE, image_size=(4, 4), num_classes=3)).double().eval()
    images = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    mixed = torch.cat([images[..., 2:, :], images[..., :2, :]], dim=2)  # the lower patches above
    assert not torch.allclose(model(images), model(mixed))
    model.encoder.rope = None
    assert torch.allclose(model(images), model(mixed))


@pytest.mark.parametrize("fields", [{}, {"pool": "cls", "registers": 3}], ids=str)
def test_a_model_resized_there_and_back_is_the_same(fields):
    model = ViT(ModelConfig(**SHAPE, image_size=(8, 8), num_classes=3, **fields)).eval()
    assert "positions" not in model.state_dict()
    larger = resized(model, (12, 16))
    assert torch.equal(larger.encoder.rope.cosines, Rope(larger.config).cosines)
    assert larger(torch.randn(2, 1, 12, 16)).shape == (2, 3)
    assert torch.equal(resized(larger, (8, 8))(images := torch.randn(2, 1, 8, 8)), model(images))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"dim": 12}, "positions: rope needs heads whose width is a multiple of 4, and dim=12 and heads=2 give 6"),
        ({"dim_head": 10}, "positions: rope needs heads whose width is a multiple of 4, and dim_head gives 10"),
    ],
)
def test_heads_whose_width_cannot_be_rotated_are_refused(fields, problem):
    with pytest.raises(SpecError, match=problem):
        rope(**fields)
