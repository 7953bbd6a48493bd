"""The cache of prepared data sets. Each set is decoded once per machine, split by the seed, and stored under its data hash.

Each set has a folder. Its arrays of uint8 or uint16 are memory-mapped by all trials. The test split has files of its own, which a search
never opens. If a set would fill the machine's memory and its source can be streamed, the folder holds the names of its images instead of
the pixels, and data/batches.py decodes images when they are needed.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vit_search.config.cost import in_units, memory_of_this_machine
from vit_search.config.data_config import DataConfig
from vit_search.config.knobs import hashed
from vit_search.config.strict_json import parse
from vit_search.data.auto_channels import channels_in_words, with_counted_channels
from vit_search.data.cache_folder import cannot_be_written, default_cache, make_cache, refuse_open_to_others
from vit_search.data.copies import across_splits_note, contradictions_note, find_copies
from vit_search.data.decode import read_all
from vit_search.data.fetch import fetched
from vit_search.data.file_hashes import sha256_of
from vit_search.data.header_looks import checked, faults, notes
from vit_search.data.mistakes import refuse
from vit_search.data.parallel import in_chunks
from vit_search.data.source_checks import check_source
from vit_search.data.sources import open_source
from vit_search.data.sources.source import Reader, Source
from vit_search.data.split import SplitName, split_indices
from vit_search.errors import DataError
from vit_search.files import locked

FORMAT = 2
"""Version of these files and of the rule for splits, a part of the data hash. Raise it when either changes."""

SAMPLE = 2000
"""Training images from which the mean and deviation of a streamed set are computed."""

WEIGHTED: tuple[SplitName, ...] = ("train", "val")
"""Splits that may be trained on. Only their image weights are stored."""


@dataclass(frozen=True)
class DataSet:
    """A prepared data set on this machine's disk."""

    folder: Path
    data_hash: str
    """sha256 of the source's content and of all that decides the splits. The same hash means the same images in the same splits."""
    image_size: tuple[int, int]
    """Height and width."""
    channels: int
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    """Images in each split."""
    mean: tuple[float, ...]
    """Mean of each channel over the training images only, on the scale 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation, likewise."""
    test_duplicates: int
    """Test images that another split also has: with equal pixels or, in a streamed set, in equal files."""
    reader: Reader | None = None
    """Decodes the images of a streamed set. None if the pixels are in the cache."""
    summary: str = ""
    """One line: classes, images, skipped files."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each file of the splits, by file name."""
    bits: int = 8
    """Bits of one value of an image: 8 or 16."""

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.channels * math.prod(self.image_size) * self.bits // 8


def kept_speed(*, gpus: bool) -> Path:
    """The file with this machine's speed. `plan --calibrate` writes it; later plans and searches read it."""
    return default_cache() / f"speed-{'cuda' if gpus else 'cpu'}.json"


def prepare(config: DataConfig, *, cache: Path | None = None, download: bool = False, stream_above: int | None = None) -> DataSet:
    """Decode and split a data set into the cache, or find it there.

    Files behind a URL are fetched first. Two processes may call this at once: one fetches and decodes, and the other waits for it.

    Args:
        config: the data set, and how it is split.
        cache: folder of prepared data sets. Default: `default_cache()`.
        download: whether to download a missing set, if its source can.
        stream_above: bytes of pixels above which a set is streamed, if its source can. Default: a quarter of the machine's memory.
    Raises: DataError if images are missing, damaged or too few, or if the cache cannot be written.
    """
    cache = cache or default_cache()
    with fetched(config, cache) as local:
        return _prepared(local, cache, download, stream_above)


def _prepared(config: DataConfig, cache: Path, download: bool, stream_above: int | None) -> DataSet:
    """Prepare files that are on this machine."""
    tells_channels = config.exact  # `auto` is exact, too
    config = with_counted_channels(config)
    data = _of_counted(config, cache, download, stream_above)
    return replace(data, summary=f"{data.summary}; {channels_in_words(config)}") if tells_channels else data


def _of_counted(config: DataConfig, cache: Path, download: bool, stream_above: int | None) -> DataSet:
    """Prepare a data set whose number of channels is known."""
    source = open_source(config, cache / "downloads", download)
    key = _key(config, source)
    folder = cache / key[:32]
    refuse_open_to_others(cache, folder)
    data = _open(folder, key, source)
    if data is not None:
        return data
    limit = memory_of_this_machine() // 4 if stream_above is None else stream_above
    try:
        make_cache(cache)
        with locked(cache / f".{key[:32]}.lock"):
            return _open(folder, key, source) or _make(config, folder, key, source, limit)
    except OSError as error:
        raise cannot_be_written(cache, error) from None


def _key(config: DataConfig, source: Source) -> str:
    """The data hash: of the source's content, all keys of the config but `path`, and FORMAT."""
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    fields = {name: value for name, value in hashed(DataConfig, vars(config)).items() if name != "path"}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    digest.update(source.fingerprint())
    return digest.hexdigest()


def _make(config: DataConfig, folder: Path, key: str, source: Source, stream_above: int) -> DataSet:
    check_source(source)
    size = len(source.labels) * math.prod(source.shape) * source.bits // 8
    streamed = source.reader is not None and size > stream_above
    if not streamed and size > memory_of_this_machine():
        needs = f"its images take {in_units(size)}, and this machine has {in_units(memory_of_this_machine())} of memory"
        raise DataError(f"{source.title}: {needs}; make data.image_size smaller, or keep each image in a file of its own.")
    splits = split_indices(config, source)
    found = checked(source, config)
    if found and all(one.fault for one in found):  # a key of the search file is wrong, not the files: say so before all are decoded
        refuse(source.title, faults(source, found))
    copies = find_copies(source)
    of_copies = [note for note in (contradictions_note(source, copies), across_splits_note(source, copies, splits)) if note]
    everything = range(len(source.labels))
    pixels = None if streamed else read_all(everything, source.read, source.shape, source=source.title, bits=source.bits)
    unfinished = f".new-{folder.name}-"
    for left in folder.parent.glob(f"{unfinished}*"):  # of a process that was killed, because we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=unfinished, dir=folder.parent))
    try:
        write_cache(fresh, key, source, splits, pixels, [*notes(source, config, found), *of_copies])
        _put(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    data = _open(folder, key, source)
    assert data is not None
    return data


def read_split(data: DataSet, *splits: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Read the images and labels of one split, or of several splits, one after the other.

    Returns: images and labels. Images are uint8 or uint16 (n, channels, height, width). A single split is mapped from disk, and writing to
        it changes only this process's copy. A streamed set has names (n,) instead of images, for `data.reader`. Labels are int64 (n,).
    Raises: DataError if a file is not what `prepare` wrote.
    """
    images = [np.load(_verified(data, f"{split}_images.npy"), mmap_mode="c", allow_pickle=False) for split in splits]
    labels = [np.load(_verified(data, f"{split}_labels.npy"), allow_pickle=False) for split in splits]
    return (images[0], labels[0]) if len(splits) == 1 else (np.concatenate(images), np.concatenate(labels))


def read_weights(data: DataSet, *splits: SplitName) -> np.ndarray | None:
    """Read the weights of the images of some splits, one split after the other; None if the source has no weights.

    Returns: (n,) float64, as the source gives them.
    Raises: DataError if a file is not what `prepare` wrote.
    """
    names = [f"{split}_weights.npy" for split in splits]
    if not all(name in data.sha256 for name in names):
        return None
    return np.concatenate([np.load(_verified(data, name), allow_pickle=False) for name in names])


def absent_classes(data: DataSet, *splits: SplitName) -> tuple[str, ...]:
    """The classes that have no image in any of these splits.

    Raises: DataError if a file is not what `prepare` wrote.
    """
    labels = [np.load(_verified(data, f"{split}_labels.npy"), allow_pickle=False) for split in splits]
    return tuple(data.classes[label] for label in sorted(set(range(len(data.classes))) - set(np.concatenate(labels).tolist())))


_verified_files: set[tuple[Path, int, int, int]] = set()
"""Files whose sha256 this process has checked: path, inode, modification time in ns, size."""


def _verified(data: DataSet, name: str) -> Path:
    """The path of a split's file, after a check of its sha256: about 1 s for a gigabyte, once per process."""
    path = data.folder / name
    status = path.stat()
    version = (path, status.st_ino, status.st_mtime_ns, status.st_size)
    if version not in _verified_files:
        if sha256_of(path) != data.sha256[name]:
            raise DataError(f"{path}: not what was written there; remove {data.folder}, and it is made again.")
        _verified_files.add(version)
    return path


def write_cache(
    folder: Path,
    key: str,
    source: Source,
    splits: Mapping[SplitName, np.ndarray],
    pixels: np.ndarray | None,
    remarks: Sequence[str] = (),
) -> None:
    """Write the files of a cache folder.

    Args:
        pixels: None for a streamed set.
        remarks: which parts of the files are not read, for the summary.
    """
    for name, indices in splits.items():
        np.save(folder / f"{name}_images.npy", source.names[indices] if pixels is None else pixels[indices], allow_pickle=False)
        np.save(folder / f"{name}_labels.npy", source.labels[indices], allow_pickle=False)
        if source.weights is not None and name in WEIGHTED:
            np.save(folder / f"{name}_weights.npy", source.weights[indices], allow_pickle=False)
    mean, std = _mean_and_std(source, splits["train"], pixels)
    contents = None if pixels is None else _digests(pixels)

    def content(index: int) -> str | bytes:
        return source.content_hash(index) if contents is None else contents[index]

    others = {content(index) for name in ("train", "val", "holdout") for index in splits[name]}
    channels, height, width = source.shape
    document = {
        "data_hash": key,
        "image_size": [height, width],
        "channels": channels,
        "classes": list(source.classes),
        "counts": {name: len(indices) for name, indices in splits.items()},
        "mean": mean,
        "std": std,
        "test_duplicates": sum(content(index) in others for index in splits["test"]),
        "streamed": pixels is None,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.glob("*.npy"))},
        "sha256": {path.name: sha256_of(path) for path in sorted(folder.glob("*.npy"))},
    }
    if source.bits != 8:
        document["bits"] = source.bits
    if remarks:
        document["remarks"] = list(remarks)
    (folder / "data.json").write_text(json.dumps(document, indent=1))
    for path in folder.iterdir():
        path.chmod(0o644)


def _digests(pixels: np.ndarray) -> list[bytes]:
    chunks = in_chunks(len(pixels), lambda chunk: [hashlib.sha256(pixels[i].tobytes()).digest() for i in chunk])
    return [digest for chunk in chunks for digest in chunk]


def _mean_and_std(source: Source, train: np.ndarray, pixels: np.ndarray | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel on the scale 0 to 1, of the training images or, in a streamed set, of a sample."""
    if pixels is None:
        sample = np.random.default_rng(0).permutation(train)[:SAMPLE]
        images, chosen = read_all(sample.tolist(), source.read, source.shape, source=source.title, bits=source.bits), np.arange(len(sample))
    else:
        images, chosen = pixels, train
    if images.dtype != np.uint8:
        return _deep_mean_and_std(images, chosen)
    channels = range(images.shape[1])

    def count(chunk: range) -> list[np.ndarray]:
        some = images[chosen[chunk.start : chunk.stop]]
        return [np.bincount(some[:, c].ravel(), minlength=256) for c in channels]  # exact, without a float copy

    by_chunk = list(in_chunks(len(chosen), count))
    levels = [np.sum([part[c] for part in by_chunk], axis=0) for c in channels]
    scale = np.arange(256) / 255
    means = [float((level * scale).sum() / level.sum()) for level in levels]
    stds = [math.sqrt(float((level * (scale - mean) ** 2).sum() / level.sum())) for level, mean in zip(levels, means, strict=True)]
    return means, stds


def _deep_mean_and_std(images: np.ndarray, chosen: np.ndarray) -> tuple[list[float], list[float]]:
    """The same for uint16, from sums of whole numbers, which are exact."""

    def sums(chunk: range) -> list[tuple[int, int]]:
        some = images[chosen[chunk.start : chunk.stop]]
        channels = [some[:, c].astype(np.uint64) for c in range(some.shape[1])]
        return [(int(values.sum()), int((values * values).sum())) for values in channels]

    by_chunk = list(in_chunks(len(chosen), sums))
    count, most = len(chosen) * math.prod(images.shape[2:]), np.iinfo(images.dtype).max
    totals = [[sum(part[c][i] for part in by_chunk) for i in (0, 1)] for c in range(images.shape[1])]
    means = [total / (count * most) for total, _ in totals]
    stds = [math.sqrt(count * squares - total**2) / (count * most) for total, squares in totals]
    return means, stds


def _put(fresh: Path, folder: Path) -> None:
    """Rename a finished folder into place. If one is there already, it is damaged, and is removed."""
    fresh.chmod(0o755)
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        folder.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
    fresh.rename(folder)


def _open(folder: Path, key: str, source: Source) -> DataSet | None:
    """Open a cache folder; None if it is missing or damaged, or has another key."""
    try:
        document = parse((folder / "data.json").read_text())
        sound = document["data_hash"] == key and all((folder / n).stat().st_size == size for n, size in document["bytes"].items())
        return _described(folder, document, source) if sound else None
    except (OSError, ValueError, KeyError):
        return None


def _described(folder: Path, document: dict[str, Any], source: Source) -> DataSet:
    return DataSet(
        folder=folder,
        data_hash=document["data_hash"],
        image_size=tuple(document["image_size"]),
        channels=document["channels"],
        classes=tuple(document["classes"]),
        counts=document["counts"],
        mean=tuple(document["mean"]),
        std=tuple(document["std"]),
        test_duplicates=document["test_duplicates"],
        reader=source.reader if document["streamed"] else None,
        summary="; ".join((source.summary(document["counts"]), *document.get("remarks", ()))),
        sha256=document["sha256"],
        bits=document.get("bits", 8),
    )
