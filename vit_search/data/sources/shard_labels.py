"""Labels and weights of images in shards: read KEY.cls and KEY.json, and say what is wrong with them."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any

import numpy as np

from vit_search.data.sources.table_checks import MOST_DIGITS, as_weight, shortened
from vit_search.text import listed, nearest, plain

SHOWN = 80
"""Characters of a wrong value that a message shows."""


class LongNumber(str):
    """A number in a .json file that Python cannot read as one: it has too many digits, or is too large."""


def of_cls(content: bytes) -> int | str:
    """Read the label in a .cls file.

    Raises: ValueError that says what is wrong.
    """
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("its .cls is not UTF-8; write a number or a name.") from None
    if not text:
        raise ValueError("its .cls is empty; write a number or a name.")
    return int(text) if re.fullmatch(rf"-?[0-9]{{1,{MOST_DIGITS}}}", text) else _name(text)


def document_of(content: bytes) -> dict[str, Any]:
    """Read a .json file.

    Raises: ValueError that says what is wrong.
    """
    try:
        document = json.loads(content, parse_int=_whole, parse_float=_fraction)
    except (ValueError, RecursionError):
        raise ValueError("its .json is not JSON; write it anew.") from None
    if not isinstance(document, dict):
        raise ValueError('its .json has no keys; write it as {"label": …}.')
    return document


def label_in(document: dict[str, Any], key: str) -> int | str:
    """The label in a .json file.

    Raises: ValueError that says what is wrong.
    """
    label = _value(document, key, "label")
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int):
        return label
    if not isinstance(label, str) or not label.strip() or isinstance(label, LongNumber):
        raise ValueError(f"{key!r} in its .json is {_spelling(label)}; give a whole number or a name.")
    return _name(label.strip())


def weight_in(document: dict[str, Any], key: str) -> float:
    """The weight in a .json file: a number, or a text with a number. Programs that read CSV files write such texts.

    Raises: ValueError that says what is wrong.
    """
    value = _value(document, key, "weight")
    weight = as_weight(str(value).strip()) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    if weight is None:
        raise ValueError(f"{key!r} in its .json is {_spelling(value)}; give a finite number of at least 0.")
    return weight


def _whole(text: str) -> int | LongNumber:
    return int(text) if len(text) <= MOST_DIGITS else LongNumber(text)


def _fraction(text: str) -> float | LongNumber:
    value = float(text)
    return value if math.isfinite(value) else LongNumber(text)


def _spelling(value: Any) -> str:
    """A value in JSON's spelling; of a long one, the first characters."""
    text = str(value) if isinstance(value, LongNumber) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, LongNumber) and len(text) > SHOWN:
        return f"a number of {len(text):,} characters"
    return plain(text) if len(text) <= SHOWN else f"{plain(text[:SHOWN])}…"


def _value(document: dict[str, Any], key: str, what: str) -> Any:
    """The value of a key.

    Raises: ValueError that names the nearest key, or the keys that exist; see shard_problems.OF_FILE.
    """
    if document.get(key) is not None:
        return document[key]
    if key in document:
        raise ValueError(f"{key!r} in its .json is null; give the {what}.")
    names = [repr(name) for name in document]
    mend = nearest(repr(key), names)
    if mend.startswith("did"):
        raise ValueError(f"data.{what}: its .json has no {key!r}; {mend}")
    there = f", only {listed(names)}" if names else ""
    raise ValueError(f"data.{what}: its .json has no {key!r}{there}; name the key that holds the {what}.")


def _name(text: str) -> str:
    """Check that a label can be printed.

    Raises: ValueError.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise ValueError(f"its label {shortened(text)} cannot be printed; rename it.")
    return text


def numbered(labels: list[int | str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of all classes, sorted (numbers by size), and the class index of each image."""
    numbers = all(isinstance(label, int) for label in labels)
    values = sorted(set(labels)) if numbers else sorted({str(label) for label in labels})
    names = tuple(str(value) for value in values)
    index = {name: i for i, name in enumerate(names)}
    return names, np.array([index[str(label)] for label in labels], np.int64)
