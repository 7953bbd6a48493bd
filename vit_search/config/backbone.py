"""What a file of pretrained weights is: its shape and its choices, from its header and the files beside it. No tensor is read.

Names and shapes tell most of it. `config.json` (of transformers, timm or vit_search) and `preprocessor_config.json` beside the file, or the
same texts in the file's own metadata, tell the rest: the number of heads, how images are normalised, the names of the classes. What
nothing tells is assumed, and `Backbone.assumed` says so.
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
"""Types of weights that are read."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained Vision Transformer, without its weights. Numbers and choices are named as in ModelConfig."""

    layout: str
    """Who wrote the file: vit_search, timm, torchvision or transformers."""
    in_channels: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    pool: str
    """`cls` where it has a class token, else `mean`."""
    registers: int
    positions: str
    """`learned`, `sincos2d` or `rope`."""
    grid: tuple[int, int] | None
    """Rows and columns of its table of positions; None with rope, which has none."""
    rope_base: float | None
    activation: str
    norm: str
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    layer_scale: bool
    num_classes: int
    """Of its head; 0 where it has none that we can use."""
    classes: tuple[str, ...] | None
    """Names of the head's classes, in order, if known."""
    image_size: tuple[int, int] | None
    """Height and width in pixels of the images that it was trained on."""
    mean: tuple[float, ...] | None
    """Of its images on the scale 0 to 1, by channel, if known."""
    std: tuple[float, ...] | None
    interpolation: str | None
    """How its images were resized, if known."""
    licence: str | None
    assumed: tuple[str, ...]
    """What the file does not tell, and what was taken instead."""
    left_out: tuple[str, ...]
    """Tensors of the file that are not used."""

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields of ModelConfig that make a model of the backbone's own shape; the others come from the data."""
        same = ("patch_size", "dim", "depth", "heads", "dim_head", "mlp_dim", "pool", "registers", "positions", "activation", "norm")
        fields = {name: getattr(self, name) for name in (*same, "norm_eps", "qkv_bias", "qk_norm")}
        return fields | {"layer_scale": 1.0 if self.layer_scale else None} | ({"rope_base": self.rope_base} if self.rope_base else {})

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of its images, for images with so many channels; None if they are not known.

        Channels are mapped as the patch embedding's are, see `inherit.map_channels`: fewer have the mean of those that belong together,
        more take turns.
        """
        if self.mean is None or self.std is None:
            return None
        return _for_channels(self.mean, channels), _for_channels(self.std, channels)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels >= len(values):
        return tuple(values[i % len(values)] for i in range(channels))
    return tuple(math.fsum(values[i::channels]) / len(values[i::channels]) for i in range(channels))


def read_backbone(path: Path) -> Backbone:
    """The facts of a `.safetensors` file.

    Raises: CheckpointError in one line for a file that is damaged, or is no Vision Transformer that this version can load.
    """
    header = read_header(path)
    try:
        return describe(header, read_settings(path.parent, header.metadata))
    except ValueError as error:
        raise CheckpointError(f"{file_name(str(path))}: {file_name(str(error))}") from None  # with names of the file's own


def used_tensors(path: Path) -> tuple[str, ...]:
    """The tensors of a file that a model can take, by their names in the file.

    Raises: CheckpointError as `read_backbone`.
    """
    assembly, _ = assembly_of(read_header(path))
    return tuple({source.name: None for sources in assembly.sources.values() for source in sources})


def assembly_of(header: Header) -> tuple[Assembly, Shapes]:
    """Where the tensors of a file go, and the shapes of the weights that they become.

    A head that does not read one token (as DINOv2's classifier, which reads the class token and the mean) is left out.

    Raises: ValueError that names the first tensor that has no place, or has a type that is not read.
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
    """The facts of a header and of the settings beside it.

    Raises: ValueError for weights that make no Vision Transformer that this version can load.
    """
    assembly, shapes = assembly_of(header)
    assumed: list[str] = []
    dim, depth = _first(shapes, "embed.weight"), _depth(shapes)
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
    )
    _check_shapes(backbone, shapes, assembly)
    return backbone


def _check_axes(shapes: Shapes, assembly: Assembly) -> None:
    """Each weight has as many axes as such a weight has, and none is empty but that of registers."""
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
    """Blocks; they are numbered from 0 without a gap."""
    numbers = sorted({int(match[1]) for name in shapes if (match := re.match(r"encoder\.blocks\.(\d+)\.", name))})
    missing = next((i for i, number in enumerate(numbers) if i != number), None)
    if not numbers or missing is not None:
        raise ValueError(f"block {missing or 0} is missing; copy or download the file again.")
    return len(numbers)


def _patches(embed: tuple[int, ...], settings: Settings, assumed: list[str]) -> tuple[int, int]:
    """Channels of an image and side of a patch."""
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
"""timm's models whose heads are not 64 wide, by the start of their name and their width: they have 16."""


def _heads(shapes: Shapes, settings: Settings, assumed: list[str]) -> tuple[int, int]:
    """Attention heads, and the width of each."""
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
            raise ValueError(f"the number of heads is not known, and 64 does not divide {inner}; put the model's config.json beside it.")
        heads = inner // 64
        assumed.append(f"{heads} heads, since heads are usually 64 wide; if it has others, put the model's config.json beside it")
    if heads < 1 or inner % heads:
        raise ValueError(f"config.json says {heads} heads, which do not divide {inner}; use the config.json of these weights.")
    return heads, inner // heads


def _positions(shapes: Shapes, settings: Settings, patch_size: int, prefix: int, assumed: list[str]) -> tuple[str, tuple[int, int] | None]:
    """The kind of positions, and the grid of their table.

    Args:
        prefix: class token and registers; the table has rows for both, for the class token only, or for neither.
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
    """What LayerNorm adds to the variance where nothing tells: 1e-6 as in the paper's code, DINOv3 1e-5."""
    return 1e-5 if positions == "rope" and layout != "vit_search" else 1e-6


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet, with which all of torchvision's weights were trained."""


def _normalisation(
    settings: Settings, layout: str, channels: int, assumed: list[str]
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if settings.mean is None and settings.std is None and layout == "torchvision" and channels == len(IMAGENET[0]):
        assumed.append("mean and standard deviation of ImageNet, as of all weights of torchvision")
        return IMAGENET
    return settings.mean, settings.std


def _by_channel(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    """One for each channel; a single value stands for all."""
    if values is None or len(values) not in (1, channels):
        return None
    return values if len(values) == channels else values * channels


def expected_shapes(backbone: Backbone) -> Mapping[str, tuple[int, ...]]:
    """Our weights and their shapes, of a backbone; a table of positions is left to `grid`."""
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
    """Each weight that a backbone needs is there and has its shape, and there is no other."""
    expected = dict(expected_shapes(backbone))
    rest = {name: shape for name, shape in shapes.items() if name not in ("embed.weight", "positions")}
    if backbone.registers == 0:
        rest.pop("registers", None)  # an empty tensor, as DINOv3's without registers
    for name in [*expected, *rest]:
        if expected.get(name) != rest.get(name):
            theirs = " and ".join(source.name for source in assembly.sources[name]) if name in rest else f"{name} (our name)"
            stored, wanted = (" x ".join(map(str, one[name])) if name in one else "nothing" for one in (rest, expected))
            raise ValueError(f"{theirs}: {stored}, and {wanted} belongs there; {SUPPORTED}.")
