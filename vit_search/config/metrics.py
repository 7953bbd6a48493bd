"""The metrics of an epoch, and further objectives of a search, with what is known about each.

To add a metric, add a line here, and a function in vit/evaluation.py or vit/probability_scores.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Metric:
    """A metric or an objective."""

    name: str
    mode: Direction
    """Whether a smaller or a larger value is better."""
    fraction: bool = False
    """Whether its values are in [0, 1]."""
    of_images: bool = False
    """Whether it is the share of images that are right. Its confidence interval is then Wilson's."""
    least_classes: int = 0
    every_class: bool = False
    """Whether it needs an image of each class in the split that trials are validated on."""
    ranks: bool = True
    """Whether trials can be ranked by it. If not, it can only be a further objective."""
    meaning: str = ""
    """Its description in docs/reference/metrics.md."""


TABLE = (
    Metric(
        "train_loss",
        "min",
        meaning="What training minimises (`training.loss`): mean over the training images of the epoch, with augmentation.",
    ),
    Metric(
        "train_accuracy", "max", fraction=True, meaning="Share of the training images that are right during the epoch, with augmentation."
    ),
    Metric("val_loss", "min", meaning="Cross-entropy in nats of the validation images, without label smoothing."),
    Metric("val_accuracy", "max", fraction=True, of_images=True, meaning="Share of the validation images whose class is right."),
    Metric(
        "val_top5_accuracy",
        "max",
        fraction=True,
        of_images=True,
        least_classes=5,
        meaning="Share of the validation images whose class is among the five most probable ones.",
    ),
    Metric(
        "val_macro_f1",
        "max",
        fraction=True,
        meaning="Mean of the classes' F1 scores on the validation images. Each class counts the same, however many images it has.",
    ),
    Metric(
        "val_balanced_accuracy",
        "max",
        fraction=True,
        meaning="Mean of the classes' recalls on the validation images. Each class counts the same, however many images it has.",
    ),
    Metric(
        "val_worst_class_recall",
        "max",
        fraction=True,
        meaning="Recall of the class that is recognised worst: the smallest share of a class's validation images that are right.",
    ),
    Metric(
        "val_auroc",
        "max",
        fraction=True,
        least_classes=2,
        every_class=True,
        meaning="Area under the ROC curve of each class against the rest, mean of the classes. "
        "How often an image of the class gets a higher probability of it than an image of another class. 0.5 is chance.",
    ),
    Metric(
        "val_average_precision",
        "max",
        fraction=True,
        least_classes=2,
        every_class=True,
        meaning="Area under the curve of precision over recall of each class against the rest, mean of the classes. "
        "Chance is the class's share of the images, so a rare class has further to go.",
    ),
    Metric(
        "val_ece",
        "min",
        fraction=True,
        meaning="Expected calibration error: how far the probability of the predicted class is from the share of right answers, "
        "over 15 bins of equal width, each weighted by its images.",
    ),
    Metric("images_per_s", "max", meaning="Training images per second, without evaluation."),
    Metric("seconds", "min", meaning="Seconds that the epoch takes, training and evaluation."),
    Metric("peak_memory_bytes", "min", meaning="Peak memory in bytes: of torch's allocator on a GPU, of the process on a CPU."),
    Metric("params", "min", ranks=False, meaning="Number of parameters of the model."),
    Metric("flops", "min", ranks=False, meaning="Floating-point operations of a forward pass of one image."),
    Metric("train_flops", "min", ranks=False, meaning="Floating-point operations of forward and backward pass of one image."),
    Metric("latency_ms", "min", ranks=False, meaning="Median time in milliseconds to classify one image."),
)
METRICS = {metric.name: metric for metric in TABLE}
"""Metrics by name."""

RANKING = tuple(metric.name for metric in TABLE if metric.ranks)
"""Names of the metrics that a search can optimise."""
