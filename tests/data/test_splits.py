"""Splits: from memory or streamed from files, the same pixels; a cache that many processes share and none can spoil by dying."""

import dataclasses
import io
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  before the forks, so that no child has to
import torch
from filelock import FileLock
from PIL import Image

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data import cache as cache_module
from vit_search.data.batches import Split, StreamedSplit, load_split
from vit_search.data.cache import prepare, read_split
from vit_search.data.decode import read_image
from vit_search.data.sources import image_folder
from vit_search.errors import DataError
from vit_search.vit import checkpoint
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.training import fit, start

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of twelve JPEGs, not square and of several sizes."""
    root = tmp_path_factory.mktemp("photos") / "images"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(12):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            coarse.resize((30 + i, 24), Image.Resampling.BICUBIC).save(root / name / f"{i}.jpg", quality=90)
    return root


def config_of(root, **fields):
    return DataConfig(name="image_folder", path=str(root), image_size=16, **fields)


@pytest.fixture(scope="module")
def decoded(photos):
    return prepare(config_of(photos), cache=photos.parent / "decoded")


@pytest.fixture(scope="module")
def streamed(photos):
    return prepare(config_of(photos), cache=photos.parent / "streamed", stream_above=1)


def stream(prepared, name, workers=0):
    names, labels = read_split(prepared, name)
    return StreamedSplit(prepared.reader, names, torch.from_numpy(labels), prepared.image_size, workers=workers)


def all_of(split, size=5, **crops):
    images, labels = zip(*split.batches(torch.arange(len(split)).split(size), **crops), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches_of_a_split_are_its_images_by_index(decoded):
    split = load_split(decoded, "train")
    images, labels = read_split(decoded, "train")
    parts = [torch.tensor([3, 0, 3]), torch.tensor([1])]
    for part, (seen, told) in zip(parts, split.batches(parts), strict=True):
        assert np.array_equal(seen.numpy(), images[part.numpy()])
        assert np.array_equal(told.numpy(), labels[part.numpy()])
    assert (len(split), split.cropped) == (len(images), False)


def test_a_batch_is_a_copy_so_that_augmenting_it_leaves_the_set_alone(decoded):
    split = load_split(decoded, "val")
    before = split.images.clone()
    for images, _ in split.batches([torch.arange(2)]):
        images.zero_()
    assert torch.equal(split.images, before)


def test_trials_of_a_machine_share_the_pages_of_the_cache(decoded):
    split = load_split(decoded, "train")
    address = split.images.data_ptr()
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "train_images.npy" in line]
    assert any(int(start, 16) <= address < int(end, 16) for start, end in (line.split()[0].split("-") for line in maps))


def test_a_streamed_set_is_the_decoded_set_under_the_same_hash(decoded, streamed):
    assert decoded.reader is None
    assert streamed.reader is not None
    alike = [field.name for field in dataclasses.fields(decoded) if field.name not in ("folder", "reader", "sha256")]
    assert [getattr(streamed, name) for name in alike] == [getattr(decoded, name) for name in alike]  # hash, mean, deviation, counts...
    for name in SPLITS:
        split = load_split(streamed, name)
        assert isinstance(split, StreamedSplit)
        (images, labels), (ours, theirs) = all_of(split), all_of(load_split(decoded, name))
        assert torch.equal(images, ours)
        assert torch.equal(labels, theirs)


def test_a_small_folder_is_decoded_and_one_of_more_bytes_than_asked_for_is_streamed(photos, tmp_path):
    pixels = 24 * 3 * 16 * 16
    assert prepare(config_of(photos), cache=tmp_path / "a", stream_above=pixels).reader is None
    assert prepare(config_of(photos), cache=tmp_path / "b", stream_above=pixels - 1).reader.root == photos.resolve()
    assert prepare(config_of(photos), cache=tmp_path / "c", stream_above=0).reader.root == photos.resolve()
    assert prepare(config_of(photos), cache=tmp_path / "b").reader.root == photos.resolve()  # as it lies in the cache


def test_crops_come_from_seed_and_index_alone(streamed):
    one, two = stream(streamed, "train", 0), stream(streamed, "train", 2)
    assert one.cropped
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(1))
    cropped, _ = all_of(one, seed=7, crop_scale=0.3)
    torch.manual_seed(99)
    with_workers = torch.empty_like(cropped)
    for part, (images, _) in zip(order.split(3), two.batches(order.split(3), 7, 0.3), strict=True):
        with_workers[part] = images  # another order, other batches, other processes, another global seed
    assert torch.equal(with_workers, cropped)
    next_epoch, _ = all_of(two, seed=8, crop_scale=0.3)
    changed = (next_epoch != cropped).flatten(1).any(1)
    assert changed.all()
    centre, _ = all_of(one)
    assert (cropped != centre).flatten(1).any(1).all()
    assert torch.equal(all_of(one, seed=7, crop_scale=1.0)[0], centre)


def test_an_image_that_an_epoch_shows_again_is_cropped_anew(streamed):
    split = stream(streamed, "train", 0)
    first, twice, other = (
        [images for images, _ in split.batches(parts, 7, 0.3)]
        for parts in ([torch.tensor([3, 1])], [torch.tensor([3]), torch.tensor([1, 3])], [torch.tensor([3, 3])])
    )
    assert torch.equal(twice[0][0], first[0][0])
    assert torch.equal(twice[1][0], first[0][1])
    assert not torch.equal(twice[1][1], first[0][0])
    assert torch.equal(twice[1][1], other[0][1])  # the second time, wherever in the epoch


def test_a_draw_leaves_the_global_generator_where_it_was(streamed):
    torch.manual_seed(5)
    all_of(stream(streamed, "train"), seed=7, crop_scale=0.3)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_an_epoch_left_in_the_middle_does_not_reach_into_the_next(streamed):
    split = stream(streamed, "train", 2)
    wanted = all_of(split)[0]
    abandoned = split.batches(torch.arange(len(split)).split(1))
    next(abandoned)
    abandoned.close()
    assert torch.equal(all_of(split)[0], wanted)


def test_worker_processes_stay_for_the_next_epoch_and_end_with_the_split(streamed):
    before = set(multiprocessing.active_children())
    split = stream(streamed, "train", 2)
    all_of(split)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    all_of(split)
    assert set(multiprocessing.active_children()) - before == workers
    del split
    until = time.monotonic() + 600
    while set(multiprocessing.active_children()) & workers and time.monotonic() < until:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) & workers


@pytest.fixture
def own(photos, tmp_path):
    """A streamed set whose files a test may damage."""
    root = tmp_path / "images"
    for file in photos.rglob("*.jpg"):
        target = root / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return prepare(config_of(root), cache=tmp_path / "cache", stream_above=1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_image_is_one_line_that_names_it_through_worker_processes_too(own, workers, damage):
    victim = own.reader.root / read_split(own, "val")[0][1]
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-200])
    else:
        victim.unlink()
    normalisation = Normalisation.of(own.mean, own.std)
    model = start(trial(own), normalisation).model
    said = None
    try:  # not pytest.raises, which would hold the traceback and with it the workers
        evaluate(model, stream(own, "val", workers), normalisation)
    except DataError as error:
        said = str(error)
    wrong = {"cut": "no image that can be decoded (", "gone": "cannot be read (No such file or directory); name an image file."}[damage]
    assert said.startswith(f"{victim}: {wrong}")
    assert "\n" not in said


def test_a_damaged_training_image_is_refused_before_training_starts(photos, own, tmp_path):
    victim = own.reader.root / read_split(own, "train")[0][0]
    victim.write_bytes(victim.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{victim.name}: no image that can be decoded \(.*truncated.*\); replace or remove it\.$"):
        prepare(config_of(own.reader.root), cache=tmp_path / "cache", stream_above=1)


def trial(prepared, **training):
    return TrialConfig(
        data=config_of(prepared.reader.root),
        model=ModelConfig(
            image_size=prepared.image_size,
            in_channels=3,
            num_classes=2,
            patch_size=8,
            dim=16,
            heads=2,
            depth=1,
            dropout=0.1,
        ),
        training=TrainingConfig(epochs=3, batch_size=8, precision="float32", **training),
        seed=3,
    )


def numbers(results):
    timing = ("seconds", "images_per_s", "peak_memory_bytes")
    return [{k: v for k, v in dataclasses.asdict(r).items() if k not in timing} for r in results]


def test_training_on_a_streamed_set_resumed_with_more_workers_equals_uninterrupted(streamed, tmp_path):
    config = trial(streamed, crop_scale=0.4, flip=True, shift=1, mixup=0.3, auto_augment="trivial_augment", erasing=0.3)
    normalisation = Normalisation.of(streamed.mean, streamed.std)
    whole, broken = start(config, normalisation), start(config, normalisation)
    list(fit(whole, stream(streamed, "train"), stream(streamed, "val")))
    next(fit(broken, stream(streamed, "train"), stream(streamed, "val")))
    checkpoint.save(tmp_path / "c", broken, classes=streamed.classes, data_hash=streamed.data_hash)
    resumed = checkpoint.load_training(tmp_path / "c", config)
    list(fit(resumed, stream(streamed, "train", 2), stream(streamed, "val", 1)))
    assert numbers(resumed.history) == numbers(whole.history)
    for a, b in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_without_a_crop_streamed_trains_as_decoded(decoded, streamed):
    config = trial(streamed, flip=True, shift=1)
    normalisation = Normalisation.of(streamed.mean, streamed.std)
    first, second = start(config, normalisation), start(config, normalisation)
    list(fit(first, stream(streamed, "train"), stream(streamed, "val")))
    list(fit(second, load_split(decoded, "train"), load_split(decoded, "val")))
    assert numbers(first.history) == numbers(second.history)


# The cache


def digits(cache):
    return prepare(DataConfig(name="digits"), cache=cache)


def test_a_set_is_decoded_once(photos, decoded, monkeypatch):
    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_folder, "read_image", never)
    before = {path.name: path.stat().st_mtime_ns for path in decoded.folder.iterdir()}
    assert prepare(config_of(photos), cache=photos.parent / "decoded") == decoded
    assert {path.name: path.stat().st_mtime_ns for path in decoded.folder.iterdir()} == before


def _decodes_for_ever(connection, cache):
    def held(fresh, *_):
        (fresh / "half-written").write_bytes(bytes(1000))
        connection.send("decoding")
        time.sleep(600)

    cache_module.write_cache = held
    digits(cache)


def _holds_for_a_second(connection, lock):
    with FileLock(lock):
        connection.send("held")
        time.sleep(1)


def forked(target, argument):
    """A process of its own that has begun what it is to do."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=target, args=(theirs, argument))
    process.start()
    assert ours.poll(60)
    return process


def test_a_process_killed_while_it_decodes_holds_up_nobody_and_leaves_nothing(tmp_path):
    process = forked(_decodes_for_ever, tmp_path)
    assert len(list(tmp_path.glob(".new-*/half-written"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    began = time.monotonic()
    prepared = digits(tmp_path)
    assert time.monotonic() - began < 300  # the lock's owner meant to sleep for 600
    assert prepared.counts["train"] > 1000
    lock = f".{prepared.folder.name}.lock"
    assert {path.name for path in tmp_path.iterdir()} == {prepared.folder.name, lock}  # what it had half written is gone


def test_a_process_that_decodes_is_waited_for(tmp_path):
    key = digits(tmp_path / "elsewhere").folder.name
    process = forked(_holds_for_a_second, tmp_path / f".{key}.lock")
    began = time.monotonic()
    digits(tmp_path)
    assert time.monotonic() - began > 0.5
    process.join()


def _prepared_by_nobody(connection, folders):
    if os.getuid() == 0:  # root may write everywhere
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    for folder in folders:
        try:
            connection.send(digits(folder).counts["test"])
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")


def test_a_read_only_cache_serves_what_it_holds_and_refuses_what_it_does_not():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        full, empty = Path(name) / "full", Path(name) / "empty"
        digits(full)
        empty.mkdir()
        for path, mode in ((Path(name), 0o755), (full, 0o555), (empty, 0o555)):
            path.chmod(mode)
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_prepared_by_nobody, args=(theirs, (full, empty)))
        process.start()
        served, refused = ours.recv(), ours.recv()
        process.join()
        for path in (full, empty):
            path.chmod(0o755)
    assert served == 270
    mend = "the data cache cannot be written (Permission denied); set VIT_SEARCH_CACHE to a folder that can."
    assert refused == f"DataError: {empty}: {mend}"


def test_a_split_on_another_device_than_its_images_is_gathered_in_main_memory():
    split = Split(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.arange(4))
    assert [(images.flatten().tolist(), labels.tolist()) for images, labels in split.batches([torch.tensor([2, 1])])] == [([2, 1], [2, 1])]


def test_an_image_with_damaged_exif_is_refused_not_a_crash():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    raw = io.BytesIO()
    Image.new("RGB", (8, 8)).save(raw, "JPEG", exif=exif)
    damaged = raw.getvalue().replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02")  # a width that is a text: struct.error inside PIL
    assert damaged != raw.getvalue()
    with pytest.raises(DataError, match=r"no image that can be decoded \(.+\); replace or remove it"):
        read_image(damaged, None, 3)
