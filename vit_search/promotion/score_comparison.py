"""Whether a candidate is better than the champion by a metric of the test images other than accuracy, such as macro F1 or the loss.

McNemar's test asks which model recognises more images; for other metrics that is another question. So two tests ask, and the candidate must
pass both. One swaps the two models' answers of a random half of the images (a permutation test): if both models are alike, that changes
nothing, so the seen gain must be rare among the swapped ones. The other draws images with replacement (the paired bootstrap; Efron and
Tibshirani 1993, chapter 15), which also holds for models that differ in kind; it is read in both usual ways, by the drawn gains and by
their mirror image about the seen gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vit_search.config.metrics import METRICS
from vit_search.promotion.evidence import weighted_metrics
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.evidence.weighted_metrics import AT_ONCE, Values, Weighted, drawn_weights
from vit_search.promotion.mcnemar import ALPHA, LEAST_GAIN, MOST_READINGS, PairedComparison

DRAWS = 10_000
"""The twentieth reading of a test split allows a chance of 1 in 8,400; of 10,000 draws, 1 is that many."""

MOST_PRODUCTS = 2_000_000_000
"""Images times classes times draws of a metric of each class's probabilities: about a minute on one core. Larger splits get fewer draws."""

FEWEST_DRAWS = 400


@dataclass(frozen=True)
class ScoreComparison(PairedComparison):
    """A candidate beside the champion on the same images, by a metric."""

    metric: str
    """A key of METRICS that `weighted_metrics.answers_give` knows."""
    images: int
    values: tuple[float, float]
    """Of the metric: the candidate's and the champion's."""
    gains: npt.NDArray[np.float64]
    """By how much the candidate is better in each draw of the images, ascending."""
    swapped: npt.NDArray[np.float64]
    """The same when the answers of random images are swapped."""
    reading: int
    """Which reading of the test split this is, from 1."""
    budget: float = ALPHA
    least_gain: float = LEAST_GAIN
    most_readings: int = MOST_READINGS

    @property
    def gain(self) -> float:
        """By how much the candidate is better, in the metric's unit."""
        return _sign(self.metric) * (self.values[0] - self.values[1])

    @property
    def p(self) -> float:
        """The largest of the chances that the tests give: that a candidate which is no better would win by so much."""
        return max(
            share_of(self.swapped, self.gain),
            share_of(-self.gains, 0.0),
            share_of(self.gains, 2 * self.gain),
        )

    def no_worse_than(self, margin: float) -> bool:
        """Whether the lower bound of the gain, at this reading's alpha, lies above -margin."""
        return self.reading <= self.most_readings and self.least > -margin

    @property
    def least(self) -> float:
        """Lower bound of the gain at this reading's alpha."""
        return min(_quantile(self.gains, self.alpha), 2 * self.gain - _quantile(self.gains, 1 - self.alpha))

    def in_words(self) -> str:
        """The figures, in a line."""
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
    """Two models' answers on the same images; the same draws each time.

    Args:
        metric: one that both give. reading: of this test split, this one included.
        budget, least_gain, most_readings: as a policy has them. draws: of each test; as many as pay for so many images by default.
    """
    draws, images, sign = draws or draws_of(candidate, metric), candidate.images, _sign(metric)
    values = weighted_metrics.value_of(candidate, metric), weighted_metrics.value_of(champion, metric)
    assert values[0] is not None and values[1] is not None
    ours, theirs = weighted_metrics.of_all(candidate, metric), weighted_metrics.of_all(champion, metric)
    gains = [_difference(ours, theirs, weights, weights) for weights in drawn_weights(images, draws)]
    both = weighted_metrics.of_all(_stacked(candidate, champion, metric), metric)
    swapped = []
    for kept in _halves(images, draws):
        first, second = np.concatenate([kept, 1 - kept], axis=1), np.concatenate([1 - kept, kept], axis=1)
        swapped.append(_difference(both, both, first, second))
    parts = (np.sort(sign * np.concatenate(part)) for part in (gains, swapped))
    return ScoreComparison(metric, images, (values[0], values[1]), *parts, reading, budget, least_gain, most_readings)


def class_gains(candidate: SplitAnswers, champion: SplitAnswers, metric: str) -> list[tuple[float, Values, Values]]:
    """For each class by how much the candidate's value is larger: as seen, in each draw of the images, and when answers are swapped.

    Draws without an image of the class are left out.
    """
    draws, images = draws_of(candidate, metric), candidate.images
    ours, theirs = (weighted_metrics.PER_CLASS[metric](one) for one in (candidate, champion))
    both = weighted_metrics.PER_CLASS[metric](_stacked(candidate, champion, metric))
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = (ours(np.ones((1, images))) - theirs(np.ones((1, images))))[0]
        drawn = np.concatenate([ours(weights) - theirs(weights) for weights in drawn_weights(images, draws)])
        swapped = np.concatenate(
            [both(np.concatenate([kept, 1 - kept], 1)) - both(np.concatenate([1 - kept, kept], 1)) for kept in _halves(images, draws)]
        )
    columns = zip(seen, drawn.T, swapped.T, strict=True)
    return [(float(gain), *(part[np.isfinite(part)] for part in parts)) for gain, *parts in columns]  # type: ignore[misc]


def draws_of(answers: SplitAnswers, metric: str) -> int:
    """How many draws a metric gets on so many images and classes."""
    if not weighted_metrics.needs_probabilities(metric):
        return DRAWS
    return int(np.clip(MOST_PRODUCTS // (answers.images * len(answers.classes)), FEWEST_DRAWS, DRAWS))


def _halves(images: int, draws: int) -> Iterator[Values]:
    """1 where an image keeps its answers and 0 where they are swapped."""
    rng, at_once = np.random.default_rng(1), max(1, AT_ONCE // images)
    for begin in range(0, draws, at_once):
        yield rng.integers(0, 2, (min(at_once, draws - begin), images)).astype(np.float64)


def _difference(ours: Weighted, theirs: Weighted, our_weights: Values, their_weights: Values) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):  # a class that is not drawn has no value
        return np.asarray((ours(our_weights) - theirs(their_weights))[:, 0])


def _stacked(candidate: SplitAnswers, champion: SplitAnswers, metric: str) -> SplitAnswers:
    """The answers of both models, one below the other.

    Metrics that only use the order of the images get ranks as probabilities: two models may be sure of themselves in different degrees, and
    that must not add to what swaps do.
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


def share_of(gains: npt.NDArray[np.float64], least: float) -> float:
    """How often a gain is at least so large: counted, with one for what was seen. Of few draws, as a normal distribution has it."""
    counted = float((1 + (gains >= least - 1e-12).sum()) / (1 + len(gains)))
    if len(gains) >= DRAWS:
        return counted
    from scipy.stats import t

    return max(float(t.sf(least, len(gains) - 1, gains.mean(), gains.std(ddof=1))), 0.0) if gains.std() else counted


def _quantile(gains: npt.NDArray[np.float64], share: float) -> float:
    return float(np.quantile(gains, share))
