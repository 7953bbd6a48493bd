"""Find near duplicates: test images that other splits also have, but re-encoded, resized, slightly cropped or mirrored.

1. A perceptual hash finds, for each test image, the few other images most like it: 63 low frequencies of the discrete cosine transform.
They stay numbers, because rounding them to bits would lose cropped images.
2. Each pair of images is aligned (shifted and scaled until they fit best) and compared pixel by pixel.

A gate of promotions uses it. docs/results/near-duplicates.md says how well both steps work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

LEAST_SIDE = 32
"""Least height and width in pixels.

At FashionMNIST's 28 pixels, different trousers look like copies of each other: see docs/results/near-duplicates.md.
"""

SIMILAR = 0.95
"""Share of a test image's detail that another image must explain. Chosen in tests/benchmarks/near_duplicates.py."""

PLAIN = 3.0
"""An image has no detail if its standard deviation, in levels of 0 to 255, is lower: all plain skies look alike."""

MOST_TEST_IMAGES = 20_000
"""Larger test splits are sampled. Against 100,000 other images, this number takes minutes instead of hours."""

FREQUENCIES = 8
"""Frequencies of the hash in each direction."""

HASHES_ALIKE = 0.5
"""Images are aligned if the cosine between their hashes is at least this. After cropping 5 % of a photo, it is 0.7 or more."""

CANDIDATES = 4
"""Number of other images that are compared with each test image."""

SMALL = 32
"""Side in pixels at which two images are compared."""

CHUNK = 256
"""Images that are processed at once."""

NUMBERS_AT_ONCE = 2**25
"""Cosines that are computed at once: 128 MiB."""


@dataclass(frozen=True)
class NearDuplicate:
    """A test image, and the other image that looks most like it."""

    test: int
    """Index of the test image."""
    other: int
    """Index among the other images."""
    similarity: float
    """Share of the test image's detail that the other image explains: at most 1."""
    mirrored: bool


@dataclass(frozen=True)
class NearDuplicates:
    """The result for a test split."""

    judged: int
    """Test images that were compared: all with detail."""
    plain: int
    """Test images without detail."""
    found: tuple[NearDuplicate, ...]
    """The most similar first. Each test image occurs at most once."""


def too_small(image_size: tuple[int, int]) -> bool:
    """Whether images of this height and width show too little for a comparison."""
    return min(image_size) < LEAST_SIDE


def find_near_duplicates(test: np.ndarray, others: Sequence[np.ndarray]) -> NearDuplicates:
    """Find the test images that the other splits also have.

    Args:
        test: (n, channels, height, width), uint8 or uint16.
        others: images of the other splits, likewise, numbered on from one split to the next.
    Returns: the near duplicates, each with the most similar other image.
    """
    chosen = np.arange(len(test))
    if len(test) > MOST_TEST_IMAGES:
        chosen = np.sort(np.random.default_rng(0).choice(len(test), MOST_TEST_IMAGES, replace=False))
    first = np.cumsum([0, *(len(part) for part in others)])
    raw = np.concatenate([_hashes(part) for part in others])
    weights = 1 / (raw.std(0) + 1e-6)  # so that each frequency counts alike
    other_hashes = torch.from_numpy(_unit(raw * weights))
    found: list[NearDuplicate] = []
    judged = 0
    for part in _chunks(len(chosen)):
        indices = chosen[part]
        images = test[indices]
        small = shrunk(images)
        detailed = _detail(small) >= PLAIN
        judged += int(detailed.sum())
        if detailed.any():
            hashes = _hashes(images[detailed]) * weights
            found += _twins_of(indices[detailed], small[detailed], hashes, other_hashes, others, first)
    return NearDuplicates(judged, len(chosen) - judged, tuple(sorted(found, key=lambda one: (-one.similarity, one.test))))


def _twins_of(
    indices: np.ndarray, small: np.ndarray, hashes: np.ndarray, other_hashes: torch.Tensor, others: Sequence[np.ndarray], first: np.ndarray
) -> list[NearDuplicate]:
    """The near duplicates among some test images.

    Args:
        indices: numbers of the test images.
        small, hashes: of the test images; the hashes are not yet scaled to length 1.
        first: index of each other split's first image.
    """
    upright, mirrored = _unit(hashes), _unit(hashes * _MIRROR)
    alike, columns = _nearest(torch.from_numpy(np.stack([upright, mirrored], 1)), other_hashes)
    rows, ranks = np.nonzero(alike >= HASHES_ALIKE)
    if not len(rows):
        return []
    columns = columns[rows, ranks]
    flipped, candidates = columns >= len(other_hashes), columns % len(other_hashes)
    unique, place = np.unique(candidates, return_inverse=True)
    theirs = shrunk(_gather(others, first, unique))
    scores = np.full(len(rows), -1.0)
    usable = np.flatnonzero(_detail(theirs)[place] >= PLAIN)
    for part in _chunks(len(usable)):
        pairs = usable[part]
        ours = np.where(flipped[pairs, None, None, None], small[rows[pairs], :, :, ::-1], small[rows[pairs]])
        scores[pairs] = similarity(ours, theirs[place[pairs]])
    twins = {}
    for pair in np.argsort(scores, kind="stable"):  # the best of each row comes last, and stays
        if scores[pair] >= SIMILAR:
            row = int(rows[pair])
            twins[row] = NearDuplicate(int(indices[row]), int(candidates[pair]), float(scores[pair]), bool(flipped[pair]))
    return list(twins.values())


def _nearest(hashes: torch.Tensor, others: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The CANDIDATES most similar other images of each test image, by an exact search.

    Args:
        hashes: (n, 2, 63), of the images as they are, and mirrored.
        others: (m, 63).
    Returns: (n, CANDIDATES) cosines, and their columns: 0 to m - 1, or m to 2 m - 1 for the mirrored image.
    """
    at_once = max(1, NUMBERS_AT_ONCE // (2 * len(others)))
    parts = [torch.topk((part @ others.T).flatten(1), min(CANDIDATES, 2 * len(others)), dim=1) for part in hashes.split(at_once)]
    return torch.cat([part.values for part in parts]).numpy(), torch.cat([part.indices for part in parts]).numpy()


def _gather(parts: Sequence[np.ndarray], first: np.ndarray, indices: np.ndarray) -> np.ndarray:
    split = np.searchsorted(first, indices, side="right") - 1
    return np.concatenate([part[indices[split == i] - first[i]] for i, part in enumerate(parts)])


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


# --- the hash ------------------------------------------------------------------------------------------------------------------


def _cosines(size: int) -> np.ndarray:
    """(FREQUENCIES, size): the first rows of the discrete cosine transform, each divided by the size."""
    angle = np.pi * (2 * np.arange(size) + 1) * np.arange(FREQUENCIES)[:, None] / (2 * size)
    cosines: np.ndarray = (np.cos(angle) / size).astype(np.float32)
    return cosines


_MIRROR = np.tile(np.where(np.arange(FREQUENCIES) % 2, -1, 1), FREQUENCIES)[1:].astype(np.float32)
"""How mirroring left to right changes a hash: odd horizontal frequencies change their sign."""


def _hashes(images: np.ndarray) -> np.ndarray:
    """(n, 63) float32: the low frequencies of the grey images, without the mean."""
    rows, columns = _cosines(images.shape[2]), _cosines(images.shape[3])
    parts = [
        _on_both_sides(rows, _levels(images[part]).mean(1), columns).reshape(-1, FREQUENCIES**2)[:, 1:] for part in _chunks(len(images))
    ]
    return np.concatenate(parts) if parts else np.empty((0, FREQUENCIES**2 - 1), np.float32)


def _unit(hashes: np.ndarray) -> np.ndarray:
    unit: np.ndarray = hashes / np.maximum(np.linalg.norm(hashes, axis=1, keepdims=True), 1e-9)
    return unit.astype(np.float32)


# --- the comparison ------------------------------------------------------------------------------------------------------------


def similarity(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How well each of `theirs` explains the one of `ours`, after the shift and scale that fit best.

    Gauss-Newton steps on the grey images find the shift and the scale in each direction. Brightness and colour are not fitted: a copy keeps
    them, and two different things of the same shape often differ in them.

    Args:
        ours, theirs: (pairs, channels, SMALL, SMALL), levels from 0 to 255.
    Returns: (pairs,), 1 - (mean squared difference) / (variance of the detail of `ours`): 1 for equal images, 0 or less for unrelated ones.
    """
    best = np.full(len(ours), -np.inf, np.float32)
    variance = _detail(ours, grey=False) ** 2 + 1e-6
    moves = np.zeros((len(ours), 4), np.float32)
    active = np.arange(len(ours))
    for step in range(4):
        mine = ours[active]
        moved, inside = _moved(theirs[active], moves[active])
        squares = ((mine - moved) ** 2 * inside[:, None]).mean(1).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
        best[active] = np.maximum(best[active], 1 - squares / variance[active])
        moves[active] = _better_moves(moves[active], mine.mean(1), moved.mean(1), inside)
        if step == 1:  # a copy fits by now, or nearly; the other pairs are dropped
            active = active[best[active] > 0]
            if not len(active):
                break
    return best


_SIDE = np.linspace(-1, 1, SMALL, dtype=np.float32)
_MOST = 0.06 * SMALL
"""Largest shift, and largest move of a border by scaling, in pixels: a little more than 5 % of the side."""


def _moved(images: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale images.

    Args:
        moves: (n, 4), in pixels: down, right, and how far the borders move out vertically and horizontally.
    Returns: the images; and (n, SMALL, SMALL), 1 where a pixel comes from inside the old image, else 0.
    """
    down = np.arange(SMALL, dtype=np.float32) + moves[:, :1] + moves[:, 2:3] * _SIDE
    right = np.arange(SMALL, dtype=np.float32) + moves[:, 1:2] + moves[:, 3:4] * _SIDE
    inside = [((at >= -0.01) & (at <= SMALL - 0.99)).astype(np.float32) for at in (down, right)]
    moved = _interpolation(down)[:, None] @ images @ _interpolation(right).transpose(0, 2, 1)[:, None]
    return moved, inside[0][:, :, None] * inside[1][:, None, :]


def _interpolation(positions: np.ndarray) -> np.ndarray:
    """(n, SMALL, SMALL): a matrix for each image that interpolates linearly between pixels."""
    positions = np.clip(positions, 0, SMALL - 1)
    low = np.minimum(np.floor(positions).astype(int), SMALL - 2)
    share = positions - low
    matrices = np.zeros((*positions.shape, SMALL), np.float32)
    image, pixel = np.indices(positions.shape)
    matrices[image, pixel, low], matrices[image, pixel, low + 1] = 1 - share, share
    return matrices


def _better_moves(moves: np.ndarray, mine: np.ndarray, moved: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """One Gauss-Newton step for all pairs, on grey images."""
    down, right = np.gradient(moved, axis=1) * inside, np.gradient(moved, axis=2) * inside
    slopes = np.stack([down, right, down * _SIDE[:, None], right * _SIDE], -1).reshape(len(mine), -1, 4)
    normal = slopes.transpose(0, 2, 1) @ slopes
    normal += np.eye(4, dtype=np.float32) * (1e-3 + 2.5e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None])
    wanted = slopes.transpose(0, 2, 1) @ ((mine - moved) * inside).reshape(len(mine), -1, 1)
    step = np.linalg.solve(normal, wanted)[..., 0]
    better: np.ndarray = np.clip(moves + np.clip(step, -_MOST / 2, _MOST / 2), -_MOST, _MOST)
    return better


def _levels(images: np.ndarray) -> np.ndarray:
    """Values as float32, from 0 to 255 for any depth."""
    levels = images.astype(np.float32)
    return levels if images.dtype == np.uint8 else levels * np.float32(255 / np.iinfo(images.dtype).max)


def shrunk(images: np.ndarray) -> np.ndarray:
    """(n, channels, SMALL, SMALL) float32: averaged over areas, then smoothed once, so that the noise of an encoder does not count."""
    rows, columns = _shrinking(images.shape[2]), _shrinking(images.shape[3])
    return np.concatenate([_on_both_sides(rows, _levels(images[part]), columns) for part in _chunks(len(images))])


def _on_both_sides(rows: np.ndarray, images: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """rows @ image @ columns.T for each image, by two large products: much faster than many small ones."""
    narrow = np.tensordot(images, columns, (-1, 1))
    return np.ascontiguousarray(np.tensordot(narrow, rows, (-2, 1)).swapaxes(-1, -2))


def _shrinking(size: int) -> np.ndarray:
    """(SMALL, size): area averages, then weights 1 2 1."""
    edges, pixels = np.linspace(0, size, SMALL + 1), np.arange(size)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    areas = np.clip(shared, 0, None) * SMALL / size
    smooth = 2 * np.eye(SMALL) + np.eye(SMALL, k=1) + np.eye(SMALL, k=-1)
    smooth[0, 0] = smooth[-1, -1] = 3
    shrinking: np.ndarray = (smooth / 4 @ areas).astype(np.float32)
    return shrinking


def _smooth_surfaces() -> np.ndarray:
    """(SMALL ** 2, 6): an orthonormal basis of the polynomials of second degree in both directions."""
    down, right = np.meshgrid(_SIDE, _SIDE, indexing="ij")
    surfaces = np.stack([np.ones_like(down), down, right, down**2, down * right, right**2], -1).reshape(-1, 6)
    return np.linalg.qr(surfaces)[0].astype(np.float32)


_SURFACES = _smooth_surfaces()


def _detail(small: np.ndarray, *, grey: bool = True) -> np.ndarray:
    """(n,): the standard deviation of each image after its best smooth surface is subtracted; of the grey image, or over all channels."""
    images = small.mean(1, keepdims=True) if grey else small
    flat = images.reshape(len(images), images.shape[1], -1)
    left = flat - (flat @ _SURFACES) @ _SURFACES.T
    deviation: np.ndarray = np.sqrt((left**2).mean((1, 2)))
    return deviation
