"""Data sets: real images in, uint8 memory maps out; the same seed, the same splits; damage is refused by name."""

import gzip
import io
import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers.paths import SHARED
from PIL import Image
from sklearn.datasets import load_digits

from vit_search.config.data_config import DataConfig
from vit_search.data import decode
from vit_search.data.cache import prepare, read_split
from vit_search.data.decode import read_image
from vit_search.errors import DataError

FASHION = SHARED / "data" / "FashionMNIST" / "raw"


def digits(cache, **fields):
    return prepare(DataConfig(name="digits", **fields), cache=cache)


def both(data, split):
    return tuple(np.array(part) for part in read_split(data, split))  # copies: a map follows its file


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_digits_are_17_grey_levels_spread_over_a_byte(cache):
    data = digits(cache)
    assert (data.image_size, data.channels, data.classes) == ((8, 8), 1, tuple("0123456789"))
    every = np.concatenate([both(data, split)[0] for split in ("train", "val", "holdout", "test")])
    assert sorted(set(every.ravel())) == [round(level * 255 / 16) for level in range(17)]
    first = np.round(load_digits().images[0] * 255 / 16).astype(np.uint8)
    assert sum((image[0] == first).all() for image in every) == 1


def test_splits_are_disjoint_whole_and_stratified(cache):
    data = digits(cache)
    assert sum(data.counts.values()) == 1797
    assert data.counts["test"] == pytest.approx(0.15 * 1797, abs=2)
    assert data.counts["val"] == pytest.approx(0.1 * 1797, abs=2)
    assert data.counts["holdout"] == pytest.approx(0.05 * 1797, abs=2)
    labels = load_digits().target
    whole = set()
    for split in ("train", "val", "holdout", "test"):
        images, own = both(data, split)
        assert len(images) == len(own) == data.counts[split]
        share = len(own) / 1797
        for label in range(10):
            assert (own == label).sum() == pytest.approx((labels == label).sum() * share, abs=2)
        assert not whole & {image.tobytes() for image in images}
        whole |= {image.tobytes() for image in images}
    assert data.test_duplicates == 0


def test_the_holdout_takes_nothing_from_the_training_images(cache):
    """They follow from what validation and holdout take together, so figures of trainings do not move with it."""
    with_one, without = digits(cache), digits(cache, val_fraction=0.15, holdout_fraction=0)
    assert without.counts["holdout"] == 0
    assert np.array_equal(both(with_one, "train")[0], both(without, "train")[0])
    together = np.concatenate([both(with_one, "val")[0], both(with_one, "holdout")[0]])
    assert {image.tobytes() for image in together} == {image.tobytes() for image in both(without, "val")[0]}


def test_several_splits_are_read_as_one(cache):
    data = digits(cache)
    images, labels = read_split(data, "train", "val")
    assert np.array_equal(images, np.concatenate([both(data, "train")[0], both(data, "val")[0]]))
    assert np.array_equal(labels, np.concatenate([both(data, "train")[1], both(data, "val")[1]]))


def test_the_test_split_depends_on_its_seed_and_share_alone(cache):
    test = both(digits(cache), "test")[0]
    assert np.array_equal(test, both(digits(cache, val_fraction=0.3, train_limit=100), "test")[0])
    assert not np.array_equal(test, both(digits(cache, split_seed=1), "test")[0])


def test_the_hash_names_all_that_decides_the_split(cache):
    hashes = {digits(cache, **fields).data_hash for fields in ({}, {"split_seed": 1}, {"val_fraction": 0.3}, {"train_limit": 100})}
    assert len(hashes) == 4
    assert digits(cache).data_hash == digits(cache).data_hash


def test_a_train_limit_keeps_every_class(cache):
    data = digits(cache, train_limit=20)
    images, labels = read_split(data, "train")
    assert len(images) == 20
    assert set(labels) == set(range(10))


def test_mean_and_deviation_are_of_the_training_images_alone(cache):
    data = digits(cache)
    values = both(data, "train")[0] / 255
    assert data.mean[0] == pytest.approx(values.mean(), rel=1e-9)
    assert data.std[0] == pytest.approx(values.std(), rel=1e-9)


def test_images_are_mapped_from_disk_and_a_write_stays_in_its_process(cache):
    images, _ = read_split(digits(cache), "train")
    assert isinstance(images, np.memmap)
    images[0] = 255
    assert images[0].min() == 255
    assert read_split(digits(cache), "train")[0][0].min() == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "json"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    data = digits(tmp_path)
    before = both(data, "train")[0]
    victim = data.folder / ("data.json" if damage == "json" else "train_images.npy")
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-10])
    assert np.array_equal(both(digits(tmp_path), "train")[0], before)


def test_labels_forged_under_the_genuine_hash_are_refused(tmp_path):
    labels = digits(tmp_path).folder / "test_labels.npy"
    np.save(labels, np.zeros_like(np.load(labels)))
    data = digits(tmp_path)
    with pytest.raises(DataError, match=r"test_labels\.npy: not what was written there; remove .* and it is made again"):
        read_split(data, "test")
    assert len(read_split(data, "val")[1]) == 179  # the others are whole
    shutil.rmtree(data.folder)
    assert len(np.unique(read_split(digits(tmp_path), "test")[1])) == 10


def test_a_cache_into_which_others_may_write_is_refused(tmp_path):
    cache = tmp_path / "cache"
    before = os.umask(0)  # with any umask, the cache is its owner's alone
    try:
        data = digits(cache)
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in (cache, data.folder)] == ["0o755"] * 2
    assert {oct(path.stat().st_mode & 0o777) for path in data.folder.iterdir()} == {"0o644"}
    for folder, mode in ((cache, 0o777), (cache, 0o775), (data.folder, 0o757)):
        folder.chmod(mode)
        with pytest.raises(
            DataError, match=f"{folder.name}: images of this cache cannot be trusted: other accounts may write into .*{mode:04o}"
        ):
            digits(cache)
        folder.chmod(0o755)
    assert digits(cache).data_hash == data.data_hash


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_another_account_is_refused(tmp_path):
    os.chown(digits(tmp_path).folder, 12345, -1)
    with pytest.raises(DataError, match=r"belongs to another account \(uid 12345\)"):
        digits(tmp_path)


def _prepare_in(folder):
    return digits(Path(folder)).data_hash


def test_processes_that_start_at_once_share_one_cache(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_prepare_in, [str(tmp_path)] * 3))) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock"]  # one set, and nothing half-written


@pytest.mark.skipif(not FASHION.is_dir(), reason="FashionMNIST is not beside the project")
def test_fashion_mnist_equals_what_torchvision_reads(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in FASHION.glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    data = prepare(DataConfig(name="fashion_mnist", path=str(tmp_path), val_fraction=0.1), cache=tmp_path / "cache")
    assert data.counts == {"train": 51_000, "val": 6_000, "holdout": 3_000, "test": 10_000}
    assert data.classes[0] == "T-shirt/top"
    theirs = torchvision.datasets.FashionMNIST(str(tmp_path), train=False)
    images, labels = read_split(data, "test")
    assert np.array_equal(images[:, 0], theirs.data.numpy())
    assert np.array_equal(labels, theirs.targets.numpy())
    _, labels = read_split(data, "val")
    assert set(np.bincount(labels)) == {600}
    processed = tmp_path / "FashionMNIST" / "processed"  # a form of the files that torchvision prefers, and that is in no hash
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100) % 10), processed / name)
    again = prepare(DataConfig(name="fashion_mnist", path=str(tmp_path), val_fraction=0.1), cache=tmp_path / "another")
    assert (again.counts, again.data_hash, again.sha256) == (data.counts, data.data_hash, data.sha256)


def test_mnist_is_read_from_files_in_its_own_format(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = {}
    for name, count in (("train", 40), ("t10k", 20)):
        pixels[name] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels[name].tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(i % 10 for i in range(count)))
    data = prepare(DataConfig(name="mnist", path=str(tmp_path), val_fraction=0.25, holdout_fraction=0), cache=tmp_path / "cache")
    assert data.counts == {"train": 30, "val": 10, "holdout": 0, "test": 20}
    assert np.array_equal(read_split(data, "test")[0][:, 0], pixels["t10k"])


def test_cifar_files_whose_checksum_is_wrong_are_never_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    for name in ["batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        (folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        DataError, match=r"the files of cifar10 are not there, or damaged; name their folder as data\.path, or add --download"
    ):
        prepare(DataConfig(name="cifar10", path=str(tmp_path)), cache=tmp_path / "cache")
    assert not marker.exists()


@pytest.fixture
def folder(tmp_path):
    """Two classes of six images each, in several formats."""
    for label, (name, value) in enumerate([("cat", 40), ("dog", 200)]):
        place = tmp_path / "images" / name
        place.mkdir(parents=True)
        for i in range(6):
            image = Image.new("RGB", (20 + i, 16), (value, i * 10, label))
            image.save(place / f"{i}.{'png' if i % 2 else 'jpg'}", **({} if i % 2 else {"quality": 95}))
        (place / "notes.txt").write_text("no image")
    return tmp_path / "images"


def prepare_folder(folder, **fields):
    return prepare(DataConfig(name="image_folder", path=str(folder), image_size=8, **fields), cache=folder.parent / "cache")


def test_an_image_folder_has_a_class_for_each_sub_folder(folder):
    data = prepare_folder(folder)
    assert (data.classes, data.image_size, data.channels) == (("cat", "dog"), (8, 8), 3)
    assert data.counts == {"train": 8, "val": 2, "holdout": 0, "test": 2}
    images, labels = both(data, "train")
    assert all(abs(int(image[0, 4, 4]) - (40, 200)[label]) <= 3 for image, label in zip(images, labels, strict=True))


def test_a_changed_image_is_another_data_set(folder):
    before = prepare_folder(folder).data_hash
    Image.new("RGB", (20, 16), (1, 2, 3)).save(folder / "cat" / "1.png")
    assert prepare_folder(folder).data_hash != before


def test_a_corrupt_image_is_refused_by_name(folder):
    (folder / "dog" / "3.png").write_bytes((folder / "dog" / "3.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"dog/3\.png: no image that can be decoded \(.*\); replace or remove it"):
        prepare_folder(folder)


def test_folders_that_cannot_be_split_are_refused_with_what_was_seen(folder, tmp_path):
    shutil.rmtree(folder / "dog")
    with pytest.raises(DataError, match="one class only, 'cat'; put the images into at least two folders"):
        prepare_folder(folder)
    (folder / "dog").mkdir()
    with pytest.raises(DataError, match="dog: 0 images; each class needs at least 3"):
        prepare_folder(folder)
    with pytest.raises(DataError, match=r"nowhere: missing; data\.path names a folder of class folders"):
        prepare_folder(tmp_path / "nowhere")


def test_a_cache_that_cannot_be_written_is_refused_with_the_mend(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"the data cache cannot be written \(.*\); set VIT_SEARCH_CACHE"):
        digits(tmp_path / "file" / "cache")


def encoded(image, kind="PNG", **options):
    raw = io.BytesIO()
    image.save(raw, kind, **options)
    return raw.getvalue()


def test_every_kind_of_pixel_becomes_a_byte():
    assert read_image(encoded(Image.fromarray(np.full((2, 2), 257 * 100, np.uint16))), None, 1).tolist() == [[[100, 100], [100, 100]]]
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert read_image(encoded(palette), None, 3).ravel().tolist() == [10, 20, 30]
    assert read_image(encoded(Image.new("RGBA", (1, 1), (200, 100, 50, 0))), None, 3).ravel().tolist() == [0, 0, 0]
    cmyk = read_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), None, 3)
    assert cmyk[0].min() > 200
    assert cmyk[1:].max() < 60


def test_an_image_is_turned_upright():
    image = Image.new("L", (2, 1))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise: the left pixel goes to the top
    assert read_image(encoded(image, "PNG", exif=exif), None, 1).tolist() == [[[255], [0]]]


def test_an_image_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    raw = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(DataError, match=r"decode|50000x50000 pixels"):
        read_image(raw, None, 3)


@pytest.mark.parametrize("raw", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"%PDF-1.4"])
def test_what_is_no_image_is_refused(raw):
    with pytest.raises(DataError, match="no image that can be decoded"):
        read_image(raw, None, 3)


def test_the_line_on_a_named_set_tells_its_splits_and_what_a_limit_leaves(cache):
    assert prepare(DataConfig(name="digits"), cache=cache).summary == (
        "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; 1,797 images (train 1,258, val 179, holdout 90, test 270)"
    )
    limited = prepare(DataConfig(name="digits", train_limit=100), cache=cache)
    assert limited.summary.endswith("; 639 images (train 100, val 179, holdout 90, test 270)")


DEEP = np.random.default_rng(3).random((40, 31))
ODD_KINDS = {
    "RGBA": (Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 31, 4), np.uint8)), "PNG"),
    "LA": (Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 31, 2), np.uint8)), "PNG"),
    "P": (Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 31, 4), np.uint8)).quantize(32), "PNG"),
    "16 bits": (Image.fromarray((DEEP * 65535).astype(np.uint16)), "PNG"),
    "32 bits": (Image.fromarray((DEEP * 255).astype(np.int32)), "TIFF"),
    "fractions": (Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize(("image", "kind"), ODD_KINDS.values(), ids=ODD_KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_is_converted_in_strips_has_the_same_bits(image, kind, channels, monkeypatch):
    raw = io.BytesIO()
    image.save(raw, kind)
    at_once = read_image(raw.getvalue(), (16, 16), channels)
    monkeypatch.setattr(decode, "STRIP_PIXELS", 100)  # 3 rows of 40
    assert (read_image(raw.getvalue(), (16, 16), channels) == at_once).all()
    assert at_once.std() > 1


PEAK = """
import sys
from pathlib import Path
from vit_search.data.decode import read_image

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

small, large = map(Path, sys.argv[1:])
read_image(small, (8, 8), 3)
before = peak()
read_image(large, (8, 8), 3)
print(peak() - before)
"""


@pytest.mark.parametrize(("mode", "colour", "name"), [("RGBA", (9, 8, 7, 100), "a.png"), ("F", 0.3, "a.tif")])
def test_a_large_image_takes_at_most_10_bytes_a_pixel(mode, colour, name, tmp_path):
    """Two copies of 4 bytes and a strip; it took 24 for fractions and 16 for transparency."""
    large, small = tmp_path / name, tmp_path / f"small-{name}"
    Image.new(mode, (5000, 5000), colour).save(large, compression="tiff_lzw")
    Image.new(mode, (50, 50), colour).save(small)
    told = subprocess.run([sys.executable, "-c", PEAK, small, large], capture_output=True, text=True, check=True).stdout
    assert 2 * 5000**2 < int(told) * 1024 < 10 * 5000**2
