"""Check that a source keeps the rules of sources/source.py for classes, labels, splits, groups and weights, before anything is cached.

pixels.py checks each image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vit_search.data.pixels import kind_of
from vit_search.data.sources.source import Source
from vit_search.errors import DataError

_SPLITS = ("", "train", "val", "test")


def check_source(source: Source) -> None:
    """Refuse classes, labels, splits, groups, weights and names that do not fit together.

    Raises: DataError that names the source and, if there is one, the first bad image.
    """
    title, classes, labels = source.title, source.classes, source.labels
    texts = [name for name in classes if isinstance(name, str)]
    if len(set(texts)) < len(classes):
        raise DataError(f"{title}: classes are {list(classes)!r:.200}; give a tuple of different texts, as str(name) makes them.")
    mend = f"give an int64 array (images,) of indices into classes, from 0 to {len(classes) - 1}"
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        raise DataError(f"{title}: labels are {kind_of(labels)}; {mend}.")
    if not len(labels):
        raise DataError(f"{title}: labels are empty; {mend}.")
    numbers = labels.dtype.kind in "iuf"
    with np.errstate(invalid="ignore"):
        odd = (labels < 0) | (labels >= len(classes)) | (labels != np.floor(labels)) if numbers else np.ones(len(labels), bool)
    if odd.any() or labels.dtype != np.int64:
        first = int(odd.argmax())
        raise DataError(f"{title}: labels are {labels.dtype}, and that of image {first} is {labels[first]}; {mend}.")
    if source.splits is not None:
        _check_length(source, "splits", source.splits)
        splits = source.splits.tolist()
        wrong = [i for i, split in enumerate(splits) if split not in _SPLITS]
        if wrong:
            raise DataError(f"{title}: the split of image {wrong[0]} is {splits[wrong[0]]!r}; give train, val, test, or an empty text.")
    if source.groups is not None:
        _check_length(source, "groups", source.groups)
        if source.groups.dtype != np.int64:
            raise DataError(f"{title}: groups are {kind_of(source.groups)}; give an int64 array (images,), the same number for one group.")
    if source.weights is not None:
        _check_length(source, "weights", source.weights)
        if source.weights.dtype != np.float64:
            raise DataError(f"{title}: weights are {kind_of(source.weights)}; give a float64 array (images,).")
        if not (np.isfinite(source.weights) & (source.weights >= 0)).all():
            first = int((~(np.isfinite(source.weights) & (source.weights >= 0))).argmax())
            raise DataError(f"{title}: the weight of image {first} is {source.weights[first]}; give a finite number of at least 0.")
    if source.reader is not None:
        _check_length(source, "names", source.names)


def _check_length(source: Source, what: str, values: Any) -> None:
    if not isinstance(values, np.ndarray) or values.shape != source.labels.shape:
        raise DataError(f"{source.title}: {what} are {kind_of(values)}, and labels are {kind_of(source.labels)}; give one for each image.")
