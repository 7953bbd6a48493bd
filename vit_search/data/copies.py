"""Find images that a data set has more than once, byte for byte, with equal or different labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit_search.data.file_hashes import sha256_of_all
from vit_search.data.sources.source import Source
from vit_search.data.split import SplitName
from vit_search.text import counted, listed

CHEAP_BYTES = 2**28
"""Bytes of images that `lint` and `plan` hash at most: about a second. `run` hashes all images that may be copies."""

Pair = tuple[int, int]
"""Two images with the same bytes; the earlier one comes first."""


@dataclass(frozen=True)
class Copies:
    """The images whose bytes an earlier image has."""

    other_label: tuple[Pair, ...] = ()
    same_label: tuple[Pair, ...] = ()


def find_copies(source: Source, *, most_bytes: int | None = None) -> Copies:
    """Find images with the same bytes. Only files whose size occurs more than once are read.

    Empty files are left out: decoding reports them. If sizes are not known without reading, as in a Parquet file, all images are read.

    Args:
        source: if its images are not files (MNIST, CIFAR, digits), nothing is found.
        most_bytes: bytes to read at most; None for no limit. If known sizes exceed it, nothing is found.
    """
    if not len(source.labels) or source.file(0) is None:
        return Copies()
    indices: Sequence[int] = range(len(source.labels))
    sizes = source.sizes()
    if sizes is not None:
        number = Counter(sizes)
        indices = [index for index, size in enumerate(sizes) if size and number[size] > 1]
        if most_bytes is not None and sum(sizes[index] for index in indices) > most_bytes:
            return Copies()
    first: dict[str, int] = {}
    other_label: list[Pair] = []
    same_label: list[Pair] = []
    for index, digest in zip(indices, _digests(source, indices, whole_set=most_bytes is None), strict=True):
        earlier = first.setdefault(digest, index)
        if earlier != index:
            (same_label if source.labels[earlier] == source.labels[index] else other_label).append((earlier, index))
    return Copies(tuple(other_label), tuple(same_label))


def _digests(source: Source, indices: Sequence[int], *, whole_set: bool) -> list[str]:
    """sha256 of some images. If the whole set is prepared, a streamable source has computed them already, for its data hash."""
    if whole_set and source.reader is not None:
        return [source.content_hash(index) for index in indices]
    files = [source.file(index) for index in indices] if isinstance(source.file(0), Path) else []
    if files:
        return sha256_of_all([file for file in files if isinstance(file, Path)])
    contents = (source.file(index) for index in indices)  # in order, so that each row group is read once
    return [hashlib.sha256(content if isinstance(content, bytes) else b"").hexdigest() for content in contents]


def contradictions_note(source: Source, copies: Copies) -> str:
    """Copies with different labels in words, one pair for each image; empty if there are none.

    They are no error: an empty tile may really belong to two classes.
    """
    if not copies.other_label:
        return ""
    pairs = {
        pair[0]: f"{source.places(pair)} ({source.classes[source.labels[pair[0]]]} and {source.classes[source.labels[pair[1]]]})"
        for pair in reversed(copies.other_label)
    }
    return f"the same image with different labels: {listed([pairs[first] for first in sorted(pairs)])}"


def copies_note(source: Source, copies: Copies) -> str:
    """Copies with the same label in words; empty if there are none."""
    if not copies.same_label:
        return ""
    number = len(copies.same_label)
    are = "image is a copy" if number == 1 else "images are copies"
    return f"{number:,} {are} of another one with the same label ({_examples(source, copies.same_label)})"


def across_splits_note(source: Source, copies: Copies, splits: Mapping[SplitName, np.ndarray]) -> str:
    """Copies with the same label that are in two splits, in words; empty if there are none."""
    split_of = {int(index): name for name, indices in splits.items() for index in indices}
    pairs = [pair for pair in copies.same_label if pair[0] in split_of and pair[1] in split_of and split_of[pair[0]] != split_of[pair[1]]]
    if not pairs:
        return ""
    return f"{counted(len(pairs), 'image')} in two splits ({_examples(source, pairs)})"


def _examples(source: Source, pairs: Sequence[Pair]) -> str:
    return listed([source.places(pair) for pair in pairs])
