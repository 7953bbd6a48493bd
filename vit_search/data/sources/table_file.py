"""Read a CSV or Parquet file as columns of plain Python values, and the bytes of images in a Parquet file.

This module knows nothing about labels and splits: see table.py.
"""

from __future__ import annotations

import csv
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_search.config.data_urls import near_path
from vit_search.data.decode import read_image
from vit_search.data.sources.image_folder import SPLIT_NAMES
from vit_search.errors import DataError

PARQUET = (".parquet", ".pq")
"""Endings of Parquet files."""

SEPARATORS = ",;\t|"
"""Separators of a CSV file. The most frequent one in the first line is used."""

STREAMED_BYTES = 2**24
"""Images of a Parquet file are read in random order only if no row group is larger, in bytes: reading one image reads its row group."""


@dataclass(frozen=True)
class TableFile:
    """An open table: a CSV file, a Parquet file, or a folder of Parquet files with the same columns."""

    path: Path
    columns: tuple[str, ...]
    numbers: Sequence[int]
    """Number of each row, from 1: of its line in a CSV file; of the row, counted on from file to file, in Parquet files."""
    cells: Sequence[Sequence[str]] | None = None
    """Rows of a CSV file; None for Parquet."""
    parts: tuple[Path, ...] = ()
    """The Parquet files."""
    ends: tuple[int, ...] = ()
    """Rows up to the end of each Parquet file."""

    @property
    def folder(self) -> Path:
        """Folder at which relative file names start."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def word(self) -> str:
        """What messages call a row."""
        return "row" if self.cells is None else "line"

    def number(self, row: int) -> str:
        """Number of a row in messages and, in a folder, its file: `7 of test.parquet`."""
        if len(self.parts) < 2:
            return str(self.numbers[row])
        part = bisect_right(self.ends, row)
        return f"{row + 1 - (self.ends[part - 1] if part else 0)} of {self.parts[part].name}"

    def values(self, column: str) -> list[Any]:
        """All values of a column: texts for CSV, Parquet's own types otherwise."""
        if self.cells is not None:
            index = self.columns.index(column)
            return [row[index] for row in self.cells]
        parts = [_reading(part, lambda file: file.read(columns=[column]).column(0).to_pylist()) for part in self.parts]
        return [value for part in parts for value in part]

    def class_names(self, column: str) -> list[str] | None:
        """Names that Hugging Face stores for the integers of a column; None if the file has none."""
        if self.cells is not None:
            return None
        metadata = _reading(self.parts[0], lambda file: file.schema_arrow.metadata) or {}
        try:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
            names = features[column]["names"]
            return [str(name) for name in names]
        except (ValueError, KeyError, TypeError):
            return None

    def splits_of_parts(self) -> list[str] | None:
        """The split of each row if every Parquet file of a folder is named after one, such as `train-00000-of-00002.parquet`; else None."""
        names = [re.split(r"[^a-z]", part.name.lower())[0] for part in self.parts]
        if len(self.parts) < 2 or not set(names) <= SPLIT_NAMES.keys():
            return None
        rows = [end - start for start, end in zip((0, *self.ends), self.ends, strict=False)]
        return [name for name, count in zip(names, rows, strict=True) for _ in range(count)]


def open_file(path: Path) -> TableFile:
    """Open a CSV file, a Parquet file, or a folder of Parquet files. Of Parquet, only the description of the columns is read.

    Raises: DataError if it is missing, damaged, or neither CSV nor Parquet.
    """
    try:
        if path.is_dir():
            parts = sorted(part for part in path.iterdir() if part.suffix.lower() in PARQUET and not part.name.startswith("."))
            if not parts:
                mend = "name a CSV or Parquet file, or write data.name: image_folder"
                raise DataError(f"{path}: a folder without Parquet files; {mend}.")
            return _open_parquet(path, parts)
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
    except OSError as error:
        mend = near_path(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{path}: cannot be read ({error.strerror}); {mend or 'name a CSV or Parquet file.'}") from None
    if not parquet and path.suffix.lower() in PARQUET:
        raise DataError(f"{path}: no Parquet file by its content; write it again, or name another.")
    return _open_parquet(path, [path]) if parquet else _open_csv(path)


def _open_csv(path: Path) -> TableFile:
    cells: list[list[str]] = []
    numbers: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(SEPARATORS, key=first.count), strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            before = reader.line_num
            for row in reader:
                if row and (len(row) > 1 or row[0].strip()):
                    if len(row) != len(header):
                        raise DataError(f"{path}: line {before + 1} has {len(row)} cells, and the header has {len(header)}; mend the line.")
                    cells.append(row)
                    numbers.append(before + 1)
                before = reader.line_num
    except UnicodeDecodeError:
        raise DataError(f"{path}: neither a Parquet file nor text in UTF-8; save it as CSV in UTF-8, or as Parquet.") from None
    except csv.Error as error:
        raise DataError(f"{path}: no CSV file ({error}); save it as CSV in UTF-8, or as Parquet.") from None
    return TableFile(path, tuple(header), numbers, cells)


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not any(header):
        raise DataError(f"{path}: no header; write the names of the columns into the first line.")
    twice = [name for i, name in enumerate(header) if name in header[:i] and name]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice; give each column a name of its own.")


def _open_parquet(path: Path, parts: Sequence[Path]) -> TableFile:
    described = [_reading(part, lambda file: (file.schema_arrow, file.metadata.num_rows)) for part in parts]
    first = described[0][0]
    _check_header(path, first.names)
    for part, (schema, _) in zip(parts, described, strict=True):
        lacking = [name for name in first.names if name not in schema.names or schema.field(name).type != first.field(name).type]
        if lacking:
            fact = f"its column {lacking[0]!r} is missing, or of another type than that of {parts[0].name}"
            raise DataError(f"{part}: {fact}; write both alike, or move one out of the folder.")
    ends = tuple(np.cumsum([rows for _, rows in described]).tolist())
    return TableFile(path, tuple(first.names), range(1, ends[-1] + 1), parts=tuple(parts), ends=ends)


def _reading(path: Path, read: Any) -> Any:
    """Open a Parquet file, and call `read` with it.

    Raises: DataError if the file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return read(file)
    except pyarrow.ArrowNotImplementedError:
        raise DataError(f"{path}: a Parquet file of a kind that is not read here; write it again, as pandas or datasets do.") from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise DataError(f"{path}: cannot be read ({error.strerror}); name another file, or give this account the right.") from None
        raise DataError(f"{path}: a Parquet file that is damaged or cut off; write or copy it again.") from None


ImageKind = Literal["names", "bytes"]


def image_kind(table: TableFile, column: str) -> ImageKind:
    """Whether a column holds names of image files, or their bytes.

    Raises: DataError if it holds neither.
    """
    if table.cells is not None:
        return "names"
    from pyarrow import types

    kind = _reading(table.parts[0], lambda file: file.schema_arrow.field(column).type)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "names"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    inside = {kind.field(i).name for i in range(kind.num_fields)} if types.is_struct(kind) else set()
    if "bytes" in inside and any(content is not None for group in iter_bytes(table, column) for content in group):
        return "bytes"
    if "path" in inside:
        return "names"
    raise DataError(f"{table.path}: the column {column!r} holds {kind}; name one of file names, or of the bytes of image files.")


def image_names(table: TableFile, column: str) -> list[str | None]:
    """File names in a column."""
    return [value.get("path") if isinstance(value, dict) else value for value in table.values(column)]


def iter_bytes(table: TableFile, column: str) -> Iterator[list[bytes | None]]:
    """Bytes in a column, one row group at a time."""
    for part in table.parts:
        for group in range(_reading(part, lambda file: file.num_row_groups)):
            yield _bytes_of(part, column, group)


def _bytes_of(path: Path, column: str, group: int) -> list[bytes | None]:
    """Bytes in one row group; a column may also hold Hugging Face's structs."""

    def read(file: Any) -> Any:
        nested = hasattr(file.schema_arrow.field(column).type, "get_field_index")
        values = file.read_row_group(group, columns=[f"{column}.bytes" if nested else column]).column(0).to_pylist()
        return [None if value is None else value["bytes"] for value in values] if nested else values

    contents: list[bytes | None] = _reading(path, read)
    return contents


@lru_cache(maxsize=1)
def _kept_bytes(group: RowGroup, column: str) -> list[bytes | None]:
    """Bytes of a row group. They are kept until another one is read."""
    return _bytes_of(group.path, column, group.number)


@dataclass(frozen=True)
class RowGroup:
    """Rows of a Parquet file that can only be read together."""

    path: Path
    number: int
    start: int
    """Its first row in the table, from 0."""
    version: tuple[int, int]
    """Modification time in ns and size when it was opened: a new file at this path must not get what `_kept_bytes` kept of the old one."""


@dataclass(frozen=True)
class BytesReader:
    """Decodes images in Parquet files. The name of an image is its row in the table, from 1."""

    column: str
    channels: int
    groups: tuple[RowGroup, ...]
    bit_depth: int | None = None

    def __call__(self, name: str, size: tuple[int, int] | None) -> np.ndarray:
        """See `read_image`."""
        row, content = int(name) - 1, self.content(name)
        group = self._group(row)
        try:
            return read_image(content, size, self.channels, self.bit_depth)
        except DataError as error:
            start = next(other.start for other in self.groups if other.path == group.path)
            raise type(error)(f"{group.path}: row {row + 1 - start}: {error}") from None

    def content(self, name: str) -> bytes:
        """Bytes of an image."""
        row = int(name) - 1
        group = self._group(row)
        return _kept_bytes(group, self.column)[row - group.start] or b""

    def _group(self, row: int) -> RowGroup:
        return self.groups[bisect_right(self.groups, row, key=lambda group: group.start) - 1]


def bytes_reader(table: TableFile, column: str, channels: int, bit_depth: int | None = None) -> tuple[BytesReader, bool]:
    """A reader for the bytes in a column, and whether its row groups are small enough for random order."""
    groups: list[RowGroup] = []
    row = largest = 0
    for part in table.parts:
        status = part.stat()
        sizes = _reading(part, lambda file: [_size(file.metadata.row_group(number)) for number in range(file.num_row_groups)])
        for number, (rows, size) in enumerate(sizes):
            groups.append(RowGroup(part.resolve(), number, row, (status.st_mtime_ns, status.st_size)))
            row, largest = row + rows, max(largest, size)
    return BytesReader(column, channels, tuple(groups), bit_depth), largest <= STREAMED_BYTES


def _size(group: Any) -> tuple[int, int]:
    return group.num_rows, group.total_byte_size
