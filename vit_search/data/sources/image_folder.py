"""The data set `image_folder`: one folder per class. Finds its classes, its own splits, and the files that are skipped."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.config.data_urls import near_path
from vit_search.data.decode import read_image
from vit_search.data.file_hashes import fingerprint_of, sha256_by_name
from vit_search.data.sources.source import Source
from vit_search.errors import DataError
from vit_search.text import counted, file_name, listed

IMAGE_ENDINGS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"}
    | {".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".tga"}
)
"""Endings of images in a folder: all that Pillow reads without another program."""

EXACT_ENDINGS = IMAGE_ENDINGS | {".npy"}
"""Endings of images if the search file says how many bits or channels the files have."""

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder names, in lower case, and the split that each means."""

ARRAYS_MEND = "NPY files are read only with data.bit_depth: 8 or 16, and with data.channels: auto or the number of their channels"
"""What to do if NumPy arrays were skipped."""

PART = 64
"""Files that a thread gets at once."""

PARALLEL = 16
"""Threads that look at files: on network storage, each file takes some milliseconds."""

REASONS_SHOWN = 6
"""Reasons for skipped files that a summary lists at most. Files named like a.0001 each have an ending of their own."""

_NPY_KEYS = " (read only with data.bit_depth)"

Identity = tuple[int, int]
"""Device and inode of a folder: the same by whichever link it is reached."""


@dataclass(frozen=True)
class FileReader:
    """Decodes the files of a streamed folder by their names below it."""

    root: Path
    channels: int
    bit_depth: int | None = None

    def __call__(self, name: str, size: tuple[int, int] | None) -> np.ndarray:
        """See `read_image`."""
        return read_image(self.root / name, size, self.channels, self.bit_depth)


@dataclass(eq=False)
class ImageFolder(Source):
    """The images below a folder, in an order that does not depend on the file system."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: np.ndarray
    splits: np.ndarray | None = None
    """Split of each image by its folder; None if the folder has no splits."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of skipped files by their ending, or by `hidden`, `broken link` and the like."""
    image_size: int | None = None
    """Side in pixels to which images are resized."""
    channels: int = 3
    bit_depth: int | None = None
    groups: np.ndarray | None = None
    group_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.title = str(self.root)
        self.bits = self.bit_depth or 8
        self.reader = FileReader(self.root.resolve(), self.channels, self.bit_depth)

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]  # mypy does not know that it can be set
        """Raises: DataError if the search file gives no size."""
        if self.image_size is None:
            raise DataError("data.image_size: image_folder needs it; give the side in pixels.")
        return self.channels, self.image_size, self.image_size

    @cached_property
    def names(self) -> np.ndarray:
        """File names below the folder."""
        return np.array(list(self._hashes))

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return sha256_by_name(self.root, self.files)

    def content_hash(self, index: int) -> str:
        """sha256 of a file."""
        return self._hashes[str(self.names[index])]

    def fingerprint(self) -> bytes:
        """Names and contents of all files, and a mark if version 0.1 read them differently."""
        own_splits = b"" if self.splits is None else b"own splits\n"  # version 0.1 read the folders of splits as classes
        deep = b"32 bits a pixel\n" if any(_is_deep(path) for path in self.files) else b""  # version 0.1 decoded them as black images
        return fingerprint_of(self._hashes) + own_splits + deep

    def read(self, index: int) -> np.ndarray:
        """See `Source`."""
        channels, height, width = self.shape
        return read_image(self.files[index], (height, width), channels, self.bit_depth)

    def file(self, index: int) -> Path:
        """Path of an image."""
        return self.files[index]

    def sizes(self) -> Sequence[int]:
        """Sizes in the file system."""
        return sizes_of(self.files)

    def summary(self, used: Mapping[str, int] | None = None) -> str:
        """For example `2 classes: cat, dog; 80 images; 10 files skipped: 8 .heic, 2 hidden`."""
        return "; ".join((super().summary(used), *self.notes()))

    def remarks(self) -> tuple[str, ...]:
        """The files that were skipped."""
        return (left_out(self.skipped),) if self.skipped else ()

    def where(self, index: int) -> str:
        """File name below the folder."""
        return file_name(str(self.files[index].relative_to(self.root)))


def sizes_of(files: Sequence[Path]) -> list[int]:
    """Size of each file in bytes, in many threads: on network storage, each file takes some milliseconds.

    Raises: DataError if a file is gone.
    """
    parts = [files[start : start + PART] for start in range(0, len(files), PART)]
    try:
        with ThreadPoolExecutor(PARALLEL) as threads:
            return [size for part in threads.map(lambda part: [path.stat().st_size for path in part], parts) for size in part]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); put it back, or start again.") from None


def left_out(skipped: Mapping[str, int]) -> str:
    """The files that were skipped, in words: `10 files skipped: 8 .heic, 2 hidden`."""
    order = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{count:,} {reason}{_NPY_KEYS if reason == '.npy' else ''}" for reason, count in order[:REASONS_SHOWN])
    others = sum(count for _, count in order[REASONS_SHOWN:])
    reasons += f", {counted(others, 'other')}" if others else ""
    total = sum(skipped.values())
    return f"{counted(total, 'file')} skipped: {reasons}"


def open_folder(config: DataConfig, downloads: Path | None, download: bool) -> ImageFolder:
    """Open the folder that `data.path` names, for the image size and channels of the search file.

    Raises: DataError if it is no folder; see also `scan`.
    """
    root = Path(config.path or "").expanduser()
    if not root.is_dir():
        mend = ("" if root.exists() else near_path(root)) or "data.path names a folder of class folders."
        raise DataError(f"{root}: {'a file, no folder' if root.exists() else 'missing'}; {mend}")
    folder = scan(root, every_class=config.label_map is not None, endings=EXACT_ENDINGS if config.exact else IMAGE_ENDINGS)
    groups, names = _groups(folder, config.group) if config.group is not None else (None, ())
    return replace(
        folder,
        image_size=config.image_size,
        channels=config.channel_count,
        bit_depth=config.bit_depth,
        groups=groups,
        group_names=names,
    )


def _groups(folder: ImageFolder, pattern: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The group of each file, which a regular expression finds in its name below the folder, and the names of all groups.

    Raises: DataError if the expression is not valid, has no parentheses, or does not match a file.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.group: {pattern!r} is no regular expression ({error}); write one, as '(patient[0-9]+)'.") from None
    if not expression.groups:
        raise DataError(f"data.group: {pattern!r} has no parentheses; put them around the group, as '(patient[0-9]+)'.")
    names = [path.relative_to(folder.root).as_posix() for path in folder.files]
    found = [match[1] if (match := expression.search(name)) else None for name in names]
    without = [file_name(name) for name, group in zip(names, found, strict=True) if group is None]
    if without:
        files = f"{counted(len(without), 'file')} of {len(names):,}"
        raise DataError(f"data.group: {pattern!r} does not fit {files}: {listed(without)}; change it so that each file has a group.")
    groups, numbers = np.unique(np.array(found), return_inverse=True)
    return numbers.astype(np.int64), tuple(map(str, groups))


def scan(root: Path, *, every_class: bool = False, endings: frozenset[str] = IMAGE_ENDINGS) -> ImageFolder:
    """Find the classes, splits and images of a folder.

    The folder holds one folder per class, or folders `train`, `val` (also `valid`, `validation`) and `test` that do. Links are followed.
    Hidden files and folders are not read.

    Args:
        every_class: keep classes with few images, and classes that only val or test has, because a label map may merge or drop them.
        endings: endings of images.
    Raises: DataError if the layout is ambiguous, a class has too few images, a class name is not UTF-8, or a folder cannot be read.
    """
    try:
        return _scan(root, every_class, endings)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); give this account the right to read it.") from None


def _scan(root: Path, every_class: bool, endings: frozenset[str]) -> ImageFolder:
    folders = _folders(root)
    if len(folders) < 2 and not (folders and folders[0].name.lower() in SPLIT_NAMES and len(_folders(folders[0])) > 1):
        raise DataError(f"{root}: {_too_few(folders)}")
    skipped: Counter[str] = Counter()
    splits = _splits(root, folders, endings)
    for level in (root, *splits.values()):
        _skip_beside_classes(level, skipped, endings)
    homes = splits or {"": root}
    named = homes.values() if every_class else [homes.get("train", root)]
    classes = tuple(sorted({folder.name for home in named for folder in _folders(home)}))
    for name in classes:
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):  # Cs: bytes that are not UTF-8
            raise DataError(f"{root}: the class folder '{file_name(name)}' has a name that cannot be printed; rename it.")
    files: list[tuple[Path, int, str]] = []
    for split, home in homes.items():
        unknown = [folder.name for folder in _folders(home) if folder.name not in classes]
        if unknown:
            raise DataError(
                f"{home}: the class '{file_name(unknown[0])}' is not in {homes['train'].name}; add images of it there, "
                "or remove the folder."
            )
        for label, name in enumerate(classes):
            arrays_before = skipped[".npy"]
            images = [Path(path) for path in _images(str(home / name), skipped, (_identity(root), _identity(home)), endings)]
            files += [(path, label, split) for path in images]
            arrays = skipped[".npy"] - arrays_before
            if split in ("", "train") and len(images) < 3 and not every_class:
                if arrays:
                    found = f"{counted(len(images), 'image')} and {counted(arrays, '.npy file')}"
                    raise DataError(f"{home / name}: {found}; {ARRAYS_MEND}.")
                others = f" ({left_out(skipped)})" if skipped else ""
                reason = "some of which are held out" if split else "for training, validation and test"
                raise DataError(f"{home / name}: {counted(len(images), 'image')}; each class needs at least 3, {reason}{others}.")
        if split and not any(split_of_file == split for _, _, split_of_file in files):
            raise DataError(f"{home}: no images; put images into its class folders, or remove {home.name} to have it split off train.")
    return ImageFolder(
        root=root,
        classes=classes,
        files=tuple(path for path, _, _ in files),
        labels=np.array([label for _, label, _ in files], np.int64),
        splits=np.array([split for _, _, split in files]) if splits else None,
        skipped=dict(skipped),
    )


def _splits(root: Path, folders: list[Path], endings: frozenset[str]) -> dict[str, Path]:
    """The folders that are splits, by the split's name; empty if all folders are classes."""
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    nested = [folder for folder in named if _folders(folder)]
    if not named or (not nested and len(named) < len(folders)):
        return {}
    names = ", ".join(folder.name for folder in named)
    one = len(named) == 1
    looks, them, is_split = ("looks like a split", "it", "it is one") if one else ("look like splits", "them", "they are splits")
    rename = f"if {'it is a class' if one else 'they are classes'}, rename {them}"
    if len(named) < len(folders):
        other = next(folder.name for folder in folders if folder not in named)
        beside, move = f"{other} beside {them} does not", f"move {other} out of this folder"
        raise DataError(f"{root}: {names} {looks}, and {beside}; if {is_split}, {move}; {rename}.")
    if len(nested) < len(named) or any(_has_images(folder, endings) for folder in named):
        raise DataError(f"{root}: {names} {looks}; if {is_split}, put only class folders into each; {rename}.")
    splits: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in splits:
            raise DataError(f"{root}: {splits[split].name} and {folder.name} are the same split; keep one of them; {rename}.")
        splits[split] = folder
    if "train" not in splits:
        raise DataError(f"{root}: {names} {looks}; if {is_split}, add a folder train; {rename}.")
    if len(_folders(splits["train"])) < 2:
        raise DataError(f"{splits['train']}: {_too_few(_folders(splits['train']))}")
    return splits


def _too_few(folders: list[Path]) -> str:
    """Why fewer than two class folders are not enough."""
    if folders and len(_folders(folders[0])) > 1:
        name, inside = file_name(folders[0].name), len(_folders(folders[0]))
        return f"one folder only, '{name}', which holds {inside} folders; give data.path: {folders[0]}"
    content = f"one class only, '{file_name(folders[0].name)}'" if folders else "no class folders"
    return f"{content}; put the images into at least two folders, one per class."


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    """Visible folders, and links to folders."""
    return [path for path in _children(folder) if path.is_dir() and not path.name.startswith(".")]


def _has_images(folder: Path, endings: frozenset[str]) -> bool:
    return any(path.suffix.lower() in endings and path.is_file() for path in _children(folder))


def _identity(folder: Path) -> Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _skip_beside_classes(level: Path, skipped: Counter[str], endings: frozenset[str]) -> None:
    """Count the files beside class folders, and the hidden ones."""
    for path in _children(level):
        if path.name.startswith("."):
            skipped["hidden"] += _count_files(path)
        elif path.suffix.lower() in endings and path.is_file():
            skipped["outside a class folder"] += 1
        elif not path.is_dir():
            skipped[_reason(path)] += 1


def _count_files(path: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(path)) if path.is_dir() else 1


def _images(folder: str, skipped: Counter[str], above: tuple[Identity, ...], endings: frozenset[str]) -> Iterator[str]:
    """Find image files below a folder, in the order of their names.

    os.scandir and plain texts take a fifth of the time of Path and iterdir (100,000 files: 0.3 s instead of 1.7 s, 2026-11-29).

    Args:
        above: the folders that led here, so that a link back to one of them is not followed.
    """
    if not Path(folder).is_dir():
        return
    here = _identity(Path(folder))
    if here in above:
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = entry.name
        if name.startswith("."):
            skipped["hidden"] += _count_files(Path(entry.path))
        elif _leads_to(entry.is_dir):
            yield from _images(entry.path, skipped, (*above, here), endings)
        elif os.path.splitext(name)[1].lower() in endings and _leads_to(entry.is_file):  # noqa: PTH122
            yield entry.path
        else:
            skipped[_reason(Path(entry.path))] += 1


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Call a test of a folder's entry. A link in a circle gives False."""
    try:
        return kind()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _reason(path: Path) -> str:
    """Why a visible file is skipped."""
    if not path.exists():
        return "broken link"
    ending = file_name(path.suffix.lower())  # a Latin-1 name must not stop the summary
    return ending if ending and ending.isprintable() else "without an ending"


def _is_deep(path: Path) -> bool:
    """Whether an image has 32 bits per pixel in one channel; False if it cannot be read."""
    if not str(path).lower().endswith((".tif", ".tiff")):
        return False
    from PIL import Image

    try:
        with Image.open(path, formats=("TIFF",)) as image:
            return image.mode in ("I", "F")
    except Exception:
        return False  # decoding says what is wrong with it
