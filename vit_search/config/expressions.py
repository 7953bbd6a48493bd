"""Read, check and evaluate constraints and conditions. No text is ever run as code.

The text is cut into tokens first, so that Python's parser sees only what is allowed here. Python's tree is then copied, node by node, into
our own (expression_tree.py). Length, nesting and the size of numbers are limited, so that no expression takes long.
"""

from __future__ import annotations

import ast
import functools
import itertools
import keyword
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_search.config.expression_tree import (
    Arithmetic,
    Call,
    Constant,
    Logic,
    Name,
    Node,
    Relation,
    Unary,
    UndecidedError,
    in_words,
    value_of,
    walk,
)
from vit_search.errors import SpecError
from vit_search.text import counted, nearest

MAX_LENGTH = 1000
"""Largest length of an expression, in characters."""

MAX_NESTING = 50
"""Deepest nesting of operations. A sum is nested as deep as it has terms."""

UNITS = {
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
"""Units that may follow a number, in bytes."""

FUNCTIONS = {"min": "min(a, b)", "max": "max(a, b)", "log2": "log2(a)"}
"""Functions that an expression may call, and how each is written."""

ALLOWED = "names, numbers (8GiB, 1e6), 'texts', true, false, none, + - * / // % **, comparisons, and, or, not, min, max, log2, ( )"

_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<text>'[^'\\]*'|\"[^\"\\]*\")"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(?P<unit>[A-Za-z_]\w*| [kKMGT]i?B\b)?"
    r"|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign>\*\*|//|<=|>=|==|!=|[-+*/%<>(),])",
    re.ASCII,
)
_WORDS = {"true": "True", "false": "False", "none": "None", "null": "None", "True": "True", "False": "False", "None": "None"}
_MENDS = {
    "&": "write and", "|": "write or", "!": "write not", "=": "write == to compare", "^": "write ** for a power",
    "is": "write ==", "in": "write a == 1 or a == 2", "if": "write it with and, or", "[": "write a == 1 or a == 2",
    ".": "write the name alone, as dim for model.dim", "'": "close the quotes", '"': "close the quotes", "\\": "remove it",
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """An expression of a search file, parsed."""

    text: str
    """The text as the user wrote it."""
    tree: Node = field(repr=False)
    spelling: str = field(repr=False)
    """The text in a standard form. Expressions that differ only in blanks and quotes have equal spellings."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it uses, each once, in the order of the text."""
        return tuple(dict.fromkeys(node.name for node in walk(self.tree) if isinstance(node, Name)))

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """Each comparison of a name with a text: (name, text)."""
        pairs: list[tuple[str, str]] = []
        for node in walk(self.tree):
            if isinstance(node, Relation):
                chain = (node.first, *(part for _, part in node.rest))
                for pair in itertools.pairwise(chain):
                    pairs += [
                        (a.name, b.value)
                        for a, b in (pair, pair[::-1])
                        if isinstance(a, Name) and isinstance(b, Constant) and isinstance(b.value, str)
                    ]
        return tuple(pairs)

    @property
    def alone(self) -> tuple[str, ...]:
        """The names that are compared with nothing, and so must be true or false."""
        names: list[str] = []
        below = [self.tree]
        while below:
            node = below.pop()
            if isinstance(node, Name):
                names.append(node.name)
            below += node.parts if isinstance(node, Logic) else (node.operand,) if isinstance(node, Unary) and node.sign == "not" else ()
        return tuple(names)

    def value(self, values: Mapping[str, Any]) -> Any:
        """Calculate its value, as Python would.

        Raises: UndecidedError if it has none: a division by zero, an order between a number and a text or none, a number that is too large,
            a name without a value.
        """
        try:
            return value_of(self.tree, values)
        except ZeroDivisionError:
            raise UndecidedError("it divides by zero") from None
        except OverflowError:
            raise UndecidedError("its numbers grow too large") from None

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether its value is true. An expression without a value does not hold."""
        try:
            return bool(self.value(values))
        except UndecidedError:
            return False

    def failure(self, values: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> str | None:
        """Why it does not hold, with the values that it used, or None.

        Args:
            values: by name.
            shown: texts to show in place of values that are hard to read, by name.
        """
        try:
            if self.value(values):
                return None
            why = ""
        except UndecidedError as error:
            why = str(error)
        shown_values = ", ".join(f"{name} is {(shown or {}).get(name) or in_words(values[name])}" for name in self.names if name in values)
        return f"{self.text} does not hold: {'; '.join(part for part in (why, shown_values) if part) or 'it is false'}"


def parse(text: str, names: Iterable[str]) -> Expression:
    """Parse an expression that may use these names.

    Raises: SpecError in one line: the text, what was found, how to fix it.
    """
    expression = _read(text)
    allowed = set(names)
    for name in expression.names:
        if name not in allowed:
            mend = f"write {FUNCTIONS[name]}." if name in FUNCTIONS else f"{nearest(name, sorted(allowed))} A text is quoted: '{name}'."
            raise SpecError(f"`{_short(text)}`: unknown name {name}; {mend}")
    return expression


def parse_condition(text: str, names: Iterable[str]) -> Expression:
    """Parse an expression that holds or does not: a comparison, or a name that is true or false.

    Raises: SpecError as `parse`.
    """
    expression = parse(text, names)
    if not _asks(expression.tree):
        raise SpecError(f"`{_short(text)}`: gives a value where something should hold or not; compare it, as in dim % heads == 0.")
    return expression


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> Expression:
    def refuse(fact: str, mend: str = f"write {ALLOWED}") -> SpecError:
        return SpecError(f"`{_short(text)}`: {fact}; {mend}.")

    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise refuse(f"{len(text):,} characters", f"write at most {MAX_LENGTH:,}, or two expressions")
    tokens = list(_tokens(text, refuse))
    if not tokens:
        raise SpecError("the expression is empty; write a comparison, as depth * dim <= 2048.")
    spelling = " ".join(tokens)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about code that Python finds suspicious
            body = ast.parse(spelling, mode="eval").body
    except SyntaxError as error:
        if tokens.count("(") != tokens.count(")"):
            raise refuse("not every parenthesis has its other half", "add it or remove it") from None
        if not error.offset:
            raise refuse("breaks off", "write what follows") from None
        begun, at = 0, 0  # find the token at which the parser stopped
        while at < len(tokens) - 1 and begun + len(tokens[at]) < error.offset:
            begun, at = begun + len(tokens[at]) + 1, at + 1
        raise refuse(f"cannot be read at {_short(tokens[at], 20)}") from None
    except (ValueError, RecursionError, MemoryError):
        raise refuse("cannot be read") from None
    return Expression(text, _copied(body, refuse, 1), spelling)


def _tokens(text: str, refuse: Callable[..., SpecError]) -> Iterator[str]:
    """Yield the tokens of a text as Python writes them."""
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise refuse(f"{text[at]!r} may not stand here", _MENDS.get(text[at], f"write {ALLOWED}"))
        at = match.end()
        kind = match.lastgroup if match.lastgroup != "unit" else "number"
        token = match[0]
        if kind == "number":
            yield _number(match["number"], (match["unit"] or "").strip(), refuse)
        elif kind == "text":
            yield repr(token[1:-1])
        elif kind == "word":
            word = _WORDS.get(token, token)
            if keyword.iskeyword(word) and word not in ("and", "or", "not", "True", "False", "None"):
                raise refuse(f"{token} may not stand here", _MENDS.get(token, f"write {ALLOWED}"))
            yield word
        elif kind == "sign":
            yield token


def _number(digits: str, unit: str, refuse: Callable[..., SpecError]) -> str:
    if re.fullmatch(r"0[0-9].*", digits):
        raise refuse(f"{digits} can be read in more than one way", "write the number without leading zeros")
    value: int | float = int(digits) if digits.isdecimal() else float(digits)
    if unit:
        if unit not in UNITS:
            raise refuse(f"{digits}{unit} is no number", f"write a plain one as 5e6, or a unit of bytes: {', '.join(UNITS)}")
        value = value * UNITS[unit]
        value = int(value) if math.isfinite(value) and value == int(value) else value
    if not math.isfinite(value):
        raise refuse(f"{digits}{unit} is too large a number", "write a smaller one")
    return repr(value)


_SIGNS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.And: "and", ast.Or: "or", ast.Not: "not", ast.USub: "-", ast.UAdd: "+",
}  # fmt: skip


def _copied(node: ast.expr, refuse: Callable[..., SpecError], depth: int) -> Node:
    """Copy a node of Python's tree into our own. A kind of node that is not listed here is an error."""
    if depth > MAX_NESTING:
        raise refuse(f"nested more than {MAX_NESTING} deep", "write two expressions")

    def copied(below: ast.expr) -> Node:
        return _copied(below, refuse, depth + 1)

    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (bool, int, float, str)):
            return Constant(value)
        case ast.Name(id=name):
            return Name(name)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
            return Unary(_SIGNS[type(op)], copied(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIGNS:
            return Arithmetic(_SIGNS[type(op)], copied(left), copied(right))
        case ast.BoolOp(op=op, values=parts):
            return Logic(_SIGNS[type(op)], tuple(copied(part) for part in parts))
        case ast.Compare(left=first, ops=ops, comparators=rest) if all(type(op) in _SIGNS for op in ops):
            return Relation(copied(first), tuple((_SIGNS[type(op)], copied(part)) for op, part in zip(ops, rest, strict=True)))
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in FUNCTIONS:
            if (len(arguments) == 1) != (name == "log2") or not arguments:
                raise refuse(f"{name} of {counted(len(arguments), 'value')}", f"write {FUNCTIONS[name]}")
            return Call(name, tuple(copied(argument) for argument in arguments))
        case ast.Call(func=ast.Name(id=name)):
            raise refuse(f"unknown function {name}", f"write {', '.join(FUNCTIONS.values())}")
    raise refuse(f"{_short(ast.unparse(node), 20)} may not stand here")


def _asks(node: Node) -> bool:
    """Whether a node holds or does not (and is not a number or a text), as far as its form shows."""
    if isinstance(node, Logic):
        return all(_asks(part) for part in node.parts)
    if isinstance(node, Unary):
        return node.sign == "not" and _asks(node.operand)
    return isinstance(node, (Relation, Name)) or (isinstance(node, Constant) and isinstance(node.value, bool))


def _short(text: str, most: int = 60) -> str:
    """A text on one line, shortened if it is long."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))
    return line if len(line) <= most else line[: most - 3] + "..."
