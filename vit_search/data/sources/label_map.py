"""Wrap any source to merge, rename or drop classes, as `data.label_map` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_search.data.sources.source import Source, in_short
from vit_search.errors import DataError
from vit_search.text import nearest


class MappedSource(Source):
    """The images of another source whose class is kept, with their new classes.

    Args:
        label_map: new name of a class by its old name; None drops the class. All others keep their names.
    Raises: DataError for a name that is not a class, and if fewer than two classes are left.
    """

    def __init__(self, source: Source, label_map: Mapping[str, str | None]) -> None:
        for name in label_map:
            if name not in source.classes:
                raise DataError(f"data.label_map: {source.title} has no class {name!r}; {_nearest_class(name, source.classes)}")
        new_names = [label_map.get(name, name) for name in source.classes]
        self.classes = tuple(dict.fromkeys(name for name in new_names if name is not None))
        if len(self.classes) < 2:
            left = f"one class, {self.classes[0]}" if self.classes else "no class"
            raise DataError(f"data.label_map: it leaves {left}; leave at least two.")
        numbers = {name: number for number, name in enumerate(self.classes)}
        new_labels = np.array([-1 if name is None else numbers[name] for name in new_names], np.int64)
        self._source = source
        self._kept = np.flatnonzero(new_labels[source.labels] >= 0)
        self.bits = source.bits
        self.title, self.reader, self.group_names = source.title, source.reader, source.group_names
        self.labels = new_labels[source.labels[self._kept]]
        self.splits = None if source.splits is None else source.splits[self._kept]
        self.groups = None if source.groups is None else source.groups[self._kept]
        self.weights = None if source.weights is None else source.weights[self._kept]

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]  # mypy does not know that it can be set
        """Of the wrapped source."""
        return self._source.shape

    @property
    def names(self) -> np.ndarray:
        """Names of the images that are kept."""
        names: np.ndarray = self._source.names[self._kept]
        return names

    def content_hash(self, index: int) -> str:
        """From the wrapped source."""
        return self._source.content_hash(int(self._kept[index]))

    def fingerprint(self) -> bytes:
        """From the wrapped source. The label map itself is a key of the section `data`, so it is in the data hash already."""
        return self._source.fingerprint()

    def read(self, index: int) -> np.ndarray:
        """Decode an image with the wrapped source."""
        return self._source.read(int(self._kept[index]))

    def file(self, index: int) -> Path | bytes | None:
        """From the wrapped source."""
        return self._source.file(int(self._kept[index]))

    def sizes(self) -> Sequence[int] | None:
        """Sizes of the images that are kept."""
        sizes = self._source.sizes()
        return None if sizes is None else [sizes[index] for index in self._kept.tolist()]

    def where(self, index: int) -> str:
        """From the wrapped source."""
        return self._source.where(int(self._kept[index]))

    def places(self, indices: Sequence[int]) -> str:
        """From the wrapped source."""
        return self._source.places(self._kept[list(indices)].tolist())

    def remarks(self) -> tuple[str, ...]:
        """Remarks of the wrapped source, and how many images were dropped."""
        dropped = len(self._source.labels) - len(self._kept)
        return (*self._source.remarks(), *([f"{dropped:,} dropped by label_map"] if dropped else []))

    def summary(self, used: Mapping[str, int] | None = None) -> str:
        """One line about the images that are kept."""
        return "; ".join((super().summary(used), *self.notes()))


def _nearest_class(name: str, classes: tuple[str, ...]) -> str:
    """What to do about a misspelt class."""
    mend = nearest(name, classes)
    return mend if mend.startswith("did") else f"its classes are {in_short(classes)}."
