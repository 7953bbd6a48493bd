"""What a person may send to be classified: an image file as bytes or base64, or decoded pixels; read by the rules of training."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from vit_search.data.decode import MAX_FILE_BYTES, fit_pixels, is_exact, kind_taken, read_image
from vit_search.errors import DataError, TooLargeError

MAX_PIXELS = 25 * 10**6
"""Width times height of an image: what cameras of 24 megapixels make. Less than in training, where nobody else chooses the files."""


def pixels_of(value: Any, size: tuple[int, int], channels: int, bit_depth: int | None = None) -> np.ndarray:
    """One image of a request.

    Args:
        value: an image file, as bytes or as base64 text; or its pixels, whole numbers 0 to 255, (height, width, 1 or 3). For a model of
            images of another depth or number of channels: whole numbers from 0 to 255 or 65,535, (height, width, channels).
        size: height and width that the model was trained on.
        channels, bit_depth: as of `read_image`, by which the model was trained.
    Returns: uint8 or uint16 (channels, height, width) of that size.
    Raises: DataError that says what is wrong with it; TooLargeError, one of them, where it is that.
    """
    if isinstance(value, (str, bytes)):
        raw = _decoded(value, channels, bit_depth) if isinstance(value, str) else value
        return read_image(raw, size, channels, bit_depth, max_pixels=MAX_PIXELS, for_model=True)
    exact = is_exact(channels, bit_depth)
    return fit_pixels(_checked(value, (channels,) if exact else (1, 3), bit_depth or 8), size, channels, bit_depth)


def _decoded(text: str, channels: int, bit_depth: int | None) -> bytes:
    """An image file from base64; line breaks, as the command base64 makes them, are allowed.

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
    """Decoded pixels: bytes, or whole numbers from JSON.

    Args:
        channels: the numbers that will do. bits: of a value.
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
    if bits == 16 and pixels.dtype == np.uint8:  # from JSON come int64, which may be of either depth
        raise DataError(f"uint8 pixels; give {kind}, 0 to {most}.")
    if pixels.dtype != kind and (pixels.min() < 0 or pixels.max() > most):
        raise DataError(f"pixels from {pixels.min()} to {pixels.max()}; give 0 to {most}.")
    return pixels.astype(kind, copy=False)
