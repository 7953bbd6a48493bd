"""Full fine-tuning as you write it with timm: its model with a backbone's weights, its AdamW with layer decay, its schedule and Mixup.

Only what reads and moves images is ours, and the number format, so that they make no difference.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion_halves import BACKBONE, RECIPE
from safetensors.torch import save_file
from timm import create_model
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from vit_search.config.data_config import DataConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split
from vit_search.runtime import machine
from vit_search.seeds import derive_seed
from vit_search.vit import augment, pretrained
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.inherit import inherit
from vit_search.vit.model import ViT

TAKES = (
    "drop_path",
    "lr",
    "weight_decay",
    "layer_decay",
    "batch_size",
    "label_smoothing",
    "flip",
    "shift",
    "crop_scale",
    "mixup",
    "cutmix",
)
"""Keys of the recipe that full fine-tuning with timm knows. Where the recipe searches them, timm alone searches the same range."""

NAMES = (
    ("encoder.", ""),
    ("attention.qkv", "attn.qkv"),
    ("attention.projection", "attn.proj"),
    ("mlp.up", "mlp.fc1"),
    ("mlp.down", "mlp.fc2"),
    ("positions", "pos_embed"),
    ("embed.weight", "patch_embed.proj.weight"),
    ("embed.bias", "patch_embed.proj.bias"),
)
"""Ours, theirs."""


OUR_FORMAT = TrialConfig(data=DataConfig(name="fashion_mnist"), model=BACKBONE, training=RECIPE, seed=0)
"""A training of ours. timm's calculates in the number format that this one has."""


def tuned(
    params: Mapping[str, Any], weights: Path, train: Split, val: Split, epochs: int, plain: Normalisation, seed: int
) -> Iterator[tuple[float, nn.Module]]:
    """Fine-tune the whole model. Each epoch gives the validation accuracy and the model; a loss that is not finite ends it.

    Args:
        params: values of TAKES.
        weights: of a backbone, for which `write_for_timm` was called. plain: how its images are normalised.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # Mixup draws from it
    device, classes, smoothing = train.labels.device, len(train.classes), params["label_smoothing"]
    model = timm_model(timm_file(weights), params["drop_path"])
    model.reset_classifier(classes)
    model.to(device)
    rates = {"lr": params["lr"], "weight_decay": params["weight_decay"], "layer_decay": params["layer_decay"]}
    optimiser = create_optimizer_v2(model, "adamw", **rates, fused=True)
    steps = epochs * math.ceil(len(train) / params["batch_size"])
    schedule = CosineLRScheduler(optimiser, steps, warmup_t=max(1, steps // 10), warmup_lr_init=1e-5, t_in_epochs=False)
    mixes = params["mixup"] or params["cutmix"]
    mixup = Mixup(params["mixup"], params["cutmix"], label_smoothing=smoothing, num_classes=classes) if mixes else None
    moves = replace(RECIPE, **{name: params[name] for name in ("flip", "shift", "crop_scale")})
    half = machine.autocast_type(OUR_FORMAT, device)
    step = 0
    for epoch in range(1, epochs + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        order = torch.randperm(len(train), generator=generator)[: len(train) // 2 * 2]  # Mixup takes even numbers alone
        model.train()
        for raw, labels in train.batches(order.split(params["batch_size"])):
            images = augment.normalise(augment.moved(raw, moves, generator), plain.mean, plain.std)
            images, targets = (images, labels) if mixup is None else mixup(images, labels)
            optimiser.zero_grad()
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                loss = F.cross_entropy(model(images), targets, label_smoothing=smoothing if mixup is None else 0.0)
            if not loss.isfinite():
                return
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            schedule.step_update(step)
        yield evaluate(model, val, plain).accuracy, model


def normalisation_of_backbone(weights: Path, device: torch.device) -> Normalisation:
    """Mean and standard deviation that come with the weights; both sides take them."""
    given = pretrained.load(weights)[0].normalisation(BACKBONE.in_channels)
    assert given is not None, "our checkpoints say them"
    return Normalisation.of(*given, device)


def timm_file(weights: Path) -> Path:
    """Where the backbone lies as timm would have saved it."""
    return weights.with_name("timm.safetensors")


def write_for_timm(weights: Path) -> None:
    """Save our backbone under timm's names."""
    _, ours = pretrained.load(weights)
    patch = (BACKBONE.in_channels, BACKBONE.patch_size, BACKBONE.patch_size)
    ours["embed.weight"] = ours["embed.weight"].unflatten(1, patch).contiguous()
    fresh = timm_file(weights).with_suffix(f".{os.getpid()}")
    save_file({renamed(name): weight for name, weight in ours.items()}, fresh)
    fresh.rename(timm_file(weights))


def renamed(name: str) -> str:
    """One of our names as timm's."""
    for before, after in NAMES:
        name = name.replace(before, after)
    return name


def timm_model(file: Path, drop_path: float = 0.0) -> nn.Module:
    """timm's Vision Transformer with a backbone's weights, its head included."""
    model: nn.Module = create_model(
        "vit_tiny_patch16_224",
        checkpoint_path=str(file),
        img_size=BACKBONE.image_size,
        in_chans=BACKBONE.in_channels,
        num_classes=BACKBONE.num_classes,
        patch_size=BACKBONE.patch_size,
        embed_dim=BACKBONE.dim,
        depth=BACKBONE.depth,
        num_heads=BACKBONE.heads,
        mlp_ratio=BACKBONE.mlp_ratio,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        drop_path_rate=drop_path,
    )
    return model


def difference_of_logits(weights: Path, images: Tensor) -> float:
    """The largest difference between timm's logits and ours, in float64, with the backbone's own head."""
    backbone, state = pretrained.load(weights)
    ours = ViT(BACKBONE)
    ours.load_state_dict(inherit(state, backbone, BACKBONE, backbone.classes))
    with torch.inference_mode():
        theirs = timm_model(timm_file(weights)).double().eval()(images.double())
        return float((ours.double().eval()(images.double()) - theirs).abs().max())
