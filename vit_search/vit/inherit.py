"""Start a Vision Transformer from pretrained weights, also if it is smaller than the backbone. Works on tensors, not on files.

One rule: what has the backbone's size is copied; what is smaller is selected, evenly; what is larger is an error.

    residual channels   evenly, the same ones in every layer
    heads               whole heads, evenly; then channels inside each head, evenly
    MLP                 hidden units, evenly
    blocks              the first ones, or evenly (BLOCKS)
    patches             resized by the pseudo-inverse of a bilinear resize (FlexiViT)
    positions           interpolated, bicubic
    image channels      added up if there are fewer, divided evenly if there are more
    head                copied if it has the same classes, in any order; else zeros

Selection: Xu et al. 2024, https://arxiv.org/abs/2311.18823. Patches: Beyer et al. 2023, https://arxiv.org/abs/2212.08013.
Nothing is random: the same weights and the same configuration give the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vit_search.config.backbone import Backbone
from vit_search.config.backbone_fit import check
from vit_search.config.model_config import ModelConfig
from vit_search.vit.model import ViT, interpolate, shapes, sincos2d

Blocks = Literal["first", "even"]

BLOCKS: Blocks = "first"
"""Blocks that a shallower model takes. Xu et al. found the first ones better than even ones for their models."""


def evenly(count: int, wanted: int) -> list[int]:
    """Indices of `wanted` out of `count` things: 0, then in equal steps, rounded down. `evenly(6, 3)` is [0, 2, 4]."""
    return [i * count // wanted for i in range(wanted)]


def inherit(
    weights: Mapping[str, Tensor],
    backbone: Backbone,
    config: ModelConfig,
    classes: Sequence[str] | None = None,
    *,
    blocks: Blocks = BLOCKS,
) -> dict[str, Tensor]:
    """Make the state dict of a `ViT(config)` that starts from a backbone.

    Args:
        weights: the backbone's, as `pretrained.load` returns them.
        classes: names of the new model's classes, in order. If they are the backbone's, its head is kept.
        blocks: which blocks a shallower model takes.
    Raises: SpecError if the model is larger than the backbone, or has parts that the backbone lacks.
    """
    check(backbone, config)
    return dict(_Selection(weights, backbone, config, blocks).state(classes))


def inherit_into(model: ViT, weights: Mapping[str, Tensor], backbone: Backbone, classes: Sequence[str] | None = None) -> None:
    """Give a model the weights of a backbone, as `inherit` makes them. It makes one at a time, since all need the memory of a model.

    Raises: SpecError as `inherit`.
    """
    check(backbone, model.config)
    own = model.state_dict()
    for name, tensor in _Selection(weights, backbone, model.config, BLOCKS).state(classes):
        weight = own.pop(name)
        assert weight.shape == tensor.shape, f"{name}: {list(tensor.shape)} for {list(weight.shape)}"
        weight.copy_(tensor)
    assert not own, f"{', '.join(own)}: not in the backbone's selection"


class _Selection:
    """The indices of a backbone that a model takes, and the weights at them."""

    def __init__(self, weights: Mapping[str, Tensor], backbone: Backbone, config: ModelConfig, blocks: Blocks) -> None:
        self.weights, self.backbone, self.config = weights, backbone, config
        self.channels = torch.tensor(evenly(backbone.dim, config.dim))
        self.heads = torch.tensor(evenly(backbone.heads, config.heads))
        self.within = torch.tensor(evenly(backbone.dim_head, config.head_width))
        self.hidden = torch.tensor(evenly(backbone.mlp_dim, config.mlp_width))
        self.blocks = list(range(config.depth)) if blocks == "first" else _spread(backbone.depth, config.depth)

    def state(self, classes: Sequence[str] | None) -> Iterator[tuple[str, Tensor]]:
        """All weights of the new model, one after the other."""
        for name, shape in shapes(self.config).items():
            if not name.startswith("head."):
                yield name, self.weight(name, shape).contiguous()
        for name, tensor in self.head(classes).items():
            yield name, tensor.contiguous()

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One weight of the new model, by our name."""
        inside = re.match(r"encoder\.blocks\.(\d+)\.(.+)", name)
        if inside:
            return self.in_block(f"encoder.blocks.{self.blocks[int(inside[1])]}.", inside[2])
        if name == "embed.weight":
            return self.embedding()
        if name == "positions":
            return self.positions()
        if name == "cls_token" and self.backbone.pool != "cls":
            return self.zeros(shape)
        tensor = self.weights[name][..., self.channels]
        return tensor[:, evenly(self.backbone.registers, shape[1])] if name == "registers" else tensor

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return self.weights["embed.weight"].new_zeros(shape)

    def in_block(self, block: str, name: str) -> Tensor:
        """One weight of a block, reduced to the new model's size."""
        part, _, kind = name.rpartition(".")
        if part in ("scale1", "scale2") and not self.backbone.layer_scale:
            return self.zeros((self.config.dim,)) + 1  # leaves the branch as it was
        if part == "attention.qkv":
            return self.qkv(block + name, bias=kind == "bias")
        tensor = self.weights[block + name]
        if part in ("attention.query_norm", "attention.key_norm"):
            return tensor[self.within]
        if part in ("mlp.up", "mlp.gate"):
            return tensor[self.hidden] if kind == "bias" else tensor[self.hidden][:, self.channels]
        tensor = tensor[self.channels]  # all that follow write to residual channels
        if (part, kind) == ("attention.projection", "weight"):
            parted = tensor.unflatten(1, (self.backbone.heads, self.backbone.dim_head))
            tensor = parted[:, self.heads][:, :, self.within].flatten(1)
        elif (part, kind) == ("mlp.down", "weight"):
            tensor = tensor[:, self.hidden]
        if part in ("attention.projection", "mlp.down"):
            tensor = self.unscaled(block, part, tensor)
        return tensor

    def qkv(self, name: str, *, bias: bool) -> Tensor:
        """Queries, keys and values of the selected heads."""
        if bias and not self.backbone.qkv_bias:
            return self.zeros((3 * self.config.heads * self.config.head_width,))
        parted = self.weights[name].unflatten(0, (3, self.backbone.heads, self.backbone.dim_head))
        chosen: Tensor = parted[:, self.heads][:, :, self.within].flatten(0, 2)
        return chosen if bias else chosen[:, self.channels]

    def unscaled(self, block: str, part: str, tensor: Tensor) -> Tensor:
        """Multiply the last layer of a branch by the backbone's LayerScale, if the new model has none."""
        if not self.backbone.layer_scale or self.config.layer_scale is not None:
            return tensor
        factor = self.weights[f"{block}{'scale1' if part == 'attention.projection' else 'scale2'}.factor"][self.channels]
        return tensor * (factor if tensor.ndim == 1 else factor[:, None])

    def embedding(self) -> Tensor:
        """The patch embedding for other channels, another patch size and fewer residual channels."""
        backbone, config = self.backbone, self.config
        weight = self.weights["embed.weight"][self.channels].unflatten(1, (backbone.in_channels, backbone.patch_size, backbone.patch_size))
        return resize_patches(map_channels(weight, config.in_channels), config.patch_size).flatten(1)

    def positions(self) -> Tensor:
        """The table of positions for the new grid, with or without a row for the class token."""
        backbone, config = self.backbone, self.config
        if config.positions == "sincos2d":
            return F.pad(sincos2d(*config.grid, config.dim), (0, 0, int(config.pool == "cls"), 0))[None].to(self.weights["embed.weight"])
        assert backbone.grid is not None
        table = interpolate(self.weights["positions"], backbone.grid, config.grid)[..., self.channels]
        if (backbone.pool, config.pool) == ("cls", "mean"):
            return table[:, 1:].clone(memory_format=torch.contiguous_format)  # a view would have the memory and the strides of the table
        return F.pad(table, (0, 0, 1, 0)) if (backbone.pool, config.pool) == ("mean", "cls") else table

    def head(self, classes: Sequence[str] | None) -> dict[str, Tensor]:
        """The backbone's head if it has the same classes and reads the same token; else zeros, as in the ViT paper's fine-tuning."""
        names, config = self.backbone.classes, self.config
        if not config.num_classes:
            return {}
        known = names is not None and classes is not None and sorted(names) == sorted(classes) and len(set(names)) == config.num_classes
        if not known or self.backbone.pool != config.pool:
            return {"head.weight": self.zeros((config.num_classes, config.dim)), "head.bias": self.zeros((config.num_classes,))}
        assert names is not None and classes is not None
        rows = torch.tensor([names.index(name) for name in classes])
        return {"head.weight": self.weights["head.weight"][rows][:, self.channels], "head.bias": self.weights["head.bias"][rows]}


def _spread(count: int, wanted: int) -> list[int]:
    """Indices of blocks in equal steps, with the first and the last."""
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)] if wanted > 1 else [0]


def map_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a patch embedding to images with another number of channels.

    An image whose channels are all equal keeps its embedding. From 3 channels to 1, the three weights are added up. From 1 to 3, each gets
    a third. In general, channel `i` of the larger number belongs to channel `i % smaller` of the other.

    Args:
        weight: (dim, channels before, patch, patch).
    """
    before = weight.shape[1]
    if channels == before:
        return weight
    if channels < before:
        return torch.stack([weight[:, i::channels].sum(1) for i in range(channels)], dim=1)
    copies = [len(range(i, channels, before)) for i in range(before)]
    return torch.stack([weight[:, i % before] / copies[i % before] for i in range(channels)], dim=1)


def resize_patches(weight: Tensor, patch_size: int) -> Tensor:
    """Resize a patch embedding, so that a resized patch gives what the patch gave before.

    For larger patches this is exact. For smaller ones it is the best fit over patches of white noise.

    Args:
        weight: (dim, channels, patch, patch).
    Source: Beyer et al. 2023, section 3.4, https://arxiv.org/abs/2212.08013
    """
    before = weight.shape[-1]
    if before == patch_size:
        return weight
    resize = resize_matrix(before, patch_size).to(weight.device)
    wide: Tensor = weight.double().flatten(2) @ torch.linalg.pinv(resize)  # (resizeᵀ)⁺ w, written for rows
    resized: Tensor = wide.unflatten(2, (patch_size, patch_size)).to(weight.dtype)
    return resized


def resize_matrix(before: int, after: int) -> Tensor:
    """The matrix, float64 (after², before²), that resizes a square patch: bilinear, and antialiased if it shrinks."""
    pixels = torch.eye(before**2, dtype=torch.float64).unflatten(1, (before, before))[:, None]
    return F.interpolate(pixels, size=(after, after), mode="bilinear", antialias=True).flatten(1).T
