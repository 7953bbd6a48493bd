"""Which trainings read the kept output of frozen parts, and what that saves."""

import dataclasses

import pytest

from vit_search.config import features, gpu_share
from vit_search.config.cost import cost_of, frozen_flops
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.tuning import Tuning

MODEL = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, dim=16, heads=2, depth=3, pool="cls", pretrained="w.safetensors")
HEAD = TrainingConfig(tune="head")


def views(training=None, model=None):
    return features.views_of(dataclasses.replace(MODEL, **(model or {})), TrainingConfig(**({"tune": "head"} | (training or {}))))


@pytest.mark.parametrize(
    ("training", "kept"),
    [
        ({}, 1),
        ({"tune": "last_blocks", "tuned_blocks": 2}, 1),
        ({"tune": "last_blocks", "tuned_blocks": 3}, 0),  # only the embedding is frozen
        ({"tune": "lora"}, 0),
        ({"tune": "full"}, 0),
        ({"feature_views": 0}, 0),
        ({"feature_views": 4}, 1),  # nothing changes the images, so all versions are the same
        ({"flip": True}, 0),  # each epoch augments anew
        ({"flip": True, "feature_views": 4}, 4),
        ({"shift": 1, "feature_views": 2}, 2),
        ({"crop_scale": 0.5, "feature_views": 2}, 2),
        ({"auto_augment": "rand_augment", "feature_views": 2}, 2),
        ({"mixup": 0.2, "feature_views": 4}, 0),
        ({"cutmix": 1.0, "feature_views": 4}, 0),
        ({"erasing": 0.1, "feature_views": 4}, 0),
    ],
    ids=str,
)
def test_features_are_kept_where_an_image_stays_the_same(training, kept):
    assert views(training) == kept


def test_features_of_random_weights_are_not_kept():
    """Each trial has other ones."""
    assert views(model={"pretrained": ""}) == 0


def test_the_epochs_take_turns_and_begin_with_the_unchanged_images():
    assert [features.view_of_epoch(epoch, 3) for epoch in range(1, 8)] == [0, 1, 2, 0, 1, 2, 0]
    assert features.augmentation_of_view(HEAD, 0) == {}
    assert features.augmentation_of_view(dataclasses.replace(HEAD, shift=2), 1)["shift"] == 2


def test_features_are_a_vector_for_the_head_and_tokens_for_blocks():
    blocks = Tuning(tune="last_blocks", tuned_blocks=1)
    assert features.shape_of_image(MODEL, Tuning(tune="head")) == (16,)
    assert features.shape_of_image(MODEL, blocks) == (5, 16)  # 2 x 2 patches and the class token
    assert features.bytes_of_image(MODEL, HEAD) == 64
    assert features.bytes_of_image(MODEL, TrainingConfig(tune="last_blocks")) == 320
    assert features.bytes_of_image(MODEL, TrainingConfig()) == 0


def test_what_is_left_after_the_frozen_parts_is_by_hand_the_head():
    cost = cost_of(MODEL, 1)
    assert cost.forward_flops - frozen_flops(MODEL, Tuning(tune="head")) == 2 * 16 * 10
    head = cost_of(MODEL, 1, tuning=Tuning(tune="head"))
    assert head.train_flops - frozen_flops(MODEL, Tuning(tune="head")) == 2 * 2 * 16 * 10  # forward, and the gradient of the weights
    one = cost_of(dataclasses.replace(MODEL, depth=2), 1).forward_flops
    assert frozen_flops(MODEL, Tuning(tune="last_blocks", tuned_blocks=1)) == one - 2 * 16 * 10
    assert frozen_flops(MODEL, Tuning()) == 0


@pytest.mark.parametrize(
    ("model", "training", "same"),
    [
        ({"dropout": 0.5, "drop_path": 0.1}, {"lr": 0.1, "batch_size": 7, "epochs": 3}, True),
        ({"pretrained": "other.safetensors"}, {}, False),
        ({"dim": 32}, {}, False),
        ({}, {"tune": "last_blocks"}, False),
        ({}, {"flip": True, "feature_views": 2}, False),
    ],
    ids=str,
)
def test_trials_share_features_whatever_their_learning_rate_is(model, training, same):
    other = features.shared_by(dataclasses.replace(MODEL, **model), dataclasses.replace(HEAD, **training))
    assert (other == features.shared_by(MODEL, HEAD)) == same
    assert features.shared_by(MODEL, TrainingConfig()) == ""


def test_a_head_on_features_needs_less_of_a_gpu_than_one_behind_its_backbone():
    large = dataclasses.replace(MODEL, image_size=(224, 224), in_channels=3, dim=384, heads=6, depth=12, patch_size=16)
    on_features, behind = (TrainingConfig(tune="head", batch_size=256, feature_views=kept) for kept in (1, 0))
    assert gpu_share.training_bytes(large, on_features) < gpu_share.training_bytes(large, behind)


def test_features_count_beside_the_images_where_both_lie_on_the_gpu():
    need = gpu_share.Need(training=0, images=40, features=25)
    assert gpu_share.resident_of(need, 100) == 65  # 40 is less than 50, and 25 less than 30
    assert gpu_share.resident_of(need, 90) == 40  # 25 is half of what is left
    assert gpu_share.resident_of(need, 60) == 25  # the images stay in main memory
