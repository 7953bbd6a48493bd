"""The interface of every data set: classes, labels, splits, groups, fingerprint, and image i.

Cache, splits, streaming, plan and lint use only this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from vit_search.errors import DataError
from vit_search.text import counted, listed

CLASSES_SHOWN = 10
"""Class names that a summary lists at most."""


class Reader(Protocol):
    """Decodes images of a streamed set by name. It is sent to other processes, so keep it small."""

    def __call__(self, name: str, size: tuple[int, int] | None) -> np.ndarray:
        """Decode one image, resized to a height and width, or in its own size: uint8 or uint16 (channels, height, width).

        Raises: DataError that names the image and says what is wrong with it.
        """
        ...


class Source(ABC):
    """A data set that is open: its names and labels are read, its images are not decoded yet."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """(n,) int64: index into `classes` for each image."""
    splits: np.ndarray | None = None
    """(n,) text: the split that the source gives each image (train, val or test), or "" if the seed decides. None: "" for all images."""
    groups: np.ndarray | None = None
    """(n,) int64: all images of a group must be in the same split. None: there are no groups."""
    group_names: Sequence[str] = ()
    """Name of each group in messages, by its number. Empty: messages show the number."""
    weights: np.ndarray | None = None
    """(n,) float64, at least 0: how much each image counts in the training loss. None: all count the same."""
    shape: tuple[int, int, int]
    """Channels, height and width of the images that `read` returns."""
    bits: int = 8
    """Bits of one value: 8, or 16 with `bit_depth: 16` in the search file."""
    title: str
    """Name of the set in messages: its name, or its folder."""
    reader: Reader | None = None
    """Decodes images of a set that is too large for memory; None: it cannot be streamed. A reader needs `names` and `content_hash`, too."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """A part of the data hash. It must change if an image, a label, a split or a weight of the source changes."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Decode image `index`: uint8, or uint16 if `bits` is 16; of `shape`.

        Raises: DataError that names the image and says what is wrong with it.
        """

    @property
    def names(self) -> np.ndarray:
        """(n,) text: name of each image, for `reader`."""
        raise DataError(f"{self.title}: it has a reader and no names, so it cannot be streamed; write Source.names for it.")

    def content_hash(self, index: int) -> str:
        """sha256 of an image as it is stored. Two copies of a file have the same."""
        raise DataError(f"{self.title}: image {index} has no content_hash, so it cannot be streamed; write Source.content_hash for it.")

    def file(self, index: int) -> Path | bytes | None:
        """The file of an image, or its content; None if the images are not files."""
        return None

    def sizes(self) -> Sequence[int] | None:
        """Size of each image's file in bytes, if it is known without reading the files; else None."""
        return None

    def where(self, index: int) -> str:
        """Where a person finds an image, for messages: its file, or the line of a table."""
        return f"image {index}"

    def places(self, indices: Sequence[int]) -> str:
        """Where a person finds the first few of some images: `cat/1.png, cat/7.png`, `lines 5, 62`."""
        return listed([self.where(index) for index in indices])

    def remarks(self) -> tuple[str, ...]:
        """What else the summary says, for example about skipped files."""
        return ()

    def summary(self, used: Mapping[str, int] | None = None) -> str:
        """One line about the set: `10 classes: 0, 1, …; 1,797 images`.

        Args:
            used: number of images in each split, once they are split and `train_limit` may have left some out.
        """
        counts = self.counts if used is None else used
        groups = 0 if self.groups is None else len(np.unique(self.groups))
        return summary(self.classes, sum(counts.values()), counts, groups) + self._weights_in_short()

    def _weights_in_short(self) -> str:
        """`; weights 0 to 3, mean 1.2, 40 images of weight 0`; empty if there are no weights."""
        if self.weights is None or not len(self.weights):
            return ""
        least, most, zero = self.weights.min(), self.weights.max(), int((self.weights == 0).sum())
        mean = float((self.weights / (most or 1)).mean() * most)
        return f"; weights {least:.4g} to {most:.4g}, mean {mean:.4g}" + (f", {counted(zero, 'image')} of weight 0" if zero else "")

    @property
    def counts(self) -> Counter[str]:
        """Number of images by the split that the source gives them; those under "" are not split yet."""
        return Counter({"": len(self.labels)} if self.splits is None else self.splits.tolist())

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """For each split of the source that lacks some classes: these classes."""
        if self.splits is None:
            return {}
        present = set(zip(self.splits.tolist(), self.labels.tolist(), strict=True))
        lacks = {
            split: tuple(name for label, name in enumerate(self.classes) if (split, label) not in present)
            for split in ("val", "train", "test")
            if split in self.counts
        }
        return {split: names for split, names in lacks.items() if names}

    def notes(self) -> tuple[str, ...]:
        """What the summary adds to the counts: `remarks`, and classes that a split lacks."""
        return (*self.remarks(), *(f"{split} has no image of {in_short(names)}" for split, names in self.missing.items()))


def in_short(classes: Sequence[str]) -> str:
    """The first few of some class names."""
    return ", ".join(classes[:CLASSES_SHOWN]) + (f", … {len(classes) - CLASSES_SHOWN} more" if len(classes) > CLASSES_SHOWN else "")


def summary(classes: tuple[str, ...], images: int, splits: Mapping[str, int], groups: int = 0) -> str:
    """One line about a data set.

    Args:
        images: number of all images.
        splits: number of images by split; empty, or all under "", if they are not split yet.
        groups: number of groups; 0 for none.
    """
    parts = [f"{name} {splits[name]:,}" for name in ("train", "val", "holdout", "test") if splits.get(name)]
    by_split = f" ({', '.join(parts)})" if parts else ""
    of_groups = f" of {counted(groups, 'group')}" if groups else ""
    return f"{counted(len(classes), 'class')}: {in_short(classes)}; {counted(images, 'image')}{of_groups}{by_split}"
