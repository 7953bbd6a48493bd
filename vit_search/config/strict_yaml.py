"""Read YAML strictly. Text that two readers could understand differently is an error.

It uses PyYAML's events and a small constructor of our own: no tags, no anchors, numbers as in YAML 1.2. Line numbers are kept for messages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vit_search.errors import SpecError

MAX_BYTES = 1_048_576
MAX_DEPTH = 20
MAX_NODES = 100_000

NodePath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_TWO_WAYS = (  # YAML 1.1 and 1.2, or two readers, understand these differently
    (re.compile(r"(?i)(y|n|yes|no|on|off|true|false)"), "write true or false, or quote it"),
    (re.compile(r"(?i)null"), "write null, or quote it"),
    (re.compile(r"[-+]?0[0-9]+"), "write a number without leading zeros, or quote it"),
    (re.compile(r"(?i)[-+]?0[xob][0-9a-f_]+"), "write a decimal number, or quote it"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "write a decimal number, or quote it"),
    (re.compile(r"[-+]?[0-9][0-9_.]*_[0-9_.]*([eE][-+]?[0-9]+)?"), "write the number without underscores, or quote it"),
    (re.compile(r"(?i)[-+]?\.(inf|nan)"), "write a finite number"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?"), "quote it if it is a text"),
)


@dataclass(frozen=True)
class Document:
    """A parsed file, and the line of each of its values."""

    values: Any
    """Dicts, lists, str, int, float, bool and None."""
    lines: Mapping[NodePath, int]
    """Line (from 1) of each key and list item, by path."""

    def line(self, path: NodePath) -> int:
        """The line of a path, or of the nearest path above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def load(path: Path) -> Document:
    """Read a YAML file.

    Raises: SpecError in one line: file, line, what was found, how to fix it.
    """
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Read the text of a file.

    Raises: SpecError if it cannot be read, is too large, or is not UTF-8.
    """
    try:
        if path.is_dir():
            raise SpecError(f"{path}: a folder; name a YAML file.")
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path}: {path.stat().st_size:,} bytes; a search file has at most {MAX_BYTES:,}.")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); name a YAML file.") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise SpecError(f"{path}:1: a byte order mark; save the file as plain UTF-8.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8.") from None


def parse(text: str, source: str) -> Document:
    """Parse the text of a YAML file; `source` names it in messages.

    Raises: SpecError in one line: source, line, what was found, how to fix it.
    """
    reader = _Reader(source)
    try:
        values = reader.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context).split())
        raise reader.refuse(mark, f"no valid YAML: {what}; mend it or quote the text.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        raise SpecError(f"{source}:{line}: the character {error.character!r} may not stand in YAML; remove it.") from None
    except (ValueError, RecursionError):  # raised by PyYAML's scanner for an escape that names no character
        raise SpecError(f"{source}:1: no valid YAML; mend it or quote the text.") from None
    if not isinstance(values, dict):
        raise SpecError(f"{source}:1: the file {'is empty' if values is None else 'is no mapping'}; write `key: value` lines.")
    return Document(values, reader.lines)


def _below(path: NodePath) -> str:
    """The path of a mapping, to begin a message: `data.label_map: `; empty at the top."""
    return f"{'.'.join(map(str, path))}: " if path else ""


class _Reader:
    """Builds plain values from events. It counts values and depth, to limit both."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[NodePath, int] = {}
        self._nodes = 0

    def refuse(self, mark: Any, message: str) -> SpecError:
        return SpecError(f"{self.source}:{mark.line + 1 if mark else 1}: {message}")

    def document(self, events: Iterator[Any]) -> Any:
        values: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.refuse(event.start_mark, "a second document begins; keep one per file.")
                first = next(events)
                values = self._node(first, events, ())
        return values

    def _node(self, event: Any, events: Iterator[Any], path: NodePath) -> Any:
        mark = event.start_mark
        self.lines.setdefault(path, mark.line + 1)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self.refuse(mark, f"more than {MAX_NODES:,} values; shorten the file.")
        if isinstance(event, yaml.AliasEvent):
            raise self.refuse(mark, f"the alias *{event.anchor}; write the value out.")
        if event.anchor is not None:
            raise self.refuse(mark, f"the anchor &{event.anchor}; write the value out where it is used.")
        if event.tag is not None:
            raise self.refuse(mark, f"the tag {event.tag}; remove it, plain values need none.")
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else self._plain(event.value, mark)
        if len(path) >= MAX_DEPTH:
            raise self.refuse(mark, f"nested more than {MAX_DEPTH} deep; flatten it.")
        return self._sequence(events, path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(events, path)

    def _sequence(self, events: Iterator[Any], path: NodePath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[Any], path: NodePath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._key(event, path)
            key_path = (*path, key)
            if key in items:
                fact = f"the key {key} stands twice, first in line {self.lines[key_path]}"
                raise self.refuse(event.start_mark, f"{_below(path)}{fact}; keep one.")
            self.lines[key_path] = event.start_mark.line + 1
            items[key] = self._node(next(events), events, key_path)
        return items

    def _key(self, event: Any, path: NodePath) -> str:
        mark = event.start_mark
        if not isinstance(event, yaml.ScalarEvent):
            raise self.refuse(mark, f"{_below(path)}a key that is no text; write a name before the colon.")
        if event.anchor is not None or event.tag is not None or event.value == "<<":
            raise self.refuse(mark, f"{_below(path)}an anchor, a tag or a merge at a key; write the keys out.")
        if not event.style and not isinstance(self._plain(event.value, mark), str):
            key = event.value or '""'
            raise self.refuse(mark, f"{_below(path)}the key {key} is no text; quote it.")
        return str(event.value)

    def _plain(self, text: str, mark: Any) -> Any:
        """The value of an unquoted scalar: a number, true, false, null, or a text that every reader understands as text."""
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            if len(text) > 300:
                raise self.refuse(mark, f"a number of {len(text)} digits; write a smaller one.")
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isinf(number):
                raise self.refuse(mark, f"{text} is too large a number; write a smaller one.")
            return number
        for pattern, mend in _TWO_WAYS:
            if pattern.fullmatch(text):
                raise self.refuse(mark, f"{text} can be read in more than one way; {mend}.")
        return text


def with_value(text: str, path: tuple[str, ...], value: str) -> str:
    """Return the text of a valid document with one value replaced. All other text stays as it is.

    Args:
        path: existing keys, from the outermost mapping inwards. The last one has a plain value.
        value: the new value, as YAML.
    """
    node: Any = yaml.compose(text, yaml.SafeLoader)
    for key in path:
        node = next(below for name, below in node.value if name.value == key)
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]
