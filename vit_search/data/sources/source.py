"""What every source of labelled images answers: classes, labels, splits, groups, fingerprint, and image i.

Cache, splits, streaming, plan and lint ask these questions and no others.
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
"""Class names that a summary spells out."""


class Reader(Protocol):
    """Decodes an image of a streamed set by its name. It is sent to other processes, so keep it small."""

    def __call__(self, name: str, size: tuple[int, int] | None) -> np.ndarray:
        """The image, resized to a height and width, or as large as it is: uint8 or uint16 (channels, height, width).

        Raises: DataError that names the image and what is wrong with it.
        """
        ...


class Source(ABC):
    """The labelled images of one data set, open: names and labels are read, images are not decoded yet."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """(n,) int64: index into `classes` of each image."""
    splits: np.ndarray | None = None
    """(n,) text: the split that the source itself gives each image (train, val or test), or "" for an image that vit_search shall
    split by the seed. None: that is all of them."""
    groups: np.ndarray | None = None
    """(n,) int64: images of one group belong into one split. None: there are no groups."""
    group_names: Sequence[str] = ()
    """What messages call each group, by its number; empty: the number."""
    weights: np.ndarray | None = None
    """(n,) float64, at least 0: how much each image counts in the training loss. None: all the same."""
    shape: tuple[int, int, int]
    """Channels, height and width of each image that `read` gives."""
    bits: int = 8
    """Of a value of an image: 8, or 16 where the search file says `bit_depth: 16`."""
    title: str
    """What messages call the whole set: its name, or its folder."""
    reader: Reader | None = None
    """How a set that is too large for memory is streamed; None where that cannot be. With it go `names` and `content_hash`."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """What the data hash is made of: it must change whenever an image, a label, a split or a weight of the source changes."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Image number `index`: uint8, or uint16 where `bits` is 16; of `shape`.

        Raises: DataError that names the image and what is wrong with it.
        """

    @property
    def names(self) -> np.ndarray:
        """(n,) text: the name of each image, as `reader` takes it."""
        raise DataError(f"{self.title}: it has a reader and no names, so it cannot be streamed; write Source.names for it.")

    def content_hash(self, index: int) -> str:
        """sha256 of a streamed image as it is stored: the same for two copies of a file."""
        raise DataError(f"{self.title}: image {index} has no content_hash, so it cannot be streamed; write Source.content_hash for it.")

    def file(self, index: int) -> Path | bytes | None:
        """The file of an image, or its content; None where the images are not in files."""
        return None

    def sizes(self) -> Sequence[int] | None:
        """Bytes of the file of each image, where they are known without reading the files; None where they are not."""
        return None

    def where(self, index: int) -> str:
        """Where an image is named, for a message: its file, or the line of a table."""
        return f"image {index}"

    def places(self, indices: Sequence[int]) -> str:
        """Where some images are named, the first few of many: `cat/1.png, cat/7.png`, `lines 5, 62`."""
        return listed([self.where(index) for index in indices])

    def remarks(self) -> tuple[str, ...]:
        """What else a summary says, as of files that were left out."""
        return ()

    def summary(self, used: Mapping[str, int] | None = None) -> str:
        """What the set holds, in one line: `10 classes: 0, 1, …; 1,797 images`.

        Args:
            used: images of each split, where they have been split and `train_limit` may have left some out.
        """
        counts = self.counts if used is None else used
        groups = 0 if self.groups is None else len(np.unique(self.groups))
        return summary(self.classes, sum(counts.values()), counts, groups) + self._weights_in_short()

    def _weights_in_short(self) -> str:
        """`; weights 0 to 3, mean 1.2, 40 images of weight 0`; empty where there are none."""
        if self.weights is None or not len(self.weights):
            return ""
        least, most, zero = self.weights.min(), self.weights.max(), int((self.weights == 0).sum())
        mean = float((self.weights / (most or 1)).mean() * most)
        return f"; weights {least:.4g} to {most:.4g}, mean {mean:.4g}" + (f", {counted(zero, 'image')} of weight 0" if zero else "")

    @property
    def counts(self) -> Counter[str]:
        """Images by the split that the source gives them; those under "" are still to be split."""
        return Counter({"": len(self.labels)} if self.splits is None else self.splits.tolist())

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Classes of which a split of the source (val or test) has no image; splits that have all of them are left out."""
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
        """What a summary adds to the counts: `remarks`, and classes of which val or test has no image."""
        return (*self.remarks(), *(f"{split} has no image of {in_short(names)}" for split, names in self.missing.items()))


def in_short(classes: Sequence[str]) -> str:
    """Names of classes, the first few of many."""
    return ", ".join(classes[:CLASSES_SHOWN]) + (f", … {len(classes) - CLASSES_SHOWN} more" if len(classes) > CLASSES_SHOWN else "")


def summary(classes: tuple[str, ...], images: int, splits: Mapping[str, int], groups: int = 0) -> str:
    """What a data set holds, in one line.

    Args:
        images: all of them. splits: those of each split; empty, or all under "", where they are not split yet. groups: 0 for none.
    """
    parts = [f"{name} {splits[name]:,}" for name in ("train", "val", "holdout", "test") if splits.get(name)]
    by_split = f" ({', '.join(parts)})" if parts else ""
    of_groups = f" of {counted(groups, 'group')}" if groups else ""
    return f"{counted(len(classes), 'class')}: {in_short(classes)}; {counted(images, 'image')}{of_groups}{by_split}"
