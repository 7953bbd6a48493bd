"""Read an image that somebody sends to be classified: a file as bytes or base64, or pixels. The rules are those of training.

The server and the packaged models use it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from vit_search.data.decode import MAX_FILE_BYTES, fit_pixels, is_exact, kind_taken, read_image
from vit_search.errors import DataError, TooLargeError

MAX_PIXELS = 25 * 10**6
"""Width times height of the largest image: a 24-megapixel photo fits. Lower than in training, because strangers may choose these files."""


def pixels_of(value: Any, size: tuple[int, int], channels: int, bit_depth: int | None = None) -> np.ndarray:
    """Read one image of a request.

    Args:
        value: an image file, as bytes or base64 text; or pixels, whole numbers from 0 to 255, (height, width, 1 or 3). For a model of
            another depth or number of channels: whole numbers from 0 to 255 or 65,535, (height, width, channels).
        size: height and width of the model's images.
        channels, bit_depth: as `read_image` got them in training.
    Returns: uint8 or uint16 (channels, height, width) of that size.
    Raises: DataError that says what is wrong; its subclass TooLargeError if the image is too large.
    """
    if isinstance(value, (str, bytes)):
        raw = _decoded(value, channels, bit_depth) if isinstance(value, str) else value
        return read_image(raw, size, channels, bit_depth, max_pixels=MAX_PIXELS, for_model=True)
    exact = is_exact(channels, bit_depth)
    return fit_pixels(_checked(value, (channels,) if exact else (1, 3), bit_depth or 8), size, channels, bit_depth)


def _decoded(text: str, channels: int, bit_depth: int | None) -> bytes:
    """Decode base64 to an image file. Line breaks are allowed: the command base64 makes them.

    Args:
        channels, bit_depth: of the model, for the message.
    """
    if len(text) > MAX_FILE_BYTES * 4 // 3 + 4:
        raise TooLargeError(f"{len(text):,} characters; give an image file of at most {MAX_FILE_BYTES:,} bytes.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"text that is not base64 ({reason}); this model takes {kind_taken(channels, bit_depth)}, in base64.") from None


def _checked(value: Any, channels: tuple[int, ...], bits: int) -> np.ndarray:
    """Check pixels: an array, or lists of whole numbers from JSON.

    Args:
        channels: the numbers of channels that are accepted.
        bits: bits of one value.
    """
    most, kind = 2**bits - 1, f"uint{bits}"
    try:
        pixels = value if isinstance(value, np.ndarray) and value.dtype != object else np.array(np.asarray(value, object).tolist())
    except ValueError:
        raise DataError("rows of different lengths; give (height, width, channels).") from None
    if pixels.dtype.kind not in "iu":
        kind_of_values = {"U": "text", "S": "text"}.get(pixels.dtype.kind, str(pixels.dtype))
        content = "nothing" if pixels.size == 0 or value is None else f"values of type {kind_of_values}"
        raise DataError(f"{content}; give {kind} pixels, 0 to {most}, or an image file as base64 or bytes.")
    if pixels.ndim != 3 or pixels.shape[2] not in channels or 0 in pixels.shape:
        wanted = "1 channel (grey) or 3 (RGB)" if channels == (1, 3) else f"{channels[0]} channel{'' if channels == (1,) else 's'}"
        raise DataError(f"shape {pixels.shape}; give (height, width, channels) with {wanted}.")
    if bits == 16 and pixels.dtype == np.uint8:  # pixels from JSON are int64, and fit either depth
        raise DataError(f"uint8 pixels; give {kind}, 0 to {most}.")
    if pixels.dtype != kind and (pixels.min() < 0 or pixels.max() > most):
        raise DataError(f"pixels from {pixels.min()} to {pixels.max()}; give 0 to {most}.")
    return pixels.astype(kind, copy=False)
