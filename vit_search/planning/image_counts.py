"""The number of images in each split, before any image is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from vit_search.config.data_config import DataConfig
from vit_search.config.data_sets import DATA_SETS
from vit_search.data.sources import open_source
from vit_search.data.split import given_splits, split_indices


@dataclass(frozen=True)
class Images:
    """Numbers of images, without the test split."""

    train: int
    """Images that are trained on: those with a weight above 0."""
    val: int
    holdout: int = 0


def images_of(config: DataConfig) -> Images:
    """The number of images in all splits but the test split. Reads no image.

    Raises: DataError if the images must be counted but are missing.
    """
    if config.labelled is None:
        source = open_source(config)
        if source.groups is not None or source.weights is not None:  # the numbers depend on the actual split
            splits = split_indices(config, source)
            train = splits["train"] if source.weights is None else splits["train"][source.weights[splits["train"]] > 0]
            return Images(train=len(train), val=len(splits["val"]), holdout=len(splits["holdout"]))
        counts = Counter(given_splits(source).tolist())
    else:
        counts = Counter({"": config.labelled, "test": DATA_SETS[config.name].test})
    if not counts[""] or counts["train"] or counts["val"]:
        return _images_of_splits(config, counts)
    labelled, own_test = counts[""], counts["test"]
    test = 0 if own_test else math.floor(labelled * config.test_fraction + 0.5)
    looked_at = config.val_fraction + config.holdout_fraction
    both = math.floor((labelled - test) * looked_at / (1 if own_test else 1 - config.test_fraction) + 0.5)  # as data/split.py does it
    train, holdout = max(1, labelled - test - both), math.floor(both * config.holdout_fraction / looked_at + 0.5)
    val = both - holdout
    return Images(train=min(train, config.train_limit or train), val=val, holdout=holdout)


def _images_of_splits(config: DataConfig, counts: Mapping[str, int]) -> Images:
    """The number of images if a source has its own splits. Missing splits come from the other images, as in data/split.py."""
    pool, left = counts[""] or counts["train"], 1.0
    kept = counts["train"] if counts[""] else 0
    test = 0 if counts["test"] else math.floor(pool * config.test_fraction + 0.5)
    left -= config.test_fraction if test else 0.0
    val = 0 if counts["val"] else math.floor((pool - test) * config.val_fraction / left + 0.5)
    left -= config.val_fraction if val else 0.0
    holdout = math.floor((pool - test - val) * config.holdout_fraction / left + 0.5)
    train = max(1, kept + pool - test - val - holdout)
    return Images(train=min(train, config.train_limit or train), val=counts["val"] or val, holdout=holdout)
