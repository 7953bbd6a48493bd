"""Read the header of an image file without decoding it: format, size, channels and type of the values."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vit_search.errors import DataError
from vit_search.text import counted

MOST_CHANNELS = 16

MAX_PIXELS = 64 * 10**6
"""Width times height of the largest image that is decoded."""

EIGHT_BITS = ("JPEG", "BMP", "DIB", "WEBP", "GIF", "QOI")
"""Formats other than PNG, TIFF and NPY that never have more than 8 bits per value."""

OF_ANY_DEPTH = ("AVIF", "JPEG2000", "PPM")
"""Formats that may have more bits, which Pillow does not keep."""

PNG_MAGIC, NPY_MAGIC, TIFF_MAGICS = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Channels by PNG colour type: grey, RGB, palette, grey with alpha, RGB with alpha."""

_MODE_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I": 1, "F": 1, "LA": 2, "P": 3, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}
"""Channels by Pillow's mode. A palette has RGB colours."""


class UnfitError(DataError):
    """An intact image that does not fit the keys of the search file: another depth, other channels, several pages."""

    def __init__(self, text: str, found: str = "") -> None:
        super().__init__(text)
        self.found = found
        """What the file has. Users of a trained model get this text, because they cannot change the keys."""


@dataclass(frozen=True)
class Header:
    """What a file says about its image."""

    format: str
    """Pillow's name for the format; NPY for a NumPy array."""
    height: int
    width: int
    channels: int
    """As they are stored: transparency counts as one."""
    kind: str
    """NumPy's name for the type of the values: uint8, uint16, float32, …; for example uint12 if NumPy has no such type."""
    pages: int = 1
    """Full-size pages of a TIFF file, at most MOST_CHANNELS + 1. For another format, 2 if it has several frames."""
    stacked: bool = False
    """Whether several pages are the channels of one image: all are grey, of one size and type."""

    @property
    def words(self) -> str:
        """For example `3 channels of 8 bits`."""
        bits = self.kind.removeprefix("uint")
        return f"{counted(self.channels, 'channel')} of {counted(int(bits), 'bit') if bits.isdecimal() else self.kind}"

    @property
    def found(self) -> str:
        """For example `5 channels of 8 bits in this TIFF file`."""
        return f"{self.words} in this {self.format} file"


def header_of(file: Path | bytes) -> Header:
    """Read the header of an image file.

    Args:
        file: its path, or its content.
    Raises: DataError without the file's name if this kind of file is not supported. For a damaged file, or one that is no image, whatever
        Pillow and tifffile raise.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
        head = opened.read(26)
        opened.seek(0)
        if head.startswith(NPY_MAGIC):
            return npy_header(opened).header
        if head.startswith(PNG_MAGIC) and head[12:16] == b"IHDR" and len(head) == 26:
            width, height, bits, colours = struct.unpack(">IIBB", head[16:26])
            kind = "uint16" if bits == 16 else "uint8"
            return Header("PNG", height, width, _PNG_CHANNELS.get(colours, 0), kind, 2 if _is_animated_png(opened) else 1)
        if head.startswith(TIFF_MAGICS):
            with tiff_file(opened) as tiff:
                return tiff_header(tiff_pages(tiff))
        from PIL import Image

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(opened, formats=(*EIGHT_BITS, *OF_ANY_DEPTH)) as image:
                kind = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}.get(image.mode, "uint8")
                stereo = image.format == "MPO"  # a JPEG file that many cameras write: the photo, and a small copy or another view
                pages = 2 if getattr(image, "is_animated", False) and not stereo else 1
                name = "JPEG" if stereo else str(image.format)
                return Header(name, image.height, image.width, _MODE_CHANNELS.get(image.mode, 0), kind, pages)


def _is_animated_png(file: IO[bytes]) -> bool:
    """Whether a PNG file says, before its pixels, that it has several frames."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"acTL":
            return file.read(4) > b"\0\0\0\1"
        if kind == b"IDAT":
            return False
        file.seek(size + 4, io.SEEK_CUR)
    return False


@dataclass(frozen=True)
class NpyHeader:
    """What a `.npy` file says about its array."""

    header: Header
    dtype: Any
    """NumPy's type, with the byte order."""
    fortran: bool
    """Whether the first axis varies fastest."""


def npy_header(file: IO[bytes]) -> NpyHeader:
    """Read a `.npy` file up to its first value.

    Raises: DataError for an array that is not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for files that Python 2 wrote
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
    except Exception:  # a damaged header can make Python's parser raise SyntaxError, MemoryError, TokenError, …
        raise DataError("an NPY file whose header is damaged; write it again with numpy.save.") from None
    if any(isinstance(side, bool) or not -(2**63) <= side < 2**63 for side in shape):
        raise DataError("an NPY file whose header is damaged; write it again with numpy.save.")
    if dtype.kind not in "biufc":
        raise DataError("an array of Python objects, texts or records, which is not read; save an array of uint8 or uint16.")
    mend = "give (height, width) or (height, width, channels)"
    if len(shape) not in (2, 3) or min(shape) < 1:
        shown = f"of shape {shape}" if len(shape) < 8 else f"of {len(shape)} axes"
        raise DataError(f"an array {shown}; {mend}.")
    channels = shape[2] if len(shape) == 3 else 1
    if channels > MOST_CHANNELS >= shape[0]:
        raise DataError(f"an array of shape {shape}, with the channels first; {mend}.")
    return NpyHeader(Header("NPY", shape[0], shape[1], channels, dtype.newbyteorder("=").name), dtype, fortran)


def tiff_file(opened: IO[bytes]) -> Any:
    """Open a TIFF file, as a context manager."""
    import tifffile  # imported here: few searches need it

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it raises what matters
    return tifffile.TiffFile(opened)


def tiff_pages(tiff: Any) -> Sequence[Any]:
    """The full-size pages of a TIFF file, at most MOST_CHANNELS + 1. Smaller copies of the image and masks are left out.

    Raises: DataError if there is no such page.
    """
    pages = []
    for page in tiff.pages:
        if not page.is_reduced and not page.is_mask:
            pages.append(page)
        if len(pages) > MOST_CHANNELS:
            break
    if not pages:
        raise DataError("a TIFF file without a full image; write it again.")
    return pages


def tiff_header(pages: Sequence[Any]) -> Header:
    """The header of the image in `tiff_pages`: one page with all channels, or one page per channel.

    Raises: DataError for values that are not supported.
    """
    page = pages[0]
    if page.imagedepth != 1:
        raise DataError("a TIFF file of volumes; give one flat image in each file.")
    kind = "None" if page.dtype is None else str(page.dtype)
    bits = page.bitspersample
    bits = set(bits) if isinstance(bits, tuple) else {bits}
    if len(bits) > 1:
        raise DataError(f"channels of {', '.join(map(str, sorted(bits)))} bits a value; save them with 8 or 16.")
    if kind in ("bool", "uint8", "uint16"):
        kind = f"uint{bits.pop()}"
    alike = {(page.imagewidth, page.imagelength, page.samplesperpixel, str(page.dtype), page.imagedepth) for page in pages}
    stacked = len(pages) > 1 and len(alike) == 1 and page.samplesperpixel == 1
    channels = len(pages) if stacked else page.samplesperpixel
    return Header("TIFF", page.imagelength, page.imagewidth, channels, kind, len(pages), stacked)
