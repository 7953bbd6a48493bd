"""Read the shape and the settings of a pretrained Vision Transformer from its file. No tensor is read.

Most facts follow from the names and shapes in the header. The rest (number of heads, normalisation, names of classes) comes from
`config.json` (of transformers, timm or vit_search) and `preprocessor_config.json`, beside the file or as texts in its metadata. A fact that
is found nowhere gets the usual value, and `Backbone.assumed` says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_search.config.backbone_settings import Settings, read_settings
from vit_search.config.safetensors_header import Header, read_header
from vit_search.config.weight_names import SUPPORTED, Assembly, assemble, assembled_shapes
from vit_search.errors import CheckpointError
from vit_search.text import file_name

READ = ("F64", "F32", "F16", "BF16")
"""Tensor types that can be loaded."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Facts about a pretrained Vision Transformer. Fields are named as in ModelConfig."""

    layout: str
    """The library whose names it uses: vit_search, timm, torchvision or transformers."""
    in_channels: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    pool: str
    """`cls` if the model has a class token, else `mean`."""
    registers: int
    positions: str
    """`learned`, `sincos2d` or `rope`."""
    grid: tuple[int, int] | None
    """Rows and columns of the table of positions; None with rope, which has no table."""
    rope_base: float | None
    activation: str
    norm: str
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    layer_scale: bool
    num_classes: int
    """Classes of the head; 0 without a head that we can use."""
    classes: tuple[str, ...] | None
    """Names of the head's classes, in order, if known."""
    image_size: tuple[int, int] | None
    """Height and width of the training images in pixels, if known."""
    mean: tuple[float, ...] | None
    """Mean for the normalisation of images, per channel, on the scale 0 to 1, if known."""
    std: tuple[float, ...] | None
    interpolation: str | None
    """How images are resized for it, if known."""
    licence: str | None
    assumed: tuple[str, ...]
    """Facts that the file does not state, and the values used instead."""
    left_out: tuple[str, ...]
    """Tensors of the file that are not used."""
    data_hash: str = ""
    """Of the images that a model of vit_search was trained on."""
    trained_on: tuple[str, ...] = ()
    """Their splits."""

    @property
    def model_fields(self) -> dict[str, Any]:
        """Fields of ModelConfig for a model of the backbone's own shape. Image size, channels and classes come from the data."""
        same = ("patch_size", "dim", "depth", "heads", "dim_head", "mlp_dim", "pool", "registers", "positions", "activation", "norm")
        fields = {name: getattr(self, name) for name in (*same, "norm_eps", "qkv_bias", "qk_norm")}
        return fields | {"layer_scale": 1.0 if self.layer_scale else None} | ({"rope_base": self.rope_base} if self.rope_base else {})

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation for images with this number of channels, or None if unknown.

        Channels are mapped as in `inherit.map_channels`. Channels that are merged get their mean; additional channels repeat the values in
        turn.
        """
        if self.mean is None or self.std is None:
            return None
        return _for_channels(self.mean, channels), _for_channels(self.std, channels)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels >= len(values):
        return tuple(values[i % len(values)] for i in range(channels))
    return tuple(math.fsum(values[i::channels]) / len(values[i::channels]) for i in range(channels))


def read_backbone(path: Path) -> Backbone:
    """Read the facts about a `.safetensors` file.

    Raises: CheckpointError in one line if it is damaged, or is not a Vision Transformer that this version can load.
    """
    header = read_header(path)
    try:
        return describe(header, read_settings(path.parent, header.metadata))
    except ValueError as error:
        raise CheckpointError(f"{file_name(str(path))}: {file_name(str(error))}") from None  # with names of the file's own


def used_tensors(path: Path) -> tuple[str, ...]:
    """Names, in the file, of the tensors that a model can use.

    Raises: CheckpointError as `read_header`; ValueError as `assembly_of`.
    """
    assembly, _ = assembly_of(read_header(path))
    return tuple({source.name: None for sources in assembly.sources.values() for source in sources})


def assembly_of(header: Header) -> tuple[Assembly, Shapes]:
    """Which of our weights the tensors of a file become, and the shapes of these weights.

    A head is left out if its input is not one token. (DINOv2's classifier reads the class token and the mean.)

    Raises: ValueError that names the first tensor without a counterpart, or of a type that cannot be loaded.
    """
    stored = {name: tensor.shape for name, tensor in header.tensors.items()}
    assembly = assemble(stored)
    for name, tensor in header.tensors.items():
        if tensor.dtype not in READ and name not in assembly.left_out:
            raise ValueError(f"{name}: has type {tensor.dtype}; {', '.join(READ)} are read.")
    shapes = assembled_shapes(assembly, stored)
    _check_axes(shapes, assembly)
    embed, head = shapes.get("embed.weight"), shapes.get("head.weight")
    if embed and head and head[1:] != embed[:1]:
        unused = [name for name in assembly.sources if name.startswith("head.")]
        left_out = (*assembly.left_out, *(source.name for name in unused for source in assembly.sources[name]))
        sources = {name: parts for name, parts in assembly.sources.items() if name not in unused}
        assembly = Assembly(assembly.layout, sources, left_out)
    return assembly, {name: shape for name, shape in shapes.items() if name in assembly.sources}


def describe(header: Header, settings: Settings) -> Backbone:
    """Combine a header and the settings beside it.

    Raises: ValueError if the weights are not a Vision Transformer that this version can load, or the settings are of another model.
    """
    assembly, shapes = assembly_of(header)
    assumed: list[str] = []
    dim, depth = _first(shapes, "embed.weight"), _depth(shapes)
    if settings.dim not in (None, dim):
        raise ValueError(
            f"config.json: is of a model with dim {settings.dim}, and these weights have {dim}; use the config.json of these weights, "
            "or a folder of their own."
        )
    in_channels, patch_size = _patches(shapes["embed.weight"], settings, assumed)
    heads, dim_head = _heads(shapes, settings, assumed)
    has_class_token, registers = "cls_token" in shapes, shapes.get("registers", (1, 0, dim))[1]
    positions, grid = _positions(shapes, settings, patch_size, has_class_token + registers, assumed)
    gated = "encoder.blocks.0.mlp.gate.weight" in shapes
    num_classes = shapes.get("head.weight", (0,))[0]
    mean, std = _normalisation(settings, assembly.layout, in_channels, assumed)
    eps = settings.norm_eps or _usual_eps(assembly.layout, positions)
    backbone = Backbone(
        layout=assembly.layout,
        in_channels=in_channels,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        heads=heads,
        dim_head=dim_head,
        mlp_dim=_first(shapes, "encoder.blocks.0.mlp.up.weight"),
        pool="cls" if has_class_token else "mean",
        registers=registers,
        positions=positions,
        grid=grid,
        rope_base=(settings.rope_base or 100.0) if positions == "rope" else None,
        activation="swiglu" if gated else settings.activation or "gelu",
        norm="pre" if "encoder.norm.weight" in shapes else "post",
        norm_eps=eps,
        qkv_bias="encoder.blocks.0.attention.qkv.bias" in shapes,
        qk_norm="encoder.blocks.0.attention.query_norm.weight" in shapes,
        layer_scale="encoder.blocks.0.scale1.factor" in shapes,
        num_classes=num_classes,
        classes=settings.classes if settings.classes is not None and len(settings.classes) == num_classes else None,
        image_size=settings.image_size or (None if grid is None else (grid[0] * patch_size, grid[1] * patch_size)),
        mean=_by_channel(mean, in_channels),
        std=_by_channel(std, in_channels),
        interpolation=settings.interpolation,
        licence=settings.licence,
        assumed=tuple(assumed),
        left_out=assembly.left_out,
        data_hash=settings.data_hash,
        trained_on=settings.trained_on,
    )
    _check_shapes(backbone, shapes, assembly)
    return backbone


def _check_axes(shapes: Shapes, assembly: Assembly) -> None:
    """Check that each weight has the right number of axes, and that none but the registers is empty."""
    for name, shape in shapes.items():
        if name in ("cls_token", "registers", "positions"):
            axes: tuple[int, ...] = (3,)
        elif name == "embed.weight":
            axes = (2, 4)
        else:
            axes = (1,) if re.search(r"(\.bias|\.factor|norm\d?\.weight)$", name) else (2,)
        if len(shape) not in axes or (0 in shape and name != "registers"):
            theirs = " and ".join(source.name for source in assembly.sources[name])
            raise ValueError(f"{theirs}: has the shape {list(shape)}, and not {axes[0]} axes with values; {SUPPORTED}.")


def _first(shapes: Shapes, name: str) -> int:
    if name not in shapes or not shapes[name]:
        raise ValueError(f"{name}: missing; {SUPPORTED}.")
    return shapes[name][0]


def _depth(shapes: Shapes) -> int:
    """Number of blocks. They must be numbered from 0 without a gap."""
    numbers = sorted({int(match[1]) for name in shapes if (match := re.match(r"encoder\.blocks\.(\d+)\.", name))})
    missing = next((i for i, number in enumerate(numbers) if i != number), None)
    if not numbers or missing is not None:
        raise ValueError(f"block {missing or 0} is missing; copy or download the file again.")
    return len(numbers)


def _patches(embed: tuple[int, ...], settings: Settings, assumed: list[str]) -> tuple[int, int]:
    """Number of image channels, and side of a patch in pixels."""
    if len(embed) == 4:
        if embed[2] != embed[3]:
            raise ValueError(f"patches of {embed[2]}x{embed[3]} pixels; only square ones are supported.")
        return embed[1], embed[2]
    pixels = embed[-1]
    told = settings.in_channels
    for channels in (told,) if told else (3, 1):
        side = math.isqrt(pixels // channels)
        if channels * side**2 == pixels:
            if not told:
                assumed.append(f"in_channels {channels}, since {pixels} = {channels} x {side} x {side}")
            return channels, side
    raise ValueError(f"embed.weight: {pixels} values are no square patch of {told or '3 or 1'} channels; put its config.json beside it.")


WIDE_HEADS = (("vit_huge_patch", 1280), ("vit_giant_patch", 1408), ("vit_gigantic_patch", 1664), ("vit_so400m_patch", 1152))
"""timm's models with 16 heads that are not 64 wide: (start of the name, width of a token)."""


def _heads(shapes: Shapes, settings: Settings, assumed: list[str]) -> tuple[int, int]:
    """Number of attention heads, and the width of each."""
    inner = _first(shapes, "encoder.blocks.0.attention.qkv.weight") // 3
    dim = _first(shapes, "embed.weight")
    norm = shapes.get("encoder.blocks.0.attention.query_norm.weight")
    heads = settings.heads
    if heads is None and norm:  # a norm of queries is as wide as a head
        heads = inner // norm[0]
    if heads is None and any(settings.architecture.startswith(name) and dim == width for name, width in WIDE_HEADS):
        heads = 16
    if heads is None:
        if inner % 64:
            raise ValueError(f"the number of heads is not known, and 64 does not divide {inner}; put a config.json that says it beside it.")
        heads = inner // 64
        assumed.append(f"{heads} heads, since heads are usually 64 wide; if it has others, put a config.json that says so beside it")
    if heads < 1 or inner % heads:
        raise ValueError(f"config.json says {heads} heads, which do not divide {inner}; use the config.json of these weights.")
    return heads, inner // heads


def _positions(shapes: Shapes, settings: Settings, patch_size: int, prefix: int, assumed: list[str]) -> tuple[str, tuple[int, int] | None]:
    """The kind of positions, and the grid of their table.

    Args:
        prefix: number of class tokens and registers. The table has rows for all of them, for the class token only, or for none.
    """
    if "positions" not in shapes:
        if settings.positions not in (None, "rope"):
            raise ValueError("positions: missing; copy or download the file again.")
        if settings.positions is None:
            assumed.append("rotary positions as DINOv3's, since it has no table of positions")
        return "rope", None
    rows = shapes["positions"][1] if len(shapes["positions"]) == 3 else 0
    kind = "sincos2d" if settings.positions == "sincos2d" else "learned"
    size = settings.image_size
    expected = (size[0] // patch_size, size[1] // patch_size) if size else None
    extras = sorted({0, min(prefix, "cls_token" in shapes), prefix}, reverse=True)
    if expected and rows - math.prod(expected) in extras:
        return kind, expected
    for extra in extras:
        side = math.isqrt(max(rows - extra, 0))
        if side and side**2 == rows - extra:
            if extra < extras[0]:
                assumed.append(f"positions of {side}x{side} patches, without one for the class token{' and registers' * (prefix > 1)}")
            return kind, (side, side)
    raise ValueError(f"its {rows} positions make no square grid; put a config.json with its image size beside it.")


def _usual_eps(layout: str, positions: str) -> float:
    """Usual `norm_eps`: 1e-6 as in the ViT paper's code, 1e-5 for DINOv3."""
    return 1e-5 if positions == "rope" and layout != "vit_search" else 1e-6


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet. torchvision trained all its weights with them."""


def _normalisation(
    settings: Settings, layout: str, channels: int, assumed: list[str]
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if settings.mean is None and settings.std is None and layout == "torchvision" and channels == len(IMAGENET[0]):
        assumed.append("mean and standard deviation of ImageNet, as of all weights of torchvision")
        return IMAGENET
    return settings.mean, settings.std


def _by_channel(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    """One value per channel. A single value is repeated."""
    if values is None or len(values) not in (1, channels):
        return None
    return values if len(values) == channels else values * channels


def expected_shapes(backbone: Backbone) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a backbone's weights by our names, without `embed.weight` and `positions`."""
    dim, inner, hidden = backbone.dim, backbone.heads * backbone.dim_head, backbone.mlp_dim
    shapes: Shapes = {"embed.bias": (dim,)}
    if backbone.pool == "cls":
        shapes["cls_token"] = (1, 1, dim)
    if backbone.registers:
        shapes["registers"] = (1, backbone.registers, dim)
    for block in (f"encoder.blocks.{i}" for i in range(backbone.depth)):
        shapes |= {f"{block}.norm{n}.{kind}": (dim,) for n in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{block}.attention.qkv.weight": (3 * inner, dim), f"{block}.attention.projection.weight": (dim, inner)}
        shapes |= {f"{block}.attention.qkv.bias": (3 * inner,)} if backbone.qkv_bias else {}
        shapes |= {f"{block}.attention.projection.bias": (dim,)}
        if backbone.qk_norm:
            shapes |= {f"{block}.attention.{n}_norm.{kind}": (backbone.dim_head,) for n in ("query", "key") for kind in ("weight", "bias")}
        for name in ("up", "gate") if backbone.activation == "swiglu" else ("up",):
            shapes |= {f"{block}.mlp.{name}.weight": (hidden, dim), f"{block}.mlp.{name}.bias": (hidden,)}
        shapes |= {f"{block}.mlp.down.weight": (dim, hidden), f"{block}.mlp.down.bias": (dim,)}
        shapes |= {f"{block}.scale{n}.factor": (dim,) for n in (1, 2)} if backbone.layer_scale else {}
    if backbone.norm == "pre":
        shapes |= {"encoder.norm.weight": (dim,), "encoder.norm.bias": (dim,)}
    if backbone.num_classes:
        shapes |= {"head.weight": (backbone.num_classes, dim), "head.bias": (backbone.num_classes,)}
    return shapes


def _check_shapes(backbone: Backbone, shapes: Shapes, assembly: Assembly) -> None:
    """Check that a file has exactly the weights that its backbone needs, in the right shapes."""
    expected = dict(expected_shapes(backbone))
    rest = {name: shape for name, shape in shapes.items() if name not in ("embed.weight", "positions")}
    if backbone.registers == 0:
        rest.pop("registers", None)  # DINOv3 without registers has an empty tensor here
    for name in [*expected, *rest]:
        if expected.get(name) != rest.get(name):
            theirs = " and ".join(source.name for source in assembly.sources[name]) if name in rest else f"{name} (our name)"
            stored, wanted = (" x ".join(map(str, one[name])) if name in one else "nothing" for one in (rest, expected))
            raise ValueError(f"{theirs}: {stored}, and {wanted} belongs there; {SUPPORTED}.")
