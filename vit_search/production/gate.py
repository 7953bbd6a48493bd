"""Whether a candidate may take the champion's place: both classify the same test images, and chance must not explain the difference.

Each image that only one of them gets right speaks for that one; of two equally good models each is as likely (McNemar 1947,
https://doi.org/10.1007/BF02295996, here exact). A test split that is looked at again and again is won by chance in the end: of
20 challengers as good as the champion one all but surely "wins". So the chance that is allowed shrinks with each reading,
alpha / (t (t + 1)) at the t-th, which makes alpha over all readings that will ever be (a Bonferroni budget).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

ALPHA = 0.05
"""Chance that a challenger who is no better ever takes the place, over all readings of one test split."""

LEAST_GAIN = 0.002
"""A gain that is worth a change of model, as a share of the images."""

MOST_READINGS = 20
"""Of one test split; then it takes new test images."""

POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """A candidate beside the champion on the same images."""

    images: int
    wins: int
    """Images that the candidate alone gets right."""
    losses: int
    """Images that the champion alone gets right."""
    reading: int
    """Which reading of the test split this is, from 1."""

    @property
    def gain(self) -> float:
        """The candidate's accuracy less the champion's."""
        return (self.wins - self.losses) / self.images

    @property
    def alpha(self) -> float:
        """Chance that is allowed at this reading."""
        return ALPHA / (self.reading * (self.reading + 1))

    @property
    def p(self) -> float:
        """How often a candidate as good as the champion would win by so much: McNemar's test, exact and one-sided."""
        from scipy.stats import binomtest  # type: ignore[import-untyped]  # slow to import

        parted = self.wins + self.losses
        return float(binomtest(self.wins, parted, 0.5, alternative="greater").pvalue) if parted else 1.0

    def interval(self, draws: int = 10_000) -> tuple[float, float]:
        """Of the gain, by a bootstrap over the images, two-sided at twice this reading's alpha; the same each time."""
        rng = np.random.default_rng(0)
        shares = [self.wins / self.images, self.losses / self.images, 1 - (self.wins + self.losses) / self.images]
        drawn = rng.multinomial(self.images, shares, draws)
        gains = (drawn[:, 0] - drawn[:, 1]) / self.images
        low, high = np.quantile(gains, [self.alpha, 1 - self.alpha])
        return float(low), float(high)

    @property
    def detectable(self) -> float:
        """The gain that this many images would show four times in five, at this reading, if models differ on as many images as these."""
        parted = max(self.wins + self.losses, 1) / self.images
        z = NormalDist().inv_cdf
        return (z(1 - self.alpha) + z(POWER)) * math.sqrt(parted / self.images)

    @property
    def passes(self) -> bool:
        """Whether the candidate may take the place."""
        return self.reading <= MOST_READINGS and self.gain >= LEAST_GAIN and self.p < self.alpha

    @property
    def problem(self) -> str:
        """Why the candidate may not take the place; empty where it may."""
        if self.passes:
            return ""
        if self.reading > MOST_READINGS:
            return f"this test split has been read {self.reading} times, and after {MOST_READINGS} it decides nothing; give new test images"
        if self.gain < LEAST_GAIN:
            return f"it is {'no better' if self.gain <= 0 else 'hardly better'} than the champion: {self.in_words()}"
        return f"chance explains its gain: {self.in_words()}"

    def in_words(self) -> str:
        """The figures, in a line."""
        low, high = self.interval()
        return (
            f"{self.gain:+.4f} on {self.images:,} test images ({self.wins} that it alone gets right, {self.losses} that it alone "
            f"gets wrong; {1 - 2 * self.alpha:.1%} interval {low:+.4f} to {high:+.4f}; p = {self.p:.2g}, {self.alpha:.2g} is allowed "
            f"at reading {self.reading}; a gain of {self.detectable:.4f} would show here four times in five)"
        )


def compare(
    candidate: npt.NDArray[np.int64], champion: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], *, reading: int
) -> Comparison:
    """Two models' predictions of the same images.

    Args:
        candidate, champion, labels: (images,) classes. reading: of this test split, this one included.
    """
    assert candidate.shape == champion.shape == labels.shape
    ours, theirs = candidate == labels, champion == labels
    return Comparison(len(labels), int((ours & ~theirs).sum()), int((~ours & theirs).sum()), reading)
