"""Choose whole groups of images for a split, for example all images of one patient, so that each class has about its share there.

This module knows only labels, groups and a random generator. split.py knows the splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ABSENT = 10.0
"""Penalty for each group that a class lacks on one of the two sides. It outweighs all deviations of the shares together."""

ORDERS = 5_000
"""Groups that are tried in all, over 1 to MOST_ORDERS random orders.

Several orders help if there are few groups: see tests/data/test_group_split.py.
"""
MOST_ORDERS = 30

MOST_PASSES = 10
"""Passes over all groups after the first. Two or three are usually enough: each pass must bring the shares closer."""


@dataclass(frozen=True)
class Division:
    """Which groups are taken."""

    taken: np.ndarray
    """(n,) bool: whether the group of each image is taken."""
    lacking: tuple[int, ...]
    """Labels with too few groups on one of the two sides in the best choice."""


def divide(labels: np.ndarray, groups: np.ndarray, share: float, rng: np.random.Generator, *, least: int = 1, leave: int = 1) -> Division:
    """Take whole groups that have about a share of the images of every class.

    In a random order, it takes each group that brings the shares of the classes closer to `share` (sum of squares). In further passes, it
    moves groups where that helps. It returns the best of several orders.

    Args:
        labels, groups: (n,) int64, of the images.
        share: of each class's images, between 0 and 1.
        least: groups of each class that must be taken.
        leave: groups of each class that must be left.
    Returns: a result that depends only on the arguments and the state of `rng`.
    """
    problem = _Problem(labels, groups, share, least, leave)
    orders = min(MOST_ORDERS, max(1, ORDERS // problem.count))
    best_cost, best = min((problem.attempt(rng.permutation(problem.count)) for _ in range(orders)), key=lambda result: result[0])
    lacking = problem.lacking(best) if best_cost >= ABSENT else ()
    return Division(np.array(best, bool)[problem.group_of_image], lacking)


class _Problem:
    """The images of each group by class, and the cost of a choice of groups: how far the shares are off."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray, share: float, least: int, leave: int) -> None:
        _, label_of_image = np.unique(labels, return_inverse=True)
        names, self.group_of_image = np.unique(groups, return_inverse=True)
        self.count = len(names)
        self._labels = np.unique(labels)
        pairs, images = np.unique(np.stack([self.group_of_image, label_of_image]), axis=1, return_counts=True)
        self._content: list[list[tuple[int, int]]] = [[] for _ in names]
        for group, label, number in zip(*pairs.tolist(), images.tolist(), strict=True):
            self._content[group].append((label, number))
        self._images: list[int] = np.bincount(label_of_image).tolist()
        self._groups: list[int] = np.bincount(pairs[1]).tolist()
        self._share, self._least, self._leave = share, least, leave

    def attempt(self, order: np.ndarray) -> tuple[float, list[bool]]:
        """The cost of the choice of groups that one order leads to, and the choice."""
        taken = [False] * self.count
        images, groups = [0] * len(self._images), [0] * len(self._images)
        cost = sum(self._cost(label, 0, 0) for label in range(len(images))) + self._cost_of_whole(0)
        whole = 0
        for _ in range(1 + MOST_PASSES):
            moved = False
            for group in order.tolist():
                sign = -1 if taken[group] else 1
                change = 0.0
                content = self._content[group]
                for label, number in content:
                    before = self._cost(label, images[label], groups[label])
                    change += self._cost(label, images[label] + sign * number, groups[label] + sign) - before
                size = sign * sum(number for _, number in content)
                change += self._cost_of_whole(whole + size) - self._cost_of_whole(whole)
                if change < -1e-12:
                    taken[group], moved = not taken[group], True
                    cost, whole = cost + change, whole + size
                    for label, number in content:
                        images[label] += sign * number
                        groups[label] += sign
            if not moved:
                break
        return cost, taken

    def lacking(self, taken: Sequence[bool]) -> tuple[int, ...]:
        """Labels that have too few groups among those taken, or among the others."""
        groups = [0] * len(self._images)
        for group, content in enumerate(self._content):
            for label, _ in content:
                groups[label] += taken[group]
        short = [label for label, count in enumerate(groups) if count < self._least or self._groups[label] - count < self._leave]
        return tuple(self._labels[short].tolist())

    def _cost(self, label: int, images: int, groups: int) -> float:
        """Cost of one class, if this many of its images, in this many of its groups, are taken."""
        off = images / self._images[label] - self._share
        absent = max(0, self._least - groups) + max(0, self._leave - self._groups[label] + groups)
        return off * off + ABSENT * absent

    def _cost_of_whole(self, images: int) -> float:
        """Decides between choices that are equally good for each class: the share of all images should fit, too."""
        off = images / len(self.group_of_image) - self._share
        return off * off
