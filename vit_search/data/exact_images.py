"""Read images with exactly the depth and channels of their files: 8 or 16 bits per value, 1 to 16 channels.

Nothing is converted. A file with another depth or number of channels is refused. PNG, TIFF and NPY files may have 16 bits; TIFF and NPY
files may have any number of channels. Callers use decode.py.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from vit_search.data.image_headers import EIGHT_BITS, MOST_CHANNELS, Header, UnfitError, header_of, npy_header, tiff_file, tiff_pages
from vit_search.data.pixels import PixelsError, kind_of
from vit_search.errors import DataError, TooLargeError
from vit_search.text import counted

BYTES_A_PIXEL = 8
"""A decoded image may have this many bytes for each pixel of the largest image allowed."""

_PALETTE, _MINISWHITE, _MINISBLACK, _RGB, _YCBCR = 3, 0, 1, 2, 6
"""Values of the TIFF tag that says what colours a file has."""

_JPEG_IN_TIFF = 7
_ORIENTATION = 0x0112


def read_exact(raw: bytes, size: tuple[int, int] | None, channels: int, bits: int, *, max_pixels: int) -> np.ndarray:
    """Decode the content of an image file without conversion, upright, and resize it.

    Args:
        size: height and width, as in `read_image`; None keeps the file's.
        channels, bits: what the file must have.
        max_pixels: width times height of the largest image that is decoded.
    Returns: uint8 or uint16 (channels, height, width).
    Raises: DataError that says what is wrong, without the file's name. For a damaged file, also whatever the decoder raises.
    """
    header = header_of(raw)
    check_header(header, channels, bits)
    check_size(header.width, header.height, max_pixels)
    held = header.height * header.width * channels * (bits // 8)
    if held > BYTES_A_PIXEL * max_pixels:
        raise TooLargeError(f"{held:,} bytes of pixels; give an image of at most {BYTES_A_PIXEL * max_pixels:,}.")
    if header.format == "NPY":
        pixels = _read_npy(raw)
    elif header.format == "TIFF":
        pixels = _read_tiff(raw)
    else:
        pixels = _read_deep_png(raw) if bits == 16 else _read_by_pillow(raw)
    if pixels.shape[2] != channels or pixels.dtype.itemsize * 8 != bits:
        raise DataError(f"decoded as {kind_of(pixels)}, which its header does not say; save it anew.")
    return resized(np.moveaxis(pixels, -1, 0), size)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image with too many pixels.

    Raises: TooLargeError without the file's name.
    """
    if width * height > max_pixels:
        raise TooLargeError(f"{width}x{height} pixels; give an image of at most {max_pixels:,}.")


def fit_exact(pixels: np.ndarray, size: tuple[int, int] | None, channels: int, bits: int) -> np.ndarray:
    """Convert an image that is decoded already. The result is the same as `read_exact` of its file.

    Args:
        pixels: uint8 or uint16 (height, width) for one channel, or (height, width, channels).
    Raises: PixelsError for any other array.
    """
    wanted = f"uint{bits}"
    if not isinstance(pixels, np.ndarray) or pixels.dtype != wanted:
        kind = str(pixels.dtype) if isinstance(pixels, np.ndarray) else kind_of(pixels)
        raise PixelsError(f"{kind} pixels; give {wanted}, from 0 to {2**bits - 1:,}.")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] != channels:
        raise PixelsError(f"an array of shape {pixels.shape}; give (height, width, channels) with {channels} channels.")
    return resized(np.moveaxis(pixels, -1, 0), size)


def check_header(header: Header, channels: int, bits: int) -> None:
    """Refuse a file whose depth, type or number of channels is not the wanted one.

    Raises: UnfitError without the file's name.
    """
    found = header.found
    if header.format not in ("PNG", "TIFF", "NPY", *EIGHT_BITS):
        raise UnfitError(
            f"{header.format}, whose depth is not checked; save it as PNG, TIFF or NPY.", f"an image in the format {header.format}"
        )
    if header.format == "TIFF":
        check_pages(header)
    packed = header.kind.removeprefix("uint")
    if packed.isdecimal() and packed not in ("8", "16", "32", "64"):
        raise UnfitError(f"{counted(int(packed), 'bit')} a value; save it with 8 or 16.", found)
    if header.kind not in ("uint8", "uint16"):
        raise UnfitError(f"values of type {header.kind}; scale them to whole numbers, and save them as uint8 or uint16.", found)
    there = 8 if header.kind == "uint8" else 16
    if there != bits:
        if header.format in EIGHT_BITS:
            mend = "write data.bit_depth: 8, or give PNG, TIFF or NPY files of 16 bits"
            raise UnfitError(f"a {header.format} file has 8 bits a value, and 16 are needed (data.bit_depth); {mend}.", found)
        mend = f"set data.bit_depth: {there}, or save it with {bits} bits"
        raise UnfitError(f"{there} bits a value, and {bits} are needed (data.bit_depth); {mend}.", found)
    if header.channels > MOST_CHANNELS:
        raise UnfitError(f"{counted(header.channels, 'channel')} in this {header.format} file; images have 1 to {MOST_CHANNELS}.", found)
    if header.channels != channels:
        needed = f"{channels} {'is' if channels == 1 else 'are'} needed (data.channels)"
        stored = f"{counted(header.channels, 'channel')} in this {header.format} file"
        raise UnfitError(
            f"{stored}, and {needed}; write data.channels: {header.channels} if all images have so many, or convert it.", found
        )


def check_pages(header: Header) -> None:
    """Refuse a TIFF file whose pages are not the channels of one image.

    Raises: UnfitError without the file's name.
    """
    if header.pages > MOST_CHANNELS:
        text = f"more than {MOST_CHANNELS} pages; give one image of at most {MOST_CHANNELS} channels in each file."
        raise UnfitError(text, f"a TIFF file of more than {MOST_CHANNELS} pages")
    if header.pages > 1 and not header.stacked:
        found = f"{header.pages} pages that are not the channels of one image"
        raise UnfitError(f"{found}; give each image a file of its own.", f"a TIFF file of {header.pages} pages")


def resized(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Scale an image until it covers a height and width (bilinear, antialiased), and cut out its centre. Each channel is scaled by itself.

    Args:
        pixels: uint8 or uint16 (channels, height, width). uint16 is computed in float32 and rounded.
    """
    kind = pixels.dtype.newbyteorder("=")
    if size is None or pixels.shape[1:] == size:
        return np.ascontiguousarray(pixels, kind)
    from PIL import Image, ImageOps

    deep = kind != np.uint8
    fitted = np.empty((len(pixels), *size), kind)
    for channel, values in zip(fitted, pixels, strict=True):
        image = Image.fromarray(values.astype(np.float32) if deep else np.ascontiguousarray(values))
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
        channel[:] = np.rint(np.asarray(image)).clip(0, 65_535) if deep else np.asarray(image)
    return fitted


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image upright.

    Args:
        pixels: (height, width, channels).
        orientation: number from EXIF or TIFF. 1 is upright; so is every number outside 1 to 8.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _read_npy(raw: bytes) -> np.ndarray:
    """Decode a `.npy` file to (height, width, channels)."""
    file = io.BytesIO(raw)
    found = npy_header(file)
    shape, begin = (found.header.height, found.header.width, found.header.channels), file.tell()
    count = math.prod(shape)
    there, needed = len(raw) - begin, count * found.dtype.itemsize
    if there < needed:
        raise DataError(f"cut off: it has {there:,} bytes of pixels, and its header says {needed:,}; write it again.")
    return np.frombuffer(raw, found.dtype, count, begin).reshape(shape, order="F" if found.fortran else "C")


def _read_tiff(raw: bytes) -> np.ndarray:
    """Decode a TIFF file to (height, width, channels)."""
    with tiff_file(io.BytesIO(raw)) as tiff:
        pages = tiff_pages(tiff)
        first = pages[0]
        colours = int(first.photometric)
        if colours not in (_MINISWHITE, _MINISBLACK, _RGB) and not (colours == _YCBCR and int(first.compression) == _JPEG_IN_TIFF):
            raise DataError(f"a TIFF file with colours of the kind {first.photometric.name}; save it as grey, RGB or plain channels.")
        parts = []
        for page in pages:
            part = np.asarray(page.asarray(maxworkers=1)).reshape(page.shape)
            parts.append(np.moveaxis(part, 0, -1) if page.axes == "SYX" else part if page.axes == "YXS" else part[..., None])
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        if colours == _MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        tag = first.tags.get(_ORIENTATION)
        return turned(pixels, int(tag.value) if tag is not None else 1)


def _read_deep_png(raw: bytes) -> np.ndarray:
    """Decode a 16-bit PNG file to (height, width, channels). Pillow would give 8 bits for colours or transparency."""
    import imagecodecs  # imported here: few searches need it

    pixels: np.ndarray = imagecodecs.png_decode(raw)
    return turned(pixels[..., None] if pixels.ndim == 2 else pixels, _orientation(raw))


def _orientation(raw: bytes) -> int:
    """The orientation of a PNG file from its EXIF data; 1 (upright) if it has none."""
    if b"eXIf" not in raw:
        return 1
    from PIL import Image

    with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
        return int(image.getexif().get(_ORIENTATION, 1))


def _read_by_pillow(raw: bytes) -> np.ndarray:
    """Decode an 8-bit file to (height, width, channels)."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(raw), formats=("PNG", *EIGHT_BITS)) as opened:
        image: Any = opened
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            raise DataError(f"an image with colours of the kind {image.mode}; save it as grey or RGB.")
        pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels
