"""Images of 16 bits and of many channels keep their values: as files, as arrays, resized, and when a header lies."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from vit_search.data.decode import fit_pixels, read_image
from vit_search.data.exact_images import resized, turned
from vit_search.data.image_headers import UnfitError, header_of
from vit_search.errors import DataError, TooLargeError


def noise(height, width, channels=1, bits=16):
    values = np.random.default_rng(0).integers(0, 2**bits, (height, width, channels), f"uint{bits}")
    return values[..., 0] if channels == 1 else values


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values, **how):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"photometric": "minisblack", **how})
    return file.getvalue()


def png(values):
    """A PNG file of 8 or 16 bits, written here: Pillow writes 16 bits only in grey."""
    height, width, channels = values.shape if values.ndim == 3 else (*values.shape, 1)
    bits, colours = values.dtype.itemsize * 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def channels_first(values):
    return np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]


FILES = {
    "a grey PNG": (noise(5, 7), png),
    "a grey PNG with transparency": (noise(5, 7, 2), png),
    "an RGB PNG": (noise(5, 7, 3), png),
    "an RGB PNG with transparency": (noise(5, 7, 4), png),
    "a grey PNG of 8 bits": (noise(5, 7, bits=8), png),
    "an RGB PNG of 8 bits with transparency": (noise(5, 7, 4, bits=8), png),
    "a grey TIFF": (noise(5, 7), tiff),
    "an RGB TIFF": (noise(5, 7, 3), lambda values: tiff(values, photometric="rgb")),
    "a TIFF of 5 channels, interleaved": (noise(5, 7, 5), lambda values: tiff(values, planarconfig="contig")),
    "a TIFF of 5 channels, one after another": (noise(5, 7, 5), lambda values: tiff(channels_first(values), planarconfig="separate")),
    "a TIFF of 5 pages": (noise(5, 7, 5), lambda values: tiff(channels_first(values))),
    "a TIFF of 16 channels of 8 bits": (noise(5, 7, 16, bits=8), lambda values: tiff(values, planarconfig="contig")),
    "a TIFF in LZW with a predictor": (
        noise(32, 48, 4),
        lambda values: tiff(values, planarconfig="contig", compression="lzw", predictor=True),
    ),
    "a TIFF in Deflate tiles": (noise(40, 50, 4), lambda values: tiff(values, planarconfig="contig", compression="zlib", tile=(16, 16))),
    "a TIFF with the other order of bytes": (noise(5, 7, 5), lambda values: tiff(values, planarconfig="contig", byteorder=">")),
    "a BigTIFF": (noise(5, 7), lambda values: tiff(values, bigtiff=True)),
    "an array": (noise(5, 7), npy),
    "an array of 11 channels": (noise(5, 7, 11), npy),
    "an array of 8 bits": (noise(5, 7, 6, bits=8), npy),
    "an array in Fortran's order": (noise(5, 7, 6), lambda values: npy(np.asfortranarray(values))),
    "an array with the other order of bytes": (noise(5, 7, 6), lambda values: npy(values.astype(">u2"))),
}


@pytest.mark.parametrize(("values", "write"), FILES.values(), ids=FILES)
def test_a_file_gives_the_values_that_were_written(values, write, tmp_path):
    raw, bits = write(values), values.dtype.itemsize * 8
    (tmp_path / "image").write_bytes(raw)
    expected = channels_first(values)
    for file in (raw, tmp_path / "image"):
        pixels = read_image(file, None, len(expected), bits)
        assert pixels.dtype == values.dtype and pixels.flags.c_contiguous
        assert (pixels == expected).all()
    header = header_of(raw)
    assert (header.height, header.width, header.channels, header.kind) == (*expected.shape[1:], len(expected), str(values.dtype))


def test_without_the_key_a_deep_image_is_read_as_before():
    values = noise(5, 7)
    assert (read_image(png(values), None, 1) == (values / 257).astype(np.uint8)).all()


def frames(kind, count=3):
    """An animation whose first frame is black, and the others are red."""
    file = io.BytesIO()
    others = [Image.new("RGB", (8, 8), (200 + i, 0, 0)) for i in range(1, count)]
    Image.new("RGB", (8, 8)).save(file, kind, save_all=True, append_images=others)
    return file.getvalue()


NOT_FOR_3 = {
    "5 channels": (tiff(noise(8, 8, 5, bits=8), planarconfig="contig"), "5 channels of 8 bits in this TIFF file; write data.channels: 5"),
    "5 deep channels": (
        tiff(noise(8, 8, 5), planarconfig="contig"),
        "5 channels of 16 bits in this TIFF file; write data.channels: 5 and data.bit_depth: 16 to have them read.",
    ),
    "3 channels that are no RGB": (
        tiff(noise(8, 8, 3, bits=8), planarconfig="contig"),
        "3 channels of 8 bits in this TIFF file; write data.channels: 3 and data.bit_depth: 8 to have them read.",
    ),
    "17 channels": (tiff(noise(8, 8, 17, bits=8), planarconfig="contig"), "17 channels of 8 bits in this TIFF file; images have"),
    "fractions": (tiff(noise(8, 8, 5).astype(np.float32), planarconfig="contig"), "values of type float32; scale them to whole numbers"),
    "an array": (npy(noise(8, 8, 5, bits=8)), "5 channels of 8 bits in this NPY file; write data.channels: 5 to have them read."),
    "a grey array": (npy(noise(8, 8, bits=8)), "1 channel of 8 bits in this NPY file; write data.channels: 1 and data.bit_depth: 8 to "),
    "5 grey pages": (
        tiff(noise(8, 8, 5, bits=8).transpose(2, 0, 1)),
        "5 pages, all grey and of one size, in this TIFF file; write data.channels: 5 if they are the channels of one image, or save the ",
    ),
    "3 grey pages": (tiff(noise(8, 8, 3, bits=8).transpose(2, 0, 1)), "write data.channels: 3 and data.bit_depth: 8 if they are"),
    "2 deep pages": (tiff(noise(8, 8, 2).transpose(2, 0, 1)), "write data.channels: 2 and data.bit_depth: 16 if they are the channels"),
    "30 grey pages": (
        tiff(noise(8, 8, 30, bits=8).transpose(2, 0, 1)),
        "more than 16 pages, all grey and of one size, in this TIFF file; save the page that you want as a file of its own.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "problem"), NOT_FOR_3.values(), ids=NOT_FOR_3)
@pytest.mark.parametrize("channels", [1, 3])
def test_without_the_key_a_file_that_needs_it_is_told_the_keys_to_write(raw, problem, channels, capfd):
    with pytest.raises(UnfitError) as refused:
        read_image(raw, (8, 8), channels)
    assert problem in str(refused.value) and str(refused.value).startswith("image: ") and str(refused.value).endswith(".")
    assert capfd.readouterr() == ("", "")  # Pillow would print a line


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_the_decoder_of_a_damaged_tiff_file_prints_nothing(compression, capfd):
    file = io.BytesIO()
    Image.fromarray(noise(64, 64, 3, bits=8)).save(file, "TIFF", compression=compression)
    raw = bytearray(file.getvalue())
    raw[100:140] = b"\xff" * 40
    for channels, bits in ((3, None), (3, 8)):
        with contextlib.suppress(DataError):  # two of the formats cannot tell
            read_image(bytes(raw), (8, 8), channels, bits)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_of_several_frames_or_pages_of_photos_the_first_is_read_and_the_header_says_so(kind):
    assert read_image(frames(kind), None, 3).max() < 20
    assert header_of(frames(kind)).pages > 1 and header_of(frames(kind, 1)).pages == 1


def test_a_thumbnail_beside_a_grey_page_is_no_second_channel():
    file, values = io.BytesIO(), noise(8, 8, bits=8)
    with tifffile.TiffWriter(file) as writer:
        writer.write(values, photometric="minisblack")
        writer.write(values, photometric="minisblack", subfiletype=1)
    assert (read_image(file.getvalue(), None, 1)[0] == values).all()
    assert header_of(file.getvalue()).pages == 1


def test_a_photo_with_a_second_view_is_a_jpeg_file():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert read_image(file.getvalue(), None, 3, 8).shape == (3, 8, 8)
    assert (header_of(file.getvalue()).format, header_of(file.getvalue()).pages) == ("JPEG", 1)


def sized_png(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = struct.pack(">I", 10) + b"IDAT" + bytes(14)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + pixels


def sized_gif(width, height):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + bytes(9)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize(("width", "height"), [(9_000, 9_000), (20_000, 20_000), (50_000, 50_000)])
@pytest.mark.parametrize("write", [sized_png, sized_gif])
def test_there_is_one_limit_of_pixels_for_every_format(write, width, height, bits):
    """Pillow has limits of its own, 89 and 179 million pixels."""
    with pytest.raises(TooLargeError, match=r"^image: [0-9x,]+ pixels; give an image of at most 64,000,000\.$"):
        read_image(write(width, height), (8, 8), 3, bits)
    with pytest.raises(TooLargeError, match=r"^image: [0-9x,]+ pixels; give an image of at most 1,000\.$"):
        read_image(write(width, height), (8, 8), 3, bits, max_pixels=1_000)


def reference(channel, size):
    """Bilinear, antialiased: each new pixel is a mean of old ones, with weights that fall off like a triangle (computed in float64)."""

    def weights(old, new):
        scale = old / new
        reach = max(scale, 1.0)
        centres = (np.arange(new) + 0.5) * scale
        triangle = np.clip(1 - np.abs((np.arange(old) + 0.5)[None] - centres[:, None]) / reach, 0, None)
        return triangle / triangle.sum(1, keepdims=True)

    rows, columns = weights(channel.shape[0], size[0]), weights(channel.shape[1], size[1])
    return rows @ channel.astype(np.float64) @ columns.T


@pytest.mark.parametrize("size", [(16, 16), (13, 13), (64, 64)])
def test_each_channel_is_resized_by_itself_without_losing_depth(size):
    values = channels_first(noise(40, 40, 5))
    small = resized(values, size)
    assert small.dtype == np.uint16
    for new, old in zip(small, values, strict=True):
        assert np.abs(new - reference(old, size)).max() <= 0.6  # half a step of rounding, and float32


def test_an_image_that_is_not_square_is_cut_at_its_centre():
    values = channels_first(noise(40, 60, 2))
    inside = resized(values, (20, 20))[1, :, 1:-1]  # at the cut, pixels beyond it count, too
    assert np.abs(inside - reference(values[1, :, 10:50], (20, 20))[:, 1:-1]).max() <= 0.6


def test_images_of_8_bits_are_resized_as_without_the_key():
    raw = png(noise(40, 60, 3, bits=8))
    assert (read_image(raw, (16, 16), 3, 8) == read_image(raw, (16, 16), 3)).all()
    assert (read_image(raw, (64, 48), 3, 8) == read_image(raw, (64, 48), 3)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(orientation):
    values = noise(4, 6, 3, bits=8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))))
    assert (turned(values, orientation) == expected).all()
    assert (read_image(file.getvalue(), None, 3, 8) == channels_first(expected)).all()
    deep = tiff(values.astype(np.uint16), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    assert (read_image(deep, None, 3, 16) == channels_first(expected)).all()


def test_white_is_the_largest_value_where_a_file_says_that_0_is_white():
    values = noise(4, 6)
    assert (read_image(tiff(values, photometric="miniswhite"), None, 1, 16)[0] == 65_535 - values).all()


def test_a_smaller_copy_inside_a_file_is_left_out():
    file, values = io.BytesIO(), noise(8, 8, 4)
    with tifffile.TiffWriter(file) as writer:
        writer.write(values, photometric="minisblack", planarconfig="contig")
        writer.write(values[::2, ::2], photometric="minisblack", planarconfig="contig", subfiletype=1)
    assert (read_image(file.getvalue(), None, 4, 16) == channels_first(values)).all()


def test_pixels_are_read_as_their_file():
    values = noise(40, 60, 5)
    assert (fit_pixels(values, (16, 16), 5, 16) == read_image(npy(values), (16, 16), 5, 16)).all()
    assert (fit_pixels(noise(4, 4), None, 1, 16) == noise(4, 4)[None]).all()


def cut(raw, share=0.6):
    return raw[: int(len(raw) * share)]


def jpeg(mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "JPEG")
    return file.getvalue()


def saved(kind, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, kind)
    return file.getvalue()


def forged_tiff(width, height, compression, content):
    """A TIFF file of one grey strip of 16 bits, whatever its content."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, compression), (262, 3, 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)


def npy_of_header(text):
    header = text.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(64)


def forged_npy(shape, descr="'<u2'"):
    return npy_of_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")


REFUSED = {
    "8 bits for 16": (png(noise(4, 4, bits=8)), 1, 16, "8 bits a value, .*; set data.bit_depth: 8, or save it with 16 bits"),
    "16 bits for 8": (png(noise(4, 4)), 1, 8, "16 bits a value, and 8 are needed .*set data.bit_depth: 16, or save it with 8 bits"),
    "16 bits, and the key left out": (npy(noise(4, 4, 5)), 5, None, "16 bits a value, and 8 are needed .*set data.bit_depth: 16"),
    "a JPEG for 4 channels": (jpeg(), 4, None, r"3 channels in this JPEG file, and 4 are needed \(data.channels\)"),
    "a JPEG for 16 bits": (jpeg(), 3, 16, "a JPEG file has 8 bits a value, .*; write data.bit_depth: 8, or give PNG"),
    "a JPEG of four inks": (jpeg("CMYK"), 4, 8, "colours of the kind CMYK; save it as grey or RGB"),
    "grey for RGB": (png(noise(4, 4)), 3, 16, "1 channel in this PNG file, and 3 are needed"),
    "17 channels": (npy(noise(20, 20, 17)), 16, 16, "17 channels in this NPY file; images have 1 to 16"),
    "channels first": (npy(noise(5, 40, 30)), 5, 16, "with the channels first; give .height, width. or .height, width, channels"),
    "fractions in TIFF": (tiff(np.zeros((4, 4), np.float32)), 1, 16, "values of type float32; scale them to whole numbers"),
    "fractions in NPY": (npy(np.zeros((4, 4))), 1, 16, "values of type float64; scale them"),
    "signed numbers": (tiff(np.zeros((4, 4), np.int16)), 1, 16, "values of type int16"),
    "32 bits": (tiff(np.zeros((4, 4), np.uint32)), 1, 16, "values of type uint32"),
    "1 bit": (saved("TIFF", "1"), 1, 8, "1 bit a value; save it with 8 or 16"),
    "12 bits": (tiff(noise(4, 4) >> 4, bitspersample=12), 1, 16, "12 bits a value; save it with 8 or 16"),
    "objects": (npy(np.array([[{}]], object)), 1, 16, "Python objects, texts or records"),
    "a list": (npy(np.zeros(7, np.uint8)), 1, 8, r"an array of shape \(7,\); give \(height, width\)"),
    "no rows": (npy(np.zeros((0, 7), np.uint8)), 1, 8, r"an array of shape \(0, 7\)"),
    "an NPY that is cut off": (cut(npy(noise(40, 40))), 1, 16, r"cut off: it has [0-9,]+ bytes of pixels, and its header says 3,200"),
    "texts": (npy(np.array([["a", "b"]])), 1, 16, "an array of Python objects, texts or records, which is not read"),
    "times": (npy(np.zeros((4, 4), "M8[s]")), 1, 16, "an array of Python objects, texts or records, which is not read"),
    "a shape below 0": (forged_npy((-4, 4)), 1, 16, r"an array of shape \(-4, 4\); give \(height, width\)"),
    "33 axes": (forged_npy((1,) * 33), 1, 16, "an array of 33 axes; give"),
    "a PNG that is cut off": (cut(png(noise(40, 40, 3))), 3, 16, "no image that can be decoded"),
    "a TIFF that is cut off": (cut(tiff(noise(40, 40, 3), planarconfig="contig")), 3, 16, "no image that can be decoded"),
    "a TIFF of two images": (tiff(noise(4, 4, 6).reshape(2, 4, 4, 3), photometric="rgb"), 3, 16, "2 pages that are not the channels"),
    "a TIFF of 17 pages": (tiff(noise(4, 4, 17).transpose(2, 0, 1)), 16, 16, "more than 16 pages; give one image of at most 16 channels"),
    "a TIFF of volumes": (tiff(noise(4, 4, 4), volumetric=True, tile=(16, 16, 16)), 4, 16, "volumes"),
    "a TIFF with a palette": (saved("TIFF", "P"), 1, 8, "colours of the kind PALETTE"),
    "JPEG 2000": (saved("JPEG2000"), 3, 8, "JPEG2000, whose depth is not checked; save it as PNG, TIFF or NPY"),
    "a PPM": (saved("PPM"), 3, 8, "PPM, whose depth is not checked"),
    "a text": (b"hello, I am no image" * 3, 1, 16, "no image that can be decoded .of no known format"),
    "nothing": (b"", 1, 16, "no image that can be decoded"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "channels", "bits", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_not_as_needed_is_refused_in_one_line(raw, channels, bits, problem):
    with warnings.catch_warnings(), pytest.raises(DataError, match=problem) as refused:
        warnings.simplefilter("error")
        read_image(raw, (8, 8), channels, bits)
    assert str(refused.value).startswith("image: ") and "\n" not in str(refused.value)


DAMAGED_HEADERS = {
    "nothing after the magic": b"\x93NUMPY",
    "a version that is not there yet": b"\x93NUMPY\x09\0" + bytes(50),
    "cut off": npy(noise(4, 4))[:20],
    "no text": b"\x93NUMPY\1\0\0\0",
    "a call": forged_npy("f(4)"),
    "not closed": npy_of_header("{'descr': '<u2', 'fortran_order': False, 'shape': (4,"),
    "parentheses": npy_of_header("(" * 2_000),
    "a shape that is no tuple": forged_npy("True"),
    "a side that is no number": forged_npy("(True, 4)"),
    "a side of 80 digits": forged_npy(f"(4, {'9' * 80})"),
    "a side of 5,000 digits": forged_npy(f"(4, {'9' * 5_000})"),
    "an unknown type": forged_npy((4, 4), "'xx'"),
    "a type that is no text": forged_npy((4, 4), "5"),
    "keys that are missing": npy_of_header("{'descr': '<u2'}"),
    "a zero byte": forged_npy("(4,\0 4)"),
    "a length of 4 GB": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"x" * 10,
    "a long text": forged_npy("(4, 4)" + " " * 20_000),
}


@pytest.mark.parametrize("raw", DAMAGED_HEADERS.values(), ids=DAMAGED_HEADERS)
@pytest.mark.parametrize(("channels", "bits"), [(1, 16), (3, None)])
def test_every_damaged_header_of_an_array_has_the_same_line(raw, channels, bits, tmp_path):
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(DataError) as refused:
        read_image(tmp_path / "a.npy", (8, 8), channels, bits)
    assert str(refused.value) == f"{tmp_path / 'a.npy'}: an NPY file whose header is damaged; write it again with numpy.save."


@pytest.mark.parametrize(("channels", "bits", "takes"), [
    (3, None, "grey and colour images, as PNG or JPEG"),
    (3, 8, "3 channels of 8 bits, as PNG, JPEG, TIFF or NPY"),
    (4, 16, "4 channels of 16 bits, as PNG, TIFF or NPY"),
    (7, None, "7 channels of 8 bits, as TIFF or NPY"),
])  # fmt: skip
def test_for_a_trained_model_a_message_says_what_it_takes_and_names_no_key(channels, bits, takes):
    with pytest.raises(UnfitError) as refused:
        read_image(npy(noise(4, 4, 5)), (8, 8), channels, bits, for_model=True)
    assert str(refused.value) == f"image: 5 channels of 16 bits in this NPY file; this model takes {takes}."
    with pytest.raises(DataError) as refused:
        read_image(b"hello", (8, 8), channels, bits, for_model=True)
    assert str(refused.value) == f"image: no image that can be decoded (of no known format); this model takes {takes}."


@pytest.mark.parametrize(
    "raw",
    [
        forged_npy((100_000, 100_000)),
        forged_npy((2**62, 2**62)),
        forged_tiff(100_000, 100_000, 1, bytes(64)),
        png(noise(4, 4))[:16] + struct.pack(">II", 100_000, 100_000) + png(noise(4, 4))[24:],
    ],
    ids=["NPY", "a very large NPY", "TIFF", "PNG"],
)
def test_a_header_of_ten_thousand_million_pixels_is_refused_before_they_are_allocated(raw):
    with pytest.raises(TooLargeError, match="pixels; give an image of at most"):
        read_image(raw, (8, 8), 1, 16)


def test_many_channels_of_a_large_image_are_too_many_bytes():
    with pytest.raises(TooLargeError, match="2,000,000 bytes of pixels; give an image of at most 800,000"):
        read_image(forged_npy((250, 250, 16)), (8, 8), 16, 16, max_pixels=100_000)


def test_a_strip_that_unpacks_to_more_than_its_image_is_refused():
    """64x64 pixels, whose strip is 100 MB of zeros in 100 kB."""
    with pytest.raises(DataError, match="no image that can be decoded"):
        read_image(forged_tiff(64, 64, 8, zlib.compress(bytes(100_000_000))), (8, 8), 1, 16)
