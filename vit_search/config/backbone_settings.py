"""Read the settings beside pretrained weights: the config.json of transformers, timm or vit_search, and preprocessor_config.json.

Keys that a Vision Transformer does not need are ignored. The weights file may hold the same texts in its metadata, as `vit-search
convert-weights` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vit_search.config.strict_json import parse

FILES = {"config": "config.json", "preprocessor_config": "preprocessor_config.json"}
"""Files beside the weights, by their keys in the metadata."""

LONGEST = 10_000_000
"""Largest settings file that is read, in bytes. The names of 21,841 classes take less than one million."""

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers for resampling filters, as preprocessor_config.json has them."""

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": None, "swiglu": "swiglu"}
"""Our name for each `hidden_act` of transformers. silu is used in a gated MLP, which shows in the weights."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Facts from the files beside the weights; None if they do not state it."""

    architecture: str = ""
    dim: int | None = None
    heads: int | None = None
    in_channels: int | None = None
    image_size: tuple[int, int] | None = None
    positions: str | None = None
    rope_base: float | None = None
    activation: str | None = None
    norm_eps: float | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    licence: str | None = None
    data_hash: str = ""
    trained_on: tuple[str, ...] = ()


def read_settings(folder: Path, metadata: Mapping[str, str]) -> Settings:
    """Read the settings of the weights in a folder.

    Args:
        metadata: of the weights file. A text in it replaces the file in the folder.
    Raises: ValueError if a file is damaged, or describes a model that is not supported.
    """
    settings = Settings()
    for key, name in FILES.items():
        values = _document(key, metadata, folder / name)
        if values is None:
            continue
        try:
            settings = _preprocessor(values, settings) if key != "config" else _config(values)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"{name}: {type(error).__name__} ({error}); use the {name} of these weights.") from None
    return settings


def _document(key: str, metadata: Mapping[str, str], path: Path) -> dict[str, Any] | None:
    try:
        if key in metadata:
            text: str | bytes = metadata[key]
        elif path.is_file():
            if path.stat().st_size > LONGEST:
                raise ValueError(f"{path.name}: larger than {LONGEST:,} bytes; use the {path.name} of these weights.")
            text = path.read_bytes()
        else:
            return None
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read ({error.strerror}); give this account the right to read it.") from None
    try:
        values = parse(text)
    except ValueError as error:
        raise ValueError(f"{path.name}: no JSON ({error}); use the {path.name} of these weights, or remove it.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name}: no mapping; use the {path.name} of these weights, or remove it.")
    return values


def _config(values: dict[str, Any]) -> Settings:
    if "model_type" in values:
        return _of_transformers(values)
    if "architecture" in values:
        return _of_timm(values)
    if isinstance(values.get("config"), dict) and "model" in values["config"]:
        return _of_ours(values)
    return Settings()


ROTARY = ("dinov3_vit",)
"""Values of transformers' `model_type` whose models have rotary positions."""

KNOWN = ("vit", "deit", "dinov2", "dinov2_with_registers", *ROTARY)


def _of_transformers(values: dict[str, Any]) -> Settings:
    kind = values["model_type"]
    if kind not in KNOWN:
        raise ValueError(f"config.json: model_type {kind!r} is not supported; choose from {', '.join(KNOWN)}.")
    act = values.get("hidden_act", "gelu")
    if act not in ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act {act!r} is not supported; choose from {', '.join(ACTIVATIONS)}.")
    names = values.get("id2label") or {}
    classes = tuple(str(names[str(i)]) for i in range(len(names)))
    invented = all(name == f"LABEL_{i}" for i, name in enumerate(classes))
    default_eps = {"vit": 1e-12, "deit": 1e-12, "dinov3_vit": 1e-5}.get(kind, 1e-6)  # a config.json may leave defaults out
    return Settings(
        architecture=kind,
        dim=_count(values.get("hidden_size")),
        heads=_count(values.get("num_attention_heads")),
        in_channels=_count(values.get("num_channels")),
        image_size=_size(values.get("image_size")),
        positions="rope" if kind in ROTARY else "learned",
        rope_base=_number(values.get("rope_theta")) if kind in ROTARY else None,
        activation=ACTIVATIONS[act],
        norm_eps=_number(values.get("layer_norm_eps", default_eps)),
        classes=None if invented else classes,
    )


def _of_timm(values: dict[str, Any]) -> Settings:
    name = str(values["architecture"])
    pretrained, model = values.get("pretrained_cfg") or values, values.get("model_args") or {}  # older files have all keys in one mapping
    size = pretrained.get("input_size") or [None, None, None]
    act = model.get("act_layer", "gelu")
    if act not in ACTIVATIONS:
        raise ValueError(f"config.json: act_layer {act!r} is not supported; choose from {', '.join(ACTIVATIONS)}.")
    names = values.get("label_names") or pretrained.get("label_names")
    return Settings(
        architecture=name,
        dim=_count(values.get("num_features")),
        heads=_count(model.get("num_heads")),
        in_channels=_count(model.get("in_chans") or size[0]),
        image_size=_size(model.get("img_size") or size[1:]),
        positions="rope" if "dinov3" in name else "learned",
        activation=ACTIVATIONS[act],
        norm_eps=1e-5 if "dinov3" in name else None,
        classes=tuple(map(str, names)) if names else None,
        mean=_numbers(pretrained.get("mean")),
        std=_numbers(pretrained.get("std")),
        interpolation=_text(pretrained.get("interpolation")),
        licence=_text(pretrained.get("license")),
    )


def _of_ours(values: dict[str, Any]) -> Settings:
    model, normalisation = values["config"]["model"], values.get("normalisation") or {}
    return Settings(
        dim=_count(model["dim"]),
        heads=_count(model["heads"]),
        in_channels=_count(model["in_channels"]),
        image_size=_size(model["image_size"]),
        positions=model["positions"],
        rope_base=_number(model.get("rope_base")) if model["positions"] == "rope" else None,
        activation=model["activation"],
        norm_eps=_number(model.get("norm_eps")),
        classes=tuple(map(str, values["classes"])),
        mean=_numbers(normalisation.get("mean")),
        std=_numbers(normalisation.get("std")),
        data_hash=_text(values.get("data_hash")) or "",
        trained_on=tuple(map(str, values.get("trained_on") or ())),
    )


def _preprocessor(values: dict[str, Any], settings: Settings) -> Settings:
    """Add to the settings how transformers prepares an image for the model."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if values.get("do_normalize") is not False:
        mean, std = _numbers(values.get("image_mean")) or (0.0,), _numbers(values.get("image_std")) or (1.0,)
    crop = values.get("crop_size") if values.get("do_center_crop") else None
    size = _size(crop) or _size(values.get("size")) or settings.image_size
    return replace(settings, mean=mean, std=std, image_size=size, interpolation=RESAMPLING.get(values.get("resample", -1)))


def _count(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"config.json: {value!r} where a whole number of at least 1 belongs; use the config.json of these weights.")
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"config.json: {value!r} where a number of at least 0 belongs; use the config.json of these weights.")
    return float(value)


def _numbers(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    numbers = tuple(float(value) for value in (values if isinstance(values, list | tuple) else [values]))
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("config.json: mean or std is not finite; use the config.json of these weights.")
    return numbers


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width, written as 224, [224, 224], {height: 224, width: 224} or {shortest_edge: 224}."""
    if isinstance(value, dict):
        value = [value["height"], value["width"]] if "height" in value else value.get("shortest_edge")
    if isinstance(value, int):
        value = [value, value]
    if not isinstance(value, list | tuple) or len(value) != 2 or None in value:
        return None
    height, width = (_count(side) for side in value)
    return None if height is None or width is None else (height, width)
