"""Decode plain PNG files with libpng: the same values as Pillow's, in a third of the time.

Plain means 8 bits, grey or RGB, neither transparent nor interlaced. For small images, Pillow's time is mostly spent in Python: at 32x32
pixels, 134 µs against 40 µs on a two-core machine.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
"""Colour types of a PNG file."""

HARMLESS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"tIME", b"hIST"}
"""Chunks that change no pixel. Other chunks may turn the image, make parts of it transparent, or hold further images."""


def plain_png(raw: bytes, max_pixels: int) -> np.ndarray | None:
    """Decode a plain PNG file; None for any other file. A damaged file gives None too: Pillow's error then says what is wrong.

    Args:
        max_pixels: width times height of the largest image that is decoded.
    Returns: uint8 (height, width) for grey, or (height, width, 3).
    """
    decode = _libpng()
    if decode is None or not _is_plain(raw, max_pixels):
        return None
    try:
        return decode(raw)
    except Exception:  # damaged bytes can make libpng raise anything
        return None


@functools.cache
def _libpng() -> Callable[[bytes], np.ndarray] | None:
    """libpng's decoder; None if it is missing, as in the environment of a packaged model, which may have only Pillow."""
    try:
        from imagecodecs import png_decode
    except ImportError:
        return None
    return png_decode


def _is_plain(raw: bytes, max_pixels: int) -> bool:
    """Whether the file is complete and has only harmless chunks. libpng itself checks the checksums of the pixels' chunks."""
    if not raw.startswith(SIGNATURE) or len(raw) < 33:
        return False
    width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", raw, 16)
    if depth != 8 or colour not in (GREY, RGB) or any(methods) or not 0 < width * height <= max_pixels:
        return False
    at = len(SIGNATURE)
    while at + 12 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, at)
        end = at + 12 + length
        if kind not in HARMLESS or end > len(raw) or (kind == b"IHDR") != (at == len(SIGNATURE)):
            return False
        if kind != b"IDAT" and zlib.crc32(raw[at + 4 : end - 4]) != int.from_bytes(raw[end - 4 : end]):
            return False
        if kind == b"IEND":
            return bool(end == len(raw))
        at = end
    return False
