"""Words for pydantic's errors: what a key takes instead, and a value as the file writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_search.config.knobs import bounds_text
from vit_search.text import nearest

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
}
_BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}


def expected(error: Mapping[str, Any]) -> str:
    """What to write instead of a value that pydantic has rejected: `give a whole number.` or `did you mean asha?`."""
    kind = str(error["type"])
    if kind in _BOUNDS:
        (bound,) = [float(value) for value in error["ctx"].values() if isinstance(value, (int, float))]
        return f"give {bounds_text({_BOUNDS[kind]: bound})}."
    if kind == "literal_error":
        options = [text or number for text, number in re.findall(r"'([^']*)'|([0-9]+)", str(error["ctx"]["expected"]))]
        if options == ["auto"]:
            return "did you mean auto?" if nearest(str(error["input"]), options).startswith("did") else "give a number, or auto."
        return nearest(str(error["input"]), options)
    if kind.startswith(("dict", "model")):
        return "write `key: value` lines under it."
    word = next((text for name, text in _KINDS.items() if kind.startswith(name)), None)
    return f"give {word}." if word else "see `vit-search schema`."


def spelt(value: Any) -> str:
    """A value as the file writes it, at most 60 characters."""
    text = _flow(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _flow(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(map(_flow, value)) + "]" if isinstance(value, (list, tuple)) else repr(value)
