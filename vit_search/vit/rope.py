"""Rotary positions in two dimensions (RoPE): attention rotates queries and keys by the row and the column of their patch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vit_search.config.model_config import ModelConfig


def rope_angles(rows: int, cols: int, head_width: int, base: float) -> Tensor:
    """Angle of each pair of a head's values, in radians. Half of the pairs rotate by the row, half by the column.

    Rows and columns run from -1 to 1 between the outer edges of the image, whatever its size. A patch has the position of its centre.

    Returns: float64 (rows * cols, head_width // 2). Coordinates and frequencies are rounded to float32, as for published weights.
    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864; the coordinates are DINOv3's (https://arxiv.org/abs/2508.10104, section 3.2).
    """
    quarter = head_width // 4
    frequencies = 1 / base ** (torch.arange(quarter, dtype=torch.float32) / quarter)

    def turns(count: int) -> Tensor:
        centres = 2 * ((torch.arange(count, dtype=torch.float32) + 0.5) / count) - 1
        return (2 * math.pi * centres).double()[:, None] * frequencies.double()

    by_row, by_col = turns(rows)[:, None].expand(rows, cols, quarter), turns(cols)[None].expand(rows, cols, quarter)
    return torch.cat([by_row, by_col], dim=-1).flatten(0, 1)


class Rope(nn.Module):
    """Rotates the tokens of patches. The class token and registers have no position and stay as they are.

    The tables are calculated, so no checkpoint contains them.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patches = rope_angles(*config.grid, config.head_width, config.rope_base)
        self._angles = torch.cat([patches.new_zeros(config.prefix, patches.shape[1]), patches])[:, None]  # the same for all heads
        self.register_buffer("cosines", self._angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sines", self._angles.sin().to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        """Calculate the tables again when a model is cast or moved. A cast from float32 to float64 would keep them coarse."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.cosines, self.sines = self._angles.cos().to(self.cosines), self._angles.sin().to(self.sines)
        return self

    def forward(self, heads: Tensor) -> Tensor:
        """Rotate (batch, tokens, heads, head_width). Values i and i + head_width / 2 of a head are rotated as a pair."""
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * self.cosines - second * self.sines, second * self.cosines + first * self.sines], dim=-1)
