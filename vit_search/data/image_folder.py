"""What lies in an image folder: its classes, its own splits, and the files that are left out. Reads names only, decodes nothing."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vit_search.config.trial import IMAGE_ENDINGS
from vit_search.errors import DataError
from vit_search.text import counted, file_name

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder names, in lower case, that stand for a split."""

SHOWN = 10
"""Class names that a summary spells out."""

REASONS_SHOWN = 6
"""Reasons for skipped files that a summary spells out; files named like a.0001 have an ending each."""

Identity = tuple[int, int]
"""Device and number of a folder, the same by whatever link it is reached."""


@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, in an order that no file system decides."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    """Index into `classes` of each file."""
    splits: tuple[str, ...]
    """Split of each file (train, val or test) as the folder gives it; empty where the folder has no splits."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files that were left out, by their ending, `hidden` or `broken link`."""

    @property
    def summary(self) -> str:
        """One line: `2 classes: cat, dog; 80 images; 10 files skipped: 8 .heic, 2 hidden`."""
        lacks = (f"{split} has no image of {in_short(names)}" for split, names in self.missing.items())
        return "; ".join((summary(self.classes, len(self.files), self.skipped, Counter(self.splits)), *lacks))

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Classes of which a split (val or test) has no image; splits that have all of them are left out."""
        there = set(zip(self.splits, self.labels, strict=False))  # no splits where the folder has none
        lacks = {
            split: tuple(name for label, name in enumerate(self.classes) if (split, label) not in there)
            for split in sorted(set(self.splits), reverse=True)  # val first
        }
        return {split: names for split, names in lacks.items() if names}


def in_short(classes: Sequence[str]) -> str:
    """Names of classes, the first few of many."""
    return ", ".join(classes[:SHOWN]) + (f", … {len(classes) - SHOWN} more" if len(classes) > SHOWN else "")


def summary(classes: tuple[str, ...], images: int, skipped: Mapping[str, int], splits: Mapping[str, int] | None = None) -> str:
    """What a data set holds, in one line.

    Args:
        images: as many as were found, or, where `splits` are of a set that `train_limit` shortens, as are used.
        splits: images in each split, where they are told.
    """
    parts = [f"{counted(len(classes), 'class')}: {in_short(classes)}", counted(images, "image")]
    if splits:
        parts[-1] += " (" + ", ".join(f"{name} {splits[name]:,}" for name in ("train", "val", "holdout", "test") if splits.get(name)) + ")"
    if skipped:
        parts.append(_left_out(skipped))
    return "; ".join(parts)


def _left_out(skipped: Mapping[str, int]) -> str:
    """Which files are no images of the set, and how many."""
    order = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in order[:REASONS_SHOWN])
    others = sum(count for _, count in order[REASONS_SHOWN:])
    reasons += f", {counted(others, 'other')}" if others else ""
    total = sum(skipped.values())
    return f"{counted(total, 'file')} skipped: {reasons}"


def scan(root: Path) -> ImageFolder:
    """Find the classes, splits and images of a folder.

    The folder holds one folder per class, or folders `train`, `val` (also `valid`, `validation`) and `test` that do.
    Links are followed; hidden files and folders are not read.
    Raises: DataError where the layout can be read in two ways, a class has too few images, a class name is not UTF-8, or a folder
        cannot be read.
    """
    try:
        return _scan(root)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); give this account the right to read it.") from None


def _scan(root: Path) -> ImageFolder:
    folders = _folders(root)
    if len(folders) < 2 and not (folders and folders[0].name.lower() in SPLIT_NAMES and len(_folders(folders[0])) > 1):
        raise DataError(f"{root}: {_too_few(folders)}")
    skipped: Counter[str] = Counter()
    splits = _splits(root, folders)
    for level in (root, *splits.values()):
        _skip_beside_classes(level, skipped)
    homes = splits or {"": root}
    classes = tuple(folder.name for folder in _folders(homes.get("train", root)))
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
            found = sorted(_images(home / name, skipped, (_identity(root), _identity(home))))
            files += [(path, label, split) for path in found]
            if split in ("", "train") and len(found) < 3:
                left_out = f" ({_left_out(skipped)})" if skipped else ""
                reason = "some of which are held out" if split else "for training, validation and test"
                raise DataError(f"{home / name}: {counted(len(found), 'image')}; each class needs at least 3, {reason}{left_out}.")
        if split and not any(own == split for _, _, own in files):
            raise DataError(f"{home}: no images; put images into its class folders, or remove {home.name} to have it split off train.")
    return ImageFolder(
        root=root,
        classes=classes,
        files=tuple(path for path, _, _ in files),
        labels=tuple(label for _, label, _ in files),
        splits=tuple(split for _, _, split in files) if splits else (),
        skipped=dict(skipped),
    )


def _splits(root: Path, folders: list[Path]) -> dict[str, Path]:
    """The folders that are splits, by the split's name; empty where all folders are classes."""
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    nested = [folder for folder in named if _folders(folder)]
    if not named or (not nested and len(named) < len(folders)):
        return {}
    names = ", ".join(folder.name for folder in named)
    rename = f"if {'it is a class' if len(named) == 1 else 'they are classes'}, rename {'it' if len(named) == 1 else 'them'}"
    if len(named) < len(folders):
        other = next(folder.name for folder in folders if folder not in named)
        raise DataError(f"{root}: {names} may be splits or classes beside {other}; if splits, move {other} out of this folder; {rename}.")
    if len(nested) < len(named) or any(_has_images(folder) for folder in named):
        raise DataError(f"{root}: {names} may be splits or classes; if splits, give each one folder per class and nothing else; {rename}.")
    splits: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in splits:
            raise DataError(f"{root}: {splits[split].name} and {folder.name} are the same split; keep one of them; {rename}.")
        splits[split] = folder
    if "train" not in splits:
        raise DataError(f"{root}: {names} may be splits or classes; if splits, add a folder train; {rename}.")
    if len(_folders(splits["train"])) < 2:
        raise DataError(f"{splits['train']}: {_too_few(_folders(splits['train']))}")
    return splits


def _too_few(folders: list[Path]) -> str:
    """Why fewer than two class folders will not do."""
    if folders and len(_folders(folders[0])) > 1:
        name, inside = file_name(folders[0].name), len(_folders(folders[0]))
        return f"one folder only, '{name}', which holds {inside} folders; give data.path: {folders[0]}"
    seen = f"one class only, '{file_name(folders[0].name)}'" if folders else "no class folders"
    return f"{seen}; put the images into at least two folders, one per class."


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    """Visible folders, and links to folders."""
    return [path for path in _children(folder) if path.is_dir() and not path.name.startswith(".")]


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_ENDINGS and path.is_file() for path in _children(folder))


def _identity(folder: Path) -> Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _skip_beside_classes(level: Path, skipped: Counter[str]) -> None:
    """Count the files that lie beside class folders, and hidden ones."""
    for path in _children(level):
        if path.name.startswith("."):
            skipped["hidden"] += _count_files(path)
        elif path.suffix.lower() in IMAGE_ENDINGS and path.is_file():
            skipped["outside a class folder"] += 1
        elif not path.is_dir():
            skipped[_reason(path)] += 1


def _count_files(path: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(path)) if path.is_dir() else 1


def _images(folder: Path, skipped: Counter[str], above: tuple[Identity, ...]) -> Iterator[Path]:
    """Image files below a folder; `above` are the folders that led here, so that a link back to one of them ends."""
    if not folder.is_dir():
        return
    here = _identity(folder)
    if here in above:
        return
    for path in _children(folder):
        if path.name.startswith("."):
            skipped["hidden"] += _count_files(path)
        elif path.is_dir():
            yield from _images(path, skipped, (*above, here))
        elif path.suffix.lower() in IMAGE_ENDINGS and path.is_file():
            yield path
        else:
            skipped[_reason(path)] += 1


def _reason(path: Path) -> str:
    """Why a visible file is left out."""
    if not path.exists():
        return "broken link"
    ending = file_name(path.suffix.lower())  # a Latin-1 name must not end what writes the summary
    return ending if ending and ending.isprintable() else "without an ending"
