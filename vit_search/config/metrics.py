"""The metrics of an epoch, and what else a search can weigh: direction, range and needs of each.

A new metric is a line here, and a function in vit/evaluation.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Metric:
    """One of them."""

    name: str
    mode: Direction
    """Whether a smaller or a larger value is better."""
    fraction: bool = False
    """Whether it lies in [0, 1]."""
    of_images: bool = False
    """Whether it is the share of images that are right, whose interval is Wilson's."""
    least_classes: int = 0
    ranks: bool = True
    """Whether trials can be ranked by it; else it is an objective beside another one."""


TABLE = (
    Metric("train_loss", "min"),
    Metric("train_accuracy", "max", fraction=True),
    Metric("val_loss", "min"),
    Metric("val_accuracy", "max", fraction=True, of_images=True),
    Metric("val_top5_accuracy", "max", fraction=True, of_images=True, least_classes=5),
    Metric("val_macro_f1", "max", fraction=True),
    Metric("val_balanced_accuracy", "max", fraction=True),
    Metric("images_per_s", "max"),
    Metric("seconds", "min"),
    Metric("peak_memory_bytes", "min"),
    Metric("params", "min", ranks=False),
    Metric("flops", "min", ranks=False),
    Metric("train_flops", "min", ranks=False),
    Metric("latency_ms", "min", ranks=False),
)
METRICS = {metric.name: metric for metric in TABLE}
"""By name."""

RANKING = tuple(metric.name for metric in TABLE if metric.ranks)
"""What a search can optimise."""
