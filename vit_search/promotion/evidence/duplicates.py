"""Finds test images that are also among the other images, equal or nearly equal, with pictures of ten pairs."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.data.cache import DataSet, read_split
from vit_search.data.image_names import image_names
from vit_search.data.near_duplicates import LEAST_SIDE, find_near_duplicates, too_small
from vit_search.data.split import SplitName
from vit_search.text import file_name

OTHER_SPLITS: tuple[SplitName, ...] = ("train", "val", "holdout")

PICTURED = 10
"""Number of pairs on the sheet."""

SIDE = 160
"""Side of a picture on the sheet, in pixels."""


@dataclass(frozen=True)
class Pair:
    """A test image and its twin in another split."""

    kind: str
    """`equal` (byte for byte) or `near`."""
    test: int
    """Index in the test split."""
    split: SplitName
    other: int
    """Index in this split."""
    similarity: float
    """1 for equal images; see data/near_duplicates.py."""
    mirrored: bool
    test_class: str
    other_class: str
    test_name: str = ""
    """The file of the test image, or its number in the source if that has no files."""
    other_name: str = ""


@dataclass(frozen=True)
class Duplicates:
    """The duplicates that were found."""

    equal: int
    """Test images that are also, byte for byte, in another split."""
    pairs: tuple[Pair, ...] = ()
    """Near duplicates, the most similar first; then equal ones. Each test image appears once."""
    judged: int = 0
    """Test images that were compared with all others for near duplicates."""
    not_judged: str = ""
    """Why near duplicates were not looked for; empty if they were."""

    @property
    def near(self) -> int:
        """Number of test images with a near duplicate but no equal one."""
        return sum(pair.kind == "near" for pair in self.pairs)

    @property
    def near_share(self) -> float:
        """`near` as a share of the compared images."""
        return self.near / self.judged if self.judged else 0.0


def find_duplicates(config: DataConfig, data: DataSet) -> Duplicates:
    """Compare each test image with the images of all other splits.

    Args:
        config: the data set's configuration, for the file names.
    """
    if data.reader is not None:
        return Duplicates(data.test_duplicates, not_judged="the set is too large for memory, so its images are not compared")
    height, width = data.image_size
    not_judged = (
        f"images of {height}x{width} pixels show too little (at least {LEAST_SIDE}x{LEAST_SIDE})" if too_small((height, width)) else ""
    )
    if not_judged and not data.test_duplicates:
        return Duplicates(0, not_judged=not_judged)  # no image of the test split must be read
    others = [(split, *read_split(data, split)) for split in OTHER_SPLITS if data.counts[split]]
    test, labels = read_split(data, "test")
    equal = _equal(test, [images for _, images, _ in others]) if data.test_duplicates else {}
    twins = [("equal", index, other, 1.0, False) for index, other in equal.items()]
    judged = 0
    if not not_judged:
        near = find_near_duplicates(test, [images for _, images, _ in others])
        judged = near.judged
        twins = [("near", one.test, one.other, one.similarity, one.mirrored) for one in near.found if one.test not in equal] + twins
    first = np.cumsum([0, *(len(images) for _, images, _ in others)])
    pairs = []
    for kind, index, other, similarity, mirrored in twins:
        part = int(np.searchsorted(first, other, side="right")) - 1
        split, _, other_labels = others[part]
        place = other - int(first[part])
        names = data.classes[labels[index]], data.classes[other_labels[place]]
        pairs.append(Pair(kind, index, split, place, similarity, mirrored, *names))
    return Duplicates(data.test_duplicates, tuple(_named(config, data, pairs)), judged, not_judged)


def _equal(test: np.ndarray, others: Sequence[np.ndarray]) -> dict[int, int]:
    """The first equal image of each test image that has one, by index. The other splits are counted through."""

    def digest(pixels: np.ndarray) -> bytes:
        return hashlib.sha256(pixels.tobytes()).digest()

    of_test: dict[bytes, list[int]] = {}
    for index, pixels in enumerate(test):
        of_test.setdefault(digest(pixels), []).append(index)
    found: dict[int, int] = {}
    for other, pixels in enumerate(image for images in others for image in images):
        for index in of_test.pop(digest(pixels), ()):
            found[index] = other
    return dict(sorted(found.items()))


def _named(config: DataConfig, data: DataSet, pairs: list[Pair]) -> list[Pair]:
    if not pairs:
        return []
    splits: set[SplitName] = {"test", *(one.split for one in pairs)}
    names = {split: image_names(config, data, split) for split in splits}
    return [replace(one, test_name=names["test"][one.test], other_name=names[one.split][one.other]) for one in pairs]


def as_csv(pairs: Sequence[Pair]) -> str:
    """All pairs as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "similarity", "mirrored", "test", "test_class", "test_name", "split", "other", "other_class", "other_name"])
    for one in pairs:
        left = [one.kind, f"{one.similarity:.4f}", one.mirrored, one.test, one.test_class, one.test_name]
        writer.writerow([*left, one.split, one.other, one.other_class, one.other_name])
    return text.getvalue()


def sheet(data: DataSet, pairs: Sequence[Pair]) -> Any:
    """A PIL image of the first PICTURED pairs: the test image, its twin beside it, and their facts below."""
    from PIL import Image, ImageDraw, ImageFont

    shown = pairs[:PICTURED]
    images = {split: read_split(data, split)[0] for split in {"test", *(one.split for one in shown)}}
    line, gap = 15, 12
    width, height = 2 * SIDE + 4 + gap, SIDE + 3 * line + gap
    paper = Image.new("RGB", (2 * width + gap, -(-len(shown) // 2) * height + gap), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default()
    for i, one in enumerate(shown):
        left, top = gap + i % 2 * width, gap + i // 2 * height
        paper.paste(_picture(images["test"][one.test]), (left, top))
        paper.paste(_picture(images[one.split][one.other]), (left + SIDE + 4, top))
        alike = "equal" if one.kind == "equal" else f"{one.similarity:.3f} alike{', mirrored' if one.mirrored else ''}"
        for row, (ours, theirs) in enumerate(
            (
                (f"test {one.test}: {one.test_class}", f"{one.split} {one.other}: {one.other_class}"),
                (one.test_name, one.other_name),
                (alike, ""),
            )
        ):
            for column, text in enumerate((ours, theirs)):
                draw.text((left + column * (SIDE + 4), top + SIDE + 1 + row * line), _short(text), fill="black", font=font)
    return paper


def _short(text: str) -> str:
    """The end of a text, as much as fits under a picture."""
    text = file_name(text).encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= 26 else "..." + text[-23:]


def _picture(pixels: np.ndarray) -> Any:
    """An image of the cache, (channels, height, width), as a PIL image in the size for the sheet."""
    from PIL import Image

    depth = np.iinfo(pixels.dtype).max
    levels = pixels if depth == 255 else (pixels // (depth // 255)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels[:3].transpose(1, 2, 0))) if len(levels) >= 3 else Image.fromarray(levels[0])
    scale = SIDE / max(image.size)
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)
