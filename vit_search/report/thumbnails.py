"""Small versions of images inside a page: PNG files as `data:` URIs, in sheets of tiles with text below each.

So the page stays one file, and loads nothing. A thumbnail has at most 64 x 64 pixels. It adds at most 17 kB to the page, whatever the
size of the image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIDE = 64
"""Maximum pixels of a thumbnail's longer side. 64 x 64 x 3 bytes are 12.3 kB, and base64 turns 3 bytes into 4."""

COARSE = 48
"""If an image's longer side has fewer pixels than this, it is shown enlarged, with square pixels."""


@dataclass(frozen=True)
class Thumbnail:
    """One image in a page."""

    source: str
    """A `data:` URI of a PNG file."""
    alt: str
    """What it shows, as text for people who cannot see it."""
    coarse: bool = False
    """Whether it is so small that its pixels should be drawn as squares."""


@dataclass(frozen=True)
class Tile:
    """One or a few images that belong together, with lines of text below."""

    images: Sequence[Thumbnail]
    lines: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """Tiles side by side, as many in a row as fit."""

    caption: str
    tiles: Sequence[Tile]


def thumbnail(pixels: npt.NDArray[np.unsignedinteger], alt: str) -> Thumbnail:
    """Make a thumbnail of an image. It is never larger than the image.

    Args:
        pixels: uint8 or uint16 (channels, height, width), in the full range of the type. Of 2 channels, the first is shown in grey. Of 4 or
            more, the first three are shown as red, green and blue.
        alt: what it shows.
    """
    from PIL import Image  # here, because other reports do not need Pillow

    channels = 3 if pixels.shape[0] >= 3 else 1
    shown = pixels[:channels] // 256 if pixels.dtype == np.uint16 else pixels[:channels]
    rows = np.ascontiguousarray(np.moveaxis(shown, 0, -1), np.uint8)
    image = Image.fromarray(rows if channels == 3 else rows[:, :, 0])
    longer = max(image.size)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Thumbnail(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", alt, coarse=longer < COARSE)
