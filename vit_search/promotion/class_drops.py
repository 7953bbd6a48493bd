"""How much each class lost to the champion, and which losses chance does not explain (gate G6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.evidence.weighted_metrics import PER_CLASS
from vit_search.promotion.mcnemar import AccuracyComparison, chance
from vit_search.promotion.score_comparison import DRAWS, class_gains, draws_of, share_of

RECALL = ("val_balanced_accuracy", "val_worst_class_recall")
"""Metrics that compare classes by their recall."""


@dataclass(frozen=True)
class ClassDrop:
    """The result of both models on one class."""

    name: str
    images: int
    drop: float
    """The champion's value for this class minus the candidate's."""
    p: float
    """The largest probability of such a drop if the true drop is an allowed one."""


def class_drops(candidate: SplitAnswers, champion: SplitAnswers, allowed: float) -> list[ClassDrop]:
    """The recall that the candidate lost in each class that has images.

    `p` is the larger of two probabilities. With McNemar's exact test of no drop, noise does not make small classes fail. With `chance` of a
    true drop of `allowed`, an allowed drop does not make large classes fail.
    """
    drops = []
    ours, theirs = candidate.correct, champion.correct
    for number, name in enumerate(candidate.classes):
        of_class = candidate.labels == number
        images = int(of_class.sum())
        if not images:
            continue
        losses, wins = int((of_class & ~ours & theirs).sum()), int((of_class & ours & ~theirs).sum())
        p = max(AccuracyComparison(images, losses, wins, 1).p, chance(losses, wins, images, allowed))
        drops.append(ClassDrop(name, images, (losses - wins) / images, p))
    return drops


def metric_of_classes(metric: str) -> str:
    """The metric that is compared in each class: F1, AUROC or average precision if trials were ranked by it; empty for recall."""
    return metric if metric in PER_CLASS and metric not in RECALL else ""


def metric_drops(candidate: SplitAnswers, champion: SplitAnswers, metric: str, allowed: float) -> list[ClassDrop]:
    """The same for a metric that each class has, with the tests of `score_comparison` and for the same two reasons."""
    drops, few = [], draws_of(candidate, metric) < DRAWS
    for number, (gain, drawn, swapped) in enumerate(class_gains(candidate, champion, metric)):
        images = int((candidate.labels == number).sum())
        if images and len(drawn):
            p = max(
                share_of(-swapped, -gain, few=few),
                share_of(drawn, -allowed, few=few),
                share_of(-drawn, -2 * gain - allowed, few=few),
            )
            drops.append(ClassDrop(candidate.classes[number], images, -gain, p))
    return drops


def holm(ps: Sequence[float], alpha: float) -> list[bool]:
    """Which of several hypotheses are rejected, with a probability of at most alpha that a true one is among them (Holm 1979).

    The k-th smallest p, counted from 0, must be at most alpha / (n - k), and all smaller ones must pass, too.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    refuted = [False] * len(ps)
    for rank, i in enumerate(order):
        if ps[i] > alpha / (len(ps) - rank):
            break
        refuted[i] = True
    return refuted
