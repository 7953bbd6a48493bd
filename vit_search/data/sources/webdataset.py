"""The data set `webdataset`: images in tar files (shards), `KEY.jpg` with its label in `KEY.cls` or `KEY.json`.

Shards are read in place. An index of where each image begins is made when the source is opened; then any image can be read alone. The
package webdataset is not used: it reads shards from end to end, so neither the splits nor the order of the batches could follow from the
seed alone. It also unpickles some endings, which could run foreign code.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.config.data_urls import before_braces, expanded, has_braces, near_path
from vit_search.data.decode import MAX_FILE_BYTES, read_image
from vit_search.data.file_hashes import fingerprint_of, sha256_by_name
from vit_search.data.parallel import in_chunks
from vit_search.data.progress import step
from vit_search.data.sources.class_checks import check_classes
from vit_search.data.sources.image_folder import ARRAYS_MEND, EXACT_ENDINGS, IMAGE_ENDINGS, SPLIT_NAMES, left_out
from vit_search.data.sources.shard_labels import document_of, label_in, numbered, of_cls, weight_in
from vit_search.data.sources.shard_problems import Problem, keys_twice, refuse_keys
from vit_search.data.sources.source import Source
from vit_search.errors import DataError, TooLargeError
from vit_search.text import counted, listed

ENDINGS = IMAGE_ENDINGS - {".tga"}
"""Endings of images. Not .tga: its content does not tell that it is one."""

_EXACT_ENDINGS = EXACT_ENDINGS - {".tga"}

LARGE = 2**24
"""If all shards together have more bytes, several processes index them."""

LABEL_BYTES = 2**20
"""Largest .cls or .json file: more than any label needs."""

PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
"""First bytes of packed files, and the program that unpacks them. No image in a packed file can be read alone."""


@dataclass(frozen=True)
class ShardReader:
    """Decodes the images of a streamed set. An image's name says where it is: `SHARD BEGIN LENGTH KEY`."""

    root: Path
    shards: tuple[str, ...]
    channels: int
    bit_depth: int | None = None

    def __call__(self, name: str, size: tuple[int, int] | None) -> np.ndarray:
        """See `read_image`."""
        shard, begin, length, key = name.split(" ", 3)
        where = f"{self.root / self.shards[int(shard)]}: {key}"
        if int(length) > MAX_FILE_BYTES:
            raise TooLargeError(f"{where}: {int(length):,} bytes; give an image file of at most {MAX_FILE_BYTES:,}.")
        try:
            return read_image(self.content(int(shard), int(begin), int(length)), size, self.channels, self.bit_depth)
        except DataError as error:
            raise type(error)(f"{where}: {str(error).removeprefix('image: ')}") from None

    def content(self, shard: int, begin: int, length: int) -> bytes:
        """Read some bytes of a shard."""
        path = self.root / self.shards[shard]
        try:
            with path.open("rb") as file:
                return os.pread(file.fileno(), length, begin)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); put it back, or start the search anew.") from None


@dataclass(frozen=True)
class Sample:
    """An image, with its place, key, label and weight."""

    shard: int
    begin: int
    length: int
    key: str
    label: int | str
    weight: float


@dataclass(frozen=True)
class JsonKeys:
    """The keys that are read in KEY.json."""

    label: str
    weight: str | None
    """None: images have no weights."""


@dataclass
class _Group:
    """The files of one key, while a shard is read."""

    key: str
    image: tuple[int, int] | None = None
    """Begin and length."""
    label: int | str | None = None
    from_cls: bool = False
    weight: float | None = None
    array: bool = False
    """Whether it has an NPY file that is not read."""
    problem: str = ""


class WebDataset(Source):
    """The images of one or more shards, in the order of the shards' names and of the files in each shard."""

    def __init__(self, config: DataConfig, downloads: Path | None, download: bool) -> None:
        """Raises: DataError that names the shards and keys with mistakes, several at once."""
        assert config.path is not None and config.image_size is not None, "a search file gives both"
        self.title = config.path
        self._root, self._shards, splits = _find(config.path)
        self.shape, self.bits = (config.channel_count, config.image_size, config.image_size), config.bits
        self._endings = _EXACT_ENDINGS if config.exact else ENDINGS
        self.reader = self._reader = ShardReader(self._root.resolve(), self._shards, config.channel_count, config.bit_depth)
        self._skipped: Counter[str] = Counter()
        self._samples = self._index(JsonKeys(config.label or "label", config.weight))
        if config.weight is not None:
            self.weights = np.array([sample.weight for sample in self._samples])
        self.classes, self.labels = numbered([sample.label for sample in self._samples])
        if splits is not None:
            self.splits = np.array([splits[sample.shard] for sample in self._samples])
        if config.label_map is None:
            if len(self.classes) < 2:
                raise DataError(f"{self.title}: one class only, {self.classes[0]!r}; a search needs at least two.")
            check_classes(self)

    def _index(self, keys: JsonKeys) -> list[Sample]:
        found: list[Sample] = []
        problems: list[Problem] = []
        size = sum((self._root / name).stat().st_size for name in self._shards)

        def index(shards: range) -> tuple[list[Sample], list[Problem], Counter[str]]:
            samples: list[Sample] = []
            mistakes: list[Problem] = []
            skipped = Counter[str]()
            for i in shards:
                path = self._root / self._shards[i]
                for group in read_groups(path, keys, skipped, self._endings):
                    if group.problem or group.image is None or group.label is None:
                        mistakes.append((self._shards[i], group.key, group.problem))
                    else:
                        samples.append(Sample(i, *group.image, group.key, group.label, 1.0 if group.weight is None else group.weight))
            return samples, mistakes, skipped

        with step("indexing", len(self._shards), "shards") as advance:
            alone = 1 if size > LARGE else len(self._shards)
            for samples, mistakes, skipped in in_chunks(len(self._shards), index, size=1, alone=alone):
                found += samples
                problems += mistakes
                self._skipped += skipped
                advance(1)
        identified = [(self._shards[sample.shard], sample.key) for sample in found] + [(shard, key) for shard, key, _ in problems]
        if problems:  # put the keys of each shard together again
            numbers = {shard: i for i, shard in enumerate(self._shards)}
            identified.sort(key=lambda one: numbers[one[0]])
        refuse_keys(self.title, self._root, [*problems, *keys_twice(self._root, identified)], others=bool(found))
        if not found:
            raise DataError(f"{self.title}: no images; put KEY.jpg (or .png, …) and KEY.cls or KEY.json into the shards.")
        return found

    def where(self, index: int) -> str:
        """Shard and key: `train-000.tar: 0001`."""
        sample = self._samples[index]
        return f"{self._shards[sample.shard]}: {sample.key}"

    def fingerprint(self) -> bytes:
        """Names and contents of the shards."""
        return b"webdataset 1\n" + fingerprint_of(sha256_by_name(self._root, [self._root / name for name in self._shards]))

    def read(self, index: int) -> np.ndarray:
        """See `Source`."""
        return self._reader(str(self._name(self._samples[index])), self.shape[1:])

    def file(self, index: int) -> bytes:
        """Content of an image file."""
        sample = self._samples[index]
        return self._reader.content(sample.shard, sample.begin, sample.length)

    def sizes(self) -> Sequence[int]:
        """Sizes from the index."""
        return [sample.length for sample in self._samples]

    @staticmethod
    def _name(sample: Sample) -> str:
        return f"{sample.shard} {sample.begin} {sample.length} {sample.key}"

    @cached_property
    def names(self) -> np.ndarray:
        """Names for ShardReader."""
        return np.array([self._name(sample) for sample in self._samples])

    def content_hash(self, index: int) -> str:
        """sha256 of an image file."""
        return hashlib.sha256(self.file(index)).hexdigest()

    def summary(self, used: Mapping[str, int] | None = None) -> str:
        """For example `2 classes: cat, dog; 80 images; 3 shards; 80 files skipped: 80 .txt`."""
        return "; ".join((super().summary(used), *self.notes()))

    def remarks(self) -> tuple[str, ...]:
        """Number of shards, and the files in them that were skipped."""
        return (counted(len(self._shards), "shard"), *([left_out(self._skipped)] if self._skipped else []))


def _find(path: str) -> tuple[Path, tuple[str, ...], tuple[str, ...] | None]:
    """Find the shards that a path names.

    Returns: their folder; their names below it; the split of each, or None if they have no splits.
    Raises: DataError if there are no shards, if only some have a split (other than test), or if there are none to train on.
    """
    if has_braces(path):
        folder, rest = before_braces(path)
        root, names = Path(folder or "."), expanded(rest)
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            if len(missing) == 1:
                raise DataError(f"{root / missing[0]}: missing, and the braces of data.path name it; copy it there, or change the braces.")
            fact = f"{len(missing):,} of {len(names):,} shards that the braces of data.path name are missing"
            raise DataError(f"{root}: {fact}: {listed(missing)}; copy them there, or change the braces.")
    elif Path(path).is_file():
        root, names = Path(path).parent, [Path(path).name]
    elif Path(path).is_dir():
        root = Path(path)
        names = sorted(str(shard.relative_to(root)) for shard in root.rglob("*.tar") if shard.is_file() and not shard.name.startswith("."))
        if not names:
            raise DataError(f"{root}: no shards; data.path names a folder of .tar files, one .tar file, or several as a-{{000..009}}.tar.")
    else:
        mend = near_path(Path(path)) or "data.path names a folder of .tar files, one .tar file, or several as a-{000..009}.tar."
        raise DataError(f"{path}: missing; {mend}")
    splits = tuple(_split_of(name) for name in names)
    if not any(splits):
        return root, tuple(names), None
    if "train" not in splits and any(split in ("train", "val") for split in splits):
        raise DataError(f"{root}: shards of val, and none of train; name the others train-….tar, or put them into a folder train.")
    odd = next((name for name, split in zip(names, splits, strict=True) if not split), None)
    if odd is not None and set(splits) != {"", "test"}:
        mend = "give each shard one, as a folder (train/) or before its name (train-000.tar), or none"
        raise DataError(f"{root / odd}: it is of no split, and other shards are; {mend}.")
    if set(splits) == {"test"}:
        raise DataError(f"{root}: all shards are of the split test; add shards to train on.")
    return root, tuple(names), splits


def _split_of(name: str) -> str:
    """The split in a shard's folder or in the beginning of its name; empty if there is none."""
    *folders, file = name.split("/")
    for folder in folders:
        if folder.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[folder.lower()]
    stem = file.lower().removesuffix(".tar").replace("_", "-").replace(".", "-")
    return SPLIT_NAMES.get(stem.partition("-")[0], "")


def read_groups(shard: Path, keys: JsonKeys, skipped: Counter[str], endings: frozenset[str] = ENDINGS) -> Iterator[_Group]:
    """Read the keys of one shard in order, each with the place of its image and its label.

    Raises: DataError if the shard is no tar file, is packed, or is cut off.
    """
    _refuse_packed(shard)
    group: _Group | None = None
    last = ""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps all of them in memory
                name = member.name.removeprefix("./")
                folder, _, file = name.rpartition("/")
                if not member.isfile() or file.startswith("."):
                    if not member.isdir():
                        skipped["hidden" if member.isfile() else "not a file"] += 1
                    continue
                stem, dot, ending = file.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if group is None or group.key != key:
                    if group is not None and not _is_other(group):
                        yield _finished(group, keys)
                    group = _Group(key)
                last = name
                _add(group, member, f"{dot}{ending}".lower(), tar, keys, skipped, endings)
            end = tar.offset
        if group is not None and not _is_other(group):
            yield _finished(group, keys)
        _check_end(shard, end, last)
    except (tarfile.TarError, EOFError) as error:
        after = f" after {last}" if last else ""
        raise DataError(f"{shard}: cut off or damaged{after} ({str(error) or type(error).__name__}); copy it again.") from None
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror or error}); give this account the right to read it.") from None


def _refuse_packed(shard: Path) -> None:
    try:
        with shard.open("rb") as file:
            begin = file.read(512)
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}); give this account the right to read it.") from None
    tool = next((tool for mark, tool in PACKED.items() if begin.startswith(mark)), None)
    if tool is not None:
        raise DataError(f"{shard}: packed, so that no image can be read by itself; unpack it: {tool}.")
    if not begin:
        raise DataError(f"{shard}: empty; copy it again.")


def _check_end(shard: Path, end: int, last: str) -> None:
    """Check that a shard ends with two blocks of zeros. Only these are missing in a tar file that is cut off between two files.

    Raises: DataError.
    """
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(512) != bytes(512):
            raise DataError(f"{shard}: cut off after {last}; copy it again.")


def _is_other(group: _Group) -> bool:
    """Whether no file of a key is of use here."""
    return group.image is None and group.label is None and not group.problem


def _add(
    group: _Group,
    member: tarfile.TarInfo,
    ending: str,
    tar: tarfile.TarFile,
    keys: JsonKeys,
    skipped: Counter[str],
    endings: frozenset[str],
) -> None:
    if ending in endings:
        if group.image is not None:
            group.problem = group.problem or "it has two images; give each image a key of its own."
        group.image = (member.offset_data, member.size)
    elif ending in (".cls", ".json"):
        if member.size > LABEL_BYTES:
            group.problem = group.problem or f"its {ending} has {member.size:,} bytes, too many for a label."
            return
        file = tar.extractfile(member)
        content = file.read() if file is not None else b""
        if len(content) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        if ending == ".json" and group.from_cls and keys.weight is None:
            return
        try:
            if ending == ".cls":
                group.label, group.from_cls = of_cls(content), True
            else:
                document = document_of(content)
                group.label = group.label if group.from_cls else label_in(document, keys.label)
                group.weight = None if keys.weight is None else weight_in(document, keys.weight)
        except ValueError as error:
            group.problem = group.problem or f"{error}"
    else:
        skipped[ending or "without an ending"] += 1
        group.array = group.array or ending == ".npy"


def _finished(group: _Group, keys: JsonKeys) -> _Group:
    """Check a key when all its files have been read."""
    if not group.problem and group.image is None and group.array:
        group.problem = f"a label and an NPY file; {ARRAYS_MEND}."
    if not group.problem and group.image is None:
        group.problem = "a label without an image; add KEY.jpg (or .png, …), or remove it."
    if not group.problem and group.label is None:
        group.problem = f"an image without a label; add KEY.cls, or KEY.json with {keys.label!r}."
    if not group.problem and group.weight is None and keys.weight is not None:
        group.problem = f"no KEY.json with its weight; add one with {keys.weight!r}."
    return group
