"""Whether a candidate is better than the champion by a score of the confusion matrix, such as macro F1, by a paired bootstrap.

McNemar's test asks which model recognises more images. With classes of unequal size that is another question than the score's. So the
images of the test split are drawn again and again with replacement, each with both models' answers, and the score of both is taken
each time (Efron and Tibshirani 1993, chapter 15): what share of the draws the candidate does not win is the chance that it is no better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vit_search.promotion.mcnemar import ALPHA, LEAST_GAIN, MOST_READINGS, PairedComparison
from vit_search.vit.evaluation import SCORES

DRAWS = 10_000
"""The tenth reading of a test split allows a chance of 1 in 2,200; of 10,000 draws, 4 are that many."""


@dataclass(frozen=True)
class ScoreComparison(PairedComparison):
    """A candidate beside the champion on the same images, by a score."""

    metric: str
    """A key of SCORES."""
    images: int
    observed_gain: float
    """The candidate's score less the champion's."""
    gains: npt.NDArray[np.float64]
    """The same of each draw, ascending."""
    reading: int
    """Which reading of the test split this is, from 1."""
    budget: float = ALPHA
    least_gain: float = LEAST_GAIN
    most_readings: int = MOST_READINGS

    @property
    def gain(self) -> float:
        """The candidate's score less the champion's."""
        return self.observed_gain

    @property
    def p(self) -> float:
        """How often a draw of the images shows no gain."""
        return float((1 + (self.gains <= 0).sum()) / (1 + len(self.gains)))

    def no_worse_than(self, margin: float) -> bool:
        """Whether the lower bound of the gain, at this reading's alpha, lies above -margin."""
        return self.reading <= self.most_readings and self.least > -margin

    @property
    def least(self) -> float:
        """Lower bound of the gain at this reading's alpha."""
        return float(np.quantile(self.gains, self.alpha))

    def in_words(self) -> str:
        """The figures, in a line."""
        high = float(np.quantile(self.gains, 1 - self.alpha))
        return (
            f"{self.gain:+.4f} of {self.metric.removeprefix('val_')} on {self.images:,} test images ({1 - 2 * self.alpha:.1%} interval "
            f"{self.least:+.4f} to {high:+.4f}; p = {self.p:.2g}, {self.alpha:.2g} is allowed at reading {self.reading})"
        )


def compare_scores(
    candidate: npt.NDArray[np.int64],
    champion: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    metric: str,
    *,
    reading: int,
    budget: float = ALPHA,
    least_gain: float = LEAST_GAIN,
    most_readings: int = MOST_READINGS,
) -> ScoreComparison:
    """Two models' predictions of the same images; the same draws each time.

    Args:
        candidate, champion, labels: (images,) classes. metric: a key of SCORES. reading: of this test split, this one included.
        budget, least_gain, most_readings: as a policy has them.
    """
    assert candidate.shape == champion.shape == labels.shape
    classes = int(max(part.max() for part in (candidate, champion, labels))) + 1
    cells, counts = np.unique(np.stack([labels, candidate, champion]), axis=1, return_counts=True)
    ours, theirs = cells[0] * classes + cells[1], cells[0] * classes + cells[2]

    def gain(weights: npt.NDArray[np.int64]) -> float:
        both = (np.bincount(where, weights, classes**2).reshape(classes, classes) for where in (ours, theirs))
        ours_score, theirs_score = (SCORES[metric](torch.from_numpy(confusion)) for confusion in both)
        return ours_score - theirs_score

    draws = np.random.default_rng(0).multinomial(len(labels), counts / len(labels), DRAWS)
    gains = np.sort([gain(weights) for weights in draws])
    return ScoreComparison(metric, len(labels), gain(counts), gains, reading, budget, least_gain, most_readings)
