"""Computes a metric for many weightings of the same answers at once. The tests of a promotion need this (score_comparison.py).

A weighting gives each answer a number. Drawing images with replacement means whole numbers as weights. Swapping the answers of two models
means weights of 0 or 1. Hundreds of weightings are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vit_search.config.metrics import METRICS
from vit_search.promotion.evidence.answers import SplitAnswers, ece_bins
from vit_search.vit.evaluation import SCORES
from vit_search.vit.probability_scores import BINS, PROBABILITY_SCORES

Values = npt.NDArray[np.float64]
Weighted = Callable[[Values], Values]
"""From weights (weightings, answers) to values (weightings, classes), or (weightings, 1) for a metric without values of classes.

A class without weight has the value NaN.
"""


class _Sums:
    """Adds up weights by a key of each answer."""

    def __init__(self, keys: npt.NDArray[np.int64], count: int) -> None:
        from scipy.sparse import csr_array  # type: ignore[import-untyped]  # slow to import

        self._by_key = csr_array((np.ones(len(keys)), (keys, np.arange(len(keys)))), shape=(count, len(keys)))

    def __call__(self, weights: Values) -> Values:
        """Sums (weightings, count) of weights (weightings, answers)."""
        return np.asarray((self._by_key @ np.ascontiguousarray(weights.T)).T)


def _recall(answers: SplitAnswers) -> Weighted:
    by_label = _Sums(answers.labels, len(answers.classes))
    return lambda weights: by_label(weights * answers.correct) / by_label(weights)


def _f1(answers: SplitAnswers) -> Weighted:
    by_label, by_prediction = (_Sums(keys, len(answers.classes)) for keys in (answers.labels, answers.predictions))
    return lambda weights: 2 * by_label(weights * answers.correct) / (by_label(weights) + by_prediction(weights))


def _mean_of(values: npt.NDArray[np.generic]) -> Weighted:
    column = values.astype(np.float64)[:, None]
    return lambda weights: weights @ column / weights.sum(1, keepdims=True)


def _ece(answers: SplitAnswers) -> Weighted:
    by_bin = _Sums(ece_bins(answers.confidence), BINS + 1)
    gaps = answers.correct - answers.confidence
    return lambda weights: np.abs(by_bin(weights * gaps)).sum(1, keepdims=True) / weights.sum(1, keepdims=True)


MANY = 16
"""With more rows than this, it is faster to copy them and add them up in one call."""


@dataclass(frozen=True)
class _Level:
    """One score that answers of a class have: the indices of the answers with this score, and of those before it."""

    before: list[int] | npt.NDArray[np.int64]
    """Since the previous level; an array if they are many."""
    own: list[int]
    tied: list[int]
    """Answers of other classes with exactly this score."""


def _levels(scores: npt.NDArray[np.float64], own: npt.NDArray[np.bool_]) -> list[_Level]:
    """The levels of a class, by ascending score."""
    order = np.argsort(scores, kind="stable")
    levels, own_levels = [], np.unique(scores[own])
    ends = [0, *np.searchsorted(scores[order], own_levels, "right")]
    for last, first, end in zip(ends, np.searchsorted(scores[order], own_levels), ends[1:], strict=False):
        here = order[first:end]
        before = order[last:first]
        levels.append(_Level(before if len(before) > MANY else before.tolist(), here[own[here]].tolist(), here[~own[here]].tolist()))
    return levels


def _by_class(answers: SplitAnswers, direction: int, value: Callable[[list[_Level], Values], Values]) -> Weighted:
    """A value of each class against the rest.

    One row has all weightings of an answer. So the answers are added up in order in one pass, in pieces that fit into the processor's
    cache.

    Args:
        direction: 1 to go up the probabilities of a class, -1 to go down.
        value: a function of the levels of a class and of weights (answers, weightings).
    """
    assert answers.probabilities is not None
    of_class = [_levels(direction * scores, answers.labels == number) for number, scores in enumerate(answers.probabilities.T)]

    def values(weights: Values) -> Values:
        rows = np.ascontiguousarray(weights.T)
        return np.stack([value(levels, rows) for levels in of_class], axis=1)

    return values


def _area(levels: list[_Level], rows: Values) -> Values:
    """The same as auroc in vit/probability_scores.py."""
    below, pairs, own = np.zeros((3, rows.shape[1]))
    for level in levels:
        _add(below, rows, level.before)
        here, tied = _sum_of(rows, level.own), _sum_of(rows, level.tied)
        pairs += here * (below + tied / 2)
        below += tied
        own += here
    return np.asarray(pairs / (own * (rows.sum(0) - own)))


def _precision(levels: list[_Level], rows: Values) -> Values:
    """The same as average_precision in vit/probability_scores.py. `levels` is in descending order."""
    reached, right, total = np.zeros((3, rows.shape[1]))
    for level in levels:
        _add(reached, rows, level.before)
        here = _sum_of(rows, level.own)
        right += here
        reached += here + _sum_of(rows, level.tied)
        total += here * right / np.maximum(reached, np.finfo(np.float64).tiny)
    return np.asarray(total / right)


def _add(sums: Values, rows: Values, places: list[int] | npt.NDArray[np.int64]) -> None:
    if isinstance(places, np.ndarray):
        sums += rows[places].sum(0)
    else:
        for place in places:
            sums += rows[place]


def _sum_of(rows: Values, places: list[int]) -> Any:
    return sum(rows[place] for place in places)


def _from_confusion(answers: SplitAnswers, metric: str) -> Weighted:
    """A score of the confusion matrix, computed for one weighting after the other."""
    classes = len(answers.classes)
    by_cell = _Sums(answers.labels * classes + answers.predictions, classes**2)
    return lambda weights: np.array([[SCORES[metric](torch.from_numpy(row.reshape(classes, classes)))] for row in by_cell(weights)])


def _from_probabilities(answers: SplitAnswers, metric: str) -> Weighted:
    """A score of the probabilities, computed for one weighting after the other. The weights are whole numbers."""
    assert answers.probabilities is not None
    probabilities, labels = torch.from_numpy(answers.probabilities), torch.from_numpy(answers.labels)

    def value(row: Values) -> float:
        counts = torch.from_numpy(row).long()
        score = PROBABILITY_SCORES[metric](probabilities.repeat_interleave(counts, 0), labels.repeat_interleave(counts))
        return float("nan") if score is None else score

    return lambda weights: np.array([[value(row)] for row in weights])


PER_CLASS: dict[str, Callable[[SplitAnswers], Weighted]] = {
    "val_macro_f1": _f1,
    "val_balanced_accuracy": _recall,
    "val_worst_class_recall": _recall,
    "val_auroc": lambda answers: _by_class(answers, 1, _area),
    "val_average_precision": lambda answers: _by_class(answers, -1, _precision),
}
"""Metrics that are the mean, or the smallest, of values of the classes."""

OVERALL: dict[str, Callable[[SplitAnswers], Weighted]] = {
    "val_accuracy": lambda answers: _mean_of(answers.correct),
    "val_loss": lambda answers: _mean_of(answers.label_nll),
    "val_ece": _ece,
}
"""Metrics that are computed from all images together."""


ORDINAL = ("val_auroc", "val_average_precision")
"""Metrics that use only the order of the probabilities of a class, so ranks give the same value."""


def answers_give(metric: str) -> bool:
    """Whether a model's answers on a split give this metric. The others belong to the training, such as `train_loss` and `seconds`."""
    return metric in OVERALL or metric in SCORES or metric in PROBABILITY_SCORES or metric == "val_top5_accuracy"


def needs_probabilities(metric: str) -> bool:
    """Whether the metric needs the probabilities of all classes."""
    return metric in PROBABILITY_SCORES and metric not in OVERALL


def of_classes(answers: SplitAnswers, metric: str) -> Weighted:
    """The value of each class, (weightings, classes). The metric is a key of PER_CLASS."""
    return PER_CLASS[metric](answers)


def of_all(answers: SplitAnswers, metric: str) -> Weighted:
    """The metric itself, (weightings, 1)."""
    if metric in PER_CLASS:
        of_class = PER_CLASS[metric](answers)
        join = np.nanmin if metric == "val_worst_class_recall" else np.nanmean
        return lambda weights: np.asarray(join(of_class(weights), axis=1, keepdims=True))
    if metric == "val_top5_accuracy":
        assert answers.top5 is not None
        return _mean_of(answers.top5)
    if metric in OVERALL:
        return OVERALL[metric](answers)
    return _from_confusion(answers, metric) if metric in SCORES else _from_probabilities(answers, metric)


def value_of(answers: SplitAnswers, metric: str) -> float | None:
    """The metric of the answers, without weights; None if they do not give it."""
    if not answers_give(metric) or (needs_probabilities(metric) and answers.probabilities is None):
        return None
    if metric == "val_top5_accuracy" and answers.top5 is None:
        return None
    if METRICS[metric].every_class and len(np.unique(answers.labels)) < max(2, len(answers.classes)):
        return None
    with np.errstate(invalid="ignore"):
        return float(of_all(answers, metric)(np.ones((1, answers.images)))[0, 0])


AT_ONCE = 1_000_000
"""The most weights in memory at the same time. More would not fit into the processor's cache."""


def sizes(images: int, draws: int) -> Iterator[int]:
    """How many draws to compute at the same time, until `draws` are done: at least 256 with up to 60,000 images, which is faster."""
    at_once = max(1, AT_ONCE // images, min(256, 16 * AT_ONCE // images))
    return (min(at_once, draws - begin) for begin in range(0, draws, at_once))


def drawn_weights(counts: npt.NDArray[np.int64], draws: int) -> Iterator[Values]:
    """How often each image is drawn with replacement, for some draws at a time. The seed is fixed.

    Args:
        counts: number of images that each weight stands for.
    """
    rng, images, alike = np.random.default_rng(0), int(counts.sum()), bool((counts == 1).all())
    for size in sizes(len(counts), draws):
        if alike:  # the same distribution as below, but faster
            chosen = rng.integers(0, images, (size, images)) + np.arange(size)[:, None] * images
            yield np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)
        else:
            yield rng.multinomial(images, counts / images, size).astype(np.float64)


def drawn_values(answers: SplitAnswers, metric: str) -> Values:
    """The metric of each of 1,000 draws of the images, ascending: how much chance moves it. With many probabilities, 200 draws."""
    draws = 200 if needs_probabilities(metric) and answers.images * len(answers.classes) > 2_000_000 else 1000
    value = of_all(answers, metric)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sort(np.concatenate([value(weights)[:, 0] for weights in drawn_weights(np.ones(answers.images, np.int64), draws)]))
