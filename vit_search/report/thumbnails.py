"""Small pictures of images inside a page: PNG files as `data:` URIs, in sheets of tiles with a few words below each.

The page stays one file, and no picture is fetched from anywhere. A thumbnail has at most 64 x 64 pixels, so it adds at most 17 kB
to the page, whatever the size of the image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIDE = 64
"""Pixels of a thumbnail's longer side, at most. 64 x 64 x 3 bytes are 12.3 kB, and base64 makes 4 bytes of 3."""

COARSE = 48
"""An image whose longer side has fewer pixels is shown enlarged, with square pixels."""


@dataclass(frozen=True)
class Thumbnail:
    """One image, as a page holds it."""

    source: str
    """A `data:` URI of a PNG file."""
    alt: str
    """What it shows, for whoever does not see it."""
    coarse: bool = False
    """Whether it is so small that its pixels are to be drawn as squares."""


@dataclass(frozen=True)
class Tile:
    """One image, or a few that belong together, with lines of text below."""

    images: Sequence[Thumbnail]
    lines: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """Tiles side by side, as many in a row as there is room for."""

    caption: str
    tiles: Sequence[Tile]


def thumbnail(pixels: npt.NDArray[np.unsignedinteger], alt: str) -> Thumbnail:
    """An image as a page holds it. It is made smaller where it is larger than SIDE, never larger.

    Args:
        pixels: uint8 or uint16 (channels, height, width), on the whole scale of the type. Of 2 channels the first is shown, in grey; of 4
            or more the first three, as red, green and blue.
        alt: what it shows.
    """
    from PIL import Image  # here: reports of other searches need no Pillow

    channels = 3 if pixels.shape[0] >= 3 else 1
    shown = pixels[:channels] // 256 if pixels.dtype == np.uint16 else pixels[:channels]
    rows = np.ascontiguousarray(np.moveaxis(shown, 0, -1), np.uint8)
    image = Image.fromarray(rows if channels == 3 else rows[:, :, 0])
    longer = max(image.size)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Thumbnail(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", alt, coarse=longer < COARSE)
