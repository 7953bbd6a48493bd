"""The model of a trial: shape and settings of one Vision Transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_search.config.knobs import check_bounds, knob
from vit_search.errors import SpecError

FROM_DATA = ("image_size", "in_channels", "num_classes")
"""Fields of ModelConfig that the data set decides."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One Vision Transformer. The first three fields come from the data, all others from the search file."""

    image_size: tuple[int, int] = knob(..., "Height and width in pixels.", ge=1, le=1024)
    in_channels: int = knob(..., "Channels of an image.", ge=1, le=1024)
    num_classes: int = knob(..., "Classes; 0 gives token features instead of logits.", ge=0, le=1_000_000)
    patch_size: int = knob(
        4,
        "Side length of a patch in pixels. It must divide the height and width of the image. Half the side makes four times the tokens.",
        ge=1,
        le=1024,
    )
    dim: int = knob(64, "Width of a token.", ge=1, le=16384)
    depth: int = knob(3, "Number of encoder blocks.", ge=1, le=256)
    heads: int = knob(4, "Number of attention heads. It must divide dim, unless dim_head is given.", ge=1, le=256)
    dim_head: int | None = knob(None, "Width of one attention head. Default: dim / heads.", ge=1, le=4096)
    mlp_ratio: float = knob(4.0, "Hidden width of the MLP in each block, as a multiple of dim.", gt=0, le=64)
    mlp_dim: int | None = knob(None, "Hidden width of the MLP in each block. If it is given, mlp_ratio is not used.", ge=1, le=65536)
    dropout: float = knob(
        0.0, "Dropout rate of embedding, attention, projection and MLP. Each of them has a key of its own that overrides it.", ge=0, lt=1
    )
    embedding_dropout: float | None = knob(None, "Dropout rate after patches and positions are added. Default: dropout.", ge=0, lt=1)
    attention_dropout: float | None = knob(None, "Dropout rate of the attention weights. Default: dropout.", ge=0, lt=1)
    projection_dropout: float | None = knob(None, "Dropout rate after the output projection of attention. Default: dropout.", ge=0, lt=1)
    mlp_dropout: float | None = knob(None, "Dropout rate after each of the two layers of the MLP. Default: dropout.", ge=0, lt=1)
    drop_path: float = knob(
        0.0,
        "Stochastic depth: probability that a sample skips a branch of a block. It grows linearly from 0 in the first block to this value "
        "in the last.",
        ge=0,
        lt=1,
    )
    activation: Literal["gelu", "relu", "swiglu"] = knob(
        "gelu",
        "Activation function of the MLP. With swiglu (Shazeer 2020), a third matrix is added: the SiLU of its values multiplies the hidden "
        "values. For as many weights as with gelu, take two thirds of mlp_ratio.",
    )
    norm: Literal["pre", "post"] = knob(
        "pre", "Place of LayerNorm: pre is before each branch (as in the ViT paper), post is after each sum (as in Vaswani et al. 2017)."
    )
    norm_eps: float = knob(
        1e-6, "Number that each LayerNorm adds to the variance before it divides by its root.", ge=1e-12, le=0.1, late=True
    )
    pool: Literal["mean", "cls"] = knob(
        "mean", "Input of the classification head: the mean of the patches' tokens, or an extra token, the class token (cls)."
    )
    registers: int = knob(
        0,
        "Register tokens (Darcet et al. 2024): extra learned tokens without a position, which attention can use as a scratchpad. The "
        "classification head does not see them.",
        ge=0,
        le=256,
        late=True,
    )
    positions: Literal["learned", "sincos2d", "rope"] = knob(
        "learned",
        "How the model knows where a patch is. learned: a learned vector is added to each patch. sincos2d: fixed sines and cosines of row "
        "and column are added. rope: nothing is added; attention rotates queries and keys by row and column (axial RoPE, as in DINOv3), so "
        "that it depends on how far patches are apart. The width of a head must then be a multiple of 4.",
    )
    rope_base: float = knob(
        100.0,
        "For positions: rope. The slowest rotation is almost this many times slower than the fastest.",
        gt=1,
        le=1e6,
        late=True,
    )
    init: Literal["xavier", "trunc_normal_02"] = knob("xavier", "Initialisation of the linear layers. The ViT paper uses trunc_normal_02.")
    pos_init_std: float = knob(
        0.3, "Standard deviation of learned positions, class token and registers before training. The ViT paper uses 0.02.", gt=0, le=10
    )
    qkv_bias: bool = knob(True, "Whether queries, keys and values have a bias.")
    qk_norm: bool = knob(
        False,
        "Whether a LayerNorm in each head normalises queries and keys, so that attention cannot become arbitrarily sharp. Dehghani et al. "
        "2023 use it so that training does not diverge.",
        late=True,
    )
    layer_scale: float | None = knob(
        None, "LayerScale (Touvron et al. 2021): initial scale of each branch. Default: no LayerScale.", gt=0, le=10
    )
    pretrained: str = knob(
        "",
        "Pretrained weights that the model starts from: a .safetensors file of a Vision Transformer that is at least as large, a URL, "
        "models:/NAME@ALIAS, timm:NAME or hf:ORG/REPO. If you leave out other keys of this section, the weights decide them. An empty text "
        "is a random start. Default: a random start.",
        late=True,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        problem = model_problem(
            self.image_size, self.patch_size, self.dim, self.heads, self.dim_head, positions=self.positions, qk_norm=self.qk_norm
        )
        if problem:
            raise SpecError(problem)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def prefix(self) -> int:
        """Number of tokens before those of the patches: the class token, if there is one, and the registers."""
        return (self.pool == "cls") + self.registers

    @property
    def tokens(self) -> int:
        """Length of the encoder's sequence, with class token and registers."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def placed(self) -> int:
        """Number of tokens that can get a position: the class token and the patches, not the registers."""
        return self.tokens - self.registers

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.dim_head or self.dim // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP, at least 1."""
        return self.mlp_dim or max(1, round(self.dim * self.mlp_ratio))


def model_problem(
    image_size: tuple[int, int],
    patch_size: int,
    dim: int,
    heads: int,
    dim_head: int | None = None,
    *,
    positions: str = "learned",
    qk_norm: bool = False,
) -> str | None:
    """Why these values are not a valid ViT, in one line, or None."""
    if image_size[0] % patch_size or image_size[1] % patch_size:
        return f"patch_size: {patch_size} does not divide the image of {image_size[0]}x{image_size[1]} pixels."
    if dim_head is None and dim % heads:
        return f"heads: {heads} does not divide dim={dim}; choose a divisor, or give dim_head."
    width, source = (dim // heads, f"dim={dim} and heads={heads} give") if dim_head is None else (dim_head, "dim_head gives")
    if positions == "rope" and width % 4:
        return f"positions: rope needs heads whose width is a multiple of 4, and {source} {width}; change it, or choose other positions."
    if qk_norm and width == 1:
        return f"qk_norm: {source} heads of width 1, which a norm makes all alike; choose wider heads, or qk_norm: false."
    return None
