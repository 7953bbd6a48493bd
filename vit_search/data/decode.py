"""Decode one image, from a file or from pixels, to a given size: which formats are read, and how values are scaled.

Training, `predict` and serving use the same functions, so that all of them see the same pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vit_search.data.exact_images import check_header, check_size, fit_exact, read_exact
from vit_search.data.image_headers import MAX_PIXELS, MOST_CHANNELS, NPY_MAGIC, Header, UnfitError, header_of
from vit_search.data.parallel import CHUNK, in_chunks, shared_array
from vit_search.data.pixels import PixelsError, bytes_fault, checked_pixels
from vit_search.data.plain_png import plain_png
from vit_search.data.progress import step
from vit_search.errors import DataError, TooLargeError
from vit_search.text import counted

T = TypeVar("T")

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
NAMED_FORMATS = {".tga": ("TGA",)}
"""Formats that only the ending of the file name tells. Their content has no signature."""

DAMAGED_SHOWN = 20
"""Damaged images that one message names at most."""

_SUBFILE, _COPY_OR_MASK = 254, 1 | 4
"""The tag that says what a TIFF page is, and its bits for a smaller copy and for a mask."""

REPLACE = "; replace or remove it."
"""End of a message about a damaged file of a data set: what to do."""

TURNED_BY = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Where Pillow finds the orientation of an image that is not a TIFF."""

MAX_FILE_BYTES = 64 * 2**20
STRIP_PIXELS = 2**20
"""Pixels that are converted at once: converting a large image as a whole would need one more copy of it."""


def read_image(
    file: Path | bytes,
    size: tuple[int, int] | None,
    channels: int,
    bit_depth: int | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    for_model: bool = False,
) -> np.ndarray:
    """Decode one image file, upright.

    Args:
        file: its path, or its content.
        size: height and width; None keeps the file's. The image is scaled until it covers them (bilinear, antialiased), and its centre is
            cut out.
        channels: 1 (grey) or 3 (RGB); transparent images get a black background. Any other number is read as if `bit_depth` were given.
        bit_depth: None converts all values to 8 bits. With 8 or 16, the file must have exactly this depth and these channels.
        max_pixels: width times height of the largest image that is decoded. Decoding takes up to 8 bytes of memory per pixel.
        for_model: whether a trained model gets the image. Messages then say what this model takes, and name no key of a search file.
    Returns: uint8 (channels, height, width), or uint16 with a depth of 16.
    Raises: DataError that names the file and says what is wrong with it.
    """
    name = "image" if isinstance(file, bytes) else str(file)
    try:
        raw = file if isinstance(file, bytes) else _bounded(file)
        if is_exact(channels, bit_depth):
            return read_exact(raw, size, channels, bit_depth or 8, max_pixels=max_pixels)
        plain = plain_png(raw, max_pixels)
        if plain is not None:
            return _fitted_array(plain, size, channels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(raw, "" if isinstance(file, bytes) else file.suffix, max_pixels) as opened:
                return _decoded(opened, size, channels)
    except Exception as error:  # damaged bytes can make a decoder raise anything, for example struct.error or TypeError for EXIF
        reason = error if isinstance(error, DataError) else undecodable(error, max_pixels)
        text = str(reason)
        if for_model and isinstance(reason, UnfitError):
            text = f"{reason.found}; this model takes {kind_taken(channels, bit_depth)}."
        elif for_model and text.endswith(REPLACE):
            text = f"{text.removesuffix(REPLACE)}; this model takes {kind_taken(channels, bit_depth)}."
        raise type(reason)(f"{name}: {text}") from None


def check_file(file: Path | bytes, channels: int, bit_depth: int | None = None) -> Header | None:
    """Refuse an image file whose header `read_image` would refuse. Nothing is decoded.

    Args:
        file, channels, bit_depth: see `read_image`.
    Returns: the header; None if `header_of` does not know the format, or the header lacks something.
    Raises: DataError without the file's name.
    """
    try:
        if is_exact(channels, bit_depth):
            header = header_of(file)
            check_header(header, channels, bit_depth or 8)
            check_size(header.width, header.height, MAX_PIXELS)
            return header
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _opened(file, "" if isinstance(file, bytes) else file.suffix, MAX_PIXELS).close()
    except DataError:
        raise
    except Exception as error:
        raise undecodable(error) from None
    try:
        return header_of(file)
    except Exception:
        return None


def kind_taken(channels: int, bit_depth: int | None) -> str:
    """Which images a model takes, in words, if its training read images in this way."""
    if not is_exact(channels, bit_depth):
        return "grey and colour images, as PNG or JPEG"
    bits = bit_depth or 8
    formats = ("PNG, " if channels < 5 else "") + ("JPEG, " if bits == 8 and channels in (1, 3) else "") + "TIFF or NPY"
    return f"{counted(channels, 'channel')} of {bits} bits, as {formats}"


def undecodable(error: Exception, max_pixels: int = MAX_PIXELS) -> DataError:
    """Turn an error of the file system or of a decoder into a message of ours, without the file's name."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
        return DataError(f"cannot be read ({error.strerror}); name an image file.")
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, which is higher than ours
        number = re.search("[0-9]+", str(error))
        shown = f"{int(number[0]):,}" if number else f"more than {max_pixels:,}"
        return TooLargeError(f"{shown} pixels; give an image of at most {max_pixels:,}.")
    why = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, UnidentifiedImageError):
        why = "of no known format"
    return DataError(f"no image that can be decoded ({why}){REPLACE}")


def _opened(file: Path | bytes, suffix: str, max_pixels: int) -> Any:
    """Open an image with Pillow, as a context manager. No pixels are read.

    Args:
        suffix: ending of the file's name, if it has one.
    Raises: DataError without the file's name.
    """
    from PIL import Image, UnidentifiedImageError

    _quieten_pillow()
    try:
        formats = (*IMAGE_FORMATS, *NAMED_FORMATS.get(suffix.lower(), ()))
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats)
    except UnidentifiedImageError as error:
        raise _unidentified(file, error) from None
    check_size(image.width, image.height, max_pixels)
    if image.format == "TIFF" and getattr(image, "is_animated", False):
        _check_pages(image)
    return image


@cache
def _quieten_pillow() -> None:
    """Keep Pillow and its libtiff from printing warnings: our error message is enough."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # if this fails, there is only a line too many
        loaded = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libtiff" in line}
        for path in loaded:
            library = ctypes.CDLL(path)
            for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                handler.restype = ctypes.c_void_p
                handler(None)


def _unidentified(file: Path | bytes, error: Exception) -> DataError:
    """Why Pillow cannot read a file: other channels than grey and RGB, an array, or no image at all."""
    try:
        header = header_of(file)
        if header.format not in ("TIFF", "NPY"):
            return undecodable(error)
        if header.kind not in ("uint8", "uint16"):
            check_header(header, header.channels, 8)
    except DataError as reason:
        return reason
    except Exception:
        return undecodable(error)
    if not 1 <= header.channels <= MOST_CHANNELS:
        return UnfitError(f"{header.found}; images have 1 to {MOST_CHANNELS} channels.", header.found)
    bits = 16 if header.kind == "uint16" else 8
    depth = f" and data.bit_depth: {bits}" if bits == 16 or header.channels in (1, 3) else ""
    return UnfitError(f"{header.found}; write data.channels: {header.channels}{depth} to have them read.", header.found)


def _check_pages(image: Any) -> None:
    """Refuse a TIFF file whose pages may be the channels of one image: all grey, of one size and type. Of others, the first page is read.

    Args:
        image: open, from Pillow. It is back at its first page afterwards.
    Raises: UnfitError without the file's name.
    """
    first, pages = (image.size, image.mode), 0
    try:
        for frame in range(MOST_CHANNELS + 1):
            image.seek(frame)
            if image.tag_v2.get(_SUBFILE, 0) & _COPY_OR_MASK:
                continue
            if (image.size, image.mode) != first or image.mode not in ("L", "I;16", "I;16B"):
                pages = 0
                break
            pages += 1
    except EOFError:
        pass
    except Exception:
        pages = 0  # a damaged page that is not read
    image.seek(0)
    if pages > 1:
        number = f"{pages} pages" if pages <= MOST_CHANNELS else f"more than {MOST_CHANNELS} pages"
        found = f"{number}, all grey and of one size, in this TIFF file"
        depth = " and data.bit_depth: 16" if first[1] != "L" else " and data.bit_depth: 8" if pages == 3 else ""
        mend = f"write data.channels: {pages}{depth} if they are the channels of one image, or save" if pages <= MOST_CHANNELS else "save"
        raise UnfitError(f"{found}; {mend} the page that you want as a file of its own.", found)


def _decoded(opened: Any, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Decode an open Pillow image to uint8 (channels, height, width)."""
    from PIL import ImageOps

    image = opened
    image.load()
    if _may_be_turned(image):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # 16 or more bits per pixel
        image = _to_bytes(image, opened.format == "PPM")
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        image = _in_strips(image, "RGB", _on_black)
    return _fitted(image, size, channels)


def is_exact(channels: int, bit_depth: int | None) -> bool:
    """Whether values are read as the file has them. A file with another depth or number of channels is then refused."""
    return bit_depth is not None or channels not in (1, 3)


def begins_as_image(content: bytes, name: str = "", *, npy: bool = False) -> bool:
    """Whether the first 16 bytes are those of a format that `read_image` reads.

    Args:
        content: the file's content, or its beginning.
        name: the file's name. If its ending is in NAMED_FORMATS, every content is accepted.
        npy: whether NPY counts as such a format.
    """
    from PIL import Image

    if npy and content.startswith(NPY_MAGIC):
        return True
    if Path(name).suffix.lower() in NAMED_FORMATS:
        return True
    Image.init()
    head = content[:16].ljust(16, b"\0")  # some checks read bytes that a shorter file lacks
    accepts = (Image.OPEN[image_format][1] for image_format in IMAGE_FORMATS if image_format in Image.OPEN)
    return any(accept is not None and accept(head) for accept in accepts)


def _may_be_turned(image: Any) -> bool:
    """Whether a loaded Pillow image has tags that may say which side is up.

    Pillow's own check takes 12 µs, which is much for a small image.
    """
    return hasattr(image, "tag_v2") or getattr(image, "_exif", None) is not None or any(key in image.info for key in TURNED_BY)


def _strips(image: Any) -> Iterator[tuple[int, Any]]:
    """Cut a Pillow image into strips of rows. Yields the first row of each strip, and a copy of the strip."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Any, mode: str, convert: Callable[[Any], Any]) -> Any:
    from PIL import Image

    whole = Image.new(mode, image.size)
    for top, strip in _strips(image):
        whole.paste(convert(strip), (0, top))
    return whole


def _on_black(image: Any) -> Any:
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def _to_bytes(image: Any, full_range: bool) -> Any:
    """Scale a Pillow image of 16 or 32 bits per pixel to 0 to 255. White is taken to be

    - 65,535 for 16 bits,
    - 255 for 32-bit integers, or 65,535 if one is above 255,
    - 1 for fractions, or 255 if one is above 1.

    Args:
        full_range: whether white is always 65,535 for 32-bit integers: Pillow makes such integers from PPM files.
    Raises: DataError if the values fit none of these.
    """
    from PIL import Image

    bounds = [(np.min(strip), np.max(strip)) for _, strip in _strips(image)]
    least, most = np.min(bounds), np.max(bounds)
    fraction = image.mode == "F"
    scale = 255.0 if fraction and most <= 1 else 1.0 if fraction or (image.mode == "I" and most <= 255 and not full_range) else 1 / 257
    if not (least >= 0 and round(most * scale, 4) <= 255):
        raise DataError(f"pixels from {least:g} to {most:g}, whose scale is unknown; save it with 8 or 16 bits a pixel.")

    def scaled(strip: Any) -> Any:
        pixels = np.asarray(strip).astype(np.float64)
        if fraction:
            pixels = np.round(pixels * scale, 4)  # 0.2 in 32 bits is a little more than 0.2
        elif scale < 1:
            pixels = pixels / 257
        return Image.fromarray(pixels.astype(np.uint8))

    return _in_strips(image, "L", scaled)


def read_images(files: Sequence[Path], size: tuple[int, int], channels: int, bit_depth: int | None = None, *, source: str) -> np.ndarray:
    """Read many files for a trained model with `read_image`; see `read_all`."""
    read = partial(read_image, size=size, channels=channels, bit_depth=bit_depth, for_model=True)
    return read_all(files, read, (channels, *size), source=source, bits=bit_depth or 8)


def read_all(
    images: Sequence[T], read: Callable[[T], np.ndarray], shape: tuple[int, int, int], *, source: str, bits: int = 8
) -> np.ndarray:
    """Decode many images with `read`, on all cores.

    Args:
        shape: channels, height and width of each image.
        source: what the images belong to, for messages.
        bits: bits of one value, 8 or 16.
    Returns: uint8 or uint16 (n, channels, height, width).
    Raises: DataError that counts all images that cannot be used, and names the first DAMAGED_SHOWN; PixelsError for the first that breaks
        the rules for sources.
    """
    from PIL import Image

    Image.preinit()  # once, not in each process
    pixels = shared_array((len(images), *shape), bits)

    def decode(chunk: range) -> tuple[list[str], PixelsError | None]:
        """What is wrong with some of the images. It stops at an image that breaks the rules for sources."""
        problems: list[str] = []
        for i in chunk:
            try:
                pixels[i] = checked_pixels(partial(read, images[i]), shape, f"{source}: image {images[i]}", bits)
            except PixelsError as error:
                return problems, error
            except DataError as error:
                problems.append(str(error))
        return problems, None

    damaged: list[str] = []
    with step("decoding", len(images), "images") as advance:
        for begin, (problems, odd) in zip(range(0, len(images), CHUNK), in_chunks(len(images), decode), strict=True):
            if odd is not None:
                raise odd
            damaged += problems
            advance(min(CHUNK, len(images) - begin))
    if len(damaged) == 1:
        raise DataError(damaged[0])
    if damaged:
        shown = "\n  ".join(damaged[:DAMAGED_SHOWN])
        more = f"\n  and {len(damaged) - DAMAGED_SHOWN} more" if len(damaged) > DAMAGED_SHOWN else ""
        raise DataError(f"{source}: {len(damaged)} images cannot be used:\n  {shown}{more}")
    return pixels


def fit_pixels(pixels: np.ndarray, size: tuple[int, int] | None, channels: int, bit_depth: int | None = None) -> np.ndarray:
    """Convert an image that is decoded already. The result is the same as `read_image` of its file.

    Args:
        pixels: uint8 (height, width) or (height, width, 1) for grey, (height, width, 3) for RGB. With a bit depth, or other channels: uint8
            or uint16 (height, width, channels).
        size, channels, bit_depth: see `read_image`.
    Returns: uint8 (channels, height, width), or uint16 with a depth of 16.
    Raises: PixelsError for any other array.
    """
    if is_exact(channels, bit_depth):
        return fit_exact(pixels, size, channels, bit_depth or 8)
    fault = bytes_fault(pixels)
    if fault:
        raise PixelsError(fault)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        mend = "give (height, width), (height, width, 1) or (height, width, 3)"
        raise PixelsError(f"an array of shape {pixels.shape}; {mend}.")
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    return _fitted_array(pixels[..., 0] if grey else pixels, size, channels)


def _fitted_array(pixels: np.ndarray, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Convert uint8 (height, width), which is grey, or (height, width, 3) to channels first, in the wanted size and colours."""
    from PIL import Image

    if pixels.ndim == (2 if channels == 1 else 3) and size in (None, pixels.shape[:2]):
        return np.array(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), order="C")
    return _fitted(Image.fromarray(pixels), size, channels)


def _fitted(image: Any, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Convert a Pillow image to uint8 (channels, height, width), in the wanted size and colours."""
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _bounded(file: Path) -> bytes:
    """Read a file that is not too large. Path.stat and Path.read_bytes take 20 µs longer: a tenth of the time for a small image."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_FILE_BYTES:
            raise TooLargeError(f"{file}: {size:,} bytes; give an image file of at most {MAX_FILE_BYTES:,}.")
        parts = [os.read(descriptor, size + 1)]
        while parts[-1]:
            parts.append(os.read(descriptor, 2**16))
    finally:
        os.close(descriptor)
    return b"".join(parts)
