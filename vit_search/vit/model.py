"""The Vision Transformer of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929), with the variants that a search can choose."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vit_search.config.model_config import ModelConfig
from vit_search.vit.rope import Rope


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, left to right, then top to bottom.

    Args:
        images: (batch, channels, height, width).
        patch_size: side of a patch in pixels.
    Returns: (batch, patches, channels * patch_size**2); values are in the order of a convolution's weight: channel, row, column.
    Raises: EinopsError when patch_size does not divide height and width.
    Source: Dosovitskiy et al. 2021, section 3.1.
    """
    pattern = "batch channels (rows ph) (cols pw) -> batch (rows cols) (channels ph pw)"
    return rearrange(images, pattern, ph=patch_size, pw=patch_size)


def sincos2d(rows: int, cols: int, dim: int) -> Tensor:
    """Fixed position embedding. A quarter of the width each holds sine and cosine of the column, then of the row.

    Returns: (rows * cols, dim); the last dim % 4 columns are 0.
    Source: Chen, Xie and He 2021, https://arxiv.org/abs/2104.02057
    """
    quarter = dim // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter) / max(quarter - 1, 1))
    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    row_angles, col_angles = (index.flatten()[:, None] * frequencies for index in (row, col))
    table = torch.cat([col_angles.sin(), col_angles.cos(), row_angles.sin(), row_angles.cos()], dim=1)
    return F.pad(table, (0, dim - 4 * quarter))


def interpolate(table: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Resize learned positions from one grid to another (bicubic, with antialiasing if it shrinks).

    Args:
        table: (1, tokens, dim), row by row. Extra tokens (the class token) come first and do not change.
        before: rows and columns of `table`. after: rows and columns of the result.
    Returns: (1, tokens, dim) of the new grid.
    Source: Dosovitskiy et al. 2021, section 3.2.
    """
    if before == after:
        return table
    rows, cols = before
    extra, grid = table.split([table.shape[1] - rows * cols, rows * cols], dim=1)
    image = rearrange(grid, "one (rows cols) dim -> one dim rows cols", rows=rows)
    image = F.interpolate(image.float(), size=after, mode="bicubic", antialias=True).to(table.dtype)
    return torch.cat([extra, rearrange(image, "one dim rows cols -> one (rows cols) dim")], dim=1)


class DropPath(nn.Module):
    """In training, skip the residual branch of a sample with probability `rate` (stochastic depth, Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Keep the shape (batch, tokens, dim). Samples that are not skipped are scaled by 1 / (1 - rate)."""
        if not self.training or self.rate == 0:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * keep / (1 - self.rate)


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ / √head_width) v for each head, concatenated and projected."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.head_width
        self.qkv = nn.Linear(config.dim, 3 * inner, bias=config.qkv_bias)
        self.projection = nn.Linear(inner, config.dim)
        self.query_norm, self.key_norm = (
            nn.LayerNorm(config.head_width, eps=config.norm_eps) if config.qk_norm else None for _ in range(2)
        )
        self.attention_dropout = _rate(config.attention_dropout, config)
        self.projection_dropout = nn.Dropout(_rate(config.projection_dropout, config))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, rope: Rope | None = None) -> Tensor:
        """Keep the shape (batch, tokens, dim). `mask` is as in `ViT.forward`."""
        # split, view and transpose make no copies before or after the attention kernel
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(tokens).chunk(3, dim=-1))
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rope is not None:
            queries, keys = rope(queries), rope(keys)
        if queries.dtype != values.dtype:  # in half precision, the norms and RoPE return float32
            queries, keys = queries.to(values.dtype), keys.to(values.dtype)
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
        rate = self.attention_dropout if self.training else 0.0
        attend = _attention_in_half if queries.dtype in HALF and queries.device.type == "cpu" else F.scaled_dot_product_attention
        heads = attend(queries, keys, values, attn_mask=mask, dropout_p=rate)
        out: Tensor = self.projection_dropout(self.projection(heads.transpose(1, 2).flatten(2)))
        return out


HALF = (torch.bfloat16, torch.float16)


def _attention_in_half(queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
    """scaled_dot_product_attention for half precision on a CPU, where torch's fused kernel takes 2 to 10 times as long.

    Measured with torch 2.15 on a CPU with AVX512_BF16, forward and backward: 8.4 instead of 34 ms at 64 tokens of width 64, 2.1 instead of
    16 ms at 17 tokens of width 16 (tests/benchmarks/train_step.py measures a whole step). Softmax in float32 is more exact, and with its
    backward pass four times as fast at 16 tokens (tests/benchmarks/epoch.py).
    """
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return F.dropout(scores.float().softmax(-1).to(values.dtype), dropout_p) @ values


class MLP(nn.Module):
    """Two linear layers with an activation between them, applied to each token. With swiglu, a third layer gates the hidden values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.dim)
        self.gate = nn.Linear(config.dim, config.mlp_width) if config.activation == "swiglu" else None
        self.activation = {"gelu": nn.GELU, "relu": nn.ReLU, "swiglu": nn.SiLU}[config.activation]()
        self.dropout = nn.Dropout(_rate(config.mlp_dropout, config))

    def forward(self, tokens: Tensor) -> Tensor:
        """Keep the shape (batch, tokens, dim)."""
        hidden = self.activation(self.up(tokens)) if self.gate is None else self.activation(self.gate(tokens)) * self.up(tokens)
        out: Tensor = self.dropout(self.down(self.dropout(hidden)))
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (Touvron et al. 2021, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((dim,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        """Keep the shape (batch, tokens, dim)."""
        return branch * self.factor


class Block(nn.Module):
    """One encoder block: attention and MLP, each in a residual branch with LayerNorm before it (pre) or after the sum (post)."""

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.scale1, self.scale2 = (
            nn.Identity() if config.layer_scale is None else LayerScale(config.dim, config.layer_scale) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, rope: Rope | None = None) -> Tensor:
        """Keep the shape (batch, tokens, dim)."""
        if self.pre_norm:
            tokens = tokens + self.drop_path(self.scale1(self.attention(self.norm1(tokens), mask, rope)))
            tokens = tokens + self.drop_path(self.scale2(self.mlp(self.norm2(tokens))))
        else:
            tokens = self.norm1(tokens + self.drop_path(self.scale1(self.attention(tokens, mask, rope))))
            tokens = self.norm2(tokens + self.drop_path(self.scale2(self.mlp(tokens))))
        return tokens


class Encoder(nn.Module):
    """All blocks, one after another. With pre-norm, a last LayerNorm follows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.norm == "pre" else nn.Identity()
        self.rope = Rope(config) if config.positions == "rope" else None

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Keep the shape (batch, tokens, dim)."""
        return self.run(tokens, mask, 0, len(self.blocks) + 1)

    def run(self, tokens: Tensor, mask: Tensor | None, first: int, end: int) -> Tensor:
        """Run the parts from `first` up to, but not including, `end`. The blocks are parts 0 to depth - 1; the last norm is part depth."""
        for block in list(self.blocks)[first:end]:
            tokens = block(tokens, mask, self.rope)
        out: Tensor = self.norm(tokens) if end > len(self.blocks) else tokens
        return out


class ViT(nn.Module):
    """A Vision Transformer built from a ModelConfig.

    Args:
        config: its shape and choices.
        encoder: a module to use instead of the standard encoder. It is called as `encoder(tokens, mask)` with tokens (batch, tokens, dim)
            and returns the same shape. Its weights are not initialised again. With `positions: rope`, it must apply the rotation itself.

    Attributes:
        frozen_parts: how many of the first parts run without gradient, dropout and drop path, also in training mode. The first part is the
            embedding, then each block is one, and the last part is the last norm with the pooling. 0 unless vit/tuning.py sets it.
    """

    def __init__(self, config: ModelConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.frozen_parts = 0
        rows, cols = config.grid
        self.embed = nn.Linear(config.in_channels * config.patch_size**2, config.dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim)) if config.pool == "cls" else None
        self.registers = nn.Parameter(torch.empty(1, config.registers, config.dim)) if config.registers else None
        self.positions: Tensor | None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(1, config.placed, config.dim))
        elif config.positions == "sincos2d":
            table = sincos2d(rows, cols, config.dim)
            self.register_buffer("positions", F.pad(table, (0, 0, config.placed - len(table), 0))[None])
        else:
            self.positions = None
        self.dropout = nn.Dropout(_rate(config.embedding_dropout, config))
        self.encoder = Encoder(config) if encoder is None else encoder
        self.head = nn.Linear(config.dim, config.num_classes) if config.num_classes else None
        self._initialise([self.embed, *(self.encoder.modules() if encoder is None else ()), self.head])

    def _initialise(self, modules: Iterable[nn.Module | None]) -> None:
        for module in modules:
            if isinstance(module, nn.Linear):
                if self.config.init == "xavier":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.cls_token, self.positions, self.registers):
            if isinstance(table, nn.Parameter):
                nn.init.normal_(table, std=self.config.pos_init_std)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify images.

        Args:
            images: (batch, in_channels, height, width), normalised floats.
            mask: boolean, True where a query (second to last axis) may attend to a key (last axis). Shape (tokens, tokens),
                (batch, 1, tokens, tokens) or (batch, heads, tokens, tokens). The order of the tokens is: class token (if any),
                registers, patches.
        Returns: logits (batch, num_classes), or token features (batch, tokens, dim) when num_classes is 0.
        """
        if self.frozen_parts and self.training:  # evaluation runs as the served model does, so it gives the same bits
            return self.after_frozen(self.frozen_output(images, mask), mask)
        return self.classified(self.encoder(self.embedded(images), mask))

    def frozen_output(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output of the frozen parts, without gradient. Nothing is random: the same images always give the same output.

        Returns: tokens (batch, tokens, dim), or the head's input (batch, dim) if all but the head is frozen.
        """
        with torch.no_grad():
            assert isinstance(self.encoder, Encoder), "only the standard encoder has parts"
            blocks = self.frozen_parts - 1
            tokens = self.encoder.run(self.embedded(images), mask, 0, blocks)
            # contiguous makes a copy: the class token is a view that would keep all tokens in memory
            return self.pooled(tokens).contiguous() if blocks > len(self.encoder.blocks) else tokens

    def after_frozen(self, output: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (batch, num_classes) from the output of `frozen_output`."""
        assert isinstance(self.encoder, Encoder) and self.head is not None
        blocks = len(self.encoder.blocks)
        if self.frozen_parts > blocks + 1:
            logits: Tensor = self.head(output)
            return logits
        return self.classified(self.encoder.run(output, mask, self.frozen_parts - 1, blocks + 1))

    def embedded(self, images: Tensor) -> Tensor:
        """The input of the encoder (batch, tokens, dim): patch tokens with positions, and the class token and registers, if any."""
        tokens: Tensor = self.embed(patchify(images, self.config.patch_size))
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        # keep the residual stream in float32, also under autocast
        tokens = tokens.to(self.embed.weight.dtype) if self.positions is None else tokens + self.positions
        if self.registers is not None:
            registers = self.registers.expand(tokens.shape[0], -1, -1)
            parts = [registers, tokens] if self.cls_token is None else [tokens[:, :1], registers, tokens[:, 1:]]
            tokens = torch.cat(parts, dim=1)
        dropped: Tensor = self.dropout(tokens)
        return dropped

    def pooled(self, features: Tensor) -> Tensor:
        """The head's input (batch, dim) from the encoder's output: the class token, or the mean over the patches."""
        if self.cls_token is not None:
            return features[:, 0]
        return (features if self.registers is None else features[:, self.config.registers :]).mean(dim=1)

    def classified(self, features: Tensor) -> Tensor:
        """Logits from the encoder's output. Without a head, that output itself."""
        if self.head is None:
            return features
        logits: Tensor = self.head(self.pooled(features))
        return logits

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode. Frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.frozen_parts:
            assert isinstance(self.encoder, Encoder)
            for part in (self.dropout, *self.encoder.blocks[: self.frozen_parts - 1]):
                part.eval()
        return self


def without_weights(config: ModelConfig) -> ViT:
    """A model whose weights and buffers have no memory and no values yet. Load them with `load_state_dict` and `assign=True`.

    This saves the time for random weights if a model starts from pretrained ones. Buffers that are not in the state_dict are made here.
    """
    with torch.device("meta"):
        model = ViT(config)
    if config.positions == "rope":
        assert isinstance(model.encoder, Encoder)
        model.encoder.rope = Rope(config)
    return model


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight and buffer of a model, by its name in the state_dict, without creating the model."""
    dim, inner, hidden = config.dim, config.heads * config.head_width, config.mlp_width
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int = dim) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    linear("embed", dim, config.in_channels * config.patch_size**2)
    if config.positions != "rope":
        shapes["positions"] = (1, config.placed, dim)
    if config.pool == "cls":
        shapes["cls_token"] = (1, 1, dim)
    if config.registers:
        shapes["registers"] = (1, config.registers, dim)
    for block in (f"encoder.blocks.{i}" for i in range(config.depth)):
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        linear(f"{block}.attention.qkv", 3 * inner, dim, bias=config.qkv_bias)
        linear(f"{block}.attention.projection", dim, inner)
        linear(f"{block}.mlp.up", hidden, dim)
        linear(f"{block}.mlp.down", dim, hidden)
        if config.activation == "swiglu":
            linear(f"{block}.mlp.gate", hidden, dim)
        if config.qk_norm:
            norm(f"{block}.attention.query_norm", config.head_width)
            norm(f"{block}.attention.key_norm", config.head_width)
        if config.layer_scale is not None:
            shapes[f"{block}.scale1.factor"] = shapes[f"{block}.scale2.factor"] = (dim,)
    if config.norm == "pre":
        norm("encoder.norm")
    if config.num_classes:
        linear("head", config.num_classes, dim)
    return shapes


def resized(model: ViT, image_size: tuple[int, int]) -> ViT:
    """Copy a model for images of another size. It has the same weights, with learned positions interpolated in two dimensions.

    Args:
        image_size: height and width in pixels, multiples of the patch size.
    Raises: SpecError when the patch size does not divide them.
    """
    config = replace(model.config, image_size=image_size)
    other = ViT(config, encoder=copy.deepcopy(model.encoder))
    if isinstance(other.encoder, Encoder) and config.positions == "rope":
        other.encoder.rope = Rope(config)
    other = other.to(next(model.parameters()))
    state = model.state_dict()
    if isinstance(model.positions, nn.Parameter):
        state["positions"] = interpolate(model.positions.detach(), model.config.grid, config.grid)
    elif other.positions is not None:
        state["positions"] = other.positions  # computed, not learned
    other.load_state_dict(state)
    return other.train(model.training)


def decayed(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a model's parameters into those with weight decay (weight matrices) and those without (all others)."""
    tables = {"cls_token", "registers", "positions"}
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and name not in tables]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]


def _rate(rate: float | None, config: ModelConfig) -> float:
    return config.dropout if rate is None else rate
