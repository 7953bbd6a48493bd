"""Data sets of 16 bits and of many channels, from every source: cached as uint16, normalised by channel, streamed, and counted by auto."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
import tifffile
import torch
from PIL import Image
from pyarrow import parquet

from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.config.knobs import hashed
from vit_search.data.auto_channels import with_counted_channels
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare, read_split
from vit_search.data.sources import open_source
from vit_search.errors import DataError, SpecError

CLASSES = ("dark", "light")


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values):
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig" if values.ndim == 3 else None)
    return file.getvalue()


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def jpg(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG")
    return file.getvalue()


WRITERS = {".npy": npy, ".tif": tiff, ".png": png, ".jpg": jpg}


def images(count=24, channels=5, side=10, bits=16):
    """Of two classes, in turn; the second is lighter. Each channel has its own level."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2**bits // 8, (count, side, side, channels))
    lighter = (np.arange(count) % 2 * 2**bits // 4)[:, None, None, None]
    values = (noise + lighter + np.arange(channels) * 2**bits // 2 // max(channels, 2)).astype(f"uint{bits}")
    return values[..., 0] if channels == 1 else values


def folder(root, values, ending=".tif"):
    for i, one in enumerate(values):
        path = root / CLASSES[i % 2] / f"{i:03}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WRITERS[ending](one))
    return {"name": "image_folder", "path": str(root)}


def csv_table(root, values):
    folder(root, values, ".npy")
    with (root / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        rows.writerows([f"{CLASSES[i % 2]}/{i:03}.npy", CLASSES[i % 2]] for i in range(len(values)))
    return {"name": "table", "path": str(root / "table.csv")}


def bytes_table(root, values):
    rows = {"image": [npy(one) for one in values], "label": [CLASSES[i % 2] for i in range(len(values))]}
    root.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(rows), root / "table.parquet")
    return {"name": "table", "path": str(root / "table.parquet")}


def shards(root, values):
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "a.tar", "w") as tar:
        for i, one in enumerate(values):
            for name, content in ((f"{i:03}.npy", npy(one)), (f"{i:03}.cls", CLASSES[i % 2].encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"name": "webdataset", "path": str(root)}


SOURCES = {"folder of TIFF": folder, "CSV table of NPY": csv_table, "Parquet table of bytes": bytes_table, "shards of NPY": shards}


@pytest.mark.parametrize("write", SOURCES.values(), ids=SOURCES)
def test_every_source_keeps_16_bits_and_5_channels(write, tmp_path):
    values = images()
    config = DataConfig(**write(tmp_path / "set", values), image_size=10, channels=5, bit_depth=16)
    data = prepare(config, cache=tmp_path / "cache")
    assert (data.channels, data.bits, data.image_bytes) == (5, 16, 1000)
    found = np.concatenate([read_split(data, name)[0] for name in ("train", "val", "holdout", "test") if data.counts[name]])
    assert found.dtype == np.uint16
    expected = {np.moveaxis(one, -1, 0).tobytes() for one in values}
    assert {one.tobytes() for one in found} == expected


@pytest.mark.parametrize("write", SOURCES.values(), ids=SOURCES)
def test_every_source_streams_what_it_would_have_cached(write, tmp_path):
    config = DataConfig(**write(tmp_path / "set", images(side=14)), image_size=10, channels=5, bit_depth=16)
    cached = load_split(prepare(config, cache=tmp_path / "cached"), "train")
    streamed = load_split(prepare(config, cache=tmp_path / "streamed", stream_above=0), "train", decoders=0)
    parts = [torch.tensor([3, 0, 5]), torch.tensor([1])]
    for (one, label), (other, same) in zip(cached.batches(parts), streamed.batches(parts), strict=True):
        assert one.dtype == other.dtype == torch.int32
        assert torch.equal(one, other) and torch.equal(label, same)
    (crop, _), *_ = streamed.batches(parts, seed=1, crop_scale=0.5)
    assert crop.shape == (3, 5, 10, 10) and crop.dtype == torch.int32 and int(crop.max()) > 255


def test_decoders_in_other_processes_keep_16_bits(tmp_path):
    config = DataConfig(**folder(tmp_path / "set", images()), image_size=10, channels=5, bit_depth=16)
    data = prepare(config, cache=tmp_path / "cache", stream_above=0)
    parts = [torch.arange(6)]
    (here, _), (there, _) = (next(load_split(data, "train", decoders=count).batches(parts)) for count in (0, 1))
    assert torch.equal(here, there) and int(here.max()) > 255


def test_mean_and_deviation_are_of_each_channel(tmp_path):
    config = DataConfig(**folder(tmp_path / "set", images()), image_size=10, channels=5, bit_depth=16)
    data = prepare(config, cache=tmp_path / "cache")
    train = read_split(data, "train")[0] / 65_535
    assert np.allclose(data.mean, train.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(data.std, train.std((0, 2, 3)), rtol=1e-9)
    assert data.mean[4] - data.mean[0] == pytest.approx(4 / 10, abs=0.01)  # channels are 1/10 of the scale apart


def test_a_channel_that_never_changes_has_no_deviation(tmp_path):
    values = images()
    values[..., 2] = 60_000
    config = DataConfig(**folder(tmp_path / "set", values), image_size=10, channels=5, bit_depth=16)
    assert prepare(config, cache=tmp_path / "cache").std[2] == 0


def test_16_bits_cached_and_read_as_8_are_two_data_sets(tmp_path):
    place = folder(tmp_path / "set", images(channels=1), ".png")
    deep, flat = (prepare(DataConfig(**place, image_size=10, channels=1, bit_depth=bits), cache=tmp_path / "cache") for bits in (16, None))
    assert deep.data_hash != flat.data_hash
    ours, theirs = (read_split(data, "train")[0] for data in (deep, flat))
    assert ours.dtype == np.uint16 and theirs.dtype == np.uint8
    assert (theirs == (ours / 257).astype(np.uint8)).all()
    assert json.loads((deep.folder / "data.json").read_text())["bits"] == 16
    assert "bits" not in json.loads((flat.folder / "data.json").read_text())


def test_a_config_without_the_key_is_hashed_as_before():
    assert "bit_depth" not in hashed(DataConfig, vars(DataConfig(name="image_folder")))
    assert hashed(DataConfig, vars(DataConfig(name="image_folder", channels=1)))["channels"] == 1


def test_without_the_key_arrays_are_no_images_of_a_folder(tmp_path):
    place = folder(tmp_path, images(6, bits=8), ".npy")
    folder(tmp_path, images(6, 3, bits=8), ".png")
    assert "6 files skipped: 6 .npy (read only with data.bit_depth)" in open_source(DataConfig(**place, image_size=10)).summary()
    assert len(open_source(DataConfig(**place, image_size=10, bit_depth=8)).labels) == 12


ARRAYS = "NPY files are read only with data.bit_depth: 8 or 16, and with data.channels: auto or the number of their channels."


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda root, values: folder(root, values, ".npy"), "set/dark: 0 images and 6 .npy files; "),
        (csv_table, "table.csv: an NPY file: "),
        (bytes_table, "table.parquet: NPY files in the column 'image': rows 1, 2, 3, 4, 5, … 7 more; "),
        (shards, "a.tar: 000, 001, 002, 003, 004, … 7 more: a label and an NPY file; "),
    ],
    ids=SOURCES,
)
def test_arrays_without_the_key_are_counted_and_the_keys_named(write, problem, tmp_path):
    place = write(tmp_path / "set", images(12, 3, bits=8))
    with pytest.raises(DataError) as refused:
        open_source(DataConfig(**place, image_size=10))
    assert problem in str(refused.value) and str(refused.value).endswith(ARRAYS)


def test_several_files_that_do_not_fit_are_named_at_once(tmp_path):
    place = folder(tmp_path / "set", images())
    (tmp_path / "set/dark/000.tif").write_bytes(tiff(images(1, 4)[0]))
    (tmp_path / "set/dark/002.tif").write_bytes(tiff(images(1, 5, bits=8)[0]))
    with pytest.raises(DataError) as refused:
        prepare(DataConfig(**place, image_size=10, channels=5, bit_depth=16), cache=tmp_path / "cache")
    first, *lines = str(refused.value).splitlines()
    assert first.endswith("2 images cannot be used:")
    assert lines[0].endswith(
        "dark/000.tif: 4 channels in this TIFF file, and 5 are needed (data.channels); write data.channels: 4 if all images have so many, "
        "or convert it."
    )
    assert lines[1].endswith(
        "dark/002.tif: 8 bits a value, and 16 are needed (data.bit_depth); set data.bit_depth: 8, or save it with 16 bits."
    )


# --- channels: auto ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", SOURCES.values(), ids=SOURCES)
def test_auto_finds_the_channels_of_every_source(write, tmp_path):
    place = write(tmp_path / "set", images())
    config = DataConfig(**place, image_size=10, channels="auto", bit_depth=16)
    assert with_counted_channels(config) == DataConfig(**place, image_size=10, channels=5, bit_depth=16)
    by_hand = prepare(DataConfig(**place, image_size=10, channels=5, bit_depth=16), cache=tmp_path / "cache")
    assert prepare(config, cache=tmp_path / "cache") == by_hand


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_auto_is_the_number_for_plain_images(channels, mode, tmp_path):
    place = folder(tmp_path / "set", images(channels=channels, bits=8), ".png")
    auto, number = (DataConfig(**place, image_size=10, channels=count) for count in ("auto", channels))
    assert with_counted_channels(auto) == number
    assert prepare(auto, cache=tmp_path / "cache").data_hash == prepare(number, cache=tmp_path / "cache").data_hash


AUTO_REFUSED = {
    "a mix of channels": (
        [(images(4, 5), ".tif"), (images(3, 4), ".npy")],
        16,
        r"the files of .*set differ: 4 have 5 channels of 16 bits \(dark/000.tif, dark/002.tif, … 2 more\), "
        r"3 have 4 channels of 16 bits \(dark/000.npy, dark/002.npy, … 1 more\); convert or remove the 3 other files: no file is "
        "converted with data.bit_depth, or with more than 3 channels[.]$",
    ),
    "a mix of depths": (
        [(images(4, 1, bits=8), ".png"), (images(4, 1), ".tif")],
        None,
        "4 have 1 channel of 8 bits .*4 have 1 channel of 16 bits .*; write data.channels: 3 to have all converted to RGB of 8 bits, or 1 "
        "for grey; or convert or remove the 4 other files[.]$",
    ),
    "grey among RGB of 8 bits": (
        [(images(20, 3, bits=8), ".png"), (images(1, 1, bits=8), ".tif")],
        8,
        r"20 have 3 channels of 8 bits \(dark/000.png, dark/002.png, … 18 more\), 1 has 1 channel of 8 bits \(dark/000.tif\); drop "
        "data.bit_depth and write data.channels: 3 to have all converted to RGB of 8 bits, or 1 for grey; or convert or remove the 1 "
        "other file",
    ),
    "16 bits without the key": (
        [(images(6, 5), ".tif")],
        None,
        "auto: the files of .*set have 5 channels of 16 bits; write data.bit_depth: 16 besides, to keep them[.]$",
    ),
    "grey of 16 bits without the key": (
        [(images(6, 1), ".png")],
        None,
        "1 channel of 16 bits; write data.bit_depth: 16 besides, to keep them, or data.channels: 1 to have them read as 8 bits",
    ),
    "arrays of 3 channels without the key": (
        [(images(6, 3, bits=8), ".npy")],
        None,
        "3 channels of 8 bits; write data.bit_depth: 8 besides, since NPY files are read with it alone",
    ),
    "JPEG files for 16 bits": (
        [(images(6, 3, bits=8), ".jpg")],
        16,
        "have 3 channels of 8 bits, and data.bit_depth is 16; write 8, or give PNG, TIFF or NPY files of 16 bits",
    ),
    "another depth than the key says": (
        [(images(6, 5), ".tif")],
        8,
        "have 5 channels of 16 bits, and data.bit_depth is 8; write 16, or save the files with 8",
    ),
    "17 channels": ([(images(6, 17, side=20), ".tif")], 16, "have 17 channels of 16 bits; images have 1 to 16 channels"),
    "fractions": ([(images(6, 5).astype(np.float32), ".tif")], 16, "5 channels of float32; scale them to whole numbers"),
}


@pytest.mark.parametrize(("sets", "bits", "problem"), AUTO_REFUSED.values(), ids=AUTO_REFUSED)
def test_auto_says_what_is_where(sets, bits, problem, tmp_path):
    for values, ending in sets:
        place = folder(tmp_path / "set", values, ending)
    with pytest.raises(DataError, match=problem):
        prepare(DataConfig(**place, image_size=10, channels="auto", bit_depth=bits), cache=tmp_path / "cache")


def test_auto_names_a_file_that_is_no_image(tmp_path):
    place = folder(tmp_path / "set", images(6))
    (tmp_path / "set/light/001.tif").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"set: light/001\.tif: no image that can be decoded \(of no known format\); replace or remove it\.$"
    ):
        prepare(DataConfig(**place, image_size=10, channels="auto", bit_depth=16), cache=tmp_path / "cache")


def test_auto_names_damaged_files_together_with_all_other_mistakes(tmp_path):
    place = folder(tmp_path / "set", images(12))
    for name in ("light/001.tif", "light/003.tif"):
        (tmp_path / "set" / name).write_bytes(b"no image")
    (tmp_path / "set/dark/000.tif").write_bytes(tiff(images(1, 4)[0]))
    (tmp_path / "set/dark/002.npy").write_bytes(b"\x93NUMPY")
    tifffile.imwrite(tmp_path / "set/dark/004.tif", images(2, 3), photometric="rgb")
    with pytest.raises(DataError) as refused:
        with_counted_channels(DataConfig(**place, image_size=10, channels="auto", bit_depth=16))
    assert str(refused.value).splitlines() == [
        f"{tmp_path / 'set'}: 4 kinds of mistakes:",
        "  dark/002.npy: an NPY file whose header is damaged; write it again with numpy.save.",
        "  dark/004.tif: 2 pages that are not the channels of one image; give each image a file of its own.",
        "  2 files, light/001.tif, light/003.tif: no image that can be decoded (of no known format); replace or remove it.",
        "  data.channels: auto: the files differ: 8 have 5 channels of 16 bits (dark/002.tif, dark/006.tif, … 6 more), 1 has 4 channels "
        "of 16 bits (dark/000.tif); convert or remove the 1 other file: no file is converted with data.bit_depth, or with more than 3 "
        "channels.",
    ]


FILE = """name: deep
trials: 2
epochs: 2
data: {name: image_folder, path: scans, image_size: 10, channels: auto, bit_depth: 16}  # as the microscope writes them
model: {patch_size: 5}
training: {lr: {float: [1e-3, 1e-2]}}
"""


def test_a_search_keeps_the_number_that_auto_stands_for():
    spec = search_file.parse(FILE)
    counted = spec.with_channels(7)
    assert counted.text == FILE.replace("channels: auto", "channels: 7")
    assert counted.data_config.channels == 7 and counted.space.in_channels == 7
    assert counted.with_channels(5) is counted
    made = search_file.SearchSpec.model_validate({**spec.model_dump(by_alias=True, exclude_unset=True)}).with_channels(7)
    assert made.data_config == counted.data_config and "channels: 7" in made.text


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("channels: 17", "data.channels: 17 will not do; give at most 16"),
        ("channels: 0", "data.channels: 0 will not do; give at least 1"),
        ("channels: aut", "data.channels: 'aut' will not do; did you mean auto?"),
        ("channels: true", "data.channels: true will not do; give a whole number, or auto."),
        ("channels: null", "data.channels: has no value; give a whole number, or auto."),
        ("channels: '3'", "data.channels: '3' will not do; give a number, or auto."),
        ("bit_depth: 12", "data.bit_depth: 12 will not do; choose from 8, 16"),
        ("bitdepth: 16", "data.bitdepth: unknown key; did you mean bit_depth?"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(data, problem):
    with pytest.raises(SpecError) as refused:
        search_file.parse(FILE.replace("channels: auto, bit_depth: 16", data))
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("bit_depth: 16", "data.bit_depth: digits does not take it, only image_folder, table and webdataset; drop the key."),
        ("channels: auto", "data.channels: auto is not for digits; drop the key"),
        ("channels: 5", "data.channels: 5 is not for digits"),
    ],
)
def test_a_data_set_of_fixed_images_takes_neither_key(data, problem):
    with pytest.raises(SpecError, match=problem):
        search_file.parse(f"name: a\ntrials: 2\nepochs: 2\ndata: {{name: digits, {data}}}\ntraining: {{lr: {{float: [1e-3, 1e-2]}}}}\n")
