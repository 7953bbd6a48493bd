"""Put each image into a split: as the source says, or by the seed, class by class and in whole groups."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.data.group_split import divide
from vit_search.data.sources.source import Source, in_short
from vit_search.errors import DataError
from vit_search.text import counted

SplitName = Literal["train", "val", "holdout", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "holdout", "test")
TRAINED_AND_VALIDATED_ON: dict[str, tuple[tuple[SplitName, ...], tuple[SplitName, ...]]] = {
    "train": (("train",), ("val",)),
    "train+val": (("train", "val"), ("holdout",)),
}
"""For each value of `train_on` in a search file: the splits to train on, and the splits to validate on."""


def split_indices(config: DataConfig, source: Source) -> dict[SplitName, np.ndarray]:
    """The images of each split. If you change this rule, raise FORMAT in cache.py.

    - If the source puts no image into train or val, its images without a split are drawn into train, val, holdout and, if it has no test
      split, test.
    - Otherwise the source's splits are kept, and only the missing ones are drawn: from the images without a split or, if there are none,
      from its training images.
    - All images of a group are in the same split.

    Raises: DataError if `train_limit` leaves a class without an image, if groups leave a split without a class, or if all training images
        of a class have the weight 0.
    """
    by_source = given_splits(source)
    indices = _divided(config, source, by_source)
    if source.weights is not None:
        _check_weights(source, source.weights, indices["train"])
    return indices


def _divided(config: DataConfig, source: Source, by_source: np.ndarray) -> dict[SplitName, np.ndarray]:
    """The images of each split, before weights are checked."""
    unsplit, train, val, test = (np.flatnonzero(by_source == name) for name in ("", "train", "val", "test"))
    if len(unsplit) and not len(train) and not len(val):
        return _drawn(config, source, unsplit, test)
    return _completed(config, source, unsplit if len(unsplit) else train, train if len(unsplit) else train[:0], val, test)


def _check_weights(source: Source, weights: np.ndarray, train: np.ndarray) -> None:
    """Refuse a class whose training images all have the weight 0."""
    labels = source.labels[train]
    lacking = sorted(set(labels.tolist()) - set(labels[weights[train] > 0].tolist()))
    if not lacking:
        return
    everything = len(lacking) == len(set(labels.tolist()))
    what = "all training images" if everything else f"all training images of {in_short([source.classes[label] for label in lacking])}"
    drop = "" if everything else ", or drop the class with data.label_map"
    where = source.places(train[np.isin(labels, lacking)].tolist())
    raise DataError(f"{source.title}: {what} have the weight 0 ({where}); give those to train on a larger one{drop}.")


def given_splits(source: Source) -> np.ndarray:
    """(n,) text: the split that the source gives each image or its group; "" if the seed decides."""
    if source.splits is None or source.groups is None:
        return np.full(len(source.labels), "") if source.splits is None else source.splits
    pairs = zip(source.groups.tolist(), source.splits.tolist(), strict=True)
    of_group = {group: split for group, split in pairs if split}
    return np.array([of_group.get(group, "") for group in source.groups.tolist()])


def classes_not_validated(config: DataConfig, source: Source, train_on: str) -> tuple[str, ...]:
    """The classes without an image in the split that trials are validated on. No image is decoded.

    Args:
        train_on: as in a search file.
    """
    indices = split_indices(config, source)
    seen = {int(label) for split in TRAINED_AND_VALIDATED_ON[train_on][1] for label in np.unique(source.labels[indices[split]])}
    return tuple(name for label, name in enumerate(source.classes) if label not in seen)


def _drawn(config: DataConfig, source: Source, rest: np.ndarray, test: np.ndarray) -> dict[SplitName, np.ndarray]:
    """Draw stratified splits. The test split depends only on split_seed and test_fraction, so other settings cannot change it."""
    left = 1.0
    if not len(test):
        rest, test = _carve(source, rest, config.test_fraction, (config.split_seed, 1), leave=2)
        left -= config.test_fraction
    looked_at = config.val_fraction + config.holdout_fraction
    train, val = _carve(source, rest, looked_at / left, (config.split_seed, 2))
    holdout = val[:0]
    if config.holdout_fraction:
        val, holdout = _carve(source, val, config.holdout_fraction / looked_at, (config.split_seed, 4), least=0)
    return {"train": _limited(config, source, train), "val": val, "holdout": holdout, "test": test}


def _completed(
    config: DataConfig, source: Source, pool: np.ndarray, kept: np.ndarray, val: np.ndarray, test: np.ndarray
) -> dict[SplitName, np.ndarray]:
    """Keep the splits that a source has, and take the missing ones from the pool, class by class. What is left of the pool is trained on.

    Args:
        pool: images without a split or, if all have one, the training images.
        kept: further training images.
    """
    left, holdout = 1.0, pool[:0]
    if not len(test):
        pool, test = _carve(source, pool, config.test_fraction, (config.split_seed, 1), leave=1 if len(val) else 2, kept=kept)
        left -= config.test_fraction
    if not len(val):
        pool, val = _carve(source, pool, config.val_fraction / left, (config.split_seed, 2), kept=kept)
        left -= config.val_fraction
    if config.holdout_fraction:
        pool, holdout = _carve(source, pool, config.holdout_fraction / left, (config.split_seed, 4), least=0)
    return {"train": _limited(config, source, np.union1d(pool, kept)), "val": val, "holdout": holdout, "test": test}


def _limited(config: DataConfig, source: Source, train: np.ndarray) -> np.ndarray:
    """At most train_limit of the training images."""
    if config.train_limit is None or config.train_limit >= len(train):
        return train
    if config.train_limit < len(source.classes):
        raise DataError(
            f"data.train_limit: {counted(config.train_limit, 'image')} for {len(source.classes)} classes; give at least one each."
        )
    return _carve_images(source.labels, train, config.train_limit / len(train), (config.split_seed, 3))[1]


def _carve(
    source: Source,
    indices: np.ndarray,
    share: float,
    seed: tuple[int, int],
    *,
    least: int = 1,
    leave: int = 1,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Take a share of every class, in whole groups if there are groups. Both parts keep their order.

    Args:
        least: groups of each class that must be taken.
        leave: groups of each class that must be left.
        kept: further training images. Of their classes, no group need be left.
    Returns: what is left, and what is taken.
    """
    if source.groups is None:
        return _carve_images(source.labels, indices, share, seed)
    if not len(indices):
        return indices, indices
    labels, groups = source.labels[indices], source.groups[indices]
    division = divide(labels, groups, share, np.random.default_rng(seed), least=least, leave=leave)
    lacking = set(division.lacking) - set(() if kept is None else source.labels[kept].tolist())
    if lacking:
        names = in_short([source.classes[label] for label in sorted(lacking)])
        mend = "add images of other groups, or merge or drop the class with data.label_map"
        raise DataError(f"{source.title}: the groups cannot be divided so that each split has images of {names}; {mend}.")
    return indices[~division.taken], indices[division.taken]


def _carve_images(labels: np.ndarray, indices: np.ndarray, share: float, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Take a share of every class, at least one image but never all. Both parts keep their order.

    Returns: what is left, and what is taken.
    """
    rng = np.random.default_rng(seed)
    taken: list[np.ndarray] = []
    exact_so_far = taken_so_far = 0.0
    for label in np.unique(labels[indices]):
        shuffled = rng.permutation(indices[labels[indices] == label])
        exact_so_far += len(shuffled) * share  # the rounding is carried over, so that the share of all images fits, too
        count = int(np.clip(math.floor(exact_so_far - taken_so_far + 0.5), 1, len(shuffled) - 1))
        taken_so_far += count
        taken.append(shuffled[:count])
    chosen = np.sort(np.concatenate(taken))
    return np.setdiff1d(indices, chosen), chosen
