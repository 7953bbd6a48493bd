"""What a file of pretrained weights is, from its header and the files beside it."""

import json
import struct

import pytest
from helpers.weight_files import header_of, timm_shapes, write_file, write_header

from vit_search.config.backbone import read_backbone
from vit_search.config.safetensors_header import read_header
from vit_search.errors import CheckpointError

TIMM = {
    "architecture": "vit_small_patch16_224",
    "num_classes": 7,
    "global_pool": "token",
    "model_args": {"num_heads": 4},
    "pretrained_cfg": {
        "input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic",
        "license": "apache-2.0", "label_names": list("abcdefg"),
    },
}  # fmt: skip


def test_a_header_tells_names_types_and_shapes(tmp_path):
    path = write_file(tmp_path / "a.safetensors", {"x": (2, 3), "y": ()}, metadata={"format": "pt"})
    header = read_header(path)
    assert {name: (stored.dtype, stored.shape) for name, stored in header.tensors.items()} == {"x": ("F32", (2, 3)), "y": ("F32", ())}
    assert header.metadata == {"format": "pt"}


def damaged(case, path):
    good, size = header_of({"x": (2, 3)})
    texts = {
        "no JSON": ("{", 0),
        "list": ("[]", 0),
        "short": (json.dumps(good), size - 1),
        "long": (json.dumps(good), size + 5),
        "twice": ('{"x": 1, "x": 2}', 0),
        "gap": (json.dumps({"x": good["x"] | {"data_offsets": [4, 28]}}), 28),
        "size": (json.dumps({"x": good["x"] | {"data_offsets": [0, 20]}}), 20),
        "type": (json.dumps({"x": good["x"] | {"dtype": "Q4"}}), size),
        "negative": (json.dumps({"x": good["x"] | {"shape": [-2, -3]}}), size),
        "brackets": ("[" * 200_000, 0),
        "many names": ("{" + ", ".join(f'"{i}": 1' for i in range(200_000)) + ', "199999": 2}', 0),
        "axes": (json.dumps({"x": good["x"] | {"shape": [2**47] * 90}}), size),
        "name": (json.dumps({"a\nb\x1b[31m" + 5000 * "c": 1}), 0),
    }
    contents = {
        "pickle": b"PK\x03\x04 and so on",
        "bare pickle": b"\x80\x02}q\x00. and so on",
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "tiny": b"abc",
        "cut header": struct.pack("<Q", 1000) + b'{"x"',
        "absurd": struct.pack("<Q", 2**60) + b"{}",
    }
    if case in contents:
        path.write_bytes(contents[case])
    elif case != "gone":
        write_header(path, *texts[case])
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gone", "cannot be read"),
        ("pickle", r"a pickle of PyTorch, .*write `vit-search convert-weights .*OUT\.safetensors"),
        ("bare pickle", "a pickle of PyTorch"),
        ("lfs", "pointer of Git LFS, .*git lfs pull"),
        ("tiny", "it has only 3 bytes"),
        ("cut header", "truncated: its header has 1,000 bytes"),
        ("absurd", "no .safetensors file: its first 8 bytes would mean a header of 1,152,921,504,606,846,976 bytes"),
        ("no JSON", "damaged header"),
        ("list", "no mapping"),
        ("short", "truncated: its tensors have 24 bytes, and the file has 23"),
        ("long", "5 bytes after the last tensor"),
        ("twice", "x comes twice"),
        ("gap", "x begins at byte 4"),
        ("size", r"x: F32 of \[2, 3\] has 24 bytes, not 20"),
        ("type", "x: 'Q4' is a type that this version does not know"),
        ("negative", "x: shape or data_offsets are no lists of whole numbers"),
        ("brackets", "too many brackets"),
        ("many names", "'199999' comes twice"),
        ("axes", r"damaged header \(x: shape or data_offsets are no lists"),
        ("name", r"damaged header \(a\\nb"),
    ],
)
def test_a_damaged_file_is_one_line(case, message, tmp_path):
    path = damaged(case, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(str(path))) < 500


def test_shapes_tell_the_model_and_what_they_do_not_tell_is_assumed(tmp_path):
    backbone = read_backbone(write_file(tmp_path / "w.safetensors", timm_shapes()))
    assert (backbone.layout, backbone.in_channels, backbone.patch_size) == ("timm", 3, 4)
    assert (backbone.dim, backbone.depth, backbone.heads, backbone.dim_head, backbone.mlp_dim) == (128, 2, 2, 64, 256)
    assert (backbone.pool, backbone.positions, backbone.grid, backbone.image_size) == ("cls", "learned", (4, 4), (16, 16))
    assert (backbone.qkv_bias, backbone.layer_scale, backbone.registers, backbone.num_classes) == (True, False, 0, 7)
    assert backbone.mean is backbone.classes is backbone.licence is None
    assert [text.partition(",")[0] for text in backbone.assumed] == ["2 heads"]


def test_timms_config_tells_heads_normalisation_and_classes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    backbone = read_backbone(write_file(tmp_path / "w.safetensors", timm_shapes()))
    assert (backbone.heads, backbone.dim_head, backbone.assumed) == (4, 32, ())
    assert (backbone.mean, backbone.std, backbone.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bicubic")
    assert (backbone.classes, backbone.licence) == (tuple("abcdefg"), "apache-2.0")


def test_the_same_text_in_the_metadata_counts_instead_of_the_file_beside(tmp_path):
    (tmp_path / "config.json").write_text("not read")
    path = write_file(tmp_path / "w.safetensors", timm_shapes(), metadata={"config": json.dumps(TIMM)})
    assert read_backbone(path).heads == 4


def test_a_huge_model_of_timm_has_16_heads_and_not_20(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_huge_patch14_224"}))
    backbone = read_backbone(write_file(tmp_path / "w.safetensors", timm_shapes(dim=1280, depth=1, hidden=8)))
    assert (backbone.heads, backbone.dim_head) == (16, 80)


def test_an_oblong_table_of_positions_needs_the_image_size(tmp_path):
    path = write_file(tmp_path / "w.safetensors", timm_shapes(tokens=1 + 2 * 3))
    with pytest.raises(CheckpointError, match="its 7 positions make no square grid"):
        read_backbone(path)
    (tmp_path / "config.json").write_text(json.dumps(TIMM | {"model_args": {"num_heads": 2, "img_size": [8, 12]}}))
    assert read_backbone(path).grid == (2, 3)


def test_a_table_without_a_row_for_the_class_token_is_told(tmp_path):
    backbone = read_backbone(write_file(tmp_path / "w.safetensors", timm_shapes(tokens=9)))  # 8 would be no square
    assert backbone.grid == (3, 3)
    assert "positions of 3x3 patches, without one for the class token" in backbone.assumed


def without(name):
    return {key: shape for key, shape in timm_shapes().items() if key != name}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "fc.weight": (10, 64)},
            r"another kind of network, which has conv1\.weight; use a plain Vision Transformer of timm, ",
        ),
        ({"norm.weight": (3,), "stem.0.weight": (1,)}, r"another kind of network, which has stem\.0\.weight; use"),
        ({}, "no weights; use a plain"),
        (timm_shapes() | {"fc_norm.weight": (128,)}, r"fc_norm\.weight: a part that our ViT does not have"),
        (timm_shapes() | {"dist_token": (1, 1, 128)}, "dist_token: a part that our ViT does not have"),
        (timm_shapes(dim=100), "the number of heads is not known, and 64 does not divide 100; put a config.json that says it beside it"),
        (timm_shapes(tokens=20), "its 20 positions make no square grid; put a config.json with its image size beside it"),
        (timm_shapes() | {"patch_embed.proj.weight": (128, 3, 4, 8)}, "patches of 4x8 pixels; only square ones"),
        (without("blocks.1.norm2.bias"), r"encoder\.blocks\.1\.norm2\.bias \(our name\): nothing, and 128 belongs there"),
        (timm_shapes() | {"blocks.1.norm2.bias": (127,)}, r"blocks\.1\.norm2\.bias: 127, and 128 belongs there"),
        (timm_shapes() | {"blocks.3.norm1.weight": (128,)}, "block 2 is missing"),
        (timm_shapes() | {"norm.bias": ()}, r"norm\.bias: has the shape \[\], and not 1 axes with values"),
        (timm_shapes() | {"blocks.0.mlp.fc2.weight": ()}, r"blocks\.0\.mlp\.fc2\.weight: has the shape \[\], and not 2 axes"),
        (timm_shapes() | {"pos_embed": (17, 128)}, r"pos_embed: has the shape \[17, 128\], and not 3 axes"),
        (timm_shapes() | {"blocks.0.attn.qkv.weight": (0, 128)}, "and not 2 axes with values"),
        (timm_shapes() | {"blocks.0.gamma_1": (128,), "blocks.0.ls1.gamma": (128,)}, "both would be"),
    ],
)
def test_what_is_no_vision_transformer_is_refused_by_the_name_of_a_weight(shapes, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_backbone(write_file(tmp_path / "w.safetensors", shapes))


def test_weights_of_whole_numbers_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has type I64; F64, F32, F16, BF16 are read"):
        read_backbone(write_file(tmp_path / "w.safetensors", timm_shapes(), dtype="I64"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "config.json: no JSON"),
        ("config.json", "[]", "config.json: no mapping"),
        (
            "config.json",
            '{"architecture": "vit_tiny", "num_features": 192}',
            "config.json: is of a model with dim 192, and these weights have 12",
        ),
        ("config.json", '{"model_type": "vit", "hidden_size": 768}', "config.json: is of a model with dim 768, and these weights have 12"),
        ("config.json", '{"model_type": "resnet"}', "config.json: model_type 'resnet' is not supported; choose from vit, deit, dinov2"),
        ("config.json", '{"model_type": "vit", "hidden_act": "quick_gelu"}', "hidden_act 'quick_gelu' is not supported"),
        ("config.json", '{"model_type": "vit", "num_attention_heads": 3}', "config.json says 3 heads, which do not divide 128"),
        ("config.json", '{"model_type": "vit", "num_attention_heads": "two"}', "'two' where a whole number of at least 1 belongs"),
        ("config.json", '{"model_type": "vit", "id2label": {"1": "cat"}}', "config.json: KeyError"),
        ("config.json", '{"model_type": "vit", "layer_norm_eps": NaN}', "config.json: nan where a number of at least 0 belongs"),
        ("config.json", '{"model_type": "vit", "layer_norm_eps": -1}', "config.json: -1 where a number"),
        ("preprocessor_config.json", '{"image_mean": [NaN, 0, 0]}', "not finite"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_backbone(write_file(tmp_path / "w.safetensors", timm_shapes()))


def test_a_preprocessor_tells_how_images_are_normalised(tmp_path):
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5], "resample": 2, "size": {"height": 32, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    backbone = read_backbone(write_file(tmp_path / "w.safetensors", timm_shapes()))
    assert (backbone.mean, backbone.std, backbone.interpolation) == ((0.1, 0.2, 0.3), (0.5,) * 3, "bilinear")
    assert (backbone.image_size, backbone.grid) == ((32, 16), (4, 4))
