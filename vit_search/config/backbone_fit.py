"""Check whether a model can start from a pretrained backbone: no size may be larger, and the parts must be the same.

vit/inherit.py selects the weights that the model gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vit_search.config.backbone import Backbone
from vit_search.config.model_config import ModelConfig
from vit_search.errors import SpecError


def check(backbone: Backbone, config: ModelConfig) -> None:
    """Reject a model that cannot start from a backbone.

    Raises: SpecError that names the key, its value, and what is possible.
    """
    for found in misfits(backbone, config):
        raise SpecError(found.text)


@dataclass(frozen=True)
class Misfit:
    """Why a model cannot start from a backbone."""

    key: str
    """A field of ModelConfig."""
    text: str
    """One line with what is possible."""
    value: float = 0.0
    """The value, if smaller ones are possible."""


def misfits(backbone: Backbone, config: ModelConfig, weights: str = "the pretrained weights") -> Iterator[Misfit]:
    """All reasons why a model cannot start from a backbone; none if it can.

    Args:
        weights: what the lines call the backbone.
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
            yield Misfit(key, f"{_key(key, config)} is {value}, and {weights} have {largest}; give at most {largest}.", value)
    choices = {
        "activation": (config.activation, backbone.activation),
        "norm": (config.norm, backbone.norm),
        "qk_norm": (config.qk_norm, backbone.qk_norm),
        "norm_eps": (config.norm_eps, backbone.norm_eps),
    }
    for key, (choice, due) in choices.items():
        if choice != due:
            yield Misfit(key, f"{key} is {_yaml(choice)}, and {weights} have {_yaml(due)}; write {key}: {_yaml(due)}.")
    if backbone.qkv_bias and not config.qkv_bias:
        yield Misfit("qkv_bias", f"qkv_bias is false, and {weights} have such a bias; write qkv_bias: true.")
    yield from _misfits_of_positions(backbone, config, weights)


def _misfits_of_positions(backbone: Backbone, config: ModelConfig, weights: str) -> Iterator[Misfit]:
    if (backbone.positions == "rope") != (config.positions == "rope"):
        fact = f"positions is {config.positions}, and {weights} have {backbone.positions}"
        yield Misfit("positions", f"{fact}; write positions: {backbone.positions}.")
    elif backbone.positions == "rope":
        if config.head_width < backbone.dim_head:  # a larger one is an error already
            fact = f"dim_head is {config.head_width}, and {weights} have rotary positions for {backbone.dim_head}"
            yield Misfit("dim_head", f"{fact}; write dim_head: {backbone.dim_head}.")
        if config.rope_base != backbone.rope_base:
            fact = f"rope_base is {config.rope_base:g}, and {weights} have {backbone.rope_base:g}"
            yield Misfit("rope_base", f"{fact}; write rope_base: {backbone.rope_base:g}.")
    elif config.positions == "sincos2d" and (backbone.positions, backbone.dim) != ("sincos2d", config.dim):
        fact = f"positions is sincos2d, and {weights} have {backbone.positions} positions for dim: {backbone.dim}"
        yield Misfit("positions", f"{fact}; write positions: learned, which starts from theirs.")


def _key(key: str, config: ModelConfig) -> str:
    """The key as the message shows it. A width that follows from other keys is shown with its calculation."""
    if key == "dim_head" and config.dim_head is None:
        return f"dim_head (dim {config.dim} / {config.heads} heads)"
    if key == "mlp_dim" and config.mlp_dim is None:
        return f"mlp_dim (dim {config.dim} x mlp_ratio {config.mlp_ratio:g})"
    return key


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
