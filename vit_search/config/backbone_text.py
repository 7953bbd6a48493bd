"""Write pinned weights, and the values that a search file leaves to them, into its text. Everything else stays, comments too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

Edit = tuple[int, int, str]
"""(start, end, new text): replace these characters of the old text."""


def with_backbone(text: str, pins: Mapping[str, str], own: Mapping[str, Any]) -> str:
    """Write pins and values into the text of a valid search file with `model.pretrained`.

    Args:
        pins: the pinned source for each source. Points to start with, conditions and constraints that name a source are changed, too.
        own: keys to add to the section `model`, with their values.
    """
    root: Any = yaml.compose(text, yaml.SafeLoader)
    model = _below(root, "model")
    edits = list(_pinned(_below(model, "pretrained"), pins))
    for point in _items(_below(root, "start_with")):
        edits += _pinned(_below(point, "pretrained"), pins)
    for section in (model, _below(root, "training")):
        for _, value in section.value if section is not None else ():
            edits += _named(_below(value, "when"), pins)
    for rule in _items(_below(root, "constraints")):
        edits += _named(rule, pins)
    at = next(key for key, _ in model.value if key.value == "pretrained").start_mark
    between = ", " if model.flow_style else "\n" + " " * at.column
    edits.append((at.index, at.index, "".join(f"{key}: {json.dumps(value)}{between}" for key, value in own.items())))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _below(node: Any, key: str) -> Any:
    """The value under a key; None if there is none, or the node is not a mapping."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _items(node: Any) -> list[Any]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _pinned(node: Any, pins: Mapping[str, str]) -> Iterator[Edit]:
    """Edits of the sources in a value, in a list of choices, and under `else`."""
    if isinstance(node, yaml.ScalarNode):
        if node.value in pins:
            yield _edit(node, pins[node.value])
        return
    for value in (*_items(_below(node, "choice")), _below(node, "else")):
        yield from _pinned(value, pins) if isinstance(value, yaml.ScalarNode) else ()


def _named(node: Any, pins: Mapping[str, str]) -> Iterator[Edit]:
    """Edits of the sources that an expression compares with."""
    if isinstance(node, yaml.ScalarNode):
        changed = node.value
        for source, pin in pins.items():
            for quote in "'\"":
                changed = changed.replace(f"{quote}{source}{quote}", f"{quote}{pin}{quote}")
        if changed != node.value:
            yield _edit(node, changed)


def _edit(node: Any, value: str) -> Edit:
    return node.start_mark.index, node.end_mark.index, json.dumps(value, ensure_ascii=False)
