"""Presets: ranges from published trainings for the keys that a search file leaves out.

`tiny`, `small` and `base` train models from random weights. `finetune` trains models that start from pretrained weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_search.config.data_sets import DATA_SETS

TOKENS = (16, 256)
"""Smallest and largest number of patches per image. DeiT has 196; ViTs for CIFAR with patch size 4 have 64."""

_MODELS: dict[str, dict[str, Any]] = {  # each `heads` divides each `dim`; a head is 24 to 160 wide
    "tiny": {"dim": {"int": [144, 240], "step": 48}, "heads": {"choice": [3, 6]}, "drop_path": {"float": [0.0, 0.1]}},
    "small": {"dim": {"int": [288, 480], "step": 96}, "heads": {"choice": [3, 6, 12]}, "drop_path": {"float": [0.0, 0.2]}},
    "base": {"dim": {"int": [576, 960], "step": 192}, "heads": {"choice": [6, 12]}, "drop_path": {"float": [0.0, 0.4]}},
}
_TRAINING: dict[str, Any] = {
    "batch_size": 128,
    "lr": {"float": [1e-4, 2e-3], "log": True},
    "weight_decay": {"float": [0.01, 0.3], "log": True},
    "mixup": {"choice": [0.0, 0.2, 0.8]},
    "cutmix": {"choice": [0.0, 1.0]},
}

FINETUNE = "finetune"
"""The preset for models that start from pretrained weights."""

_FINETUNE: dict[str, dict[str, Any]] = {
    "model": {"drop_path": {"float": [0.0, 0.2]}},
    "training": {
        "lr": {"float": [1e-5, 1e-3], "log": True},
        "layer_decay": {"float": [0.6, 0.9]},
        "weight_decay": {"float": [1e-3, 0.1], "log": True},
        "mixup": {"choice": [0.0, 0.8]},
        "cutmix": {"choice": [0.0, 1.0]},
    },
}
"""The ranges contain two published fine-tunings.

AutoGluon's defaults (`optim/default.yaml` of its package multimodal): AdamW, lr 1e-4, layer decay 0.9, weight decay 0.001, 10 epochs, later
20. MAE's commands for timm's ViT-B and ViT-L: layer decay 0.65 and 0.75, weight decay 0.05, drop path 0.1 and 0.2, mixup 0.8, CutMix 1.
MAE's lr (2e-3 and 4e-3) is for batches of 1,024 images; with AdamW, smaller batches need less. MAE's drop path for
ViT-H (0.3) is outside the range.
Sources: https://github.com/autogluon/autogluon; K. He et al. 2022, https://github.com/facebookresearch/mae/blob/main/FINETUNE.md
"""

_NOT_FOR_HEADS = ("drop_path", "layer_decay", "mixup", "cutmix")
"""Keys that are left out if only the head is trained. The first two have no effect on it. With the others, features could not be kept."""

PRESETS = (*_MODELS, FINETUNE)


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the ranges of the preset to the values of a search file, for the keys that `model` and `training` leave out.

    `finetune` sets no shape: by default, a model has the shape of its backbone. In the other presets, dim, heads and depth are close to
    DeiT-Ti, DeiT-S and DeiT-B: dim 192, 384, 768; heads 3, 6, 12; depth 12; MLP 4 times as wide, which is our default too. The training is
    close to table 9 of the same paper (AdamW, weight decay 0.05, mixup 0.8, CutMix 1, drop path 0.1). Because most images here are smaller
    than ImageNet's, it also covers L. Beyer et al. (lr 1e-3, mixup 0.2). No preset sets flips and crops: they depend on the images.

    Raises: ValueError if no patch size cuts the image into a suitable number of patches.
    Source: H. Touvron et al. 2021, https://arxiv.org/abs/2012.12877; L. Beyer et al. 2022, https://arxiv.org/abs/2205.01580
    """
    preset, data = values.get("preset"), values.get("data")
    model, training = values.get("model", {}), values.get("training", {})
    if preset not in PRESETS or not all(isinstance(section, dict) for section in (data, model, training)):
        return dict(values)  # a later check reports the mistake
    if preset == FINETUNE:
        return {**values, **_finetune(model, training)}
    defaults: dict[str, Any] = {"depth": {"int": [8, 16], "step": 4}, **_MODELS[str(preset)]}
    size = _size(data or {})
    if size is not None and "patch_size" not in model:
        patches = patch_sizes(size)
        defaults["patch_size"] = {"choice": patches} if len(patches) > 1 else patches[0]
    return {**values, "model": {**defaults, **model}, "training": {**_TRAINING, **training}}


def _finetune(model: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections `model` and `training` with the ranges of `finetune`.

    Keys of _NOT_FOR_HEADS are left out with `tune: head`. If `head` is one of several choices, they get `when: tune != 'head'`.
    """
    tune = training.get("tune")
    ways = tune.get("choice") if isinstance(tune, dict) else [tune]
    filled = {"model": dict(model), "training": dict(training)}
    for section, ranges in _FINETUNE.items():
        for name, given in ranges.items():
            if name in filled[section] or (name in _NOT_FOR_HEADS and ways == ["head"]):
                continue
            conditional = name in _NOT_FOR_HEADS and isinstance(ways, list) and "head" in ways
            filled[section][name] = {**given, "when": "tune != 'head'"} if conditional else given
    return filled


def patch_sizes(image_size: tuple[int, int]) -> list[int]:
    """Patch sizes that cut an image into a suitable number of patches (TOKENS).

    Raises: ValueError if there is none.
    """
    height, width = image_size
    common = math.gcd(height, width)
    tokens = {p: height * width // p**2 for p in range(1, common + 1) if common % p == 0}
    sensible = [p for p, count in tokens.items() if TOKENS[0] <= count <= TOKENS[1]]
    if not sensible:
        raise ValueError(
            f"@preset@no patch size cuts {height}x{width} pixels into {TOKENS[0]} to {TOKENS[1]} patches; "
            "give model.patch_size, or a data.image_size that is a multiple of 8"
        )
    return sensible


def _size(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images, if the section `data` gives them; else None."""
    name, side = data.get("name"), data.get("image_size")
    facts = DATA_SETS.get(name) if isinstance(name, str) else None
    if facts is not None and facts.image_size is not None:
        return facts.image_size
    return (side, side) if isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= 1024 else None
