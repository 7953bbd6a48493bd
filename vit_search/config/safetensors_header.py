"""Read the header of a `.safetensors` file: names, types and shapes of its tensors. The tensors are not read, and torch is not needed.

The file has three parts: the length of the header (8 bytes, little-endian), the header (JSON), and the tensors, one after the other.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_search.config.strict_json import parse_unique
from vit_search.errors import CheckpointError
from vit_search.text import counted, file_name

LONGEST = 100_000_000
"""Largest header in bytes, as in the safetensors library."""

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
}  # fmt: skip
"""Bytes of one value, by type."""

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a file of torch.save: a zip archive, or a bare pickle."""


@dataclass(frozen=True)
class Stored:
    """Type and shape of one tensor, from the header."""

    dtype: str
    """A key of BYTES."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The header of a file."""

    tensors: dict[str, Stored]
    """By name, in the order of the header."""
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check a header. The size of the file must agree with it.

    Raises: CheckpointError if the file is missing, damaged or of another format.
    """
    where = file_name(str(path))
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            _check_format(where, start)
            length = int.from_bytes(start, "little")
            if length > LONGEST:
                raise CheckpointError(f"{where}: no .safetensors file: its first 8 bytes would mean a header of {length:,} bytes.")
            if 8 + length > size:
                raise CheckpointError(
                    f"{where}: truncated: its header has {length:,} bytes, and the file only {size:,}; copy or download it again."
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read ({error.strerror or error}); name a .safetensors file.") from None
    try:
        return _checked(parse_unique(text), size - 8 - length)
    except ValueError as error:
        raise CheckpointError(f"{where}: damaged header ({error}); copy or download the file again.") from None


def _check_format(where: str, start: bytes) -> None:
    if start.startswith(PICKLES):
        raise CheckpointError(
            f"{where}: a pickle of PyTorch, whatever its name; write `vit-search convert-weights {where} OUT.safetensors`, and use OUT."
        )
    if start == b"version ":
        raise CheckpointError(f"{where}: a pointer of Git LFS, not the weights; fetch them with `git lfs pull`.")
    if len(start) < 8:
        raise CheckpointError(f"{where}: no .safetensors file: it has only {counted(len(start), 'byte')}.")


def _checked(values: Any, data: int) -> Header:
    """Make a Header, and check that the tensors lie one after the other and fill the rest of the file.

    Args:
        data: number of bytes after the header.
    Raises: ValueError.
    """
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("__metadata__ is no mapping of texts")
    tensors, spans = {}, []
    for name, entry in values.items():
        stored, begin, end = _entry(name, entry)
        tensors[name] = stored
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise ValueError(f"{name} begins at byte {begin:,}, and the tensor before it ends at {reached:,}")
        reached = end
    if reached > data:
        raise ValueError(f"truncated: its tensors have {reached:,} bytes, and the file has {data:,}")
    if reached < data:
        raise ValueError(f"{data - reached:,} bytes after the last tensor")
    return Header(tensors, metadata)


def _entry(name: str, entry: Any) -> tuple[Stored, int, int]:
    """One tensor, and the bytes where it begins and ends."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: not a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ValueError(f"{name}: {dtype!r} is a type that this version does not know")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name}: shape or data_offsets are no lists of whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"{name}: {dtype} of {shape} has {math.prod(shape) * BYTES[dtype]:,} bytes, not {end - begin:,}")
    return Stored(dtype, tuple(shape)), begin, end


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)
