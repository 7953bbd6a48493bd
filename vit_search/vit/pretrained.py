"""Weights of timm's and torchvision's plain Vision Transformers, renamed into ours.

    ours                                    timm                       torchvision
    embed.weight (dim, channels*p*p)        patch_embed.proj.weight    conv_proj.weight      (dim, channels, p, p), flattened
    embed.bias                              patch_embed.proj.bias      conv_proj.bias
    cls_token                               cls_token                  class_token
    positions                               pos_embed                  encoder.pos_embedding
    encoder.blocks.N.norm1                  blocks.N.norm1             encoder.layers.encoder_layer_N.ln_1
    encoder.blocks.N.attention.qkv          blocks.N.attn.qkv          ….self_attention.in_proj_weight, in_proj_bias
    encoder.blocks.N.attention.projection   blocks.N.attn.proj         ….self_attention.out_proj
    encoder.blocks.N.scale1.factor          blocks.N.ls1.gamma
    encoder.blocks.N.norm2                  blocks.N.norm2             ….ln_2
    encoder.blocks.N.mlp.up                 blocks.N.mlp.fc1           ….mlp.0
    encoder.blocks.N.scale2.factor          blocks.N.ls2.gamma
    encoder.blocks.N.mlp.down               blocks.N.mlp.fc2           ….mlp.3
    encoder.norm                            norm                       encoder.ln
    head                                    head                       heads.head

Both are the paper's model: pre-norm, exact GELU, LayerNorm with eps 1e-6, learned positions. timm's models without a class
token (`class_token=False, global_pool="avg", fc_norm=False`) are our mean pooling; a norm after the pooling (`fc_norm`),
registers, and query or key norms have no counterpart here and are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vit_search.errors import CheckpointError

TIMM = (
    (r"patch_embed\.proj\.", "embed."),
    (r"pos_embed$", "positions"),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.blocks.\1.attention.qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.blocks.\1.attention.projection."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"encoder.blocks.\1.mlp.up."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"encoder.blocks.\1.mlp.down."),
    (r"blocks\.(\d+)\.ls([12])\.gamma$", r"encoder.blocks.\1.scale\2.factor"),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.blocks.\1.norm\2."),
    (r"norm\.", "encoder.norm."),
    (r"(cls_token$|head\.)", r"\1"),
)
"""(their name, ours): each a regular expression that must match at the start of a name."""

TORCHVISION = (
    (r"conv_proj\.", "embed."),
    (r"class_token$", "cls_token"),
    (r"encoder\.pos_embedding$", "positions"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"encoder.blocks.\1.norm\2."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"encoder.blocks.\1.attention.qkv."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"encoder.blocks.\1.attention.projection."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"encoder.blocks.\1.mlp.up."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"encoder.blocks.\1.mlp.down."),
    (r"encoder\.ln\.", "encoder.norm."),
    (r"heads\.head\.", "head."),
)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm's `VisionTransformer`, for `ViT.load_state_dict`.

    Raises: CheckpointError that names a weight for which our model has no place.
    """
    return _renamed(state, TIMM, "timm")


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's `VisionTransformer`, for `ViT.load_state_dict`.

    Raises: CheckpointError that names a weight for which our model has no place.
    """
    return _renamed(state, TORCHVISION, "torchvision")


def _renamed(state: Mapping[str, Tensor], names: tuple[tuple[str, str], ...], origin: str) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        rule = next(((pattern, name) for pattern, name in names if re.match(pattern, theirs)), None)
        if rule is None:
            raise CheckpointError(f"{theirs}: no counterpart in our ViT; load a plain Vision Transformer of {origin}.")
        name = re.sub(*rule, theirs, count=1)
        ours[name] = tensor.flatten(1) if name == "embed.weight" else tensor
    return ours
