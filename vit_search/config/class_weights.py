"""The weight of each class in the loss, as a search file writes it: `none`, `balanced`, or a number for each class that it names.

A TrainingConfig holds one text, so that it can be searched, stored and compared like other values. Numbers by class are JSON in this text,
sorted by class.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_search.errors import SpecError

WORDS = ("none", "balanced")
"""Words that set the weights of all classes."""

LARGEST = 1e6
"""Largest weight of a class."""

SCHEMA = {
    "anyOf": [
        {"enum": list(WORDS)},
        {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": LARGEST}, "minProperties": 1},
    ]
}
"""JSON Schema of the key in a search file."""

SHOWN = 10
"""Classes that a message lists, at most."""


def as_text(value: Any) -> str:
    """Convert a search file's value to the text of a TrainingConfig.

    Args:
        value: a word, a mapping from class to weight, or such a text.
    Raises: ValueError that says what is wrong and how to fix it.
    """
    if isinstance(value, str) and value not in WORDS:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, str) and value in WORDS:
        return value
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{_short(value)} will not do; write none, balanced, or a weight for each class, as {{cat: 2, dog: 0.5}}")
    for name, weight in value.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or not 0 < weight <= LARGEST:
            raise ValueError(f"the weight of {name} is {_short(weight)}; give a number above 0, at most {LARGEST:,.0f}")
    return json.dumps({name: float(weight) for name, weight in value.items()}, sort_keys=True, ensure_ascii=False)


def fault(value: Any) -> str | None:
    """Why a value is not valid as class weights and how to fix it, or None."""
    try:
        as_text(value)
    except ValueError as error:
        return str(error)
    return None


def by_class(text: str) -> dict[str, float]:
    """The weight of each class in a text that `as_text` returned; empty for a word."""
    weights: dict[str, float] = {} if text in WORDS else json.loads(text)
    return weights


def check_classes(texts: Iterable[str], classes: Sequence[str]) -> None:
    """Reject weights of classes that the data does not have.

    Raises: SpecError that names the nearest class.
    """
    for name in (name for text in texts for name in by_class(text) if name not in classes):
        near = difflib.get_close_matches(name, classes, n=1)
        listed = ", ".join(classes[:SHOWN]) + (f", … {len(classes) - SHOWN} more" if len(classes) > SHOWN else "")
        mend = f"did you mean {near[0]}?" if near else f"choose from {listed}."
        raise SpecError(f"training.class_weights: the data has no class {name}; {mend}")


def with_texts(values: Any) -> Any:
    """Convert class weights to texts where no type does: under `else`, and in points to start with.

    Invalid weights stay as they are; later checks reject them.
    """
    if not isinstance(values, dict):
        return values
    training, points = values.get("training"), values.get("start_with")
    parameter = training.get("class_weights") if isinstance(training, dict) else None
    if isinstance(training, dict) and isinstance(parameter, dict) and is_choice(parameter):
        values = {**values, "training": {**training, "class_weights": with_text(parameter, "else")}}
    if isinstance(points, list):
        values = {**values, "start_with": [with_text(point, "class_weights") if isinstance(point, dict) else point for point in points]}
    return values


def is_choice(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is a distribution (`choice: [...]`), and not the weight of a class called `choice`."""
    return isinstance(value.get("choice"), list)


def with_text(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping in which the class weights under a key are a text, if they are valid."""
    with contextlib.suppress(ValueError):
        return {**values, key: as_text(values[key])} if key in values else dict(values)
    return dict(values)


def _short(value: Any) -> str:
    return value[:60] if isinstance(value, str) else json.dumps(value, default=str)[:60]
