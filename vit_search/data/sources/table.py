"""The data set `table`: one row per image, with its label and, if wanted, its split, group and weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.config.data_sets import COLUMNS
from vit_search.data.file_hashes import sha256_of_all
from vit_search.data.mistakes import refuse
from vit_search.data.sources import table_checks
from vit_search.data.sources.class_checks import check_classes, small_classes, straddling_groups
from vit_search.data.sources.image_folder import SPLIT_NAMES, FileReader, sizes_of
from vit_search.data.sources.source import Source
from vit_search.data.sources.table_file import BytesReader, TableFile, bytes_reader, image_kind, image_names, iter_bytes, open_file
from vit_search.errors import DataError
from vit_search.text import counted, listed, nearest


class Table(Source):
    """Images in files that a table names, or in the table itself.

    Args:
        rows: what the table says about each image.
        reader: decodes an image by name.
        streamed: whether the reader is fast enough in random order.
        image_size: side in pixels to which images are resized.
    """

    def __init__(self, table: TableFile, rows: _Rows, reader: FileReader | BytesReader, *, streamed: bool, image_size: int | None) -> None:
        self.bits = reader.bit_depth or 8
        self.title = str(table.path)
        self.classes, self.labels, self.splits = rows.classes, rows.labels, rows.splits
        self.groups, self.group_names, self.weights = rows.groups, rows.group_names, rows.weights
        self.reader = reader if streamed else None
        self._table, self._rows, self._read, self._size = table, rows, reader, image_size

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]  # mypy does not know that it can be set
        """Raises: DataError if the search file gives no size."""
        if self._size is None:
            raise DataError("data.image_size: table needs it; give the side in pixels.")
        return self._rows.channels, self._size, self._size

    @property
    def names(self) -> np.ndarray:
        """File names as in the table, or row numbers from 1."""
        return np.array(self._rows.names)

    @cached_property
    def _hashes(self) -> list[str]:
        if isinstance(self._read, BytesReader):
            contents = (content or b"" for group in iter_bytes(self._table, self._read.column) for content in group)
            return [hashlib.sha256(content).hexdigest() for content in contents]
        folder = self._table.folder
        return sha256_of_all([folder / name for name in self._rows.names])

    def content_hash(self, index: int) -> str:
        """sha256 of an image as it is stored."""
        return self._hashes[index]

    def fingerprint(self) -> bytes:
        """Name, content, label, split, group and weight of each image. The file's format and its other columns do not count."""
        rows, nothing = self._rows, [""] * len(self.labels)
        labels = [self.classes[label] for label in self.labels.tolist()]
        splits = nothing if rows.splits is None else rows.splits.tolist()
        groups = nothing if rows.groups is None else [rows.group_names[group] for group in rows.groups.tolist()]
        described = zip(rows.names, self._hashes, labels, splits, groups, strict=True)
        weights = [] if rows.weights is None else [rows.weights.tolist()]  # without weights, the hash is that of version 0.2
        return b"table 1\n" + json.dumps([self.classes, *described, *weights]).encode()

    def read(self, index: int) -> np.ndarray:
        """See `Source`."""
        _, height, width = self.shape
        return self._read(self._rows.names[index], (height, width))

    def file(self, index: int) -> Path | bytes:
        """The path of an image, or its bytes in the table."""
        name = self._rows.names[index]
        return self._read.content(name) if isinstance(self._read, BytesReader) else self._table.folder / name

    def sizes(self) -> Sequence[int] | None:
        """Sizes in the file system; None for images in the table."""
        folder = self._table.folder
        return None if isinstance(self._read, BytesReader) else sizes_of([folder / name for name in self._rows.names])

    def where(self, index: int) -> str:
        """`line 7` of a CSV file, `row 7` of a Parquet file."""
        return self.places([index])

    def places(self, indices: Sequence[int]) -> str:
        """The first few lines or rows: `lines 5, 62`."""
        return table_checks.rows_text(self._table, indices)

    def summary(self, used: Mapping[str, int] | None = None) -> str:
        """One line: classes, images, groups and splits."""
        return "; ".join((super().summary(used), *self.notes()))


class _Rows:
    """What a table says about its images, checked.

    Raises: DataError that names all kinds of mistakes, with their rows.
    """

    splits: np.ndarray | None = None
    groups: np.ndarray | None = None
    group_names: Sequence[str] = ()
    weights: np.ndarray | None = None

    def __init__(self, table: TableFile, config: DataConfig) -> None:
        columns = _columns(table, config)
        self.channels = config.channel_count
        self.image_column, label_column = columns["image"], columns["label"]
        if not len(table.numbers):
            raise DataError(f"{table.path}: no rows below the header; list one image in each row.")
        kind = image_kind(table, self.image_column)
        labels = table_checks.as_texts(table.values(label_column))
        mistakes = [*table_checks.missing_values(table, label_column, labels, "label")]
        names = table.class_names(label_column)
        if names is not None:
            mistakes += table_checks.unnamed_labels(table, labels, names)
        all_labelled = not mistakes
        if kind == "names":
            files = [(name or "").strip() or None for name in image_names(table, self.image_column)]
            mistakes += table_checks.missing_values(table, self.image_column, files, "image")
            mistakes += table_checks.duplicate_files(table, files, labels)
            mistakes += table_checks.bad_files(table, files, npy=config.exact)
        else:
            files = [str(number) for number in table.numbers]
            mistakes += table_checks.bad_bytes(table, self.image_column, npy=config.exact)
        splits: Sequence[str | None] | None = table.splits_of_parts()
        if "split" in columns:
            splits = table_checks.as_texts(table.values(columns["split"]))
            mistakes += table_checks.unknown_splits(table, splits)
        groups: Sequence[str | None] | None = None
        if "group" in columns:
            groups = table_checks.as_texts(table.values(columns["group"]))
            mistakes += table_checks.missing_values(table, columns["group"], groups, "group")
        if "weight" in columns:
            weights = table_checks.as_numbers(table.values(columns["weight"]))
            mistakes += table_checks.missing_values(table, columns["weight"], weights, "weight")
            mistakes += table_checks.bad_weights(table, columns["weight"], weights)
        if mistakes:  # report all kinds at once; without mistakes here, `check_classes` does the rest
            texts = _Texts(labels, names if all_labelled else None, splits, groups)
            mistakes += _groups_and_classes(table, texts, config.label_map or {}, classes=all_labelled)
        refuse(str(table.path), mistakes)
        self.names = [str(name) for name in files]
        self.classes, self.labels = _numbered([str(label) for label in labels], names)
        if splits is not None:
            self.splits = np.array([SPLIT_NAMES[split.lower()] if split else "" for split in splits])
        if groups is not None:
            self.group_names, self.groups = _numbered([str(group) for group in groups], None)
        if "weight" in columns:
            self.weights = np.array([float(weight or 0) for weight in weights])


@dataclass(frozen=True)
class _Texts:
    """The texts of each row; None for a missing one. A column that the table lacks is None as a whole."""

    labels: Sequence[str | None]
    names: Sequence[str] | None
    """Class names, if labels are numbers of these."""
    splits: Sequence[str | None] | None
    groups: Sequence[str | None] | None


@dataclass
class _SomeRows:
    """The usable rows of a table that has mistakes in others, for the checks of classes and groups."""

    table: TableFile
    rows: Sequence[int]
    classes: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray | None
    group_names: Sequence[str]

    def where(self, index: int) -> str:
        return self.places([index])

    def places(self, indices: Sequence[int]) -> str:
        return table_checks.rows_text(self.table, [self.rows[index] for index in indices])


def _groups_and_classes(table: TableFile, texts: _Texts, label_map: Mapping[str, str | None], *, classes: bool) -> Iterator[str]:
    """Messages about groups in two splits and classes with too few images, in a table with other mistakes. An unknown split counts as none.

    Args:
        label_map: classes that it drops are not checked.
        classes: whether all labels are known, so that classes can be counted.
    """
    shown = {text: texts.names[int(text)] if texts.names else text for text in texts.labels if text is not None}
    dropped = {text for text, name in shown.items() if label_map.get(name, name) is None}
    groups = texts.groups
    rows = [row for row, label in enumerate(texts.labels) if label not in dropped and (groups is None or groups[row] is not None)]
    names, labels = _numbered([str(texts.labels[row]) for row in rows], texts.names)
    given = [None if texts.splits is None else texts.splits[row] for row in rows]
    splits = np.array([SPLIT_NAMES.get((split or "").lower(), "") for split in given])
    group_names, numbers = ((), None) if groups is None else _numbered([str(groups[row]) for row in rows], None)
    some = _SomeRows(table, rows, names, labels, numbers, group_names)
    yield from straddling_groups(some, splits)
    if classes and not label_map and len(rows) == len(texts.labels):
        yield from small_classes(some, splits)


def _numbered(texts: Sequence[str], names: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Different texts in order, and the number of each text. If `names` are given, the texts are indices of these."""
    values = table_checks.in_order(set(texts))
    numbers = {text: number for number, text in enumerate(values)}
    shown = values if names is None else tuple(names[int(text)] for text in values)
    return shown, np.array([numbers[text] for text in texts], np.int64)


def _columns(table: TableFile, config: DataConfig) -> dict[str, str]:
    """The columns for image, label, split, group and weight. Split and group are used if the table has them.

    A column named weight may hold kilograms, so it is used only if the search file names it.

    Raises: DataError if a column is missing, with the nearest name.
    """
    columns: dict[str, str] = {}
    named = [getattr(config, key) for key in COLUMNS]
    for key, wanted in zip(COLUMNS, named, strict=True):
        name = key if wanted is None else wanted
        if wanted is None and (key == "weight" or (key in ("split", "group") and name in named)):
            continue  # a column of this name is for something else, or may be
        if name in table.columns:
            columns[key] = name
        elif wanted is not None or key in ("image", "label"):
            there = listed(table.columns)
            if wanted is None:
                raise DataError(f"data.{key}: {table.path} has no column {key!r}; name the one to use, of its columns {there}.")
            mend = nearest(name, table.columns)
            mend = mend if mend.startswith("did") else f"its columns are {there}."
            raise DataError(f"data.{key}: {table.path} has no column {name!r}; {mend}")
    used: dict[str, str] = {}
    for key, name in columns.items():
        if name in used:
            raise DataError(f"data.{key}: the column {name!r} is that of data.{used[name]}, too; name another one.")
        used[name] = key
    return columns


def open_table(config: DataConfig, downloads: Path | None, download: bool) -> Table:
    """Open the table that `data.path` names, for the image size and channels of the search file.

    Raises: DataError that names the wrong rows.
    """
    table = open_file(Path(config.path or "").expanduser())
    rows = _Rows(table, config)
    if image_kind(table, rows.image_column) == "bytes":
        reader, streamed = bytes_reader(table, rows.image_column, rows.channels, config.bit_depth)
        source = Table(table, rows, reader, streamed=streamed, image_size=config.image_size)
    else:
        files = FileReader(table.folder.resolve(), rows.channels, config.bit_depth)
        source = Table(table, rows, files, streamed=True, image_size=config.image_size)
    if len(source.classes) < 2 and not config.label_map:
        column = config.label or "label"
        raise DataError(f"{table.path}: {counted(len(source.classes), 'class')} only in the column {column!r}; a model needs two or more.")
    if not config.label_map:
        check_classes(source)
    return source
