"""A search file that searches nothing: one trial's configuration written out, so that it can be read, kept and trained again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_search.config import search_file
from vit_search.config.class_weights import by_class
from vit_search.config.model_config import FROM_DATA
from vit_search.config.search_file import BACKBONE_KEYS, TRIALS_APART
from vit_search.config.space import path_of
from vit_search.config.trial import TrialConfig
from vit_search.errors import SpecError
from vit_search.planning.next_search_file import flow


@dataclass(frozen=True)
class FixedFile:
    """A search file with a value for each parameter."""

    text: str
    same: bool
    """Whether `vit-search train` makes of it the very configuration that it was written from."""


def fixed_file(config: TrialConfig, *, name: str, about: Sequence[str], rest: Mapping[str, Any]) -> FixedFile:
    """Write a trial's configuration as a search file.

    A search gives its trial n the seed `seed * TRIALS_APART + n`, so only that of a trial 0 can be told by a file's `seed`; a
    model that was promoted has such a one.

    Args:
        about: lines of a comment at its head. rest: further keys of a search file, as metric, mode, train_on, resources.
    """
    data, shape, training = (_values(part) for part in (config.data, config.model, config.training))
    if config.data.channels == type(config.data).channels:
        data.pop("channels")  # of an image folder alone
    if config.model.pretrained:  # a key that is left out would be that of the weights
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
    except SpecError:  # written by another version, whose bounds were wider
        return FixedFile(text, same=False)
    return FixedFile(text, again == config)


def check_fixed(spec: search_file.SearchSpec, source: str) -> None:
    """Refuse a file that searches something.

    Raises: SpecError that names the first key with a distribution.
    """
    for name in spec.space.searched:
        raise SpecError(f"{source}: {path_of(name)}: searched, and one fixed configuration is trained; give it a value.")


def _values(config: Any) -> dict[str, Any]:
    """All fields but those that are null by default and still are."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in fields.items() if value is not None or defaults[name] is not None}
