"""Which trainings run the frozen parts of their model once and keep the output: without torch. vit/features.py does it.

The output of frozen parts for an image is called its features. They are the same in every epoch and in every trial with the same
backbone, as long as the image is the same. So random changes of the images limit what can be kept.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from vit_search.config.cost import FLOAT_BYTES
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.tuning import Tuning

MOVES = ("crop_scale", "shift", "flip", "auto_augment", "rand_augment_ops", "rand_augment_magnitude")
"""Fields of TrainingConfig that change single images. A few versions of each image can be kept."""

MIXES = ("erasing", "mixup", "cutmix")
"""Fields that change normalised images, most of them by mixing two. Then nothing is kept."""

FIELDS = ("feature_views", *MOVES, *MIXES)
"""Fields of TrainingConfig that decide whether features are kept, beside those of config/tuning.py."""

_OTHERS = (
    *("num_classes", "depth", "pretrained", "init", "pos_init_std", "drop_path"),
    *("dropout", "embedding_dropout", "attention_dropout", "projection_dropout", "mlp_dropout"),
)
"""Fields of ModelConfig that make no difference to features: the number of frozen parts and their weights count in their stead."""


def views_of(model: ModelConfig, training: TrainingConfig) -> int:
    """How many versions of each training image have features that are kept; 0 if the training runs the whole model in each step."""
    enough_is_frozen = training.tuning.frozen_parts(model.depth) > 1  # more than the embedding: with tune: head or last_blocks
    if not (model.pretrained and enough_is_frozen) or any(getattr(training, name) for name in MIXES):
        return 0
    if not is_augmented(training):
        return min(1, training.feature_views)
    return training.feature_views if training.feature_views > 1 else 0


def is_augmented(training: TrainingConfig) -> bool:
    """Whether single images are changed at random."""
    return training.crop_scale < 1 or bool(training.shift) or training.flip or training.auto_augment != "none"


def moves_of(training: TrainingConfig, *, cropped: bool) -> TrainingConfig:
    """The settings for changing single images; without the crop if they come cropped."""
    return replace(training, crop_scale=1.0) if cropped else training


def view_of_epoch(epoch: int, views: int) -> int:
    """Which version an epoch trains on: one after the other, from the unchanged images (0) in the first epoch."""
    return (epoch - 1) % views


def augmentation_of_view(training: TrainingConfig, view: int) -> dict[str, Any]:
    """The settings from which a version is made; none for the unchanged images."""
    return {name: getattr(training, name) for name in MOVES} if view else {}


def is_pooled(model: ModelConfig, tuning: Tuning) -> bool:
    """Whether features are the head's input, one vector of an image. Otherwise they are tokens."""
    return tuning.frozen_parts(model.depth) > model.depth + 1


def shape_of_image(model: ModelConfig, tuning: Tuning) -> tuple[int, ...]:
    """The shape of an image's features: (dim,) or (tokens, dim), float32."""
    return (model.dim,) if is_pooled(model, tuning) else (model.tokens, model.dim)


def bytes_of_image(model: ModelConfig, training: TrainingConfig) -> int:
    """What the features of an image take that a training reads; 0 if it reads none."""
    if not views_of(model, training):
        return 0
    return FLOAT_BYTES * model.dim * (1 if is_pooled(model, training.tuning) else model.tokens)


def frozen_model(model: ModelConfig, tuning: Tuning) -> dict[str, Any]:
    """What decides, beside the weights, what the frozen parts do."""
    fields = {name: value for name, value in vars(model).items() if name not in _OTHERS}
    return fields | {"parts": tuning.frozen_parts(model.depth)}


def shared_by(model: ModelConfig, training: TrainingConfig) -> str:
    """A text that is the same for trainings of one search that read the same features; empty if this one reads none."""
    views = views_of(model, training)
    if not views:
        return ""
    source = {"pretrained": model.pretrained, "depth": model.depth, "augmentation": augmentation_of_view(training, views - 1)}
    return json.dumps(source | {"views": views} | frozen_model(model, training.tuning), sort_keys=True)
