"""Check whether a model can start from a pretrained backbone: no size may be larger, and the parts must be the same.

vit/inherit.py selects the weights that the model gets.
"""

from __future__ import annotations

from vit_search.config.backbone import Backbone
from vit_search.config.model_config import ModelConfig
from vit_search.errors import SpecError


def check(backbone: Backbone, config: ModelConfig) -> None:
    """Reject a model that cannot start from a backbone.

    Raises: SpecError that names the key, its value, and what is possible.
    """
    found = misfit(backbone, config)
    if found is not None:
        raise SpecError(found[1])


def misfit(backbone: Backbone, config: ModelConfig, weights: str = "the pretrained weights") -> tuple[str, str] | None:
    """Why a model cannot start from a backbone: a field of ModelConfig, and one line with what is possible. None if it can.

    Args:
        weights: what the line calls the backbone.
    """
    sizes = {
        "dim": (config.dim, backbone.dim),
        "depth": (config.depth, backbone.depth),
        "heads": (config.heads, backbone.heads),
        "dim_head": (config.head_width, backbone.dim_head),
        "mlp_dim": (config.mlp_width, backbone.mlp_dim),
        "registers": (config.registers, backbone.registers),
    }
    for key, (value, largest) in sizes.items():
        if value > largest:
            return key, f"{_key(key, config)} is {value}, and {weights} have {largest}; give at most {largest}."
    choices = {
        "activation": (config.activation, backbone.activation),
        "norm": (config.norm, backbone.norm),
        "qk_norm": (config.qk_norm, backbone.qk_norm),
        "norm_eps": (config.norm_eps, backbone.norm_eps),
    }
    for key, (choice, due) in choices.items():
        if choice != due:
            return key, f"{key} is {_yaml(choice)}, and {weights} have {_yaml(due)}; write {key}: {_yaml(due)}."
    if backbone.qkv_bias and not config.qkv_bias:
        return "qkv_bias", f"qkv_bias is false, and {weights} have such a bias; write qkv_bias: true."
    return _misfit_of_positions(backbone, config, weights)


def _misfit_of_positions(backbone: Backbone, config: ModelConfig, weights: str) -> tuple[str, str] | None:
    rotary = backbone.positions == "rope"
    if rotary != (config.positions == "rope"):
        fact = f"positions is {config.positions}, and {weights} have {backbone.positions}"
        return "positions", f"{fact}; write positions: {backbone.positions}."
    if rotary and config.head_width != backbone.dim_head:
        fact = f"dim_head is {config.head_width}, and {weights} have rotary positions for {backbone.dim_head}"
        return "dim_head", f"{fact}; write dim_head: {backbone.dim_head}."
    if rotary and config.rope_base != backbone.rope_base:
        fact = f"rope_base is {config.rope_base:g}, and {weights} have {backbone.rope_base:g}"
        return "rope_base", f"{fact}; write rope_base: {backbone.rope_base:g}."
    if config.positions == "sincos2d" and (backbone.positions, backbone.dim) != ("sincos2d", config.dim):
        fact = f"positions is sincos2d, and {weights} have {backbone.positions} positions for dim: {backbone.dim}"
        return "positions", f"{fact}; write positions: learned, which starts from theirs."
    return None


def _key(key: str, config: ModelConfig) -> str:
    """The key as the message shows it. A width that follows from other keys is shown with its calculation."""
    if key == "dim_head" and config.dim_head is None:
        return f"dim_head (dim {config.dim} / {config.heads} heads)"
    if key == "mlp_dim" and config.mlp_dim is None:
        return f"mlp_dim (dim {config.dim} x mlp_ratio {config.mlp_ratio:g})"
    return key


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
