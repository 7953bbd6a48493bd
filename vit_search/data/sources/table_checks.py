"""Checks for the rows of a table. Each check yields one line per kind of mistake, with its rows.

This module also turns values into texts, so that a label or a group is the same in a CSV and in a Parquet file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vit_search.data.decode import begins_as_image
from vit_search.data.image_headers import NPY_MAGIC
from vit_search.data.sources.image_folder import ARRAYS_MEND, PARALLEL, PART, SPLIT_NAMES
from vit_search.data.sources.table_file import TableFile, iter_bytes
from vit_search.text import LISTED, file_name, listed, nearest, plain

SHOWN = 40
"""Characters of a wrong value that a message shows."""

MOST_DIGITS = 4_300
"""Digits of the longest number that Python reads. A longer one stays a text."""

MISSING = frozenset({"", "nan", "none", "null", "<na>"})
"""Texts, in lower case, that mean "no value": pandas and other programs write them."""


def as_texts(values: Sequence[Any]) -> list[str | None]:
    """Values of a column as texts; None for a missing value.

    Whole numbers are written without a fraction, because pandas stores a column of whole numbers with gaps as floats. True and False become
    `true` and `false`, even if they are texts.
    """
    texts = [_as_text(value) for value in values]
    there = {text for text in texts if text is not None}
    if there and all(text.lower() in ("true", "false") for text in there):
        return [text and text.lower() for text in texts]
    if there and all(text.removeprefix("-").removesuffix(".0").isdecimal() for text in there):
        return [text and text.removesuffix(".0") for text in texts]
    return texts


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or value != value:  # NaN
        return None
    text = str(value).strip()
    return None if text.lower() in MISSING else text


def as_numbers(values: Sequence[Any]) -> list[str | None]:
    """Values of a column of numbers, spelt as in the file; None for an empty cell.

    `nan` and `null` are not empty cells here. They may come from a division by zero, which a message must show.
    """
    return [_spelling(value) for value in values]


def _spelling(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value != value:
        return "NaN"
    return None if value is None else str(value).strip() or None


def in_order(texts: set[str]) -> tuple[str, ...]:
    """Sort class names: whole numbers by size, texts by letter."""
    if all(text.removeprefix("-").isdecimal() and len(text) <= MOST_DIGITS for text in texts):
        return tuple(sorted(texts, key=lambda text: (int(text), text)))
    return tuple(sorted(texts))


def rows_text(table: TableFile, rows: Sequence[int]) -> str:
    """Rows as the user counts them: `line 3`, `lines 3, 8, … 14 more`."""
    numbers = [table.number(row) for row in rows[:LISTED]]
    more = f", … {len(rows) - LISTED:,} more" if len(rows) > LISTED else ""
    return f"{table.word}{'s' if len(rows) > 1 else ''} {', '.join(numbers)}{more}"


def missing_values(table: TableFile, column: str, values: Sequence[str | None], what: str) -> Iterator[str]:
    """Rows without a label, group, weight or image."""
    rows = [row for row, value in enumerate(values) if value is None]
    if rows:
        yield f"no {what} in the column {column!r}: {rows_text(table, rows)}; give each row one, or remove it."


def unknown_splits(table: TableFile, values: Sequence[str | None]) -> Iterator[str]:
    """Splits whose name is not known."""
    unknown: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value is not None and value.lower() not in SPLIT_NAMES:
            unknown.setdefault(value, []).append(row)
    if unknown:
        names = [f"{name!r} ({rows_text(table, rows)})" for name, rows in unknown.items()]
        mend = nearest(next(iter(unknown)).lower(), ["train", "val", "test"])
        mend = mend if mend.startswith("did") else "give train, val or test, or leave it empty to have the image split by the seed."
        yield f"unknown split {listed(names)}; {mend}"


def bad_weights(table: TableFile, column: str, values: Sequence[str | None]) -> Iterator[str]:
    """Weights that are texts, below 0 or not finite."""
    bad: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value is not None and as_weight(value) is None:
            bad.setdefault(value, []).append(row)
    if bad:
        found = [f"{shortened(value)} ({rows_text(table, rows)})" for value, rows in bad.items()]
        yield f"wrong weight in the column {column!r}: {listed(found)}; give finite numbers of at least 0."


def shortened(value: str) -> str:
    """A value in quotes; of a long one, the first characters."""
    text = plain(value)
    return f"'{text}'" if len(text) <= SHOWN else f"'{text[:SHOWN]}…' ({len(text):,} characters)"


def as_weight(text: str) -> float | None:
    """A text as a finite number of at least 0; None for anything else."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and weight >= 0 and text.isascii() and "_" not in text else None


def unnamed_labels(table: TableFile, labels: Sequence[str | None], names: Sequence[str]) -> Iterator[str]:
    """Labels that have no name in Hugging Face's list of class names. There, -1 means a missing label."""
    rows = [
        row
        for row, label in enumerate(labels)
        if label is not None and not (label.isdecimal() and len(label) < 19 and int(label) < len(names))
    ]
    if rows:
        fact = (
            f"the label {plain(str(labels[rows[0]]))[:SHOWN]}, and the file has names for 0 to {len(names) - 1}: {rows_text(table, rows)}"
        )
        yield f"{fact}; remove rows without a label, or write the file again."


def duplicate_files(table: TableFile, names: Sequence[str | None], labels: Sequence[str | None]) -> Iterator[str]:
    """Files that are in two rows, with equal or different labels."""
    first: dict[str, int] = {}
    same: list[str] = []
    other: list[str] = []
    for row, name in enumerate(names):
        if name is None:
            continue
        earlier = first.setdefault(os.path.normpath(name), row)
        if earlier != row:
            pair = f"{file_name(name)} ({rows_text(table, [earlier, row])}"
            if labels[earlier] == labels[row]:
                same.append(f"{pair})")
            else:
                other.append(f"{pair}: {labels[earlier]} and {labels[row]})")
    if other:
        yield f"the same image with different labels: {listed(other)}; keep the right row of each."
    if same:
        yield f"the same image twice: {listed(same)}; keep one row of each."


def bad_files(table: TableFile, names: Sequence[str | None], *, npy: bool = False) -> Iterator[str]:
    """Files that are missing, and files whose first bytes are not those of an image.

    Args:
        npy: whether NPY files count as images.
    """
    rows = [row for row, name in enumerate(names) if name is not None]
    folder = table.folder
    paths = [folder / str(names[row]) for row in rows]
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    with ThreadPoolExecutor(PARALLEL) as threads:
        faults = [fault for part in threads.map(lambda part: [_fault(path, npy) for path in part], parts) for fault in part]
    for fault, mend in FAULTS.items():
        wrong = [(row, path) for row, path, found in zip(rows, paths, faults, strict=True) if found == fault]
        if wrong:
            files = listed([f"{file_name(str(path))} ({rows_text(table, [row])})" for row, path in wrong])
            windows = ", with / for \\" if "\\" in files else ""
            yield f"{fault}: {files}; {mend}{windows}."


FAULTS = {
    "no such file": "correct the names; relative ones start at the folder of the table",
    "cannot be read": "give this account the right to read such files",
    "not an image": "replace such files, or remove their rows",
    "an NPY file": ARRAYS_MEND,
}
"""What can be wrong with a file, as far as its first bytes show, and how to fix it."""


def _fault(path: Path, npy: bool) -> str:
    """A key of FAULTS; empty if nothing is wrong."""
    try:
        with path.open("rb", buffering=0) as file:
            begin = file.read(16)
        if begins_as_image(begin, path.name, npy=npy):
            return ""
        return "an NPY file" if begin.startswith(NPY_MAGIC) else "not an image"
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return "no such file"
    except (OSError, ValueError):  # the name is too long, or has a NUL
        return "cannot be read"


def bad_bytes(table: TableFile, column: str, *, npy: bool = False) -> Iterator[str]:
    """Rows whose bytes are missing, or do not begin like an image.

    Args:
        npy: whether NPY files count as images.
    """
    absent: list[int] = []
    arrays: list[int] = []
    odd: list[int] = []
    row = 0
    for contents in iter_bytes(table, column):
        for content in contents:
            if not content:
                absent.append(row)
            elif not begins_as_image(content, npy=npy):
                (arrays if content.startswith(NPY_MAGIC) else odd).append(row)
            row += 1
    if absent:
        yield f"no image in the column {column!r}: {rows_text(table, absent)}; remove such rows."
    if arrays:
        yield f"NPY files in the column {column!r}: {rows_text(table, arrays)}; {ARRAYS_MEND}."
    if odd:
        yield f"bytes that are no image in the column {column!r}: {rows_text(table, odd)}; give the bytes of image files, as PNG or JPEG."
