"""Evaluate a model on a split: loss, accuracy, and further scores.

To add a score of the confusion matrix, add a function here, and a line in SCORES. Scores of the probabilities are in probability_scores.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from vit_search.config.metrics import RANKING
from vit_search.config.tables import check_tables
from vit_search.config.trial import EpochResult
from vit_search.data.batches import FeatureSplit, Split, StreamedSplit
from vit_search.vit import augment
from vit_search.vit.model import ViT
from vit_search.vit.probability_scores import PROBABILITY_SCORES

EVALUATED_AT_ONCE = 128
"""Images per batch in evaluation on a CPU. 512 take 1.1 to 1.2 times as long, since their activations do not fit into the caches."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the training images per channel, on the scale 0 to 1; each (channels,)."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu") -> Normalisation:
        """Make one from plain numbers. A channel that never changes is divided by 1."""
        return Normalisation(torch.tensor(mean, device=device), torch.tensor([s or 1.0 for s in std], device=device))


@dataclass(frozen=True)
class Evaluation:
    """Results of a model on one split."""

    loss: float
    """Mean cross-entropy in nats, without label smoothing."""
    accuracy: float
    top5_accuracy: float | None
    """None with fewer than 5 classes."""
    predictions: Tensor
    """(n,), predicted class of each image, int64, on the CPU."""
    scores: dict[str, float] = field(default_factory=dict)
    """By the keys of SCORES and PROBABILITY_SCORES. Scores that these images cannot give are left out."""


@torch.inference_mode()
def evaluate(
    model: ViT, split: Split | StreamedSplit | FeatureSplit, normalisation: Normalisation, batch_size: int = EVALUATED_AT_ONCE
) -> Evaluation:
    """Loss, accuracy and scores of a model on a whole split, in eval mode and in float32, as it is served."""
    model.eval()
    logits_of: list[Tensor] = []
    labels_of: list[Tensor] = []
    for inputs, labels in split.batches(torch.arange(len(split)).split(batch_size)):
        if isinstance(split, FeatureSplit):
            logits_of.append(model.after_frozen(inputs))
        else:
            logits_of.append(model(augment.normalise(inputs, normalisation.mean, normalisation.std)))
        labels_of.append(labels)
    logits, labels = torch.cat(logits_of), torch.cat(labels_of)
    predictions, classes = logits.argmax(1), logits.shape[1]
    top5 = None
    if classes >= 5:
        top5 = float((logits.topk(5).indices == labels[:, None]).any(1).float().mean())
    confusion = torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes).double().cpu()
    scores: dict[str, float | None] = {name: score(confusion) for name, score in SCORES.items()}
    probabilities = logits.double().softmax(1)
    scores |= {name: score(probabilities, labels) for name, score in PROBABILITY_SCORES.items()}
    return Evaluation(
        loss=float(F.cross_entropy(logits, labels)),
        accuracy=float((predictions == labels).float().mean()),
        top5_accuracy=top5,
        predictions=predictions.cpu(),
        scores={name: value for name, value in scores.items() if value is not None},
    )


def macro_f1(confusion: Tensor) -> float:
    """Mean over the classes of F1, the harmonic mean of precision and recall. Rare classes count as much as frequent ones.

    Args:
        confusion: (classes, classes), number of images by label and prediction. Classes with neither are left out.
    Returns: a fraction in [0, 1].
    """
    right, either = confusion.diag(), confusion.sum(0) + confusion.sum(1)
    there = either > 0
    return float((2 * right[there] / either[there]).mean())


def balanced_accuracy(confusion: Tensor) -> float:
    """Mean recall of the classes. Recall is the share of a class's images that are recognised.

    Args:
        confusion: as above. Classes without images are left out.
    Returns: a fraction in [0, 1].
    """
    return float(_recalls(confusion).mean())


def worst_class_recall(confusion: Tensor) -> float:
    """The smallest recall of any class.

    Args:
        confusion: as above. Classes without images are left out.
    Returns: a fraction in [0, 1].
    """
    return float(_recalls(confusion).min())


def _recalls(confusion: Tensor) -> Tensor:
    """Recall of each class that has images."""
    images = confusion.sum(1)
    there = images > 0
    return confusion.diag()[there] / images[there]


SCORES: dict[str, Callable[[Tensor], float]] = {
    "val_macro_f1": macro_f1,
    "val_balanced_accuracy": balanced_accuracy,
    "val_worst_class_recall": worst_class_recall,
}
"""Metrics that are computed from the confusion matrix, by their names in config/metrics.py."""

_MEASURED = {field.name for field in fields(EpochResult)}
check_tables(
    "TABLE of vit_search/config/metrics.py",
    [name for name in RANKING if name not in _MEASURED],
    "SCORES of vit_search/vit/evaluation.py and PROBABILITY_SCORES of vit_search/vit/probability_scores.py",
    [*SCORES, *PROBABILITY_SCORES],
)
