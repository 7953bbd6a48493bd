"""Find classes and groups that are too small to be divided into training, validation and test, before an image is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from vit_search.data.mistakes import refuse
from vit_search.data.sources.source import Source
from vit_search.text import counted, listed

LEAST_IMAGES = 3
"""Least number of images of a class: one each for training, validation and test."""


class Labelled(Protocol):
    """What the checks need. A source has it; so do the rows of a table that has mistakes and is no source yet."""

    classes: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray | None
    group_names: Sequence[str]

    def where(self, index: int) -> str:
        """See `Source`."""
        ...

    def places(self, indices: Sequence[int]) -> str:
        """See `Source`."""
        ...


def check_classes(source: Source) -> None:
    """Refuse classes and groups that cannot be divided into training, validation and test. No image is read.

    Raises: DataError that names the first few of them.
    """
    groups = source.groups
    if groups is not None and not (isinstance(groups, np.ndarray) and groups.shape == source.labels.shape and groups.dtype == np.int64):
        return  # source_checks.py says what is wrong
    splits = np.full(len(source.labels), "") if source.splits is None else source.splits
    refuse(source.title, [*straddling_groups(source, splits), *small_classes(source, splits)])


def straddling_groups(source: Labelled, splits: np.ndarray) -> Iterator[str]:
    """A message about groups that the source puts into two splits. An image with the split "" is in none yet."""
    if source.groups is None:
        return
    first: dict[int, int] = {}
    straddling: dict[int, str] = {}
    for index in np.flatnonzero(splits != "").tolist():
        group = int(source.groups[index])
        other = first.setdefault(group, index)
        if splits[other] != splits[index] and group not in straddling:
            name = source.group_names[group] if len(source.group_names) else str(group)
            straddling[group] = f"{name} ({source.where(other)} {splits[other]}, {source.where(index)} {splits[index]})"
    if straddling:
        what = "a group is" if len(straddling) == 1 else f"{len(straddling):,} groups are"
        yield f"{what} in more than one split: {listed(list(straddling.values()))}; put all images of a group into one split."


def small_classes(source: Labelled, splits: np.ndarray) -> Iterator[str]:
    """Messages about classes with too few images or groups, or with no image to train on."""
    usable = np.isin(splits, ("", "train"))
    images = np.bincount(source.labels[usable], minlength=len(source.classes))
    elsewhere: list[str] = []
    few: list[str] = []
    for label, name in enumerate(source.classes):
        rows: list[int] = np.flatnonzero(source.labels == label).tolist() if images[label] < LEAST_IMAGES else []
        if rows and not images[label]:
            elsewhere.append(f"{name} ({splits[rows[0]]}: {source.places(rows)})")
        elif images[label] < LEAST_IMAGES:
            few.append(f"class {name} has {counted(int(images[label]), 'image')} ({source.places(rows)})")
    drop = "or drop the class with data.label_map"
    if elsewhere:
        what = "a class is" if len(elsewhere) == 1 else f"{len(elsewhere):,} classes are"
        yield f"{what} not in the training images: {listed(elsewhere)}; move some images to train, {drop}."
    if few:
        where = "" if usable.all() else " without a split or in train"
        yield f"{listed(few)}; each class needs at least {LEAST_IMAGES}{where}: add images, {drop}."
    yield from _few_groups(source, splits, usable & (images >= LEAST_IMAGES)[source.labels])


def _few_groups(source: Labelled, splits: np.ndarray, usable: np.ndarray) -> Iterator[str]:
    """A message about classes with too few groups: one is needed for training, and one for each split that is drawn."""
    if source.groups is None:
        return
    pairs = np.unique(np.stack([source.labels[usable], source.groups[usable]]), axis=1)
    groups = np.bincount(pairs[0], minlength=len(source.classes))
    drawn = [name for name in ("val", "test") if name not in splits]
    least = 1 + len(drawn)
    if not drawn:
        return
    few = [f"class {name} has {counted(int(groups[i]), 'group')}" for i, name in enumerate(source.classes) if 0 < groups[i] < least]
    if few:
        purpose = "training, validation and test" if len(drawn) == 2 else f"training and {drawn[0]}"
        yield f"{listed(few)}; each class needs at least {least}, one each for {purpose}: add images of other groups, or drop the class."
