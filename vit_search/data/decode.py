"""One image file, or its pixels, as bytes of a given size: which formats are read, and how they are scaled."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vit_search.data.exact_images import fit_exact, read_exact
from vit_search.data.image_headers import NPY_MAGIC
from vit_search.data.parallel import CHUNK, in_chunks, shared_array
from vit_search.data.pixels import PixelsError, bytes_fault, checked_pixels
from vit_search.data.plain_png import plain_png
from vit_search.data.progress import step
from vit_search.errors import DataError, TooLargeError

T = TypeVar("T")

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
NAMED_FORMATS = {".tga": ("TGA",)}
"""Formats that only the file's ending tells: their content begins like any other."""

DAMAGED_SHOWN = 20
"""Damaged images that one message names."""

TURNED_BY = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Where Pillow looks for the orientation of an image that is no TIFF."""

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6
STRIP_PIXELS = 2**20
"""Pixels that are converted at once, so that no second copy of a large image is made on the way."""


def read_image(
    file: Path | bytes, size: tuple[int, int] | None, channels: int, bit_depth: int | None = None, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode one image file, upright.

    Args:
        file: its path, or its content.
        size: height and width; the image is scaled until it covers them (bilinear, antialiased), and its centre cut out.
        channels: 1 (grey) or 3 (RGB); transparency is laid on black. Any other number is read as with a depth.
        bit_depth: None converts what the file has to bytes. With 8 or 16, the file must have this depth and these channels.
        max_pixels: width times height of the largest image that is decoded, at up to 8 bytes of memory a pixel.
    Returns: uint8 (channels, height, width); uint16 with a depth of 16.
    Raises: DataError that names the file and what is wrong with it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = "image" if isinstance(file, bytes) else str(file)
    try:
        raw = file if isinstance(file, bytes) else _bounded(file)
        if is_exact(channels, bit_depth):
            return read_exact(raw, name, size, channels, bit_depth or 8, max_pixels=max_pixels)
        plain = plain_png(raw, max_pixels)
        if plain is not None:
            return _fitted_array(plain, size, channels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            named = () if isinstance(file, bytes) else NAMED_FORMATS.get(file.suffix.lower(), ())
            with Image.open(io.BytesIO(raw), formats=(*IMAGE_FORMATS, *named)) as opened:
                if opened.width * opened.height > max_pixels:
                    raise TooLargeError(f"{name}: {opened.width}x{opened.height} pixels; give an image of at most {max_pixels:,}.")
                image: Any = opened
                image.load()
                if _may_be_turned(image):
                    ImageOps.exif_transpose(image, in_place=True)
                if image.mode.startswith(("I", "F")):  # 16 bits and more a pixel
                    image = _to_bytes(image, opened.format == "PPM", name)
                if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
                    image = _in_strips(image, "RGB", _on_black)
                return _fitted(image, size, channels)
    except DataError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); name an image file.") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: no image that can be decoded (of no known format); replace or remove it.") from None
    except Exception as error:  # a decoder raises what damaged bytes lead it to: struct.error and TypeError for EXIF, say
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}: no image that can be decoded ({why}); replace or remove it.") from None


def is_exact(channels: int, bit_depth: int | None) -> bool:
    """Whether values are read as the file has them, and a file of another depth or number of channels is refused."""
    return bit_depth is not None or channels not in (1, 3)


def begins_as_image(content: bytes, name: str = "", *, npy: bool = False) -> bool:
    """Whether a file's first 16 bytes are those of a format that `read_image` takes.

    Args:
        content: of the file, or its beginning. name: of the file; for formats that only the ending tells, all content is good.
        npy: whether NPY is one of the formats.
    """
    from PIL import Image

    if npy and content.startswith(NPY_MAGIC):
        return True
    if Path(name).suffix.lower() in NAMED_FORMATS:
        return True
    Image.init()
    head = content[:16].ljust(16, b"\0")  # some look at bytes that a shorter file lacks
    accepts = (Image.OPEN[image_format][1] for image_format in IMAGE_FORMATS if image_format in Image.OPEN)
    return any(accept is not None and accept(head) for accept in accepts)


def _may_be_turned(image: Any) -> bool:
    """Whether a loaded PIL image has tags that may say which side is up. Pillow takes 12 µs to say so, which is much for a small image."""
    return hasattr(image, "tag_v2") or getattr(image, "_exif", None) is not None or any(key in image.info for key in TURNED_BY)


def _strips(image: Any) -> Iterator[tuple[int, Any]]:
    """The strips of rows of a PIL image: the first row of each, and a copy of the strip."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Any, mode: str, convert: Callable[[Any], Any]) -> Any:
    """A PIL image of another mode, each strip of rows as `convert` makes it."""
    from PIL import Image

    whole = Image.new(mode, image.size)
    for top, strip in _strips(image):
        whole.paste(convert(strip), (0, top))
    return whole


def _on_black(image: Any) -> Any:
    """A PIL image without its transparency."""
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def _to_bytes(image: Any, full_range: bool, name: str) -> Any:
    """A PIL image of 16 or 32 bits a pixel on the scale 0 to 255.

    16 bits are taken to run to 65,535, and so are 32-bit integers above 255. Fractions run to 1, or to 255 where one is above 1.
    Args:
        full_range: whether 32-bit integers run to 65,535 whatever they are, as Pillow makes them of a PPM file.
    Raises: DataError where the scale cannot be told.
    """
    from PIL import Image

    bounds = [(np.min(strip), np.max(strip)) for _, strip in _strips(image)]
    least, most = np.min(bounds), np.max(bounds)
    fraction = image.mode == "F"
    scale = 255.0 if fraction and most <= 1 else 1.0 if fraction or (image.mode == "I" and most <= 255 and not full_range) else 1 / 257
    if not (least >= 0 and round(most * scale, 4) <= 255):
        raise DataError(f"{name}: pixels from {least:g} to {most:g}, whose scale is unknown; save it with 8 or 16 bits a pixel.")

    def scaled(strip: Any) -> Any:
        pixels = np.asarray(strip).astype(np.float64)
        if fraction:
            pixels = np.round(pixels * scale, 4)  # 0.2 in 32 bits is a little more than 0.2
        elif scale < 1:
            pixels = pixels / 257
        return Image.fromarray(pixels.astype(np.uint8))

    return _in_strips(image, "L", scaled)


def read_images(files: Sequence[Path], size: tuple[int, int], channels: int, bit_depth: int | None = None, *, source: str) -> np.ndarray:
    """What `read_image` makes of each of many files; see `read_all`."""
    return read_all(files, lambda path: read_image(path, size, channels, bit_depth), (channels, *size), source=source, bits=bit_depth or 8)


def read_all(
    images: Sequence[T], read: Callable[[T], np.ndarray], shape: tuple[int, int, int], *, source: str, bits: int = 8
) -> np.ndarray:
    """What `read` makes of each of many images.

    Args:
        shape: channels, height and width of each.
        source: what the images belong to, for the message.
        bits: of a value, 8 or 16.
    Returns: uint8 or uint16 (n, channels, height, width).
    Raises: DataError that names all images that cannot be used, or the first DAMAGED_SHOWN and their count; PixelsError for the first
        that is not as a source must give it.
    """
    from PIL import Image

    Image.preinit()  # once, and not in each process
    pixels = shared_array((len(images), *shape), bits)

    def decode(chunk: range) -> tuple[list[str], PixelsError | None]:
        """What is wrong with some of the images; one that no source may give ends it all."""
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
    """What `read_image` makes of an image that is decoded already: the same numbers as of its file.

    Args:
        pixels: uint8 (height, width) or (height, width, 1), which are grey, or (height, width, 3), which is RGB. With a depth, or other
            channels: uint8 or uint16 (height, width, channels).
        size, channels, bit_depth: as of `read_image`.
    Returns: uint8 (channels, height, width); uint16 with a depth of 16.
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
    """uint8 (height, width), which is grey, or (height, width, 3), to channels first, in the wanted size and colours."""
    from PIL import Image

    if pixels.ndim == (2 if channels == 1 else 3) and size in (None, pixels.shape[:2]):
        return np.array(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), order="C")
    return _fitted(Image.fromarray(pixels), size, channels)


def _fitted(image: Any, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """A PIL image, in grey or RGB, to bytes."""
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _bounded(file: Path) -> bytes:
    """The content of a file. Path.stat and Path.read_bytes take 20 µs longer, a tenth of what a small image takes."""
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
