"""Fields of the config dataclasses: `knob` sets default, meaning and bounds in one place; the other functions read them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any, get_type_hints

from vit_search.errors import SpecError


def knob(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    late: bool = False,
) -> Any:
    """Make a dataclass field with its meaning and its bounds. `check_bounds` and the JSON Schema read them.

    Args:
        default: `...` for a required field.
        late: True for every field that is added after version 0.2. Hashes leave such a field out while it has its default, so that the
            hashes of older searches and models stay the same; see `hashed`.
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    metadata = {"doc": doc, "bounds": bounds, "late": late}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def bounds_text(bounds: dict[str, float]) -> str:
    """The bounds in words: `at least 1, at most 256`."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return ", ".join(f"{words[name]} {bound:.10g}" for name, bound in bounds.items())


def within(value: float, bounds: dict[str, float]) -> bool:
    """Whether a number is finite and inside its bounds."""
    return (
        math.isfinite(value)
        and value >= bounds.get("ge", -math.inf)
        and value > bounds.get("gt", -math.inf)
        and value <= bounds.get("le", math.inf)
        and value < bounds.get("lt", math.inf)
    )


def hashed(config: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that count for its hash: all except late fields that have their default.

    Args:
        config: a dataclass of knobs.
        values: by field. Values that are not fields of `config` are kept.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.metadata.get("late")}
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def check_bounds(config: Any) -> None:
    """Reject a config whose numbers are out of bounds.

    Raises: SpecError that names the field, its value and the bounds.
    """
    for f in dataclasses.fields(config):
        value, bounds = getattr(config, f.name), f.metadata.get("bounds", {})
        numbers = [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, (int, float))]
        if bounds and not all(within(number, bounds) for number in numbers):
            raise SpecError(f"{f.name} is {value!r}; give {bounds_text(bounds)}.")


def field_types(config: type[Any]) -> dict[str, Any]:
    """The type of each field of a config, by name."""
    return get_type_hints(config)
