"""Is a candidate better than the champion by another metric than accuracy, such as macro F1 or the loss?

McNemar's test compares how many images the models recognise, which does not answer this question. Instead there are two tests, and the
candidate must pass both:

- A permutation test swaps the two models' answers on a random half of the images. If both models are alike, swaps change nothing. So the
  real gain must be rare among the swapped ones.
- A paired bootstrap draws images with replacement (Efron and Tibshirani 1993, chapter 15). It is also valid for models that differ in kind.
  It is read in both usual ways: by the drawn gains, and by their mirror image about the real gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vit_search.config.metrics import METRICS
from vit_search.promotion.evidence import weighted_metrics
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.evidence.weighted_metrics import Values, Weighted, drawn_weights, sizes
from vit_search.promotion.mcnemar import ALPHA, LEAST_GAIN, MOST_READINGS, PairedComparison
from vit_search.vit.evaluation import SCORES

DRAWS = 10_000
"""The twentieth reading of a test split allows a probability of 1 in 8,400. 10,000 draws can just show one that small."""

MOST_PRODUCTS = 2_000_000_000
"""The most images times classes times draws, for a metric of each class's probabilities. Larger splits get fewer draws.

20,000 images of 10 classes would take five minutes of one core, 400 images of 6 classes take half a second.
"""

FEWEST_DRAWS = 400


@dataclass(frozen=True)
class ScoreComparison(PairedComparison):
    """Compares a candidate with the champion on the same images, by a metric."""

    metric: str
    """A key of METRICS that `weighted_metrics.answers_give` knows."""
    images: int
    values: tuple[float, float]
    """The metric's values: the candidate's and the champion's."""
    gains: npt.NDArray[np.float64]
    """How much better the candidate is in each draw of the images, ascending."""
    swapped: npt.NDArray[np.float64]
    """The same if the answers on random images are swapped."""
    reading: int
    """Number of the reading, from 1."""
    budget: float = ALPHA
    least_gain: float = LEAST_GAIN
    most_readings: int = MOST_READINGS

    @property
    def gain(self) -> float:
        """How much better the candidate is, in the metric's unit."""
        return _sign(self.metric) * (self.values[0] - self.values[1])

    @property
    def p(self) -> float:
        """The probability that a candidate which is no better would gain at least as much: the largest one that the tests give."""
        few = len(self.gains) < DRAWS
        return max(
            share_of(self.swapped, self.gain, few=few),
            share_of(-self.gains, 0.0, few=few),
            share_of(self.gains, 2 * self.gain, few=few),
        )

    def no_worse_than(self, margin: float) -> bool:
        """Whether the lower bound of the gain, at this reading's alpha, is above -margin."""
        return self.reading <= self.most_readings and self.least > -margin

    @property
    def least(self) -> float:
        """Lower bound of the gain at this reading's alpha."""
        return min(_quantile(self.gains, self.alpha), 2 * self.gain - _quantile(self.gains, 1 - self.alpha))

    def in_words(self) -> str:
        """The figures in one line."""
        high = max(_quantile(self.gains, 1 - self.alpha), 2 * self.gain - _quantile(self.gains, self.alpha))
        less = " (less is better)" if _sign(self.metric) < 0 else ""
        ours, theirs = self.values
        return (
            f"{self.gain:+.4f} of {self.metric.removeprefix('val_')} on {self.images:,} test images ({ours:.4f}, the champion {theirs:.4f}"
            f"{less}; {1 - 2 * self.alpha:.1%} interval {self.least:+.4f} to {high:+.4f}; p = {self.p:.2g}, {self.alpha:.2g} is allowed "
            f"at reading {self.reading})"
        )


def compare_scores(
    candidate: SplitAnswers,
    champion: SplitAnswers,
    metric: str,
    *,
    reading: int,
    budget: float = ALPHA,
    least_gain: float = LEAST_GAIN,
    most_readings: int = MOST_READINGS,
    draws: int | None = None,
) -> ScoreComparison:
    """Compare two models' answers on the same images. The draws have a fixed seed.

    Args:
        metric: one that the answers of both models give.
        reading: its number, from 1.
        budget, least_gain, most_readings: as in a policy.
        draws: of each test; by default `draws_of`.
    """
    draws, sign = draws or draws_of(candidate, metric), _sign(metric)
    values = weighted_metrics.value_of(candidate, metric), weighted_metrics.value_of(champion, metric)
    assert values[0] is not None and values[1] is not None
    gains, swapped = _gains(candidate, champion, metric, weighted_metrics.of_all, draws)
    by_class = metric in weighted_metrics.PER_CLASS
    widened = _widened(gains, values[0] - values[1], np.bincount(candidate.labels) if by_class else np.array([candidate.images]))
    return ScoreComparison(
        metric,
        candidate.images,
        (values[0], values[1]),
        np.sort(sign * widened[:, 0]),
        np.sort(sign * swapped[:, 0]),
        reading,
        budget,
        least_gain,
        most_readings,
    )


def _gains(
    candidate: SplitAnswers, champion: SplitAnswers, metric: str, weighted: Callable[[SplitAnswers, str], Weighted], draws: int
) -> tuple[Values, Values]:
    """The candidate's value minus the champion's, (draws, 1) or (draws, classes): for drawn images, and for swapped answers."""
    candidate, champion, counts = _distinct(candidate, champion, metric)
    ours, theirs, both = (weighted(answers, metric) for answers in (candidate, champion, _stacked(candidate, champion, metric)))
    with np.errstate(invalid="ignore", divide="ignore"):  # a class that is not drawn has no value
        drawn = [ours(weights) - theirs(weights) for weights in drawn_weights(counts, draws)]
        swapped = []
        for kept in _halves(counts, draws):
            others = counts - kept
            swapped.append(both(np.concatenate([kept, others], axis=1)) - both(np.concatenate([others, kept], axis=1)))
    return np.concatenate(drawn), np.concatenate(swapped)


def _distinct(candidate: SplitAnswers, champion: SplitAnswers, metric: str) -> tuple[SplitAnswers, SplitAnswers, npt.NDArray[np.int64]]:
    """Merge images with the same label and predictions, if the metric uses nothing else. Returns: also how many images each stands for."""
    if metric not in SCORES:
        return candidate, champion, np.ones(candidate.images, np.int64)
    rows = np.stack([candidate.labels, candidate.predictions, champion.predictions])
    first, counts = np.unique(rows, axis=1, return_index=True, return_counts=True)[1:]

    def subset(answers: SplitAnswers) -> SplitAnswers:
        kept = {name: getattr(answers, name)[first] for name in ("labels", "predictions", "label_nll", "confidence")}
        return replace(answers, **kept, top5=None, probabilities=None)

    return subset(candidate), subset(champion), counts


def class_gains(candidate: SplitAnswers, champion: SplitAnswers, metric: str) -> list[tuple[float, Values, Values]]:
    """For each class, how much larger the candidate's value is: as measured, in each draw of the images, and with swapped answers.

    Draws without an image of the class are left out.
    """
    parts = _gains(candidate, champion, metric, weighted_metrics.of_classes, draws_of(candidate, metric))
    ours, theirs = (weighted_metrics.of_classes(answers, metric)(np.ones((1, answers.images)))[0] for answers in (candidate, champion))
    images = np.bincount(candidate.labels, minlength=len(candidate.classes))
    columns = zip(images, ours - theirs, *(part.T for part in parts), strict=True)
    return [
        (float(gain), _widened(drawn[np.isfinite(drawn)], gain, np.array([count])), swapped[np.isfinite(swapped)])
        for count, gain, drawn, swapped in columns
    ]


def _widened(gains: Values, seen: float, images: npt.NDArray[np.int64]) -> Values:
    """Move the gains of drawn images away from the real gain, until they vary as much as gains on new images do.

    Draws with replacement from n images have only (n - 1) / n of the variance (Efron and Tibshirani 1993, chapter 5). This matters for a
    class with few images. For a mean over classes, the variances add up.

    Args:
        images: number of images of each class, or of all together.
    """
    n = np.maximum(images, 2)
    return np.asarray(seen + np.sqrt((1 / n).sum() / ((n - 1) / n**2).sum()) * (gains - seen))


def draws_of(answers: SplitAnswers, metric: str) -> int:
    """Number of draws for a metric, with so many images and classes."""
    if not weighted_metrics.needs_probabilities(metric):
        return DRAWS
    return int(np.clip(MOST_PRODUCTS // (answers.images * len(answers.classes)), FEWEST_DRAWS, DRAWS))


def _halves(counts: npt.NDArray[np.int64], draws: int) -> Iterator[Values]:
    """How many images of each kind keep their answers, in each draw. The answers of the others are swapped."""
    rng = np.random.default_rng(1)
    for size in sizes(len(counts), draws):
        yield rng.binomial(counts, 0.5, (size, len(counts))).astype(np.float64)


def _stacked(candidate: SplitAnswers, champion: SplitAnswers, metric: str) -> SplitAnswers:
    """The answers of both models, one below the other.

    A metric that uses only the order of the images gets ranks as probabilities. One model may give higher probabilities in general than the
    other; this must not change the result of a swap.
    """

    def ranks(answers: SplitAnswers) -> npt.NDArray[np.float64]:
        from scipy.stats import rankdata  # type: ignore[import-untyped]  # slow to import

        assert answers.probabilities is not None
        return np.asarray(rankdata(answers.probabilities, axis=0))

    pair = (candidate, champion)
    nlls, confidences, tops = ([getattr(one, name) for one in pair] for name in ("label_nll", "confidence", "top5"))
    kept = None
    if weighted_metrics.needs_probabilities(metric):
        kept = np.concatenate([ranks(one) if metric in weighted_metrics.ORDINAL else one.probabilities for one in pair])
    return replace(
        candidate,
        labels=np.concatenate([candidate.labels, champion.labels]),
        predictions=np.concatenate([candidate.predictions, champion.predictions]),
        label_nll=np.concatenate(nlls),
        confidence=np.concatenate(confidences),
        top5=np.concatenate(tops) if all(one is not None for one in tops) else None,
        probabilities=kept,
    )


def _sign(metric: str) -> float:
    return 1.0 if METRICS[metric].mode == "max" else -1.0


def share_of(gains: npt.NDArray[np.float64], least: float, *, few: bool = False) -> float:
    """How often a gain is at least `least`. The real gain counts as one more draw.

    Args:
        few: whether there are too few draws to count rare gains. Then a t distribution with their mean and deviation is used.
    """
    counted = float((1 + (gains >= least - 1e-12).sum()) / (1 + len(gains)))
    if not few or not gains.std():
        return counted
    from scipy.stats import t

    return float(t.sf(least, len(gains) - 1, gains.mean(), gains.std(ddof=1)))


def _quantile(gains: npt.NDArray[np.float64], share: float) -> float:
    return float(np.quantile(gains, share))
