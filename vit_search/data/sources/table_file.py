"""A CSV or Parquet file as columns of plain Python values, and the bytes of images that a Parquet file holds.

Knows nothing of labels and splits: see table.py.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_search.data.decode import read_image
from vit_search.errors import DataError

SEPARATORS = ",;\t|"
"""Of a CSV file: the one that its first line has most of."""

STREAMED_BYTES = 2**24
"""Bytes of the images of one row group, up to which a Parquet file is read at random: each image costs the reading of its row group."""


@dataclass(frozen=True)
class TableFile:
    """An open table."""

    path: Path
    columns: tuple[str, ...]
    word: Literal["line", "row"]
    """What `numbers` count: lines of a CSV file with its header, or rows of a Parquet file; from 1."""
    numbers: Sequence[int]
    cells: Sequence[Sequence[str]] | None = None
    """Of a CSV file, row by row; None for Parquet."""

    def values(self, column: str) -> list[Any]:
        """All values of a column: texts of a CSV file, whatever Parquet has of the other."""
        if self.cells is not None:
            index = self.columns.index(column)
            return [row[index] for row in self.cells]
        values: list[Any] = _reading(self.path, lambda file: file.read(columns=[column]).column(0).to_pylist())
        return values

    def class_names(self, column: str) -> list[str] | None:
        """The names that Hugging Face keeps for the integers of a column; None where the file has none."""
        if self.cells is not None:
            return None
        metadata = _reading(self.path, lambda file: file.schema_arrow.metadata) or {}
        try:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
            names = features[column]["names"]
            return [str(name) for name in names]
        except (ValueError, KeyError, TypeError):
            return None


def open_file(path: Path) -> TableFile:
    """Open a CSV or Parquet file; of the second, only the description of its columns is read.

    Raises: DataError where it is missing, neither of both, or damaged.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder, no file; name a CSV or Parquet file, or write data.name: image_folder.")
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a CSV or Parquet file.") from None
    if not parquet and path.suffix.lower() in (".parquet", ".pq"):
        raise DataError(f"{path}: no Parquet file by its content; write it again, or name another.")
    return _open_parquet(path) if parquet else _open_csv(path)


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
    return TableFile(path, tuple(header), "line", numbers, cells)


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not any(header):
        raise DataError(f"{path}: no header; write the names of the columns into the first line.")
    twice = [name for i, name in enumerate(header) if name in header[:i] and name]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice; give each column a name of its own.")


def _open_parquet(path: Path) -> TableFile:
    names, rows = _reading(path, lambda file: (file.schema_arrow.names, file.metadata.num_rows))
    _check_header(path, names)
    return TableFile(path, tuple(names), "row", range(1, rows + 1))


def _reading(path: Path, read: Any) -> Any:
    """What is read from a Parquet file.

    Raises: DataError where it is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return read(file)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{path}: a Parquet file that cannot be read ({reason}); write or copy it again.") from None


ImageKind = Literal["names", "bytes"]


def image_kind(table: TableFile, column: str) -> ImageKind:
    """Whether a column holds names of files, or the bytes of image files.

    Raises: DataError where it holds neither.
    """
    if table.cells is not None:
        return "names"
    from pyarrow import types

    kind = _reading(table.path, lambda file: file.schema_arrow.field(column).type)
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
    """The file names of a column."""
    return [value.get("path") if isinstance(value, dict) else value for value in table.values(column)]


def iter_bytes(table: TableFile, column: str) -> Iterator[list[bytes | None]]:
    """The bytes of a column, row group by row group."""
    for group in range(_reading(table.path, lambda file: file.num_row_groups)):
        yield _bytes_of(table.path, column, group)


def _bytes_of(path: Path, column: str, group: int) -> list[bytes | None]:
    """The bytes of one row group, for a column of bytes or of Hugging Face's structs."""

    def read(file: Any) -> Any:
        nested = hasattr(file.schema_arrow.field(column).type, "get_field_index")
        values = file.read_row_group(group, columns=[f"{column}.bytes" if nested else column]).column(0).to_pylist()
        return [None if value is None else value["bytes"] for value in values] if nested else values

    contents: list[bytes | None] = _reading(path, read)
    return contents


@lru_cache(maxsize=1)
def _kept_bytes(path: Path, column: str, group: int, version: tuple[int, int]) -> list[bytes | None]:
    """The same, kept until another row group is read. `version` tells apart files that stood at one path."""
    return _bytes_of(path, column, group)


@dataclass(frozen=True)
class BytesReader:
    """Decodes images of a Parquet file by their row, from 1."""

    path: Path
    column: str
    channels: int
    starts: tuple[int, ...]
    """The first row of each row group, from 0."""
    version: tuple[int, int]
    """Time in ns and size of the file when it was opened."""

    def __call__(self, name: str, size: tuple[int, int] | None) -> np.ndarray:
        """uint8 (channels, height, width)."""
        row = int(name) - 1
        group = bisect_right(self.starts, row) - 1
        content = _kept_bytes(self.path, self.column, group, self.version)[row - self.starts[group]]
        try:
            return read_image(content or b"", size, self.channels)
        except DataError as error:
            raise type(error)(f"{self.path}: row {name}: {error}") from None


def bytes_reader(table: TableFile, column: str, channels: int) -> tuple[BytesReader, bool]:
    """A reader of a column's bytes, and whether its row groups are small enough to be read at random."""

    def layout(file: Any) -> tuple[list[int], int]:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        return [group.num_rows for group in groups], max((group.total_byte_size for group in groups), default=0)

    rows, largest = _reading(table.path, layout)
    starts = tuple(np.cumsum([0, *rows])[:-1].tolist())
    status = table.path.stat()
    reader = BytesReader(table.path.resolve(), column, channels, starts, (status.st_mtime_ns, status.st_size))
    return reader, largest <= STREAMED_BYTES
