"""Which image is in which split: as the source says, or drawn by the seed, class by class."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from vit_search.config.trial import DataConfig
from vit_search.data.sources.source import Source
from vit_search.errors import DataError
from vit_search.text import counted

SplitName = Literal["train", "val", "holdout", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "holdout", "test")
TRAINED_AND_VALIDATED_ON: dict[str, tuple[tuple[SplitName, ...], tuple[SplitName, ...]]] = {
    "train": (("train",), ("val",)),
    "train+val": (("train", "val"), ("holdout",)),
}
"""What a search file's `train_on` means."""


def split_indices(config: DataConfig, source: Source) -> dict[SplitName, np.ndarray]:
    """Which images of a source are in each split; the rule has a number, FORMAT in cache.py, which a change of it must raise.

    Images that the source gives to no split are drawn into train, val, holdout and, where the source has no test split, test. A
    source that gives every image a split keeps its splits. Those that it lacks are taken from its training images.
    Raises: DataError where `train_limit` leaves a class without an image.
    """
    assert source.groups is None, "groups are not kept together yet"
    by_source = np.full(len(source.labels), "") if source.splits is None else source.splits
    unsplit, train, val, test = (np.flatnonzero(by_source == name) for name in ("", "train", "val", "test"))
    if not len(unsplit):
        return _completed(config, source, train, val, test)
    assert not len(train) and not len(val), "beside images without a split, a source may have a test split, and no other"
    return _drawn(config, source, unsplit, test)


def classes_not_validated(config: DataConfig, source: Source, train_on: str) -> tuple[str, ...]:
    """The classes of which the split that trials are validated on has no image, known before any image is decoded.

    Args:
        train_on: as in a search file.
    """
    indices = split_indices(config, source)
    seen = {int(label) for split in TRAINED_AND_VALIDATED_ON[train_on][1] for label in np.unique(source.labels[indices[split]])}
    return tuple(name for label, name in enumerate(source.classes) if label not in seen)


def _drawn(config: DataConfig, source: Source, rest: np.ndarray, test: np.ndarray) -> dict[SplitName, np.ndarray]:
    """Stratified splits. The test split depends on split_seed and test_fraction alone, the training images on what is left for them."""
    left = 1.0
    if not len(test):
        rest, test = _carve(rest, source.labels, config.test_fraction, (config.split_seed, 1))
        left -= config.test_fraction
    looked_at = config.val_fraction + config.holdout_fraction
    train, val = _carve(rest, source.labels, looked_at / left, (config.split_seed, 2))
    holdout = val[:0]
    if config.holdout_fraction:
        val, holdout = _carve(val, source.labels, config.holdout_fraction / looked_at, (config.split_seed, 4))
    return {"train": _limited(config, source, train), "val": val, "holdout": holdout, "test": test}


def _completed(config: DataConfig, source: Source, train: np.ndarray, val: np.ndarray, test: np.ndarray) -> dict[SplitName, np.ndarray]:
    """The splits that a source has; those that it lacks are taken from its training images, class by class."""
    left, holdout = 1.0, train[:0]
    if not len(test):
        train, test = _carve(train, source.labels, config.test_fraction, (config.split_seed, 1))
        left -= config.test_fraction
    if not len(val):
        train, val = _carve(train, source.labels, config.val_fraction / left, (config.split_seed, 2))
        left -= config.val_fraction
    if config.holdout_fraction:
        train, holdout = _carve(train, source.labels, config.holdout_fraction / left, (config.split_seed, 4))
    return {"train": _limited(config, source, train), "val": val, "holdout": holdout, "test": test}


def _limited(config: DataConfig, source: Source, train: np.ndarray) -> np.ndarray:
    """At most train_limit of the training images."""
    if config.train_limit is None or config.train_limit >= len(train):
        return train
    if config.train_limit < len(source.classes):
        raise DataError(
            f"data.train_limit: {counted(config.train_limit, 'image')} for {len(source.classes)} classes; give at least one each."
        )
    return _carve(train, source.labels, config.train_limit / len(train), (config.split_seed, 3))[1]


def _carve(indices: np.ndarray, labels: np.ndarray, share: float, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Take a share of every class, at least one image and never all of them; both parts come back in their old order."""
    rng = np.random.default_rng(seed)
    taken: list[np.ndarray] = []
    exact_so_far = taken_so_far = 0.0
    for label in np.unique(labels[indices]):
        shuffled = rng.permutation(indices[labels[indices] == label])
        exact_so_far += len(shuffled) * share  # rounding is carried over, so that the whole has its share, too
        count = int(np.clip(math.floor(exact_so_far - taken_so_far + 0.5), 1, len(shuffled) - 1))
        taken_so_far += count
        taken.append(shuffled[:count])
    chosen = np.sort(np.concatenate(taken))
    return np.setdiff1d(indices, chosen), chosen
