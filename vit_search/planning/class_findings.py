"""Lint findings about classes of very different size: help that is missing, or that is used twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_search.config.data_sets import DATA_SETS
from vit_search.config.search_file import SearchSpec
from vit_search.data.sources import open_source
from vit_search.data.split import TRAINED_AND_VALIDATED_ON, split_indices
from vit_search.errors import DataError
from vit_search.planning.lint_draws import LintDraw, LintFinding
from vit_search.text import counted, listed

LARGEST_RATIO = 10
"""Limit for the ratio of the largest class to the smallest. Above it, classes count as very different in size."""

OF_IMAGES = ("val_accuracy", "val_top5_accuracy", "val_loss", "train_accuracy", "train_loss")
"""Metrics in which each image counts the same, so a class counts by its size."""

OF_CLASSES = ("val_macro_f1", "val_balanced_accuracy", "val_worst_class_recall")
"""Metrics in which each class counts the same, however small it is."""

LEAST_OF_A_CLASS = 10
"""Minimum number of images of a class. With this many, one answer changes its recall by at most 0.1."""

_ADJUSTMENTS = {"class_weights": "none", "sampling": "uniform", "loss": "cross_entropy"}
"""Settings that favour rare classes, with the value that does not."""


def _adjustments(values: Mapping[str, Any]) -> list[str]:
    """The settings of a proposal that favour rare classes, as `key: value`. The focal loss weights images, not classes."""
    return [f"{name}: {values[name]}" for name, usual in _ADJUSTMENTS.items() if values[name] not in (usual, "focal")]


def imbalance(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Classes of very different size in a search that does nothing about it; also weights of very different size."""
    if DATA_SETS[spec.data.name].labelled is not None:
        return  # data sets of fixed size, whose classes have similar sizes
    try:
        source = open_source(spec.data_config)
        splits = split_indices(spec.data_config, source)
    except DataError:
        return  # the folder is elsewhere, e.g. on the cluster that will run the search
    trained_on = np.concatenate([splits[name] for name in TRAINED_AND_VALIDATED_ON[spec.train_on][0]])
    if source.weights is not None:
        trained_on = trained_on[source.weights[trained_on] > 0]
        yield from _uneven_weights(source.weights[trained_on])
    counts = np.bincount(source.labels[trained_on], minlength=len(source.classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] <= LARGEST_RATIO * counts[least]:
        return
    helps = []
    if spec.metric in OF_IMAGES:
        helps.append("metric: val_macro_f1 or val_balanced_accuracy, in which each class counts the same")
    if not any(_adjustments(draw.values) for draw in valid):
        helps.append("training.loss: logit_adjusted, or training.class_weights: balanced, which train for it")
    if helps:
        sizes = f"{counts[most]:,} training images of {source.classes[most]} and {counts[least]:,} of {source.classes[least]}"
        yield LintFinding("hint", "data.path", f"{sizes}: classes of very different size; try {'; and '.join(helps)}.")


def few_of_a_class(spec: SearchSpec) -> Iterator[LintFinding]:
    """Classes with few validation images, if the metric counts each class the same."""
    if spec.metric not in OF_CLASSES or DATA_SETS[spec.data.name].labelled is not None:
        return
    try:
        source = open_source(spec.data_config)
        splits = split_indices(spec.data_config, source)
    except DataError:
        return  # as in `imbalance`
    judged_on = np.concatenate([splits[name] for name in TRAINED_AND_VALIDATED_ON[spec.train_on][1]])
    counts = np.bincount(source.labels[judged_on], minlength=len(source.classes))
    few = [label for label in np.argsort(counts, kind="stable").tolist() if 0 < counts[label] < LEAST_OF_A_CLASS]
    if not few:
        return
    key, split = ("data.holdout_fraction", "holdout") if spec.train_on == "train+val" else ("data.val_fraction", "validation")
    own = split == "validation" and source.counts["val"]
    names = listed([f"{source.classes[label]} {counts[label]}" for label in few])
    fact = f"fewer than {LEAST_OF_A_CLASS} {split} images of {counted(len(few), 'class')} ({names})"
    moves = (
        f"one answer moves the recall of {source.classes[few[0]]} by {1 / counts[few[0]]:.2f}, and {spec.metric} counts each class the same"
    )
    yield LintFinding("warning", "data.path" if own else key, f"{fact}: {moves}; {'' if own else 'raise it, or '}add images of them.")


def _uneven_weights(weights: np.ndarray) -> Iterator[LintFinding]:
    """Weights of which a few are so large that the other images hardly count.

    Source: Kish 1965, Survey Sampling. (sum of the weights)^2 / (sum of their squares) is the number of equally weighted images that give
    a mean with the same error.
    """
    shares = weights / weights.max()
    effective = shares.sum() ** 2 / (shares**2).sum()
    if effective * LARGEST_RATIO < len(weights):
        fact = f"the weights are so uneven that {len(weights):,} training images count as {effective:,.0f}"
        yield LintFinding("hint", "data.weight", f"{fact}; look at the largest ones.")


def adjusted_twice(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Proposals that favour rare classes in several ways at once."""
    each = [[one for one in _adjustments(draw.values) if "{" not in one] for draw in valid]  # numbers for each class may have any purpose
    several = [found for found in each if len(found) > 1]
    if not several:
        return
    share = len(several) / len(valid)
    where = "all proposals" if share == 1 else f"{share:.0%} of the proposals"
    fact = f"in {where} rare classes are favoured more than once, as by {' and '.join(several[0])}"
    mend = "choose one" if share == 1 else "choose one, or add a when"
    yield LintFinding("hint", f"training.{several[0][-1].partition(':')[0]}", f"{fact}; {mend}.")


def different_losses(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """A search that ranks trials by a training loss which means something else in each trial."""
    if spec.metric != "train_loss":
        return
    for name in ("loss", "class_weights", "sampling", "focal_gamma", "logit_tau"):
        if name in spec.space.searched:
            fact = "metric: train_loss is another number with each value of it, so trials cannot be compared"
            yield LintFinding("warning", f"training.{name}", f"{fact}; write metric: val_loss.")
