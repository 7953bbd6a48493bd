"""Rotary positions in two dimensions: attention rotates queries and keys by the row and the column of their patch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vit_search.config.model_config import ModelConfig


def rope_angles(rows: int, cols: int, head_width: int, base: float) -> Tensor:
    """How far each pair of a head's values is rotated, in radians: a quarter of the width by the row, a quarter by the column.

    Rows and columns run from -1 to 1 between the outer edges of the image, whatever its size; a patch stands at its centre.

    Returns: float64 (rows * cols, head_width // 2). Coordinates and frequencies are rounded to float32, as published weights know them.
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
    """Rotates the tokens of patches; the class token and registers, which have no position, stay as they are.

    The tables are formulas, so no checkpoint holds them.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patches = rope_angles(*config.grid, config.head_width, config.rope_base)
        self._angles = torch.cat([patches.new_zeros(config.prefix, patches.shape[1]), patches])[:, None]  # alike for all heads
        self.register_buffer("cosines", self._angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sines", self._angles.sin().to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        """Make the tables anew where a model is cast or moved: those of float32 would be as coarse in float64."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.cosines, self.sines = self._angles.cos().to(self.cosines), self._angles.sin().to(self.sines)
        return self

    def forward(self, heads: Tensor) -> Tensor:
        """(batch, tokens, heads, head_width) to the same: value i of a head and value i + head_width / 2 are rotated as a pair."""
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * self.cosines - second * self.sines, second * self.cosines + first * self.sines], dim=-1)
