"""What headers say before any image is decoded: files that do not fit the keys of a search file, and what of the others is not read."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
import tifffile
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from vit_search.cli.app import app
from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare
from vit_search.data.header_looks import LOOKED_AT, checked, sample
from vit_search.data.sources import open_source
from vit_search.errors import DataError


def noise(*shape, bits=8):
    return np.random.default_rng(0).integers(0, 2**bits, shape, f"uint{bits}")


def tiff(values, **how):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"photometric": "minisblack", **how})
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def saved(kind="PNG", mode="RGB", frames=1):
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, kind, **({"save_all": True, "append_images": [Image.new(mode, (8, 8), 200)]} if frames > 1 else {}))
    return file.getvalue()


def folder(root, **contents):
    """A folder of two classes with such files: `png=(3, content)` is three files of this ending in each.

    Two bytes after the image make no two files alike; an NPY file with such bytes is damaged.
    """
    for name in ("a", "b"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for ending, (count, content) in contents.items():
            for i in range(count):
                (root / name / f"{i}.{ending}").write_bytes(content + (b"" if ending == "npy" else f"{name}{i}".encode()))
    return root


def config(root, **keys):
    return DataConfig(name="image_folder", path=str(root), image_size=8, **keys)


def command(name, tmp_path, keys="", *options):
    """The result of lint or plan on a search file for the folder `set`."""
    file = tmp_path / "s.yaml"
    data = f"data: {{name: image_folder, path: {tmp_path / 'set'}, image_size: 8{keys}}}"
    file.write_text(f"name: t\n{data}\nmodel: {{patch_size: 4}}\ntrials: 3\nepochs: 3\n")
    return CliRunner().invoke(app, [name, str(file), *options])


def findings(tmp_path, keys=""):
    """What lint finds in the files, without the folder before it, and without that the files of `folder` are copies of each other."""
    found = json.loads(command("lint", tmp_path, keys, "--json").stdout)["findings"]
    texts = [one["text"].removeprefix(f"{tmp_path / 'set'}: ") for one in found if one["where"] == "data.path"]
    return [text for text in texts if "same image" not in text and "same label" not in text]


UNFIT = {
    "a JPEG for 16 bits": (
        {"jpg": (3, saved("JPEG"))},
        {"bit_depth": 16},
        "6 files, a/0.jpg, a/1.jpg, … 4 more: a JPEG file has 8 bits a value, and 16 are needed (data.bit_depth); write data.bit_depth: 8, "
        "or give PNG, TIFF or NPY files of 16 bits.",
    ),
    "8 bits for 16": (
        {"png": (3, saved())},
        {"bit_depth": 16},
        "6 files, a/0.png, a/1.png, … 4 more: 8 bits a value, and 16 are needed (data.bit_depth); set data.bit_depth: 8, or save it with "
        "16 bits.",
    ),
    "5 channels for 3": (
        {"tif": (3, tiff(noise(8, 8, 5), planarconfig="contig"))},
        {},
        "6 files, a/0.tif, a/1.tif, … 4 more: 5 channels of 8 bits in this TIFF file; write data.channels: 5 to have them read.",
    ),
    "5 channels for 4": (
        {"tif": (3, tiff(noise(8, 8, 5), planarconfig="contig"))},
        {"channels": 4},
        "6 files, a/0.tif, a/1.tif, … 4 more: 5 channels in this TIFF file, and 4 are needed (data.channels); write data.channels: 5 if "
        "all images have so many, or convert it.",
    ),
    "pages for 3 channels": (
        {"tif": (3, tiff(noise(5, 8, 8)))},
        {},
        "6 files, a/0.tif, a/1.tif, … 4 more: 5 pages, all grey and of one size, in this TIFF file; write data.channels: 5 if they are the "
        "channels of one image, or save the page that you want as a file of its own.",
    ),
    "damaged arrays": (
        {"npy": (3, npy(noise(8, 8, 5))[:20])},
        {"channels": 5},
        "6 files, a/0.npy, a/1.npy, … 4 more: an NPY file whose header is damaged; write it again with numpy.save.",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_lint_plan_and_run_say_once_what_no_file_fits(name, tmp_path):
    files, keys, message = UNFIT[name]
    folder(tmp_path / "set", **files)
    written = "".join(f", {key}: {value}" for key, value in keys.items())
    assert findings(tmp_path, written) == [message]
    for name in ("lint", "plan"):
        done = command(name, tmp_path, written)
        assert done.exit_code == 2
        assert f"\nerror: {tmp_path / 's.yaml'}:2: data.path: {tmp_path / 'set'}: {message}\n" in done.output
    with pytest.raises(DataError) as refused:
        prepare(config(tmp_path / "set", **keys), cache=tmp_path / "cache")
    assert str(refused.value) == f"{tmp_path / 'set'}: {message}"


def test_plan_tells_all_kinds_of_mistakes_in_files_at_once_and_plans_nothing(tmp_path):
    folder(tmp_path / "set", png=(5, saved()))
    (tmp_path / "set/a/0.png").write_bytes(saved(mode="RGBA"))
    (tmp_path / "set/b/1.png").write_bytes(b"no image")
    done = command("plan", tmp_path, ", bit_depth: 8")
    wrong = [
        line for line in done.output.splitlines() if line.startswith(f"error: {tmp_path / 's.yaml'}:2: data.path: {tmp_path / 'set'}: ")
    ]
    assert [("a/0.png: 4 channels" in line, "b/1.png: no image" in line) for line in wrong] == [(True, False), (False, True)]
    assert (done.exit_code, "epochs" in done.output) == (2, False)


def test_lint_counts_the_files_of_each_mistake(tmp_path):
    folder(tmp_path / "set", png=(5, saved()), jpg=(1, b"no image"), gif=(1, saved("GIF", "L")))
    (tmp_path / "set/b/0.jpg").write_bytes(saved("JPEG"))
    (tmp_path / "set/a/0.png").write_bytes(saved(mode="RGBA"))
    (tmp_path / "set/a/1.png").write_bytes(saved(mode="RGBA"))
    assert findings(tmp_path, ", bit_depth: 8") == [
        "a/0.jpg: no image that can be decoded (of no known format); replace or remove it.",
        "2 files, a/0.png, a/1.png: 4 channels in this PNG file, and 3 are needed (data.channels); write data.channels: 4 if all images "
        "have so many, or convert it.",
    ]
    assert findings(tmp_path) == ["a/0.jpg: no image that can be decoded (of no known format); replace or remove it."]


def test_frames_that_are_not_read_are_noted_once_by_lint_plan_and_run(tmp_path):
    folder(tmp_path / "set", png=(5, saved()), gif=(1, saved("GIF", frames=2)), webp=(1, saved("WEBP", frames=2)))
    note = "of 4 files with several pages or frames, only the first is read (a/0.gif, a/0.webp, … 2 more)"
    assert findings(tmp_path) == [f"{note}."]
    for name in ("lint", "plan"):
        assert f"\nhint: {tmp_path / 's.yaml'}:2: data.path: {tmp_path / 'set'}: {note}.\n" in command(name, tmp_path).output
    for _ in range(2):  # decoded, and from the cache
        assert (
            prepare(config(tmp_path / "set"), cache=tmp_path / "cache").summary
            == f"2 classes: a, b; 14 images (train 10, val 2, test 2); {note}"
        )
    (tmp_path / "set/a/0.gif").write_bytes(saved("GIF"))
    assert "of 3 files" in prepare(config(tmp_path / "set"), cache=tmp_path / "cache").summary


def test_photos_without_frames_have_no_note_and_the_same_files_in_the_cache(tmp_path):
    data = prepare(config(folder(tmp_path / "set", png=(5, saved()))), cache=tmp_path / "cache")
    assert data.summary == "2 classes: a, b; 10 images (train 6, val 2, test 2)"
    assert "remarks" not in (data.folder / "data.json").read_text()


def test_channels_beside_red_green_and_blue_are_noted(tmp_path):
    folder(tmp_path / "set", tif=(3, tiff(noise(8, 8, 5), photometric="rgb", planarconfig="contig")))
    note = "of 6 TIFF files with more than 4 channels, only red, green and blue are read (a/0.tif, a/1.tif, … 4 more); write "
    assert findings(tmp_path) == [f"{note}data.channels: 5 for all."]
    assert findings(tmp_path, ", channels: 5") == []


@pytest.mark.parametrize(("keys", "words"), [({"channels": "auto"}, "5 channels of 16 bits"), ({"channels": 5}, "5 channels of 16 bits")])
def test_the_channels_are_printed_with_the_data(keys, words, tmp_path):
    folder(tmp_path / "set", tif=(3, tiff(noise(8, 8, 5, bits=16), planarconfig="contig")))
    written = f", channels: {keys['channels']}, bit_depth: 16"
    for name in ("lint", "plan"):
        assert f"2 classes: a, b; 6 images; {words}" in command(name, tmp_path, written).output
    data = prepare(config(tmp_path / "set", bit_depth=16, **keys), cache=tmp_path / "cache")
    assert data.summary == f"2 classes: a, b; 6 images (train 2, val 2, test 2); {words}"


def test_auto_prints_its_number_for_plain_images_too(tmp_path):
    folder(tmp_path / "set", png=(3, saved()))
    for i, file in enumerate((tmp_path / "set").rglob("*.png")):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(file)
    for name in ("lint", "plan"):
        assert "6 images; 3 channels of 8 bits" in command(name, tmp_path, ", channels: auto").output
        assert "channels" not in command(name, tmp_path, ", channels: 3").output.splitlines()[0]
    assert prepare(config(tmp_path / "set", channels="auto"), cache=tmp_path / "cache").summary.endswith(
        "6 images (train 2, val 2, test 2); 3 channels of 8 bits"
    )
    assert prepare(config(tmp_path / "set"), cache=tmp_path / "cache").summary.endswith("6 images (train 2, val 2, test 2)")


def test_files_of_each_ending_are_looked_at_however_rare_they_are(tmp_path):
    folder(tmp_path, png=(LOOKED_AT, b""), gif=(1, b""))
    source = open_source(config(tmp_path))
    chosen = sample(source)
    endings = [source.file(index).suffix for index in chosen]
    assert (endings.count(".png"), endings.count(".gif")) == (LOOKED_AT, 2)
    assert {0, len(source.labels) - 1} <= set(chosen) and chosen == sorted(set(chosen))


def test_files_in_shards_and_in_parquet_are_looked_at(tmp_path):
    animated, plain = saved("GIF", frames=2), saved()
    images = [(animated if i == 5 else plain) + bytes([i]) for i in range(8)]  # a byte after the image, so that no two are alike
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(8):
            for name, content in ((f"{i}.gif", images[i]), (f"{i}.cls", b"01"[i % 2 : i % 2 + 1])):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    parquet.write_table(pyarrow.table({"image": images, "label": [str(i % 2) for i in range(8)]}), tmp_path / "a.parquet")
    for name, path, place in (("webdataset", "a.tar", "a.tar: 5"), ("table", "a.parquet", "row 6")):
        one = DataConfig(name=name, path=str(tmp_path / path), image_size=8)
        assert sum(look.header.pages > 1 for look in checked(open_source(one), one)) == 1
        summary = prepare(one, cache=tmp_path / "cache").summary
        assert summary.endswith(f"of 1 file with several pages or frames, only the first is read ({place})")


def test_a_set_without_files_is_not_looked_at():
    digits = DataConfig(name="digits")
    assert checked(open_source(digits), digits) == []
