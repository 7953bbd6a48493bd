"""What an image file says of itself before it is decoded: its format, size, channels, and the type of its values."""

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

MOST_CHANNELS = 16

EIGHT_BITS = ("JPEG", "BMP", "DIB", "WEBP", "GIF", "QOI")
"""Formats, besides PNG, TIFF and NPY, that never have more than 8 bits a value."""

OF_ANY_DEPTH = ("AVIF", "JPEG2000", "PPM")
"""Formats that may have more, which Pillow does not keep."""

PNG_MAGIC, NPY_MAGIC, TIFF_MAGICS = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""By the colour type: grey, RGB, palette, grey and alpha, RGB and alpha."""

_MODE_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I": 1, "F": 1, "LA": 2, "P": 3, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}
"""By Pillow's mode. The colours of a palette are RGB."""


@dataclass(frozen=True)
class Header:
    """What a file says of its image."""

    format: str
    """As Pillow calls it; NPY for an array of NumPy."""
    height: int
    width: int
    channels: int
    """As they are stored: transparency is one of them."""
    kind: str
    """Type of the values, as NumPy calls it: uint8, uint16, float32, …"""

    @property
    def words(self) -> str:
        """`3 channels of 8 bits`."""
        values = {"uint8": "8 bits", "uint16": "16 bits"}.get(self.kind, self.kind)
        return f"{self.channels} channel{'' if self.channels == 1 else 's'} of {values}"


def header_of(file: Path | bytes) -> Header:
    """Read the header of an image file.

    Args:
        file: its path, or its content.
    Raises: DataError where the file is of a kind that cannot be read, without the file's name; what Pillow and tifffile raise for a file
        that is damaged or no image.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
        head = opened.read(26)
        opened.seek(0)
        if head.startswith(NPY_MAGIC):
            return npy_header(opened).header
        if head.startswith(PNG_MAGIC) and head[12:16] == b"IHDR" and len(head) == 26:
            width, height, bits, colours = struct.unpack(">IIBB", head[16:26])
            return Header("PNG", height, width, _PNG_CHANNELS.get(colours, 0), "uint16" if bits == 16 else "uint8")
        if head.startswith(TIFF_MAGICS):
            with tiff_file(opened) as tiff:
                return tiff_header(tiff_pages(tiff))
        from PIL import Image

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(opened, formats=(*EIGHT_BITS, *OF_ANY_DEPTH)) as image:
                kind = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}.get(image.mode, "uint8")
                return Header(str(image.format), image.height, image.width, _MODE_CHANNELS.get(image.mode, 0), kind)


@dataclass(frozen=True)
class NpyHeader:
    """What a `.npy` file says of its array."""

    header: Header
    dtype: Any
    """Of NumPy, with the order of the bytes."""
    fortran: bool
    """Whether the first axis varies fastest."""


def npy_header(file: IO[bytes]) -> NpyHeader:
    """Read a `.npy` file up to its first value.

    Raises: DataError for arrays that are no image.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"no .npy file that can be read ({str(error).splitlines()[0]}); write it again with numpy.save.") from None
    if dtype.hasobject or dtype.fields is not None:
        raise DataError("an array of Python objects or records, which is not read; save an array of uint8 or uint16.")
    mend = "give (height, width) or (height, width, channels)"
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise DataError(f"an array of shape {shape}; {mend}.")
    channels = shape[2] if len(shape) == 3 else 1
    if channels > MOST_CHANNELS >= shape[0]:
        raise DataError(f"an array of shape {shape}, with the channels first; {mend}.")
    return NpyHeader(Header("NPY", shape[0], shape[1], channels, dtype.newbyteorder("=").name), dtype, fortran)


def tiff_file(opened: IO[bytes]) -> Any:
    """An open TIFF file; a context."""
    import tifffile  # here: few searches need it

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is raised, or does not matter
    return tifffile.TiffFile(opened)


def tiff_pages(tiff: Any) -> Sequence[Any]:
    """The pages of a TIFF file that make one image: one page with all channels, or a page for each channel.

    Smaller copies of the image and masks, which a file may hold besides, are left out.
    Raises: DataError for several pages that are not one image.
    """
    pages = []
    for page in tiff.pages:
        if not page.is_reduced and not page.is_mask:
            pages.append(page)
        if len(pages) > MOST_CHANNELS:
            raise DataError(f"more than {MOST_CHANNELS} pages; give one image of at most {MOST_CHANNELS} channels in each file.")
    if not pages:
        raise DataError("a TIFF file without a full image; write it again.")
    alike = {(page.imagewidth, page.imagelength, page.samplesperpixel, str(page.dtype), page.imagedepth) for page in pages}
    if len(pages) > 1 and (len(alike) > 1 or pages[0].samplesperpixel > 1):
        raise DataError(f"{len(pages)} pages that are not the channels of one image; give each image a file of its own.")
    return pages


def tiff_header(pages: Sequence[Any]) -> Header:
    """The header of an image in `tiff_pages`.

    Raises: DataError for values or colours that are not read.
    """
    page = pages[0]
    if page.imagedepth != 1:
        raise DataError("a TIFF file of volumes; give one flat image in each file.")
    kind = "None" if page.dtype is None else str(page.dtype)
    bits = page.bitspersample
    bits = set(bits) if isinstance(bits, tuple) else {bits}
    if kind in ("uint8", "uint16") and bits != {np.dtype(kind).itemsize * 8}:
        raise DataError(f"{', '.join(map(str, sorted(bits)))} bits a value; save it with 8 or 16.")
    return Header("TIFF", page.imagelength, page.imagewidth, len(pages) * page.samplesperpixel, kind)
