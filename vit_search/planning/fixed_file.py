"""Writes a search file that searches nothing: the configuration of one trial, to read, keep and train again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vit_search.config import search_file
from vit_search.config.class_weights import by_class
from vit_search.config.model_config import FROM_DATA
from vit_search.config.search_file import BACKBONE_KEYS, TRIALS_APART
from vit_search.config.space import path_of
from vit_search.config.trial import TrialConfig
from vit_search.errors import SpecError
from vit_search.planning.next_search_file import flow
from vit_search.planning.space_findings import unused_keys


@dataclass(frozen=True)
class FixedFile:
    """A search file with a value for each parameter."""

    text: str
    same: bool
    """Whether `vit-search train` makes the original configuration from it. Values that have no effect need not be the same."""


def fixed_file(config: TrialConfig, *, name: str, about: Sequence[str], rest: Mapping[str, Any]) -> FixedFile:
    """Write a trial's configuration as a search file, without the keys that have no effect.

    Trial n of a search has the seed `seed * TRIALS_APART + n`. So the key `seed` can only give the seed of a trial 0. A promoted model has
    such a seed.

    Args:
        about: lines of a comment at the top.
        rest: further keys of a search file, such as metric, mode, train_on, resources.
    """
    data, shape, training = (_values(part) for part in (config.data, config.model, config.training))
    if config.data.channels == type(config.data).channels:
        data.pop("channels")  # only for image folders
    unused = _unused(config)
    shape, training = ({key: value for key, value in part.items() if key not in unused} for part in (shape, training))
    if config.model.pretrained:  # a key that is left out would take the value of the weights
        shape |= {key: getattr(config.model, key) for key in BACKBONE_KEYS}
    shape = {key: value for key, value in shape.items() if key not in FROM_DATA and (key, value) != ("pretrained", "")}
    training["class_weights"] = by_class(training["class_weights"]) or training["class_weights"]
    values: dict[str, Any] = {"name": name, "data": data, "trials": 1, "epochs": training.pop("epochs")}
    values |= {"stopping": {"kind": "none"}, "seed": config.seed // TRIALS_APART % 2**31, **rest}
    lines = [f"# {line}" for line in about] + [f"{key}: {flow(value)}" for key, value in values.items()]
    for key, part in (("model", shape), ("training", training)):
        lines += [f"{key}:", *(f"  {field}: {flow(value)}" for field, value in part.items())]
    text = "\n".join(lines) + "\n"
    model = config.model
    try:
        spec = search_file.parse(text)
        again = spec.trial_config({}, in_channels=model.in_channels, num_classes=model.num_classes, trial=0)
    except SpecError:  # another version with wider bounds wrote the configuration
        return FixedFile(text, same=False)
    return FixedFile(text, _without_unused(again) == _without_unused(config))


def _unused(config: TrialConfig) -> list[str]:
    return unused_keys(vars(config.model) | vars(config.training))


def _without_unused(config: TrialConfig) -> TrialConfig:
    """The configuration with the default of each key that has no effect."""
    unused = _unused(config)
    return replace(config, model=_with_defaults(config.model, unused), training=_with_defaults(config.training, unused))


def _with_defaults(part: Any, names: Sequence[str]) -> Any:
    return replace(part, **{field.name: field.default for field in dataclasses.fields(part) if field.name in names})


def check_fixed(spec: search_file.SearchSpec, source: str) -> None:
    """Check that a file searches nothing.

    Raises: SpecError with the first key that has a distribution.
    """
    for name in spec.space.searched:
        raise SpecError(f"{source}: {path_of(name)}: searched, and one fixed configuration is trained; give it a value.")


def _values(config: Any) -> dict[str, Any]:
    """All fields, except those that are null now and by default."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in fields.items() if value is not None or defaults[name] is not None}
