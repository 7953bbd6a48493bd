"""Is a candidate better than the champion in accuracy (gate G4)? Both classify the same test images, and chance must not explain the gain.

Only images that exactly one model gets right count. If both models are equally good, either is as likely to be that one (McNemar 1947,
https://doi.org/10.1007/BF02295996, here exact).

If a test split is used again and again, somebody wins by chance. So the allowed probability is smaller at each reading:
alpha / (t (t + 1)) at the t-th. Over all possible readings this adds up to alpha (a Bonferroni budget).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

ALPHA = 0.05
"""Probability that a challenger which is no better ever wins, over all readings of one test split."""

LEAST_GAIN = 0.002
"""The smallest gain for which a change of model is worth it, as a share of the images."""

MOST_READINGS = 20
"""The most readings of one test split. After that, new test images are needed."""

POWER = 0.8


class PairedComparison(ABC):
    """A comparison of two models on the same images: what all metrics have in common."""

    reading: int
    budget: float
    least_gain: float
    most_readings: int

    @property
    @abstractmethod
    def gain(self) -> float:
        """The candidate's value minus the champion's; more is better."""

    @property
    @abstractmethod
    def p(self) -> float:
        """How often a candidate that is no better would gain at least as much."""

    @property
    def alpha(self) -> float:
        """The allowed probability at this reading."""
        return self.budget / (self.reading * (self.reading + 1))

    @property
    def passes(self) -> bool:
        """Whether the candidate may become the champion."""
        return self.reading <= self.most_readings and self.gain >= self.least_gain and self.p < self.alpha

    @property
    def problem(self) -> str:
        """Why the candidate may not become the champion; empty if it may."""
        if self.passes:
            return ""
        if self.reading > self.most_readings:
            return (
                f"this test split has been read {self.reading} times; after {self.most_readings} it decides nothing; give new test images"
            )
        if self.gain < self.least_gain:
            return f"it is {'no better' if self.gain <= 0 else 'hardly better'} than the champion: {self.in_words()}"
        return f"chance explains its gain: {self.in_words()}"

    @abstractmethod
    def in_words(self) -> str:
        """The figures in one line."""


@dataclass(frozen=True)
class AccuracyComparison(PairedComparison):
    """Compares how many of the same images the candidate and the champion get right."""

    images: int
    wins: int
    """Images that only the candidate gets right."""
    losses: int
    """Images that only the champion gets right."""
    reading: int
    """Number of the reading, from 1."""
    budget: float = ALPHA
    """The allowed probability over all readings of this test split."""
    least_gain: float = LEAST_GAIN
    most_readings: int = MOST_READINGS
    metric: str = "val_accuracy"
    """What counts as right: `val_accuracy` or `val_top5_accuracy`."""

    @property
    def gain(self) -> float:
        """The candidate's accuracy minus the champion's."""
        return (self.wins - self.losses) / self.images

    @property
    def p(self) -> float:
        """How often a candidate as good as the champion would win at least as clearly: McNemar's test, exact and one-sided."""
        from scipy.stats import binomtest  # type: ignore[import-untyped]  # slow to import

        parted = self.wins + self.losses
        return float(binomtest(self.wins, parted, 0.5, alternative="greater").pvalue) if parted else 1.0

    def no_worse_than(self, margin: float) -> bool:
        """Whether the lower bound of the gain, at this reading's alpha, is above -margin."""
        return self.reading <= self.most_readings and chance(self.wins, self.losses, self.images, -margin) < self.alpha

    @property
    def least(self) -> float:
        """Lower bound of the gain at this reading's alpha: the largest gain that `chance` rules out.

        A bootstrap is no alternative: if the models never differ, its interval is 0 to 0, even for very few images.
        """
        low, high = -1.0, self.gain
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if chance(self.wins, self.losses, self.images, middle) < self.alpha else (low, middle)
        return low

    def interval(self, draws: int = 10_000) -> tuple[float, float]:
        """Interval of the gain, two-sided at twice this reading's alpha, by a bootstrap over the images with a fixed seed."""
        rng = np.random.default_rng(0)
        shares = [self.wins / self.images, self.losses / self.images, 1 - (self.wins + self.losses) / self.images]
        drawn = rng.multinomial(self.images, shares, draws)
        gains = (drawn[:, 0] - drawn[:, 1]) / self.images
        low, high = np.quantile(gains, [self.alpha, 1 - self.alpha])
        return float(low), float(high)

    @property
    def detectable(self) -> float:
        """The gain that this test would show in four of five cases, if the models differ on as many images as these do."""
        parted = max(self.wins + self.losses, 1) / self.images
        z = NormalDist().inv_cdf
        return (z(1 - self.alpha) + z(POWER)) * math.sqrt(parted / self.images)

    def in_words(self) -> str:
        """The figures in one line."""
        low, high = self.interval()
        of = "" if self.metric == "val_accuracy" else f" of {self.metric.removeprefix('val_')}"
        return (
            f"{self.gain:+.4f}{of} on {self.images:,} test images ({self.wins} that it alone gets right, {self.losses} that it alone "
            f"gets wrong; {1 - 2 * self.alpha:.1%} interval {low:+.4f} to {high:+.4f}; p = {self.p:.2g}, {self.alpha:.2g} is allowed "
            f"at reading {self.reading}; a gain of {self.detectable:.4f} would show here four times in five)"
        )


def compare(
    candidate: npt.NDArray[np.bool_],
    champion: npt.NDArray[np.bool_],
    *,
    reading: int,
    budget: float = ALPHA,
    least_gain: float = LEAST_GAIN,
    most_readings: int = MOST_READINGS,
    metric: str = "val_accuracy",
) -> AccuracyComparison:
    """Compare two models on the same images.

    Args:
        candidate, champion: (images,), whether the model gets each image right.
        reading: its number, from 1.
        budget, least_gain, most_readings: as in a policy.
        metric: what counts as right.
    """
    assert candidate.shape == champion.shape
    wins, losses = int((candidate & ~champion).sum()), int((~candidate & champion).sum())
    return AccuracyComparison(len(candidate), wins, losses, reading, budget, least_gain, most_readings, metric)


def chance(more: int, less: int, images: int, true: float) -> float:
    """How often paired images show a difference of `more - less` or larger if the true difference is `true`.

    For 0, this is McNemar's test. For another difference, the result depends on how often the two models differ, which is unknown. So the
    most likely such share under `true` is used (Tango 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C891::AID-SIM780%3E3.0.CO;2-B).
    The tail is summed exactly, not by his normal approximation (Lloyd 2008 calls this the E p-value).

    Args:
        more, less: images for and against the difference.
        images: all images, at least 1.
        true: a share of the images, -1 to 1.
    """
    from scipy.stats import binom

    if more - less <= -images:  # no difference can be smaller
        return 1.0
    for_it, against = _likeliest(more, less, images, true)
    parted = min(for_it + against, 1.0)
    if parted == 0:
        return float(more <= less)
    low, high = binom.ppf([1e-13, 1 - 1e-13], images, parted)
    counts = np.arange(int(max(low, 0)), int(high) + 1)
    needed = np.ceil((counts + more - less) / 2)
    tails = binom.sf(needed - 1, counts, min(for_it / parted, 1.0))
    return float(min(1.0, (binom.pmf(counts, images, parted) * tails).sum()))


def _likeliest(more: int, less: int, images: int, true: float) -> tuple[float, float]:
    """The most likely shares of images for and against a difference, given the data, if they differ by `true`."""
    if true < 0:
        against, for_it = _likeliest(less, more, images, -true)
        return for_it, against
    b = (more + less) * (1 - true) - 2 * true * (images - more)
    against = (b + math.sqrt(b * b + 8 * images * less * true * (1 - true))) / (4 * images)
    against = min(max(against, 0.0), (1 - true) / 2)
    return against + true, against
