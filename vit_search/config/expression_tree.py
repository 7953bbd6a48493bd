"""The tree that an expression is parsed into, and the calculation of its value for the values of a proposal."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_BITS = 4096
"""Largest size of a whole number during a calculation, in bits."""


@dataclass(frozen=True)
class Constant:
    """A number, a text, true, false or none."""

    value: Any


@dataclass(frozen=True)
class Name:
    """The value of a parameter or of a cost."""

    name: str


@dataclass(frozen=True)
class Unary:
    """`-a`, `+a` or `not a`."""

    sign: str
    operand: Node


@dataclass(frozen=True)
class Arithmetic:
    """`a + b`, or another operation with two numbers."""

    sign: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Relation:
    """`a < b`, or a chain such as `a < b <= c`."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class Logic:
    """`a and b` or `a or b`, with two or more parts."""

    sign: str
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Call:
    """A call of `min`, `max` or `log2`."""

    function: str
    arguments: tuple[Node, ...]


Node = Constant | Name | Unary | Arithmetic | Relation | Logic | Call


class UndecidedError(Exception):
    """An expression has no value for these numbers. The message says why."""


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes below it, left to right."""
    yield node
    below: tuple[Node, ...] = ()
    if isinstance(node, Unary):
        below = (node.operand,)
    elif isinstance(node, Arithmetic):
        below = (node.left, node.right)
    elif isinstance(node, Relation):
        below = (node.first, *(part for _, part in node.rest))
    elif isinstance(node, Logic):
        below = node.parts
    elif isinstance(node, Call):
        below = node.arguments
    for part in below:
        yield from walk(part)


def in_words(value: Any) -> str:
    """A value as an expression writes it, with commas between thousands."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else repr(value)


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_EQUALS: dict[str, Callable[[Any, Any], bool]] = {"==": operator.eq, "!=": operator.ne}
_SUMS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod,
}  # fmt: skip


def value_of(node: Node, values: Mapping[str, Any]) -> Any:
    """Calculate the value of a tree, as Python would.

    Raises: UndecidedError, ZeroDivisionError, OverflowError.
    """
    match node:
        case Constant(value):
            return value
        case Name(name):
            value = values.get(name, values)
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise UndecidedError(f"{name} has no value")
            return value
        case Unary("not", operand):
            return not value_of(operand, values)
        case Unary(sign, operand):
            value = _numbers(sign, value_of(operand, values))[0]
            return -value if sign == "-" else +value
        case Arithmetic(sign, left, right):
            a, b = _numbers(sign, value_of(left, values), value_of(right, values))
            return _bounded(_power(a, b) if sign == "**" else _SUMS[sign](a, b))
        case Relation(first, rest):
            left_value = value_of(first, values)
            for sign, part in rest:
                right_value = value_of(part, values)
                if not _compared(sign, left_value, right_value):
                    return False
                left_value = right_value
            return True
        case Logic(sign, parts):
            result = None
            for part in parts:
                result = value_of(part, values)
                if bool(result) == (sign == "or"):
                    break
            return result
        case Call("log2", (argument,)):
            value = _numbers("log2", value_of(argument, values))[0]
            if value <= 0:
                raise UndecidedError(f"log2 of {in_words(value)}")
            return math.log2(value)
        case Call(function, arguments):
            return (min if function == "min" else max)(_numbers(function, *(value_of(argument, values) for argument in arguments)))
    raise AssertionError(node)


def _numbers(where: str, *operands: Any) -> tuple[Any, ...]:
    for operand in operands:
        if not isinstance(operand, (int, float)):
            raise UndecidedError(f"{where} takes numbers, not {in_words(operand)}")
    return operands


def _compared(sign: str, left: Any, right: Any) -> bool:
    """Compare two values. Any two values can be equal; only two numbers, or two texts, have an order."""
    if sign in _EQUALS:
        return _EQUALS[sign](left, right)
    if all(isinstance(v, (int, float)) for v in (left, right)) or (isinstance(left, str) and isinstance(right, str)):
        return _ORDERS[sign](left, right)
    raise UndecidedError(f"{in_words(left)} {sign} {in_words(right)} has no meaning")


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent * base.bit_length() > MAX_BITS:
        raise OverflowError
    return base**exponent


def _bounded(value: Any) -> Any:
    if isinstance(value, complex):
        raise UndecidedError("a root of a negative number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise OverflowError
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    return value
