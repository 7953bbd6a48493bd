"""How often gate G4 lets a challenger through that is exactly as good as the champion, over 20 readings of one test split, by each metric.

    .venv/bin/python tests/benchmarks/false_promotions.py --images 400 --rounds 200
    .venv/bin/python tests/benchmarks/false_promotions.py --images 400 --metric val_auroc --kind other --rounds 50
    .venv/bin/python tests/benchmarks/false_promotions.py --images 400 --metric val_macro_f1 --better 0.05 --rounds 200

In each round a test split and a champion are drawn, and 20 challengers classify the same images. `alike`: each is drawn as the champion
was. `other`: each has the champion's true value of the metric by other means: it knows well what the champion knows badly, or it is less
sure of itself. `tied` is an extreme: all classes of the champion are as bad as its worst, and each challenger has one such class.
With `--better`, the challengers are truly better by that much, and only the first of each test split is counted: this is the test's power.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))

from vit_search.promotion.evidence import weighted_metrics
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.mcnemar import LEAST_GAIN, AccuracyComparison
from vit_search.promotion.score_comparison import compare_scores

METRICS = (
    "val_macro_f1", "val_balanced_accuracy", "val_worst_class_recall", "val_auroc", "val_average_precision", "val_ece", "val_loss",
)  # fmt: skip
SMALLER = ("val_ece", "val_loss")
"""Metrics of which less is better."""
SHARES = np.array([0.35, 0.35, 0.12, 0.12, 0.03, 0.03])
"""Of the classes: two frequent, two less so, two rare."""
SWAPPED = np.array([1, 0, 3, 2, 5, 4])
SIGNAL = np.array([2.6, 1.8, 2.2, 1.4, 2.4, 1.6])
"""How well the champion knows each class."""
EVEN = 1.4
READINGS = 20
SCREENED = 300
"""Draws that decide whether the rest of them can change anything."""


def model(labels, shared, rng, signal=SIGNAL, temperature=1.0):
    """A model's answers: a signal of its class, noise that all models share (a hard image is hard for all), and noise of its own."""
    images, classes = len(labels), len(SHARES)
    logits = 0.8 * shared + 0.6 * rng.normal(size=(images, classes)) + np.log(SHARES) / 2
    logits[np.arange(images), labels] += signal[labels]
    logits = 1.5 * logits / temperature
    logits -= logits.max(1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return SplitAnswers(
        classes=tuple("abcdef"), labels=labels, predictions=probabilities.argmax(1),
        label_nll=-np.log(probabilities[np.arange(images), labels]), confidence=probabilities.max(1), loss=0.0, brier=0.0, corrupted={},
        probabilities=probabilities,
    )  # fmt: skip


def drawn(images, rng):
    labels = np.sort(rng.choice(len(SHARES), images, p=SHARES))
    labels[: len(SHARES)] = np.arange(len(SHARES))
    return labels, rng.normal(size=(images, len(SHARES)))


def equally_good(metric, kind):
    """What a challenger's `model` differs in, so that its true value is the champion's: found by bisection on 100,000 images."""
    if kind == "alike":
        return {}, {}
    if kind == "other" and metric not in SMALLER:
        return {}, {"signal": SIGNAL[SWAPPED]}
    labels, shared = drawn(100_000, np.random.default_rng(1))

    def true(**how):
        return weighted_metrics.value_of(model(labels, shared, np.random.default_rng(2), **how), metric)

    if kind == "tied":  # classes of one recall: each has its own signal for that
        champion = np.full(len(SHARES), EVEN)
        for _ in range(15):
            how = model(labels, shared, np.random.default_rng(2), signal=champion)
            champion = champion - 0.8 * (np.array(how.recalls) - 0.6)
        challenger = champion + np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
        low, high = -2.0, 2.0
        for _ in range(15):
            challenger[3] = champion[3] + (low + high) / 2
            low, high = ((low + high) / 2, high) if true(signal=challenger) < true(signal=champion) else (low, (low + high) / 2)
        return {"signal": champion}, {"signal": challenger}
    temperatures = np.linspace(0.3, 2.0, 18)
    best = float(temperatures[np.argmin([true(temperature=t) for t in temperatures])])
    sure, low, high = {"temperature": 0.75 * best}, best, 6.0
    for _ in range(15):
        middle = (low + high) / 2
        low, high = (middle, high) if true(temperature=middle) < true(**sure) else (low, middle)
    return sure, {"temperature": (low + high) / 2}


def raised(metric, signal, temperature, gain):
    """The temperature or the signal with which a model is truly better than with these by `gain`: by bisection on 100,000 images."""
    labels, shared = drawn(100_000, np.random.default_rng(1))

    def true(**how):
        return weighted_metrics.value_of(model(labels, shared, np.random.default_rng(2), **how), metric)

    aim = true(signal=signal, temperature=temperature) + (-gain if metric in SMALLER else gain)
    low, high = 0.0, 3.0
    for _ in range(20):
        middle = (low + high) / 2
        short = (true(signal=signal + middle, temperature=temperature) - aim) * (-1 if metric in SMALLER else 1) < 0
        low, high = (middle, high) if short else (low, middle)
    return {"signal": signal + high, "temperature": temperature}


def interval(count, of):
    """95 % of a share (Clopper and Pearson 1934)."""
    found = binomtest(count, of).proportion_ci(0.95, "exact")
    return f"{100 * count / of:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f} %)"


class Screen:
    """Spares G4's tests where a few draws of its bootstrap show that it surely does not let a challenger through."""

    def __init__(self, champion, metric):
        drawn = weighted_metrics.drawn_weights(np.ones(champion.images, np.int64), SCREENED)
        self.weights = np.concatenate([np.ones((1, champion.images)), *drawn])
        self.metric = metric
        self.theirs = self.values(champion)

    def values(self, answers):
        with np.errstate(invalid="ignore", divide="ignore"):
            return weighted_metrics.of_all(answers, self.metric)(self.weights)[:, 0]

    def gains(self, challenger):
        """As seen, and in each draw."""
        gains = (self.values(challenger) - self.theirs) * (-1 if self.metric in SMALLER else 1)
        return gains[0], gains[1:]


def passes(challenger, champion, metric, reading, gains):
    """Whether G4 lets it through. Where few draws show that it surely does not, the 10,000 are spared."""
    allowed = AccuracyComparison(1, 0, 0, reading).alpha

    def hopeless(draws, *counts):
        return max(counts) > draws * allowed + 4 * math.sqrt(draws * allowed) + 3

    if hopeless(SCREENED, (gains[1] <= 0).sum(), (gains[1] >= 2 * gains[0]).sum()):
        return False
    found = compare_scores(challenger, champion, metric, reading=reading, draws=1000)
    if hopeless(1000, (found.swapped >= found.gain).sum(), (found.gains <= 0).sum(), (found.gains >= 2 * found.gain).sum()):
        return False
    return compare_scores(challenger, champion, metric, reading=reading).passes


def attempts(metric, images, champions, challengers, round_number, readings):
    """Of one test split: whether a challenger got through, and whether one had the better value."""
    rng = np.random.default_rng([7, round_number])
    labels, shared = drawn(images, rng)
    champion = model(labels, shared, rng, **champions)
    screen = Screen(champion, metric)
    through = by_value = False
    for reading in range(1, readings + 1):
        challenger = model(labels, shared, rng, **challengers)
        gains = screen.gains(challenger)
        by_value |= gains[0] >= LEAST_GAIN
        through = through or (gains[0] >= LEAST_GAIN and passes(challenger, champion, metric, reading, gains))
        if through and by_value:
            break
    return through, by_value


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--metric", choices=METRICS, action="append")
    parser.add_argument("--kind", choices=("alike", "other", "tied"), action="append")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--better", type=float, default=0.0, help="by how much each challenger is truly better")
    told = parser.parse_args()
    readings = 1 if told.better else READINGS
    for kind in told.kind or ("alike", "other"):
        for metric in told.metric or METRICS:
            began = time.process_time()
            champions, challengers = equally_good(metric, kind)
            if told.better:
                challengers = raised(metric, challengers.get("signal", SIGNAL), challengers.get("temperature", 1.0), told.better)
            rounds = range(told.first, told.first + told.rounds)
            through, by_value = np.sum([attempts(metric, told.images, champions, challengers, n, readings) for n in rounds], axis=0)
            print(
                f"{kind} {metric}, {told.better:g} better: with {through} of {told.rounds} test splits of {told.images} images, "
                f"{interval(through, told.rounds)}, one of {readings} challengers got through; by the better value alone, with {by_value}. "
                f"{time.process_time() - began:.0f} s of processor time",
                flush=True,
            )


if __name__ == "__main__":
    main()
