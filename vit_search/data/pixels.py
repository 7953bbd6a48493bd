"""Check that an image has the shape and type that every source must give; if not, one line says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_search.errors import DataError


class PixelsError(DataError):
    """An array is not an image as a source must give it."""


def checked_pixels(read: Callable[[], np.ndarray], shape: Sequence[int | None], where: str, bits: int = 8) -> np.ndarray:
    """Call `read`, and check the image that it returns.

    Args:
        shape: channels, height and width; None for any number.
        where: the source and the image, for the message.
        bits: 8 for uint8, 16 for uint16.
    Raises: PixelsError that says what is wrong and how to fix it; whatever `read` raises.
    """
    try:
        pixels = read()
    except PixelsError as error:
        raise PixelsError(f"{where}: {error}") from None
    except IndexError as error:
        raise PixelsError(f"{where}: labels has it, and read finds no such image ({error}); give as many labels as images.") from None
    fault = bytes_fault(pixels) if bits == 8 else deep_fault(pixels)
    if fault:
        raise PixelsError(f"{where}: {fault}")
    if len(shape) != pixels.ndim or any(side not in (None, there) for side, there in zip(shape, pixels.shape, strict=True)):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        mend = f"give (channels, height, width), here ({wanted}), as fit_pixels makes it"
        raise PixelsError(f"{where}: an array of shape {pixels.shape}; {mend}.")
    return pixels


def bytes_fault(pixels: Any) -> str:
    """Why a value is not an array of uint8, and how to fix it; empty if it is one."""
    if not isinstance(pixels, np.ndarray):
        return f"{kind_of(pixels)}; give a NumPy array of uint8."
    if pixels.dtype == np.uint8:
        return ""
    if pixels.dtype.kind not in "fiu" or not pixels.size or np.isnan(pixels).any():
        odd = " with NaN" if pixels.dtype.kind == "f" and np.isnan(pixels).any() else ""
        return f"{pixels.dtype} pixels{odd}; give uint8, from 0 to 255."
    least, most = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" and least >= 0 and most <= 1:
        return f"{pixels.dtype} pixels from {least:g} to {most:g}; multiply by 255 and round, then give uint8."
    return f"{pixels.dtype} pixels from {least:g} to {most:g}; give uint8, from 0 to 255."


def deep_fault(pixels: Any) -> str:
    """Why a value is not an array of uint16, and how to fix it; empty if it is one."""
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint16:
        return ""
    return f"{pixels.dtype if isinstance(pixels, np.ndarray) else kind_of(pixels)}; give a NumPy array of uint16, as data.bit_depth is 16."


def kind_of(value: Any) -> str:
    """What a value is, in short: `float64 (40, 2)`, `a list`."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
