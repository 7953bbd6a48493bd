"""A model's answers on the images of a split, and how two models differ in calibration and on corrupted images."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vit_search.data.batches import Split, StreamedSplit
from vit_search.promotion.evidence.corruptions import corrupted
from vit_search.promotion.policy import Corruption
from vit_search.stats import wilson
from vit_search.vit import augment
from vit_search.vit.checkpoint import ServedModel
from vit_search.vit.evaluation import EVALUATED_AT_ONCE
from vit_search.vit.probability_scores import BINS


@dataclass(frozen=True, eq=False)
class SplitAnswers:
    """A model's answers on the images of a split, image by image, so that two models can be compared on each image."""

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """(images,), class indices."""
    predictions: npt.NDArray[np.int64]
    """(images,), class indices."""
    label_nll: npt.NDArray[np.float64]
    """(images,), the negative log of the probability of the label, in nats."""
    confidence: npt.NDArray[np.float64]
    """(images,), the probability of the predicted class."""
    loss: float
    """Mean of `label_nll`, exactly as vit.evaluation.evaluate gives it."""
    brier: float
    """Mean over the images of the squared distance between the probabilities and the truth, from 0 to 2."""
    corrupted: Mapping[str, npt.NDArray[np.int64]]
    """Predictions (images,) by corruption."""
    top5: npt.NDArray[np.bool_] | None = None
    """(images,), whether the label is among the five most probable classes. None with fewer than 5 classes, and in older records."""
    probabilities: npt.NDArray[np.float64] | None = None
    """(images, classes). None unless the search's metric needs them, and in older records."""

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(images,), whether the model recognised each image."""
        return np.equal(self.predictions, self.labels)

    @property
    def accuracy(self) -> float:
        """Fraction in [0, 1], in double precision: 9 of 10 is 0.9. vit.evaluation.evaluate gives the nearest float32."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (Wilson): low and high."""
        return wilson(int(self.correct.sum()), self.images)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes), images of the row's class that were classified as the column's."""
        from sklearn.metrics import confusion_matrix  # slow to import, but the linear probe has already loaded it here

        return np.asarray(confusion_matrix(self.labels, self.predictions, labels=np.arange(len(self.classes))), np.int64)

    @property
    def recalls(self) -> list[float | None]:
        """For each class, the share of its images that the model recognised; None for a class without images."""
        return [float(row[i] / row.sum()) if row.sum() else None for i, row in enumerate(self.confusion)]

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images. Each class counts the same."""
        from sklearn.metrics import f1_score  # slow to import, but the linear probe has already loaded it here

        return float(f1_score(self.labels, self.predictions, labels=np.unique(self.labels), average="macro", zero_division=0))

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance between confidence and accuracy in 15 equal bins, weighted by their images."""
        return float(_ece(self.confidence[None], self.correct[None])[0])

    @property
    def corrupted_accuracies(self) -> dict[str, float]:
        """Accuracy by corruption."""
        return {name: float((predictions == self.labels).mean()) for name, predictions in self.corrupted.items()}

    @property
    def corrupted_accuracy(self) -> float | None:
        """Mean accuracy over the corruptions; None if none was tried."""
        return float(np.mean(list(self.corrupted_accuracies.values()))) if self.corrupted else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, image by image. All figures follow from them. Probabilities are float64 in base64, row by row."""
        return {
            "classes": list(self.classes),
            "labels": self.labels.tolist(),
            "predictions": self.predictions.tolist(),
            "label_nll": self.label_nll.tolist(),
            "confidence": self.confidence.tolist(),
            "loss": self.loss,
            "brier": self.brier,
            "corrupted": {name: predictions.tolist() for name, predictions in self.corrupted.items()},
            "top5": None if self.top5 is None else self.top5.tolist(),
            "probabilities": None if self.probabilities is None else base64.b64encode(self.probabilities.astype("<f8").tobytes()).decode(),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SplitAnswers:
        """The inverse of `to_dict`."""
        classes, top5, kept = tuple(values["classes"]), values.get("top5"), values.get("probabilities")
        probabilities = None if kept is None else np.frombuffer(base64.b64decode(kept, validate=True), "<f8").reshape(-1, len(classes))
        if probabilities is not None and len(probabilities) != len(values["labels"]):
            raise ValueError(f"{len(probabilities)} rows of probabilities, and {len(values['labels'])} labels")
        return SplitAnswers(
            classes=classes,
            labels=np.array(values["labels"], np.int64),
            predictions=np.array(values["predictions"], np.int64),
            label_nll=np.array(values["label_nll"], np.float64),
            confidence=np.array(values["confidence"], np.float64),
            loss=values["loss"],
            brier=values["brier"],
            corrupted={name: np.array(predictions, np.int64) for name, predictions in values["corrupted"].items()},
            top5=None if top5 is None else np.array(top5, bool),
            probabilities=probabilities,
        )


def ece_bins(confidence: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bin of each confidence, 0 to 15. The bins are those of calibration_error in vit/probability_scores.py."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64).numpy()
    return np.asarray(np.searchsorted(edges, confidence, side="right") - 1, np.int64)


def answers_of(classes: tuple[str, ...], labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> SplitAnswers:
    """The answers of any classifier, from its probabilities (images, classes)."""
    rows = np.arange(len(labels))
    nll = -np.log(np.maximum(probabilities[rows, labels], np.finfo(np.float64).tiny))
    best = torch.from_numpy(probabilities).topk(min(5, len(classes))).indices.numpy()
    return SplitAnswers(
        classes=classes,
        labels=labels,
        predictions=probabilities.argmax(1),
        label_nll=nll,
        confidence=probabilities.max(1),
        loss=float(nll.mean()),
        brier=float(((probabilities - np.eye(len(classes))[labels]) ** 2).sum(1).mean()),
        corrupted={},
        top5=(best == labels[:, None]).any(1) if len(classes) >= 5 else None,
        probabilities=probabilities,
    )


def _ece(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The calibration errors (draws,) of (draws, images)."""
    draws, images = confidence.shape
    count = BINS + 1
    keys = (ece_bins(confidence) + count * np.arange(draws)[:, None]).ravel()
    gaps = np.bincount(keys, weights=(correct - confidence).ravel(), minlength=draws * count).reshape(draws, count)
    return np.asarray(np.abs(gaps).sum(1) / images)


def ece_gap(candidate: SplitAnswers, champion: SplitAnswers, draws: int = 2000) -> tuple[float, float, float]:
    """The candidate's calibration error minus the champion's, and its 90 % interval by a bootstrap over the common images.

    Drawing images again makes a calibration error larger, most of all a small one. So the drawn differences are mirrored about the real one
    (the basic bootstrap). With 270 images and a true difference of 0.01, the lower end was above 0.01 in 1 to 9 of 100 simulations.
    """
    assert candidate.images == champion.images
    rng = np.random.default_rng(0)
    gap = candidate.ece - champion.ece
    drawn: list[float] = []
    for _ in range(math.ceil(draws / 100)):
        chosen = rng.integers(0, candidate.images, (100, candidate.images))
        ours, theirs = (_ece(answers.confidence[chosen], answers.correct[chosen]) for answers in (candidate, champion))
        drawn += (ours - theirs).tolist()
    low, high = np.quantile(drawn, [0.05, 0.95])
    return gap, 2 * gap - float(high), 2 * gap - float(low)


def corruption_drop(candidate: SplitAnswers, champion: SplitAnswers) -> tuple[float, float, float]:
    """The champion's mean corrupted accuracy minus the candidate's, and its 90 % interval over the common images.

    It uses the corruptions that were tried with both models. The corrupted copies of an image are not independent, so each image counts
    once: by the share of its copies that a model recognised.
    """
    shared = [name for name in candidate.corrupted if name in champion.corrupted]
    assert shared and candidate.images == champion.images
    ours, theirs = (np.mean([answers.corrupted[name] == answers.labels for name in shared], axis=0) for answers in (candidate, champion))
    drops = theirs - ours
    half = 1.645 * float(drops.std(ddof=1)) / math.sqrt(len(drops)) if len(drops) > 1 else math.inf
    return float(drops.mean()), float(drops.mean()) - half, float(drops.mean()) + half


@torch.inference_mode()
def classify_split(
    served: ServedModel,
    split: Split | StreamedSplit,
    corruptions: Sequence[Corruption] = (),
    batch_size: int = EVALUATED_AT_ONCE,
    *,
    probabilities: bool = False,
) -> SplitAnswers:
    """Classify the images of a split, and once more for each corruption.

    It runs in eval mode and float32, in the same batches as vit.evaluation.evaluate.

    Args:
        served: on the split's device. probabilities: whether to keep those of all classes.
    """
    model, normalisation = served.model.eval(), served.normalisation
    parts = torch.arange(len(split)).split(batch_size)

    def logits(kind: Corruption | None) -> tuple[Tensor, Tensor]:
        outputs, labels = [], []
        for part, (images, part_labels) in zip(parts, split.batches(parts), strict=True):
            images = images if kind is None else corrupted(images, kind, part)
            outputs.append(model(augment.normalise(images, normalisation.mean, normalisation.std)))
            labels.append(part_labels)
        return torch.cat(outputs), torch.cat(labels)

    clean, labels = logits(None)
    chances = clean.double().softmax(1)
    classes = clean.shape[1]
    truth = F.one_hot(labels, classes)
    return SplitAnswers(
        classes=served.classes,
        labels=labels.cpu().numpy(),
        predictions=clean.argmax(1).cpu().numpy(),
        label_nll=F.cross_entropy(clean.double(), labels, reduction="none").cpu().numpy(),
        confidence=chances.amax(1).cpu().numpy(),
        loss=float(F.cross_entropy(clean, labels)),
        brier=float(((chances - truth) ** 2).sum(1).mean()),
        corrupted={kind: logits(kind)[0].argmax(1).cpu().numpy() for kind in corruptions},
        top5=(clean.topk(5).indices == labels[:, None]).any(1).cpu().numpy() if classes >= 5 else None,
        probabilities=chances.cpu().numpy() if probabilities else None,
    )
