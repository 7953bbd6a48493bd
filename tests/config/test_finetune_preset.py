"""The preset for pretrained weights: published ranges for the training, and nothing for the shape, which is the backbone's."""

import random

import pytest

from vit_search.config import search_file

HEAD = "name: t\ndata: {name: cifar10}\ntrials: 2\nepochs: 10\npreset: finetune\n"
WEIGHTS = "model: {pretrained: a.safetensors}\n"


def searched(text):
    return search_file.parse(HEAD + text).space.searched


def test_it_searches_the_training_and_leaves_the_shape_to_the_backbone():
    spec = search_file.parse(HEAD + WEIGHTS)
    assert set(spec.space.searched) == {"lr", "layer_decay", "weight_decay", "drop_path", "mixup", "cutmix"}
    assert "depth" in spec.left_to_backbone and "dim" in spec.left_to_backbone
    assert (spec.training.optimizer, spec.training.tune, spec.training.batch_size) == ("adamw", "full", 32)


@pytest.mark.parametrize(
    "published",
    [
        {"lr": 1e-4, "layer_decay": 0.9, "weight_decay": 1e-3, "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0},  # AutoGluon's defaults
        {"layer_decay": 0.65, "weight_decay": 0.05, "drop_path": 0.1, "mixup": 0.8, "cutmix": 1.0},  # MAE's ViT-B
        {"layer_decay": 0.75, "weight_decay": 0.05, "drop_path": 0.2, "mixup": 0.8, "cutmix": 1.0},  # MAE's ViT-L
    ],
)
def test_published_fine_tunings_lie_in_its_ranges(published):
    space = searched(WEIGHTS)
    assert {name: space[name].fault(value) for name, value in published.items()} == dict.fromkeys(published)


def test_what_the_file_writes_wins_over_the_preset():
    spec = search_file.parse(HEAD + "model: {pretrained: a.safetensors, drop_path: 0.1}\ntraining: {lr: 0.0002, flip: true}\n")
    assert (spec.model.drop_path, spec.training.lr, spec.training.flip) == (0.1, 0.0002, True)


def test_the_head_alone_gets_no_ranges_for_blocks_and_none_that_mixes_images():
    assert set(searched(WEIGHTS + "training: {tune: head}\n")) == {"lr", "weight_decay"}


def test_the_head_among_other_ways_gets_these_ranges_under_a_condition():
    text = WEIGHTS + "training: {tune: {choice: [head, full]}}\n"
    space, rng = search_file.parse(HEAD + text).space, random.Random(0)
    drawn = [space.draw(rng) for _ in range(100)]
    assert {params["tune"] for params in drawn} == {"head", "full"}
    others = {"layer_decay", "drop_path", "mixup", "cutmix"}
    for params in drawn:
        assert others & set(params) == (others if params["tune"] == "full" else set())
    assert all(space.complete(params)["layer_decay"] == 1.0 for params in drawn if params["tune"] == "head")


def test_the_whole_preset_is_in_what_is_logged_and_reads_back_as_the_same_space():
    spec = search_file.parse(HEAD + WEIGHTS)
    dumped = spec.model_dump(mode="json", by_alias=True)
    assert dumped["training"]["layer_decay"] == {"float": [0.6, 0.9], "step": None, "log": False}
    again = search_file.SearchSpec.model_validate(dumped)
    assert again.space == spec.space
    assert search_file.parse(again.text).space == spec.space


def test_a_random_start_may_be_one_of_its_choices():
    assert searched("model: {pretrained: {choice: ['', a.safetensors]}}\n")["pretrained"].choice == ["", "a.safetensors"]
