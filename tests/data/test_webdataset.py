"""Shards: which image has which label and split, and what is wrong with one in one line that names shard and key."""

import io
import json
import tarfile

import numpy as np
import pytest
from helpers.remote_files import http_server
from PIL import Image

from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare, read_split
from vit_search.data.decode import read_image
from vit_search.data.sources import open_source
from vit_search.errors import DataError


def png(seed, side=8):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def shard(path, files):
    """A tar file of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(first, count, label=lambda i: str(i % 2)):
    """Keys 000, 001, …, each a PNG file and the text of its label."""
    return [file for i in range(first, first + count) for file in ((f"{i:03}.png", png(i)), (f"{i:03}.cls", label(i).encode()))]


def config(path, **fields):
    return DataConfig(name="webdataset", path=str(path), image_size=8, **fields)


def opened(path, **fields):
    return open_source(config(path, **fields))


def test_images_and_labels_are_those_of_the_shards(tmp_path):
    shard(tmp_path / "a-000.tar", samples(0, 10))
    shard(tmp_path / "a-001.tar", samples(10, 10))
    source = opened(tmp_path)
    assert source.classes == ("0", "1") and source.labels.tolist() == [0, 1] * 10 and source.splits is None
    assert all((source.read(i) == read_image(png(i), (8, 8), 3)).all() for i in range(20))
    assert source.summary() == "2 classes: 0, 1; 20 images; 2 shards"


def test_numbers_are_classes_in_their_order_and_names_in_that_of_the_alphabet(tmp_path):
    shard(tmp_path / "n.tar", samples(0, 9, lambda i: str([10, 9, 2][i % 3])))
    assert opened(tmp_path / "n.tar").classes == ("2", "9", "10")
    shard(tmp_path / "t.tar", samples(0, 9, lambda i: ["dog\n", "cat", "7"][i % 3]))
    assert opened(tmp_path / "t.tar").classes == ("7", "cat", "dog")


def test_the_label_may_be_in_a_json_file_under_any_key(tmp_path):
    files = [f for i in range(6) for f in ((f"{i}.jpg", png(i)), (f"{i}.json", json.dumps({"kind": "ab"[i % 2], "x": 1}).encode()))]
    shard(tmp_path / "j.tar", files)
    assert opened(tmp_path, label="kind").classes == ("a", "b")


def test_keys_with_the_same_mistake_are_one_line_that_names_the_keys_that_are_there(tmp_path):
    files = [f for i in range(10) for f in ((f"{i}.jpg", png(i)), (f"{i}.json", json.dumps({"kind": "ab"[i % 2], "x": 1}).encode()))]
    path = shard(tmp_path / "j.tar", files)
    with pytest.raises(DataError) as refused:
        opened(tmp_path)
    mend = "its .json has no 'label', only 'kind', 'x'; name the key that holds the label."
    assert str(refused.value) == f"data.label: {path}: 0, 1, 2, 3, 4, … 5 more: {mend}"
    with pytest.raises(DataError, match=r"^data\.label: .*: its \.json has no 'kinds'; did you mean 'kind'\?$"):
        opened(tmp_path, label="kinds")
    shard(tmp_path / "k.tar", [("x.jpg", png(20)), ("x.json", b'{"kind": null}'), ("y.png", png(21)), ("y.json", b'{"kind": null}')])
    with pytest.raises(DataError) as refused:
        opened(tmp_path, label="kind")
    assert str(refused.value) == f"{tmp_path / 'k.tar'}: x, y: 'kind' in its .json is null; give the label."
    shard(tmp_path / "l.tar", [("z.png", png(30)), ("z.json", b'{"kind": null}'), ("w.cls", b"3")])
    with pytest.raises(DataError) as refused:
        opened(tmp_path, label="kind")
    assert str(refused.value).splitlines() == [
        f"{tmp_path}: 4 keys cannot be used:",
        f"  {tmp_path / 'k.tar'}: x, y, l.tar: z: 'kind' in its .json is null; give the label.",
        f"  {tmp_path / 'l.tar'}: w: a label without an image; add KEY.jpg (or .png, …), or remove it.",
    ]


def test_a_wrong_key_of_the_search_file_is_told_once_for_all_shards(tmp_path):
    def files(first, key):
        texts = {i: json.dumps({"label": i % 2, key: 1}).encode() for i in range(first, first + 10)}
        return [file for i, text in texts.items() for file in ((f"{i:03}.png", png(i)), (f"{i:03}.json", text))]

    for n in range(3):
        shard(tmp_path / f"{n}.tar", files(10 * n, "trust"))
    with pytest.raises(DataError) as refused:
        opened(tmp_path, weight="trusted")
    places = "30 keys in 3 shards (0.tar: 000, 1.tar: 010, 2.tar: 020, …)"
    assert str(refused.value) == f"data.weight: {tmp_path}: {places}: its .json has no 'trusted'; did you mean 'trust'?"
    shard(tmp_path / "3.tar", files(30, "trusted"))  # now the others lack it
    with pytest.raises(DataError) as refused:
        opened(tmp_path, weight="trusted")
    assert str(refused.value) == f"{tmp_path}: {places}: its .json has no 'trusted'; add it."


def test_a_key_that_is_there_twice_is_told_together_with_all_other_mistakes(tmp_path):
    shard(tmp_path / "a.tar", [*samples(0, 8), ("x.png", png(50))])
    shard(tmp_path / "b.tar", [*samples(8, 8), ("001.png", png(60)), ("001.cls", b"0"), ("x.cls", b"1")])
    with pytest.raises(DataError) as refused:
        opened(tmp_path)
    twice = f"the key is there twice, first in {tmp_path / 'a.tar'}; give each image its own."
    assert str(refused.value).splitlines() == [
        f"{tmp_path}: 3 keys cannot be used:",
        f"  {tmp_path / 'a.tar'}: x: an image without a label; add KEY.cls, or KEY.json with 'label'.",
        f"  {tmp_path / 'b.tar'}: x: a label without an image; add KEY.jpg (or .png, …), or remove it.",
        f"  {tmp_path / 'b.tar'}: 001, x: {twice}",
    ]


def test_other_files_of_a_key_are_skipped_and_counted(tmp_path):
    shard(tmp_path / "a.tar", [*samples(0, 6), ("005.txt", b"a caption"), ("._006.png", b""), ("README", b"x")])
    assert opened(tmp_path).summary().endswith("1 shard; 3 files skipped: 1 .txt, 1 hidden, 1 without an ending")


@pytest.mark.parametrize("names", [("train-0.tar", "val-0.tar", "test-0.tar"), ("train/0.tar", "validation/0.tar", "test/0.tar")])
def test_folders_or_the_beginnings_of_names_are_splits(tmp_path, names):
    for i, name in enumerate(names):
        shard(tmp_path / name, samples(10 * i, 6))
    source = opened(tmp_path)
    assert dict(source.counts) == {"train": 6, "val": 6, "test": 6}
    data = prepare(config(tmp_path, holdout_fraction=0), cache=tmp_path / "cache")
    assert data.counts == {"train": 6, "val": 6, "holdout": 0, "test": 6}
    assert data.summary == "2 classes: 0, 1; 18 images (train 6, val 6, test 6); 3 shards"


def test_braces_name_shards(tmp_path):
    for i in range(3):
        shard(tmp_path / f"s-{i:03}.tar", samples(10 * i, 6))
    assert len(opened(f"{tmp_path}/s-{{000..001}}.tar").labels) == 12
    with pytest.raises(
        DataError, match=r"s-003\.tar: missing, and the braces of data\.path name it; copy it there, or change the braces\."
    ):
        opened(f"{tmp_path}/s-{{000..003}}.tar")
    with pytest.raises(DataError) as refused:
        opened(f"{tmp_path}/s-{{001..005}}.tar")
    fact = "3 of 5 shards that the braces of data.path name are missing: s-003.tar, s-004.tar, s-005.tar"
    assert str(refused.value) == f"{tmp_path}: {fact}; copy them there, or change the braces."


def test_a_streamed_image_is_the_cached_one(tmp_path):
    shard(tmp_path / "a.tar", samples(0, 20))
    cached = prepare(config(tmp_path), cache=tmp_path / "one")
    streamed = prepare(config(tmp_path), cache=tmp_path / "two", stream_above=0)
    assert cached.data_hash == streamed.data_hash and streamed.reader is not None
    images, labels = read_split(cached, "train")
    names, same_labels = read_split(streamed, "train")
    assert (labels == same_labels).all()
    assert all((streamed.reader(str(name), (8, 8)) == image).all() for name, image in zip(names, images, strict=True))


def test_a_copy_of_a_test_image_among_the_training_images_is_counted(tmp_path):
    shard(tmp_path / "train-0.tar", samples(0, 12))
    shard(tmp_path / "test-0.tar", [*samples(20, 6), ("99.png", png(3)), ("99.cls", b"1")])
    assert prepare(config(tmp_path, holdout_fraction=0), cache=tmp_path / "c").test_duplicates == 1
    assert prepare(config(tmp_path, holdout_fraction=0), cache=tmp_path / "d", stream_above=0).test_duplicates == 1


def test_the_data_hash_changes_with_a_label(tmp_path):
    shard(tmp_path / "a" / "x.tar", samples(0, 8))
    shard(tmp_path / "b" / "x.tar", samples(0, 8))
    shard(tmp_path / "c" / "x.tar", samples(0, 8, lambda i: str(1 - i % 2)))
    hashes = [prepare(config(tmp_path / name), cache=tmp_path / "cache").data_hash for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_shards_over_http_are_the_same_data(tmp_path):
    for i in range(2):
        shard(tmp_path / "served" / f"train-{i}.tar", samples(10 * i, 10))
    local = prepare(config(tmp_path / "served"), cache=tmp_path / "cache")
    assert local.summary == "2 classes: 0, 1; 20 images (train 13, val 2, holdout 2, test 3); 2 shards"
    with http_server(tmp_path) as server:
        for url in (f"{server.url}/served/", f"{server.url}/served/train-{{0..1}}.tar"):
            fetched = prepare(config(url), cache=tmp_path / "other")
            assert (fetched.data_hash, fetched.summary) == (local.data_hash, local.summary)


def cut(path, count):
    content = path.read_bytes()
    path.write_bytes(content[:count])


def test_a_shard_that_is_cut_off_is_one_line_wherever_it_is_cut(tmp_path):
    path = shard(tmp_path / "a.tar", samples(0, 6))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    last = members[-1]
    between, inside = last.offset, members[-2].offset_data + 100
    for end in (between, inside, last.offset_data + 1, last.offset + 300, last.offset_data + 512):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"^.*a\.tar: cut off (or damaged )?after 00.\.(png|cls).*; copy it again\.$"):
            opened(tmp_path)


BAD = {
    "no label": ([("x.png", png(50))], r"a\.tar: x: an image without a label; add KEY\.cls"),
    "no image": ([("x.cls", b"1")], r"a\.tar: x: a label without an image; add KEY\.jpg"),
    "duplicate key": ([("000.png", png(50)), ("000.cls", b"1")], r"a\.tar: 000: the key is there twice; give each image its own"),
    "two images": ([("x.png", png(50)), ("x.jpg", png(51)), ("x.cls", b"1")], r"a\.tar: x: it has two images"),
    "empty label": ([("x.png", png(50)), ("x.cls", b" ")], r"a\.tar: x: its \.cls is empty; write a number or a name"),
    "bytes as label": ([("x.png", png(50)), ("x.cls", b"\xff\xfe")], r"a\.tar: x: its \.cls is not UTF-8"),
    "odd label": ([("x.png", png(50)), ("x.cls", b"a\x07b")], r"a\.tar: x: its label 'a\\x07b' cannot be printed"),
    "no JSON": ([("x.png", png(50)), ("x.json", b"{")], r"a\.tar: x: its \.json is not JSON"),
    "fraction": ([("x.png", png(50)), ("x.json", b'{"label": 0.5}')], r"a\.tar: x: 'label' in its \.json is 0\.5; give a whole number"),
    "rare class": ([("x.png", png(50)), ("x.cls", b"9")], r"class 9 has 1 image \(a\.tar: x\); each class needs at least 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line_with_shard_and_key(tmp_path, name):
    files, message = BAD[name]
    shard(tmp_path / "a.tar", [*samples(0, 8), *files])
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_none_is_one_line_with_shard_and_key(tmp_path):
    shard(tmp_path / "a.tar", [*samples(0, 8), ("in/x.png", b"no image"), ("in/x.cls", b"1")])
    with pytest.raises(DataError, match=r"^.*a\.tar: in/x: no image that can be decoded"):
        prepare(config(tmp_path), cache=tmp_path / "cache")


def test_files_that_are_no_shards_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no shards; data\.path names a folder of \.tar files"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"none: missing; data\.path names a folder"):
        opened(tmp_path / "none")
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(DataError, match=r"a\.tar: packed, .*; unpack it: gunzip\."):
        opened(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(DataError, match=r"a\.tar: cut off or damaged"):
        opened(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.tar: empty; copy it again"):
        opened(tmp_path)


def test_splits_that_do_not_fit_together_are_refused(tmp_path):
    shard(tmp_path / "val-0.tar", samples(0, 6))
    with pytest.raises(DataError, match=r"shards of val, and none of train"):
        opened(tmp_path)
    shard(tmp_path / "train-0.tar", samples(10, 6))
    shard(tmp_path / "more.tar", samples(20, 6))
    with pytest.raises(DataError, match=r"more\.tar: it is of no split, and other shards are"):
        opened(tmp_path)
    (tmp_path / "more.tar").unlink()
    shard(tmp_path / "val-1.tar", samples(30, 6, lambda i: "new"))
    with pytest.raises(DataError, match=r"not in the training images: new \(val: val-1\.tar: 030, .*\); move some images to train"):
        opened(tmp_path)
