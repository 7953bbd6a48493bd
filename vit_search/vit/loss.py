"""The loss of a training: cross-entropy, focal or logit-adjusted, with weights of classes and images. Evaluation does not use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vit_search.config import class_weights
from vit_search.config.training_config import TrainingConfig
from vit_search.vit.augment import Targets


@dataclass(frozen=True)
class Loss:
    """Mean loss of a batch, from its logits and targets.

    Its tensors are made once per training and stay on the device, so that a step waits for nothing.
    """

    label_smoothing: float
    weights: Tensor | None = None
    """(classes,), how much an image of each class counts; None: all the same."""
    gamma: float | None = None
    """Exponent of the focal loss; None for another loss."""
    adjustment: Tensor | None = None
    """(classes,), added to the logits; None for nothing."""

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """The sum of the weighted losses, divided by the number of images. So a batch in parts has the gradient of the whole.

        It is not divided by the sum of the weights: an image would then count less beside images with large weights. The weights have mean
        1 over an epoch, so on average a batch has the gradient of the weighted mean over all images. If two images are mixed, each label
        has its own loss and weights, multiplied by its share of the image.

        Args:
            logits: (batch, classes), float32.
        """
        if self.adjustment is not None:
            logits = logits + self.adjustment
        if targets.others is None or targets.share is None:
            if self.weights is None and targets.weights is None and self.gamma is None and self.adjustment is None:
                return F.cross_entropy(logits, targets.labels, label_smoothing=self.label_smoothing)
            return self._of(logits, targets.labels, targets.weights).mean()
        of_own_label = self._of(logits, targets.labels, targets.weights)
        of_other_label = self._of(logits, targets.others, targets.other_weights)
        return (targets.share * of_own_label + (1 - targets.share) * of_other_label).mean()

    def _of(self, logits: Tensor, labels: Tensor, of_images: Tensor | None) -> Tensor:
        """(batch,), the loss of each image, multiplied by the weights of its class and of the image."""
        if self.gamma is not None:
            losses = focal(logits, labels, self.gamma, self.label_smoothing)
        elif self.adjustment is not None:
            losses = smoothed(logits, labels, self.label_smoothing, self.adjustment.softmax(0))
        else:
            losses = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.weights is not None:
            losses = losses * self.weights[labels]
        return losses if of_images is None else losses * of_images


def loss_of(config: TrainingConfig, labels: Tensor, classes: Sequence[str], num_classes: int, image_weights: Tensor | None = None) -> Loss:
    """Make the loss of a training.

    Args:
        labels: (n,), of all training images, on the training device.
        classes: their names; used only for weights by name.
        num_classes: logits of the model.
        image_weights: (n,), of the same images, with mean 1. The size of a class is then the sum of its weights.
    Raises: SpecError for the weight of a class that does not exist.
    """
    weights = adjustment = None
    if config.class_weights != "none" or config.loss == "logit_adjusted":
        counts = torch.bincount(labels.cpu(), None if image_weights is None else image_weights.cpu().double(), num_classes)
        if config.class_weights == "balanced":
            weights = balanced_weights(counts)
        elif config.class_weights != "none":
            class_weights.check_classes([config.class_weights], classes)
            given = class_weights.by_class(config.class_weights)
            weights = torch.tensor([given.get(name, 1.0) for name in classes])
        if config.loss == "logit_adjusted":
            adjustment = log_prior_adjustment(counts, config.logit_tau)
    return Loss(
        label_smoothing=config.label_smoothing,
        weights=None if weights is None else weights.to(labels.device),
        gamma=config.focal_gamma if config.loss == "focal" else None,
        adjustment=None if adjustment is None else adjustment.to(labels.device),
    )


def balanced_weights(counts: Tensor) -> Tensor:
    """The weight of each class: images / (classes * images of the class). Its mean over all images is 1.

    Args:
        counts: (classes,), images of each class, or the sum of their weights. A class without images has weight 0, and does not count as a
            class.
    Returns: (classes,), float32. As `compute_class_weight("balanced", ...)` of scikit-learn.
    """
    there = counts > 0
    weights = counts.sum().double() / (there.sum() * torch.where(there, counts, 1))
    return (weights * there).float()


def log_prior_adjustment(counts: Tensor, tau: float) -> Tensor:
    """What the logit-adjusted loss adds to the logits: tau * log(share of the class among the images).

    Args:
        counts: (classes,), images of each class, or the sum of their weights. A class without images counts as one image, so that its
            logarithm is finite.
    Returns: (classes,), float32.
    Source: Menon et al. 2021, equation 10, https://arxiv.org/abs/2007.07314
    """
    return (tau * (torch.where(counts > 0, counts, 1).double() / counts.sum()).log()).float()


def smoothed(logits: Tensor, labels: Tensor, label_smoothing: float, shares: Tensor) -> Tensor:
    """Cross-entropy of adjusted logits, with label smoothing spread over the classes by their shares.

    Smoothing that is spread evenly keeps an image's adjusted logits too close together: frequent classes would lose to rare ones once the
    adjustment is removed. (Smoothing of 0.1 over ten classes allows a margin of ln 91, but an adjustment of 1:100 takes ln 100.)

    Args:
        logits: (batch, classes), adjusted.
        labels: (batch,).
        shares: (classes,), whose sum is 1.
    Returns: (batch,).
    """
    log_p = F.log_softmax(logits, 1)
    of_label = -log_p.gather(1, labels[:, None])[:, 0]
    return (1 - label_smoothing) * of_label - label_smoothing * (log_p * shares).sum(1)


def focal(logits: Tensor, labels: Tensor, gamma: float, label_smoothing: float) -> Tensor:
    """The focal loss of each image: -(1 - p)^gamma log p, where p is the probability of its label.

    With label smoothing, it is the sum of this term over all classes, each multiplied by its share of the target.

    Args:
        logits: (batch, classes).
        labels: (batch,).
    Returns: (batch,).
    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """
    log_p = F.log_softmax(logits, 1)
    missed = (-torch.expm1(log_p)).clamp(min=1e-8)  # 1 - p; at 0 the gradient of a power below 1 is not finite
    terms = -(missed**gamma) * log_p
    of_label = terms.gather(1, labels[:, None])[:, 0]
    return (1 - label_smoothing) * of_label + label_smoothing * terms.mean(1) if label_smoothing else of_label
