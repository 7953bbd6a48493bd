"""Plain PNG files are read by libpng, and everything else by Pillow: which of them reads a file shows in no value and no message."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from vit_search.data import decode
from vit_search.data.plain_png import plain_png
from vit_search.errors import DataError, TooLargeError

LARGEST = 10**6


def png(mode="RGB", size=(7, 5), seed=0, **options):
    """A PNG file of noise."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "P": (), "1": ()}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    image = Image.fromarray(values).convert(mode) if mode in ("P", "1") else Image.fromarray(values)
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


def with_chunk(raw, kind, content):
    """The file with one more chunk after its header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return raw[:33] + chunk + raw[33:]


def outcome(raw, size, channels):
    """What `read_image` makes of a file: values, or the line that refuses it."""
    try:
        return decode.read_image(raw, size, channels).tolist()
    except DataError as error:
        return str(error)


def by_pillow(raw, size, channels):
    """The same without the way past Pillow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "plain_png", lambda raw, max_pixels: None)
        return outcome(raw, size, channels)


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["L", "RGB"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    wanted=st.sampled_from([None, (8, 8), (5, 13)]),
    channels=st.sampled_from([1, 3]),
    level=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_a_plain_file_has_the_values_that_pillow_gives(mode, size, wanted, channels, level, seed):
    raw = png(mode, size, seed, compress_level=level, dpi=(72, 72))
    assert plain_png(raw, LARGEST) is not None
    assert outcome(raw, wanted, channels) == by_pillow(raw, wanted, channels)


def test_harmless_chunks_change_no_value():
    raw = with_chunk(with_chunk(png(), b"gAMA", struct.pack(">I", 100000)), b"bKGD", bytes(6))
    assert np.array_equal(plain_png(raw, LARGEST), Image.open(io.BytesIO(raw)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_other_kinds_are_left_to_pillow(mode):
    raw = png(mode)
    assert plain_png(raw, LARGEST) is None
    assert outcome(raw, (5, 7), 3) == by_pillow(raw, (5, 7), 3)


def test_files_that_pillow_turns_or_makes_transparent_are_left_to_it():
    turned = Image.Exif()
    turned[0x0112] = 6
    described = PngImagePlugin.PngInfo()
    described.add_text("comment", "none")
    for raw in (png(exif=turned), png(transparency=(1, 2, 3)), png(pnginfo=described), with_chunk(png(), b"acTL", bytes(8))):
        assert plain_png(raw, LARGEST) is None
    assert np.shape(decode.read_image(png(size=(7, 5), exif=turned), None, 3)) == (3, 7, 5)


def test_a_file_of_too_many_pixels_is_refused_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    raw = png()
    bomb = raw[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + raw[33:]
    assert plain_png(bomb, LARGEST) is None
    with pytest.raises(TooLargeError, match=r"100x100 pixels; give an image of at most 9,999"):
        decode.read_image(png(size=(100, 100)), None, 3, max_pixels=9_999)


def test_a_file_that_is_cut_off_anywhere_gives_the_same_line():
    raw = png(size=(4, 4))
    for end in range(len(raw)):
        assert outcome(raw[:end], (4, 4), 3) == by_pillow(raw[:end], (4, 4), 3), end
    assert plain_png(raw + b"\0", LARGEST) is None


def test_a_bit_that_is_wrong_anywhere_gives_the_same_line_or_the_same_values():
    raw = with_chunk(png(size=(4, 4)), b"gAMA", struct.pack(">I", 45455))
    for i in range(8 * len(raw)):
        wrong = bytearray(raw)
        wrong[i // 8] ^= 1 << i % 8
        assert outcome(bytes(wrong), (4, 4), 3) == by_pillow(bytes(wrong), (4, 4), 3), i


def test_the_array_of_a_source_is_copied():
    pixels = np.zeros((4, 4), np.uint8)
    fitted = decode.fit_pixels(pixels, (4, 4), 1)
    pixels[:] = 9
    assert not fitted.any()
