"""Training with every feature on keeps the laws of training: resumed equals uninterrupted, served equals trained, memory is told truly."""

import dataclasses
import json
import logging
import math
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vit_search.config.cost import cost_of
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, training_weights
from vit_search.data.cache import prepare, read_split
from vit_search.runtime import machine
from vit_search.vit import augment, checkpoint, training
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.model import ViT
from vit_search.vit.optimizers import state_of
from vit_search.vit.schedule import lr_at
from vit_search.vit.training import DivergedError, fit, start

HALF = "bfloat16" if machine.native_bfloat16(torch.device("cpu")) else "float32"

PLAIN = TrialConfig(
    data=DataConfig(name="digits", train_limit=100),
    model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=16, heads=2, depth=2),
    training=TrainingConfig(epochs=1, batch_size=32, lr=3e-3, label_smoothing=0.0, clip_norm=None, precision="float32"),
    seed=1,
)
EVERYTHING = TrialConfig(
    data=PLAIN.data,
    model=dataclasses.replace(
        PLAIN.model, dropout=0.1, attention_dropout=0.2, drop_path=0.2, pool="cls", layer_scale=0.5, init="trunc_normal_02"
    ),
    training=TrainingConfig(
        epochs=3,
        batch_size=32,
        accumulation=3,
        lr=3e-3,
        clip_norm=0.5,
        label_smoothing=0.1,
        crop_scale=0.5,
        shift=1,
        flip=True,
        auto_augment="trivial_augment",
        erasing=0.5,
        mixup=0.4,
        cutmix=1.0,
        ema_decay=0.9,
        precision=HALF,
    ),
    seed=1,
)


def changed(config, *, model=None, seed=None, **fields):
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **(model or {})),
        training=dataclasses.replace(config.training, **fields),
        seed=config.seed if seed is None else seed,
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = prepare(PLAIN.data, cache=tmp_path_factory.mktemp("cache"))
    splits = {name: Split(*(torch.tensor(part) for part in read_split(data, name)), data.classes) for name in ("train", "val")}
    return splits["train"], splits["val"], Normalisation.of(data.mean, data.std)


def uneven(digits):
    """The same with two of the ten images of a 3, and one of a 7."""
    train, val, normalisation = digits
    kept = torch.ones(len(train), dtype=torch.bool)
    for label, count in ((3, 2), (7, 1)):
        kept[(train.labels == label).nonzero()[count:, 0]] = False
    return Split(train.images[kept], train.labels[kept], train.classes), val, normalisation


def weighted(digits, weights=None):
    """The same with a weight for each image: 0, 1, 2, 3, 0, 1, … before they are scaled."""
    train, val, normalisation = digits
    raw = np.arange(len(train)) % 4 if weights is None else np.asarray(weights)
    scaled = training_weights(raw.astype(float))
    return dataclasses.replace(train, weights=None if scaled is None else torch.from_numpy(scaled)), val, normalisation


def numbers(results):
    """What must be equal: all but how long it took and how much memory the process holds."""
    timing = ("seconds", "images_per_s", "peak_memory_bytes")
    return [{k: v for k, v in dataclasses.asdict(r).items() if k not in timing} for r in results]


def bits(state):
    """All tensors that a training has."""
    models = [state.model] if state.average is None else [state.model, state.average]
    kept = [state_of(state.optimiser, p) for p in state.model.parameters() if p.requires_grad]
    moments = [one[name] for one in kept for name in sorted(one)]
    return [tensor.clone() for model in models for tensor in model.state_dict().values()] + moments


def same_bits(first, second):
    return all(torch.equal(a, b) for a, b in zip(bits(first), bits(second), strict=True))


def trained(config, digits, epochs=None):
    train, val, normalisation = digits
    state = start(config, normalisation)
    for _ in zip(range(epochs or config.training.epochs), fit(state, train, val), strict=False):
        pass
    return state


def gradients_of_each_step(state, digits):
    """Gradients as the optimiser sees them, one flat tensor a step."""
    seen = []
    state.optimiser.register_step_pre_hook(lambda *_: seen.append(torch.cat([p.grad.flatten() for p in state.model.parameters()])))
    list(fit(state, digits[0], digits[1]))
    return seen


# Same seed, same numbers


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"auto_augment": "rand_augment"},
        {"precision": "float32"},
        {"precision": "float16"},
        {"optimizer": "muon"},
        {"optimizer": "sgd"},
        {"tune": "head"},
        {"tune": "last_blocks", "layer_decay": 0.7, "head_lr_factor": 5.0},
        {"tune": "last_blocks", "tuned_blocks": 2, "optimizer": "muon", "precision": "float16"},
        {"tune": "lora", "lora_rank": 2, "lora_layers": "all", "layer_decay": 0.7, "head_lr_factor": 5.0},
        {"tune": "lora", "lora_rank": 2, "optimizer": "muon", "ema_decay": None},
        {"layer_decay": 0.7, "head_lr_factor": 5.0, "optimizer": "sgd"},
        {"sampling": "balanced", "loss": "focal"},
        {"class_weights": "balanced"},
        {"class_weights": '{"3": 5.0}', "loss": "logit_adjusted"},
        {"class_weights": "balanced", "sampling": "balanced", "loss": "focal", "weighted": True},
    ],
    ids=str,
)
def test_with_every_feature_on_resumed_equals_uninterrupted_to_the_bit(digits, tmp_path, fields):
    config = changed(EVERYTHING, **{name: value for name, value in fields.items() if name != "weighted"})
    digits = uneven(digits) if {"sampling", "loss", "class_weights"} & fields.keys() else digits
    digits = weighted(digits) if "weighted" in fields else digits
    train, val, normalisation = digits
    whole = trained(config, digits)
    state = start(config, normalisation)
    for epoch in (1, 2, 3):  # saved, killed and loaded after each epoch
        next(fit(state, train, val))
        checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
        torch.manual_seed(epoch)  # another process has another global state
        state = checkpoint.load_training(tmp_path / "c", config)
    assert numbers(state.history) == numbers(whole.history)
    assert same_bits(state, whole)
    assert state.scaler.state_dict() == whole.scaler.state_dict()


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_scale": 1.0},
        {"shift": 0},
        {"flip": False},
        {"auto_augment": "none"},
        {"erasing": 0.0},
        {"mixup": 0.0},
        {"cutmix": 0.0},
        {"label_smoothing": 0.0},
        {"clip_norm": None},
        {"ema_decay": None},
        {"weight_decay": 0.0},
        {"beta2": 0.9},
        {"optimizer": "muon"},
        {"optimizer": "sgd"},
        {"layer_decay": 0.9},
        {"head_lr_factor": 3.0},
        {"tune": "lora"},
        {"tune": "lora", "lora_alpha": 16.0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_feature_is_really_on(digits, fields):
    without = changed(EVERYTHING, **fields)
    assert numbers(trained(without, digits, 1).history) != numbers(trained(EVERYTHING, digits, 1).history)


@pytest.mark.parametrize(
    "fields",
    [
        {"class_weights": "balanced"},
        {"class_weights": '{"3": 5.0}'},
        {"sampling": "balanced"},
        {"loss": "focal"},
        {"loss": "focal", "focal_gamma": 1.0},
        {"loss": "logit_adjusted"},
        {"loss": "logit_adjusted", "logit_tau": 0.5},
    ],
    ids=str,
)
def test_what_is_done_for_classes_of_different_size_changes_the_training(digits, fields):
    digits = uneven(digits)
    others = [EVERYTHING, changed(EVERYTHING, **{name: value for name, value in fields.items() if name in ("loss", "sampling")})]
    found = numbers(trained(changed(EVERYTHING, **fields), digits, 1).history)
    assert all(found != numbers(trained(other, digits, 1).history) for other in others if other != changed(EVERYTHING, **fields))


@pytest.mark.parametrize("fields", [{"compile": True}, {"cuda_graphs": True}, {"compile": True, "cuda_graphs": True}, {"tf32": False}])
def test_what_is_for_gpus_changes_nothing_on_a_cpu(digits, fields):
    first, second = trained(EVERYTHING, digits, 1), trained(changed(EVERYTHING, **fields), digits, 1)
    assert numbers(first.history) == numbers(second.history)
    assert same_bits(first, second)


def test_the_first_weights_come_from_the_seed_alone_and_leave_the_global_generator_alone(digits):
    torch.manual_seed(7)
    first = start(EVERYTHING, digits[2])
    after = torch.rand(2)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(2), after)
    assert same_bits(first, start(EVERYTHING, digits[2]))
    assert not same_bits(first, start(changed(EVERYTHING, seed=2), digits[2]))


def test_an_epoch_has_an_order_of_its_own_and_sees_every_image_once(digits):
    train, val, normalisation = digits

    class Recorded(Split):
        def batches(self, parts, seed=None, crop_scale=1.0):
            orders.append(torch.cat(list(parts)).tolist())
            return super().batches(parts, seed, crop_scale)

    orders = []
    list(fit(start(changed(PLAIN, epochs=2), normalisation), Recorded(train.images, train.labels), val))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))


# Optimiser


@pytest.mark.parametrize("accumulation", [2, 3, 32])
def test_accumulated_gradients_are_those_of_the_whole_batch(digits, accumulation):
    whole = gradients_of_each_step(start(PLAIN, digits[2]), digits)
    parts = gradients_of_each_step(start(changed(PLAIN, accumulation=accumulation), digits[2]), digits)
    assert len(whole) == len(parts) == 4  # 100 images in batches of 32, the last of 4 images
    assert torch.linalg.vector_norm(whole[0] - parts[0]) < 1e-6 * torch.linalg.vector_norm(whole[0])
    for a, b in zip(whole, parts, strict=True):  # later steps start from weights that differ in their last bits
        assert torch.linalg.vector_norm(a - b) < 1e-3 * torch.linalg.vector_norm(a)


def test_accumulation_mixes_within_the_whole_batch_and_tells_the_same_loss(digits):
    config = changed(EVERYTHING, model={"dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}, precision="float32", epochs=1)
    one, many = (trained(changed(config, accumulation=n), digits).history[0] for n in (1, 5))
    assert many.train_loss == pytest.approx(one.train_loss, rel=1e-5)
    assert many.val_loss == pytest.approx(one.val_loss, rel=1e-4)


def test_the_gradient_is_that_of_the_mean_cross_entropy_of_the_batch(digits):
    train, _, normalisation = digits
    state = start(changed(PLAIN, batch_size=100, label_smoothing=0.2), normalisation)
    images = augment.normalise(train.images, normalisation.mean, normalisation.std)
    soft = F.one_hot(train.labels, 10) * 0.8 + 0.02  # a fifth of the target spread over ten classes
    loss = -(soft * state.model(images).log_softmax(1)).sum(1).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(state.model.parameters()))])
    (seen,) = gradients_of_each_step(state, digits)
    assert torch.linalg.vector_norm(seen - expected) < 1e-5 * torch.linalg.vector_norm(expected)
    assert state.history[0].train_loss == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("fields", [{"class_weights": '{"3": 5.0}'}, {"loss": "focal"}, {"loss": "logit_adjusted"}], ids=str)
def test_accumulated_gradients_of_each_loss_are_those_of_the_whole_batch(digits, fields):
    """With weights, too, since a batch is divided by its images."""
    whole = gradients_of_each_step(start(changed(PLAIN, **fields), digits[2]), digits)
    parts = gradients_of_each_step(start(changed(PLAIN, accumulation=5, **fields), digits[2]), digits)
    assert torch.linalg.vector_norm(whole[0] - parts[0]) < 1e-5 * torch.linalg.vector_norm(whole[0])


@pytest.mark.parametrize("fields", [{"class_weights": '{"3": 1.0}'}, {"loss": "focal", "focal_gamma": 0.0}], ids=str)
def test_a_loss_without_strength_trains_as_plain_cross_entropy(digits, fields):
    plain, same = (trained(changed(PLAIN, **others), digits) for others in ({}, fields))
    assert same.history[0].train_loss == pytest.approx(plain.history[0].train_loss, rel=1e-5)
    assert same.history[0].val_loss == pytest.approx(plain.history[0].val_loss, rel=1e-3)


@pytest.mark.parametrize("fields", [{"class_weights": "balanced"}, {"loss": "focal"}, {"loss": "logit_adjusted"}], ids=str)
def test_the_validation_loss_is_plain_cross_entropy_whatever_is_trained_with(digits, fields):
    train, val, normalisation = digits
    few = Split(train.images[train.labels < 2], train.labels[train.labels < 2])
    state = start(changed(PLAIN, **fields), normalisation)
    (result,) = fit(state, few, val)
    state.model.eval()
    with torch.no_grad():
        logits = state.model(augment.normalise(val.images, normalisation.mean, normalisation.std))
    assert result.val_loss == pytest.approx(float(F.cross_entropy(logits, val.labels)), rel=1e-5)


def test_the_images_of_an_epoch_are_balanced_by_the_seed_of_the_epoch(digits):
    (split, val, normalisation), shown = uneven(digits), []

    class Watched:
        labels, weights, classes, cropped, __len__ = split.labels, None, (), False, lambda self: len(split)

        def batches(self, parts, seed, crop_scale):
            shown.append(torch.cat(list(parts)))
            return split.batches(parts)

    state = start(changed(PLAIN, sampling="balanced", epochs=2), normalisation)
    list(fit(state, Watched(), val))
    for order in shown:
        counts = torch.bincount(split.labels[order])
        assert counts.max() - counts.min() <= 1
        assert len(order) == len(split)
    assert not torch.equal(*shown)


# Weights of images


@pytest.mark.parametrize("fields", [{}, {"sampling": "balanced"}, {"class_weights": "balanced"}, {"loss": "logit_adjusted"}], ids=str)
def test_an_image_of_weight_0_is_as_if_it_were_not_there(digits, fields):
    train, val, normalisation = digits
    config = changed(EVERYTHING, epochs=2, precision="float32", **fields)
    all_weights = np.arange(len(train)) % 4
    kept = torch.from_numpy(all_weights > 0)
    fewer = Split(train.images[kept], train.labels[kept], train.classes)
    first = trained(config, weighted(digits, all_weights))
    second = trained(config, weighted((fewer, val, normalisation), all_weights[all_weights > 0]))
    assert same_bits(first, second)
    assert numbers(first.history) == numbers(second.history)


def test_equal_weights_are_a_training_without_weights_to_the_bit(digits):
    assert same_bits(trained(EVERYTHING, weighted(digits, [0.1] * 100), 1), trained(EVERYTHING, digits, 1))


def test_weights_change_the_training_and_not_the_validation_loss(digits):
    first, second = (trained(PLAIN, one) for one in (digits, weighted(digits)))
    assert first.history[0].train_loss != second.history[0].train_loss
    _, val, normalisation = digits
    expected = evaluate(second.outcome, val, normalisation)
    assert second.history[0].val_loss == pytest.approx(expected.loss, rel=1e-6)
    weighing_val = evaluate(second.outcome, dataclasses.replace(val, weights=torch.arange(len(val)).float()), normalisation)
    assert (weighing_val.loss, weighing_val.scores) == (expected.loss, expected.scores)


def test_the_gradients_of_an_epoch_s_batches_have_the_weighted_mean_of_all_images_as_their_mean(digits):
    """Batches of equal size whose weights differ: divided by its own weights, each batch would count the same."""
    train, _, normalisation = digits
    raw = np.where(np.arange(100) < 50, 0.5, 4.0)  # 25 and 200 in all
    split, *_ = weighted(digits, raw)
    state = start(PLAIN, normalisation)
    images = augment.normalise(train.images, normalisation.mean, normalisation.std)
    of_each = F.cross_entropy(state.model(images), train.labels, reduction="none").detach()
    expected = float((of_each * torch.from_numpy(raw)).sum() / raw.sum())
    parts = torch.arange(100).split(20)
    losses = [state.loss(state.model(images[part]), augment.Targets(train.labels[part]).weighted(split.weights[part])) for part in parts]
    assert sum(map(float, losses)) / 5 == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_weighted_epoch_is_the_weighted_mean(digits):
    train, val, normalisation = digits
    raw = np.arange(100) % 4
    state = start(changed(PLAIN, batch_size=100), normalisation)
    images = augment.normalise(train.images, normalisation.mean, normalisation.std)
    with torch.no_grad():
        of_each = F.cross_entropy(state.model(images), train.labels, reduction="none")
    (result,) = fit(state, weighted(digits, raw)[0], val)
    assert result.train_loss == pytest.approx(float((of_each * torch.from_numpy(raw)).sum() / raw.sum()), rel=1e-5)


@pytest.mark.parametrize("fields", [{}, {"mixup": 0.5, "label_smoothing": 0.1}, {"loss": "focal", "class_weights": "balanced"}], ids=str)
def test_accumulated_gradients_of_weighted_images_are_those_of_the_whole_batch(digits, fields):
    whole = gradients_of_each_step(start(changed(PLAIN, **fields), digits[2]), weighted(digits))
    parts = gradients_of_each_step(start(changed(PLAIN, accumulation=5, **fields), digits[2]), weighted(digits))
    assert len(whole) == 3  # 75 images have a weight above 0
    assert torch.linalg.vector_norm(whole[0] - parts[0]) < 1e-5 * torch.linalg.vector_norm(whole[0])


def test_clipping_scales_gradients_down_to_its_norm_and_keeps_their_direction(digits):
    free = gradients_of_each_step(start(PLAIN, digits[2]), digits)
    bound = float(torch.linalg.vector_norm(free[0])) / 10
    clipped = gradients_of_each_step(start(changed(PLAIN, clip_norm=bound), digits[2]), digits)
    assert all(float(torch.linalg.vector_norm(g)) <= bound * (1 + 1e-5) for g in clipped)
    assert torch.allclose(clipped[0], free[0] / 10, rtol=1e-4, atol=1e-9)
    loose = gradients_of_each_step(start(changed(PLAIN, clip_norm=1e6), digits[2]), digits)
    assert torch.allclose(loose[0], free[0], rtol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_weight_decay_shrinks_matrices_and_nothing_else(digits, pool):
    config = changed(EVERYTHING, model={"pool": pool}, weight_decay=0.3)
    state = start(config, digits[2])
    names = {id(p): name for name, p in state.model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in state.optimiser.param_groups)
    assert [group["weight_decay"] for group in state.optimiser.param_groups] == [0.3, 0.0]
    assert decayed | others == set(names.values())
    assert not decayed & others
    block = [
        f"encoder.blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attention.qkv", "attention.projection", "mlp.up", "mlp.down")
    ]
    assert decayed == {"embed.weight", "head.weight", *block}
    assert {"positions", "head.bias", "encoder.norm.weight", "encoder.blocks.0.norm1.weight", "encoder.blocks.1.scale2.factor"} <= others
    assert ("cls_token" in others) == (pool == "cls")


def test_a_step_is_adamw_s_by_hand(digits):
    config = changed(PLAIN, batch_size=100, epochs=1, lr=0.01, weight_decay=0.5, beta2=0.95, warmup_fraction=0.0)
    state = start(config, digits[2])
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    (flat,) = gradients_of_each_step(state, digits)
    sizes = [p.numel() for p in before.values()]
    for (name, old), gradient in zip(before.items(), flat.split(sizes), strict=True):
        new = dict(state.model.named_parameters())[name].detach()
        shrunk = old * (1 - 0.01 * 0.5) if old.ndim == 2 else old  # positions have three axes
        # both moments, corrected for their start, are the gradient and its square
        assert torch.allclose(new, shrunk - 0.01 * gradient.view_as(old) / (gradient.view_as(old).abs() + 1e-8), atol=1e-6)


def test_a_step_of_sgd_is_by_hand_a_step_against_nesterov_s_gradient(digits):
    config = changed(PLAIN, optimizer="sgd", batch_size=100, epochs=1, lr=0.1, weight_decay=0.5, momentum=0.9, warmup_fraction=0.0)
    state = start(config, digits[2])
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    (flat,) = gradients_of_each_step(state, digits)
    for (name, old), gradient in zip(before.items(), flat.split([p.numel() for p in before.values()]), strict=True):
        new = dict(state.model.named_parameters())[name].detach()
        decayed = gradient.view_as(old) + (0.5 * old if old.ndim == 2 else 0)
        assert torch.allclose(new, old - 0.1 * 1.9 * decayed, atol=1e-6)  # the first momentum is the gradient itself


def test_muon_moves_the_matrices_of_the_blocks_by_steps_of_equal_size_and_adamw_all_else(digits):
    config = changed(PLAIN, optimizer="muon", batch_size=100, epochs=1, lr=0.01, weight_decay=0.0, warmup_fraction=0.0)
    adamw, muon = (start(changed(config, optimizer=name), digits[2]) for name in ("adamw", "muon"))
    before = {name: p.detach().clone() for name, p in muon.model.named_parameters()}
    gradients_of_each_step(adamw, digits), gradients_of_each_step(muon, digits)
    others = dict(adamw.model.named_parameters())
    for name, p in muon.model.named_parameters():
        if name.startswith("encoder.blocks.") and p.ndim == 2:
            step = ((p - before[name]).detach() / 0.01).pow(2).mean().sqrt()
            assert 0.1 < float(step) < 0.3, name  # 0.2, the root mean square of AdamW's steps, as far as Newton-Schulz comes near it
        else:
            assert torch.equal(p, others[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_an_optimizer_keeps_as_many_bytes_as_the_cost_model_says_and_learns(digits, optimizer):
    config = changed(PLAIN, optimizer=optimizer, epochs=3, lr=0.1 if optimizer == "sgd" else 3e-3)
    state = trained(config, digits)
    kept = [value for p in state.model.parameters() for name, value in state_of(state.optimiser, p).items() if name != "step"]
    assert sum(value.nbytes for value in kept) == cost_of(config.model, 1, optimizer).optimizer_bytes
    assert state.history[-1].val_loss < state.history[0].val_loss


# The average


def test_the_average_follows_the_weights_with_a_decay_that_grows_from_a_tenth(digits):
    config = changed(PLAIN, ema_decay=0.3, epochs=2)
    state = start(config, digits[2])
    after = []
    state.optimiser.register_step_post_hook(lambda *_: after.append([p.detach().clone() for p in state.model.parameters()]))
    averages = [p.detach().clone() for p in state.model.parameters()]
    list(fit(state, digits[0], digits[1]))
    assert len(after) == 8
    for step, weights in enumerate(after):
        decay = [0.1, 2 / 11, 3 / 12, 0.3, 0.3, 0.3, 0.3, 0.3][step]  # (1 + step) / (10 + step), at most 0.3
        averages = [decay * a + (1 - decay) * w for a, w in zip(averages, weights, strict=True)]
    for ours, by_hand in zip(state.average.parameters(), averages, strict=True):
        assert torch.allclose(ours, by_hand, atol=1e-6)
        assert not ours.requires_grad


def test_with_an_average_that_is_what_is_validated_saved_and_served(digits, tmp_path):
    _, val, normalisation = digits
    state = trained(EVERYTHING, digits, 2)
    assert state.outcome is state.average
    assert evaluate(state.average, val, normalisation).loss == state.history[-1].val_loss
    assert evaluate(state.model, val, normalisation).loss != state.history[-1].val_loss
    checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
    checkpoint.copy_for_serving(tmp_path / "c", tmp_path / "served")
    images = augment.normalise(val.images[:50], normalisation.mean, normalisation.std)
    state.outcome.eval()
    for folder in ("c", "served"):
        served = checkpoint.load_model(tmp_path / folder)
        with torch.inference_mode():
            assert torch.equal(served.model(images), state.outcome(images))
            assert not torch.equal(served.model(images), state.model.eval()(images))
    assert not (tmp_path / "served" / checkpoint.OPTIMISER).exists()


def test_a_disk_without_room_for_a_checkpoint_is_an_os_error_and_leaves_the_one_before(digits, tmp_path):
    state = start(EVERYTHING, digits[2])
    told = {"classes": tuple("0123456789"), "data_hash": "h"}
    checkpoint.save(tmp_path / "c", state, **told)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores SIGXFSZ, so a write fails as on a full disk
    try:
        with pytest.raises(OSError, match="cannot be written"):
            checkpoint.save(tmp_path / "c", state, **told)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert same_bits(checkpoint.load_training(tmp_path / "c", EVERYTHING), state)


# Half precision


def test_float16_on_a_cpu_trains_with_scaled_gradients_near_to_float32(digits):
    config = changed(PLAIN, epochs=3)
    wide, half = trained(config, digits), trained(changed(config, precision="float16"), digits)
    assert half.scaler.is_enabled()
    assert not wide.scaler.is_enabled()
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    for a, b in zip(wide.history, half.history, strict=True):
        assert b.train_loss == pytest.approx(a.train_loss, rel=0.05)


def test_a_float16_step_that_overflows_is_left_out_and_the_scale_halved(digits):
    config = changed(PLAIN, precision="float16", batch_size=100)
    state = start(config, digits[2])
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = [p.detach().clone() for p in state.model.parameters()]
    (result,) = fit(state, digits[0], digits[1])
    assert math.isfinite(result.train_loss)
    assert state.scaler.get_scale() == 2.0**59
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision_is_of_the_matrix_products_of_training_and_validation_is_as_served(digits, precision):
    logits, tokens = [], []
    state = start(changed(PLAIN, precision=precision), digits[2])
    state.model.head.register_forward_hook(lambda head, inputs, out: logits.append((head.training, out.dtype)))
    state.model.encoder.register_forward_hook(lambda _, inputs, out: tokens.append(inputs[0].dtype))
    next(fit(state, digits[0], digits[1]))
    assert set(logits) == {(True, getattr(torch, precision)), (False, torch.float32)}
    assert set(tokens) == {torch.float32}  # the residual stream


def test_auto_is_bfloat16_where_the_machine_has_it_and_the_step_is_large(monkeypatch):
    small, large, cpu = changed(PLAIN, precision="auto"), changed(PLAIN, model={"dim": 512}, precision="auto"), torch.device("cpu")
    monkeypatch.setattr(machine, "native_bfloat16", lambda device: True)
    assert [machine.autocast_type(config, cpu) for config in (small, large)] == [None, torch.bfloat16]
    monkeypatch.setattr(machine, "native_bfloat16", lambda device: False)
    assert machine.autocast_type(large, cpu) is None


# Results


class Table(nn.Module):
    """Logits by the value of an image's first pixel."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, images):
        return self.rows[(images[:, 0, 0, 0] * 255).round().long()]


def told(rows, labels, batch_size=512):
    split = Split(torch.arange(len(rows), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels))
    return evaluate(Table(rows), split, Normalisation.of((0.0,), (1.0,)), batch_size)


def test_a_model_is_told_by_hand():
    rows = [[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [0.0] * 5 + [1]]
    result = told(rows, [0, 4, 5, 5])  # first, fifth, sixth of six, first
    assert result.accuracy == 0.5
    assert result.top5_accuracy == 0.75
    assert result.predictions.tolist() == [0, 0, 0, 5]
    ladder = math.log(sum(math.exp(n) for n in range(1, 7)))
    flat = math.log(5 + math.e)
    assert result.loss == pytest.approx((ladder - 6 + ladder - 2 + ladder - 1 + flat - 1) / 4, rel=1e-6)
    assert told(rows, [0, 4, 5, 5], batch_size=3).loss == pytest.approx(result.loss, rel=1e-6)


def test_top5_needs_five_classes():
    assert told([[1.0, 2, 3, 4]], [3]).top5_accuracy is None
    assert told([[1.0, 2, 3, 4, 5]], [0]).top5_accuracy == 1.0


def test_a_result_has_every_field_in_its_unit(digits):
    config = changed(EVERYTHING, epochs=2)
    first, second = trained(config, digits).history
    assert (first.epoch, second.epoch) == (1, 2)
    assert second.lr == lr_at(7, 8, config.training)  # of the last of eight steps
    assert 0 <= first.val_accuracy <= first.val_top5_accuracy <= 1
    assert first.val_accuracy * len(digits[1]) == pytest.approx(round(first.val_accuracy * len(digits[1])), abs=1e-3)
    assert 0 < 100 / first.images_per_s < first.seconds < 60  # training is a part of the epoch
    assert 50 * 2**20 < first.peak_memory_bytes < 64 * 2**30


def test_a_set_that_no_batch_size_divides_is_counted_whole(digits):
    train, val, normalisation = digits
    split = Split(train.images[:33], train.labels[:33])  # a last batch of one image
    state = start(changed(EVERYTHING, epochs=1), normalisation)
    (result,) = fit(state, split, val)
    assert math.isfinite(result.train_loss)
    assert 0 <= result.train_accuracy <= 1
    wide = start(changed(EVERYTHING, epochs=1, batch_size=4096), normalisation)  # more than there are
    assert math.isfinite(next(fit(wide, split, val)).val_loss)


# Divergence


def poisoned(digits, step, value):
    """A training whose weights get a bad value after a step, counted from 1."""
    state = start(changed(PLAIN, epochs=2), digits[2])
    count = iter(range(1, 100))

    def poison(*_):
        if next(count) == step:
            with torch.no_grad():
                state.model.head.bias[3] = value

    state.optimiser.register_step_post_hook(poison)
    return state


@pytest.mark.parametrize(
    ("step", "value", "where"),
    [
        (2, math.nan, "the loss is nan in epoch 1, step 3 of 4"),
        (3, math.inf, "the loss is nan in epoch 1, step 4 of 4"),
        (4, math.nan, "the validation loss is nan after epoch 1"),
        (6, math.nan, "the loss is nan in epoch 2, step 3 of 4"),
        (2, -math.inf, "the loss is inf in epoch 1, step 3 of 4"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_training_at_once_and_says_where(digits, step, value, where):
    state = poisoned(digits, step, value)
    with pytest.raises(DivergedError, match=f"^{where}$"):
        list(fit(state, digits[0], digits[1]))
    assert state.epoch == step // 5  # whole epochs of four steps, the validation of each included


def test_the_loss_of_an_exploding_training_is_refused_or_finite(digits):
    state = start(changed(PLAIN, lr=10.0, epochs=5, weight_decay=10.0), digits[2])
    try:
        for result in fit(state, digits[0], digits[1]):
            assert math.isfinite(result.train_loss)
            assert math.isfinite(result.val_loss)
    except DivergedError as error:
        assert re.search(r"loss is (nan|inf)", str(error))


# Memory

STEP = """
import json, logging, os, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vit_search.errors import OutOfMemoryError
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.config.cost import cost_of, in_units
from vit_search.data.batches import Split
from vit_search.vit.training import fit, start
from vit_search.vit.evaluation import Normalisation

model = ModelConfig(image_size=(32, 32), in_channels=3, num_classes=10, patch_size=4, dim=16, heads=1, depth=2, mlp_dim=1024)
def config(batch_size):
    training = TrainingConfig(epochs=2, batch_size=batch_size, precision="float32")
    return TrialConfig(data=DataConfig(name="cifar10"), model=model, training=training, seed=0)
normalisation = Normalisation.of((0.5,) * 3, (0.25,) * 3)
images = torch.randint(0, 256, (256, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
train, val = Split(images, torch.arange(256) % 10), Split(images[:8], torch.arange(8))
list(fit(start(config(4), normalisation), Split(images[:4], torch.arange(4)), val))  # loads what is loaded at first use
first = start(config(256), normalisation).accumulation
need, halved = (cost_of(model, 256 // first // n).train_bytes for n in (1, 2))

def limited(share):
    "Two epochs of one step of 256 images each in a process of its own, with a share of the bytes that they need."
    said = []
    class Told(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())
    logging.getLogger("vit_search").addHandler(Told())
    if share is not None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + int(need * share), resource.RLIM_INFINITY))
    state = start(config(256), normalisation)
    try:
        results = fit(state, train, val)
        first = next(results)
        second = next(results)
        outcome = {"losses": [first.train_loss, second.train_loss], "head": state.model.head.bias.tolist()}
    except OutOfMemoryError as error:
        outcome = {"error": str(error)}
    return outcome | {"said": said, "accumulation": state.accumulation, "epoch": state.epoch}

print(json.dumps({"micro_batches": first, "needs": [in_units(need), in_units(halved)]}))
for share in (None, 0.8, 0.3):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(limited(share)).encode())
        os._exit(0)
    os.close(write)
    print(os.read(read, 65536).decode())
    os.waitpid(child, 0)
"""


def test_a_step_that_does_not_fit_is_tried_once_more_at_half_the_size_and_no_further():
    run = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=False, timeout=1800)
    assert run.returncode == 0, run.stderr
    plan, free, tight, hopeless = (json.loads(line) for line in run.stdout.splitlines())
    parts, (whole, half) = plan["micro_batches"], plan["needs"]
    size = 256 // parts
    assert (free["said"], free["accumulation"]) == ([], parts)
    assert (tight["accumulation"], tight["epoch"]) == (2 * parts, 2)
    assert tight["losses"] == pytest.approx(free["losses"], rel=1e-4)  # the same batch, in halves
    assert tight["head"] == pytest.approx(free["head"], abs=1e-4)
    (said,) = tight["said"]  # once; the second epoch goes on in halves
    seen = rf"{whole} predicted for {size} images, [\d.,]+ [MG]iB free"
    assert re.fullmatch(rf"a training step did not fit into memory: {seen}; going on with {2 * parts} micro-batches a step\.", said)
    assert (hopeless["epoch"], len(hopeless["said"])) == (0, 1)
    seen = rf"{half} predicted for {size // 2} images, [\d.,]+ [MG]iB free"
    told = rf"a training step did not fit into memory, nor did it at half the size: {seen}; lower batch_size or dim\."
    assert re.fullmatch(told, hopeless["error"])


def test_micro_batches_halved_for_memory_stay_halved_after_a_resume(digits, tmp_path, caplog):
    train, val, normalisation = digits
    whole = start(changed(PLAIN, epochs=2), normalisation)
    whole.accumulation = 2  # as after a step that did not fit
    next(fit(whole, train, val))
    checkpoint.save(tmp_path / "c", whole, classes=tuple("0123456789"), data_hash="h")
    resumed = checkpoint.load_training(tmp_path / "c", changed(PLAIN, epochs=2))
    assert resumed.accumulation == 2
    list(fit(whole, train, val))
    list(fit(resumed, train, val))
    assert same_bits(whole, resumed)


def out_of_memory_once_at(monkeypatch, state, failures):
    """Forward passes that fail as torch does, by their number."""
    count = iter(range(100))
    forward = type(state.model).forward

    def scarce(self, images, mask=None):
        if self.training and next(count) in failures:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return forward(self, images, mask)

    monkeypatch.setattr(type(state.model), "forward", scarce)


def test_a_second_shortage_ends_the_training(digits, monkeypatch, caplog):
    state = start(PLAIN, digits[2])
    out_of_memory_once_at(monkeypatch, state, {1, 5})  # in the second step; and in the third, in halves already
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            training.OutOfMemoryError, match=r"did not fit into memory: .* predicted for 16 images, .* free; lower batch_size or dim\.$"
        ),
    ):
        next(fit(state, *digits[:2]))
    assert len(caplog.messages) == 1


def test_a_batch_of_one_image_that_does_not_fit_is_not_halved(digits, monkeypatch, caplog):
    state = start(changed(PLAIN, batch_size=1), digits[2])
    out_of_memory_once_at(monkeypatch, state, {0})
    with pytest.raises(training.OutOfMemoryError, match="predicted for 1 image,"):
        next(fit(state, *digits[:2]))
    assert caplog.messages == []


def test_another_error_is_not_taken_for_a_shortage(digits, monkeypatch):
    state = start(PLAIN, digits[2])
    monkeypatch.setattr(type(state.model), "forward", lambda *_: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        next(fit(state, *digits[:2]))
    assert state.accumulation == 1


def test_a_shortage_beside_the_steps_is_told_in_one_line_too(digits, monkeypatch):
    def scarce(*_):
        raise RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in …")

    monkeypatch.setattr(augment, "normalise", scarce)
    told = r"^an epoch did not fit into memory: .* predicted for 32 images, .* free; lower batch_size or dim\.$"
    with pytest.raises(training.OutOfMemoryError, match=told):
        next(fit(start(PLAIN, digits[2]), *digits[:2]))


@pytest.mark.parametrize(
    "said", ["could not create a primitive", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
)
def test_other_libraries_word_a_shortage_of_memory_in_their_own_way(said):
    assert machine.out_of_memory(RuntimeError(said))


def test_a_validation_that_does_not_fit_into_memory_is_done_in_smaller_batches(digits, monkeypatch):
    train, val, normalisation = digits
    whole = next(fit(start(PLAIN, normalisation), train, val))
    forward = ViT.forward

    def scarce(self, images, mask=None):
        if len(images) > 40:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return forward(self, images, mask)

    monkeypatch.setattr(ViT, "forward", scarce)
    result = next(fit(start(PLAIN, normalisation), train, val))
    assert result.val_loss == pytest.approx(whole.val_loss, rel=1e-5)
