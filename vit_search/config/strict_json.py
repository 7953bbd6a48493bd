"""Make a dataclass from JSON values: no field missing or unknown, each of its type and within its bounds.

The files of searches and models are read with it. An unknown field is an error, because only the newer vit_search that wrote it knows what
it means.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vit_search.text import one_of

T = TypeVar("T")

LARGEST = 1e39
"""Limit of numbers that must be finite. The largest float32 is 3.4e38."""

Seconds = Annotated[float, (0, 1e10)]
Moment = Annotated[float, (0, 253_402_300_799)]
"""Unix time in seconds, up to the year 9999."""
Count = Annotated[int, (0, 10**9)]
Fraction = Annotated[float, (0, 1)]
Share = Annotated[float, (0, 1, "or not finite")]
"""A metric that is a fraction. It is nan or infinite if the trial diverged."""

_Check = Callable[[Any, str], Any]


def parse(text: str | bytes) -> Any:
    """Parse JSON text.

    Raises: ValueError if it is not JSON, or is nested too deep for Python's parser.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many brackets") from None


def parse_unique(text: str | bytes) -> Any:
    """Parse UTF-8 JSON text in which no mapping may have a key twice.

    Raises: ValueError as `parse`, also for a repeated key or text that is not UTF-8.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{_short(next(name for name in names if names.count(name) > 1))} comes twice")
        return values

    try:
        return json.loads(text, object_pairs_hook=mapping)
    except RecursionError:
        raise ValueError("too many brackets") from None


def build(kind: type[T], values: Any, where: str = "") -> T:
    """Make a dataclass from JSON values.

    Args:
        kind: its fields are of str, int, float, bool, None, Any, Literal, list, tuple, dict, their unions, and dataclasses. A number may be
            `Annotated[float, (low, high)]`; it must then be finite. Other floats may be nan or infinite, as the loss of a trial that
            diverged.
        where: what the values are, for the message.
    Raises: ValueError that names the field, what was found, and what is expected.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where or kind.__name__}: {_short(values)} is no mapping")
    checks, needed = _fields(cast(Any, kind))
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in checks:
            raise ValueError(f"{prefix}{_short(name)}: unknown here; use the version of vit_search that wrote it")
    for name in needed:
        if name not in values:
            raise ValueError(f"{prefix}{name}: missing")
    try:
        return kind(**{name: checks[name](value, prefix + name) for name, value in values.items()})
    except (TypeError, OverflowError) as error:  # raised by the dataclass's own checks
        raise ValueError(f"{where or kind.__name__}: {error}") from None


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, _Check], tuple[str, ...]]:
    """The check of each field, and the names of the required fields."""
    hints = get_type_hints(kind, include_extras=True)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    empty = dataclasses.MISSING
    needed = tuple(field.name for field in fields if field.default is empty and field.default_factory is empty)
    return {field.name: _check_of(hints[field.name]) for field in fields}, needed


def _check_of(hint: Any) -> _Check:
    """Make a function that checks a value against a type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        low, high, *loose = parts[1]
        return lambda value, where: _number(value, where, parts[0], low, high, finite=not loose)
    if origin in (Union, types.UnionType):
        return functools.partial(_any_of, [_check_of(part) for part in parts])
    if origin is Literal:
        return lambda value, where: (
            value if any(value == one and type(value) is type(one) for one in parts) else _refuse(value, where, one_of(parts))
        )
    if origin in (list, tuple, Sequence):
        return functools.partial(
            _listed, origin, [_check_of(part) for part in parts if part is not Ellipsis], Ellipsis in parts or len(parts) == 1
        )
    if origin in (dict, Mapping):
        return functools.partial(_mapped, _check_of(parts[1]))
    if dataclasses.is_dataclass(hint):
        return functools.partial(_built, hint)
    if hint is float:
        return lambda value, where: _number(value, where, float, -sys.float_info.max, sys.float_info.max, finite=False)
    if hint is int:
        return lambda value, where: _number(value, where, int, -(2**63), 2**63)
    if hint is Any:
        return lambda value, where: value
    return lambda value, where: value if type(value) is hint else _refuse(value, where, "nothing" if hint is type(None) else hint.__name__)


def _number(value: Any, where: str, kind: type, low: float, high: float, *, finite: bool = True) -> Any:
    if type(value) is not int and not (kind is float and type(value) is float):
        _refuse(value, where, "a whole number" if kind is int else "a number")
    if not finite and not math.isfinite(value):
        return value
    return value if low <= value <= high else _refuse(value, where, f"a number from {low:g} to {high:g}")


def _built(kind: Any, value: Any, where: str) -> Any:
    return build(kind, value, where)


def _any_of(checks: list[_Check], value: Any, where: str) -> Any:
    problem: ValueError | None = None
    for check in checks:
        try:
            return check(value, where)
        except ValueError as error:
            problem = problem or error
    raise problem or ValueError(where)


def _listed(origin: Any, checks: list[_Check], repeated: bool, value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):  # values that were never in a file may have tuples
        _refuse(value, where, "a list")
    if not repeated and len(value) != len(checks):
        _refuse(value, where, f"a list of {len(checks)}")
    items = [(checks[0] if repeated else checks[i])(one, f"{where}.{i}") for i, one in enumerate(value)]
    return tuple(items) if origin is tuple else items


def _mapped(check: _Check, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _refuse(value, where, "a mapping")
    return {key: check(one, f"{where}.{_short(key)}") for key, one in value.items()}


def _refuse(value: Any, where: str, wanted: str) -> Any:
    raise ValueError(f"{where}: {_short(value)} is not {wanted}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
