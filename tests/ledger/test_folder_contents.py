"""What else lies in image folders: empty splits, links upwards, names of any script or of no encoding, closed files, rare formats."""

import hashlib
import os
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare
from vit_search.data.decode import read_images
from vit_search.data.sources import image_folder
from vit_search.errors import DataError

LATIN_1 = "caf\udce9"
"""How Python spells a name of the bytes caf\\xe9, which are not UTF-8."""


def fill(folder, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = folder / f"{i}.png"
        Image.frombytes("L", (4, 4), hashlib.sha256(os.fsencode(path)).digest()[:16]).save(path)  # no two alike


def photos(root):
    fill(root / "cat")
    fill(root / "dog")
    return root


def made(root, cache, **options):
    return prepare(DataConfig(name="image_folder", path=str(root), image_size=4, channels=1), cache=cache, **options)


def test_a_split_without_images_is_refused_and_not_drawn_from_train(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "test")
    for kind in ("cat", "dog"):
        (tmp_path / "val" / kind).mkdir(parents=True)
    with pytest.raises(DataError, match=r"val: no images; put images into its class folders, or remove val"):
        image_folder.scan(tmp_path)


def test_a_link_up_to_the_root_does_not_make_dogs_of_cats(tmp_path):
    photos(tmp_path / "photos")
    (tmp_path / "photos" / "dog" / "up").symlink_to("..")
    for split in ("train", "val"):
        photos(tmp_path / "split" / split)
    (tmp_path / "split" / "train" / "dog" / "up").symlink_to("..")
    (tmp_path / "split" / "val" / "dog" / "top").symlink_to("../..")
    assert Counter(image_folder.scan(tmp_path / "photos").labels) == {0: 4, 1: 4}
    assert Counter(image_folder.scan(tmp_path / "split").labels) == {0: 8, 1: 8}


def test_a_hidden_folder_counts_its_files_wherever_it_lies(tmp_path):
    for split in ("train", "test"):
        photos(tmp_path / split)
    fill(tmp_path / ".trash", 3)
    fill(tmp_path / "train" / ".trash", 2)
    fill(tmp_path / "test" / "cat" / ".trash", 1)
    assert image_folder.scan(tmp_path).skipped == {"hidden": 6}


def test_what_lies_beside_class_folders_is_skipped_and_named(tmp_path):
    for split in ("train", "test"):
        photos(tmp_path / split)
    (tmp_path / "train" / "labels.csv").touch()
    assert image_folder.scan(tmp_path).skipped == {".csv": 1}
    fill(photos(tmp_path / "plain"), 3)
    assert image_folder.scan(tmp_path / "plain").skipped == {"outside a class folder": 3}


@pytest.mark.parametrize("name", ["می\u200cروم", "猫\u3000犬", "👩\u200d🚀", "café", "a b"])
def test_a_class_name_of_any_script_is_kept(tmp_path, name):
    fill(tmp_path / "photos" / name)
    fill(tmp_path / "photos" / "zz")
    assert set(made(tmp_path / "photos", tmp_path / "cache").classes) == {name, "zz"}


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", LATIN_1])
def test_a_class_name_that_would_break_a_line_is_refused_in_one(tmp_path, name):
    fill(photos(tmp_path) / name)
    with pytest.raises(DataError, match="rename it") as refused:
        image_folder.scan(tmp_path)
    assert str(refused.value).isprintable()


def test_an_ending_in_latin_1_can_be_written_to_a_file(tmp_path):
    (photos(tmp_path) / "cat" / f"x.{LATIN_1}").touch()
    assert image_folder.scan(tmp_path).summary().encode().endswith(rb"1 file skipped: 1 .caf\xe9")


def test_many_endings_are_shortened(tmp_path):
    skipped = {f".{i:04}": 1 for i in range(1000)}
    expected = "1,000 files skipped: 1 .0000, 1 .0001, 1 .0002, 1 .0003, 1 .0004, 1 .0005, 994 others"
    assert replace(image_folder.scan(photos(tmp_path)), skipped=skipped).summary().endswith(expected)


def test_a_streamed_set_with_a_file_name_in_latin_1_is_opened_again(tmp_path):
    photos(tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "0.png").rename(tmp_path / "photos" / "cat" / f"{LATIN_1}.png")
    data = made(tmp_path / "photos", tmp_path / "cache", stream_above=0)
    assert sum(data.counts.values()) == 8
    assert made(tmp_path / "photos", tmp_path / "cache", stream_above=0) == data


def test_damaged_images_of_a_streamed_set_are_named_at_once(tmp_path):
    photos(tmp_path / "photos")
    for path in (tmp_path / "photos").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-30])  # the header is whole, and its pixels are not
    with pytest.raises(DataError, match=r"photos: \d+ images cannot be used:"):
        made(tmp_path / "photos", tmp_path / "cache", stream_above=0)


def test_all_damaged_images_of_a_prediction_are_named(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(21)]
    Image.new("L", (4, 4)).save(files[0])
    for path in files[1:]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="models:/x: 20 images cannot be used") as refused:
        read_images(files, (4, 4), 1, source="models:/x")
    assert [str(path) in str(refused.value) for path in files] == [False] + [True] * 20
    assert read_images(files[:1] * 2, (4, 4), 3, source="models:/x").shape == (2, 3, 4, 4)


@pytest.mark.parametrize("ending", ["apng", "j2k", "j2c", "jpc", "jpf", "jpx", "pbm", "pnm", "qoi"])
def test_rare_endings_of_formats_that_are_read_count_too(tmp_path, ending):
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(3):
            Image.new("1" if ending == "pbm" else "RGB", (8, 8)).save(tmp_path / "photos" / kind / f"{i}.{ending}")
    assert sum(made(tmp_path / "photos", tmp_path / "cache").counts.values()) == 6


@pytest.mark.parametrize("closed", ["cat", "cat/1.png"])
def test_what_may_not_be_read_is_named(tmp_path, closed):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (photos(tmp_path / "photos") / closed).chmod(0)
    with pytest.raises(DataError, match=f"{closed}: cannot be read"):
        made(tmp_path / "photos", tmp_path / "cache")
