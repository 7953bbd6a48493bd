"""How often gate G4 lets a challenger through that is exactly as good as the champion, over 20 readings of one test split, by each metric.

    .venv/bin/python tests/benchmarks/false_promotions.py --rounds 200
    .venv/bin/python tests/benchmarks/false_promotions.py --metric val_auroc --kind other --rounds 50

In each round a test split and a champion are drawn, and 20 challengers classify the same images. `alike`: each is drawn as the champion
was. `other`: each has the champion's true value of the metric by other means: it knows well what the champion knows badly, or it is less
sure of itself. `tied` is an extreme: all classes of the champion are as bad as its worst, and each challenger has one such class.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from vit_search.promotion.evidence import weighted_metrics
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.mcnemar import LEAST_GAIN, AccuracyComparison
from vit_search.promotion.score_comparison import compare_scores

METRICS = (
    "val_macro_f1", "val_balanced_accuracy", "val_worst_class_recall", "val_auroc", "val_average_precision", "val_ece", "val_loss",
)  # fmt: skip
SHARES = np.array([0.35, 0.35, 0.12, 0.12, 0.03, 0.03])
"""Of the classes: two frequent, two less so, two rare."""
SWAPPED = np.array([1, 0, 3, 2, 5, 4])
SIGNAL = np.array([2.6, 1.8, 2.2, 1.4, 2.4, 1.6])
"""How well the champion knows each class."""
EVEN = 1.4
READINGS = 20


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
    if kind == "other" and metric not in ("val_loss", "val_ece"):
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


def passes(challenger, champion, metric, reading):
    """Whether G4 lets it through. Where 100 or 1,000 draws show that it surely does not, the 10,000 are spared."""
    allowed = AccuracyComparison(1, 0, 0, reading).alpha
    for draws in (100, 1000):
        found = compare_scores(challenger, champion, metric, reading=reading, draws=draws)
        counts = (found.swapped >= found.gain).sum(), (found.gains <= 0).sum(), (found.gains >= 2 * found.gain).sum()
        if max(counts) > draws * allowed + 5 * math.sqrt(draws * allowed) + 3:
            return False
    return compare_scores(challenger, champion, metric, reading=reading).passes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--metric", choices=METRICS, action="append")
    parser.add_argument("--kind", choices=("alike", "other", "tied"), action="append")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    told = parser.parse_args()
    for kind in told.kind or ("alike", "other"):
        for metric in told.metric or METRICS:
            began = time.perf_counter()
            champions, challengers = equally_good(metric, kind)
            through, by_value = 0, 0
            for round_number in range(told.first, told.first + told.rounds):
                rng = np.random.default_rng([7, round_number])
                labels, shared = drawn(told.images, rng)
                champion = model(labels, shared, rng, **champions)
                gone = naive = False
                for reading in range(1, READINGS + 1):
                    challenger = model(labels, shared, rng, **challengers)
                    gain = weighted_metrics.value_of(challenger, metric) - weighted_metrics.value_of(champion, metric)
                    better = (-gain if metric in ("val_ece", "val_loss") else gain) >= LEAST_GAIN
                    naive |= better
                    gone = gone or (better and passes(challenger, champion, metric, reading))
                through += gone
                by_value += naive
            print(
                f"{kind} {metric}: with {through} of {told.rounds} test splits of {told.images} images, one of {READINGS} challengers got "
                f"through; by the better value alone, with {by_value}. {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
