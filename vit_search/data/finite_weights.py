"""Check that the weights in a `.safetensors` file are finite, from their bits: without torch, and without a copy in memory."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from vit_search.errors import CheckpointError
from vit_search.text import file_name

EXPONENTS = {"F64": ("<u8", 0x7FF0_0000_0000_0000), "F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""By type: the NumPy type for its bits as a whole number, and the bits of the exponent. NaN and infinity have a 1 in all of these bits."""

AT_ONCE = 2**22
"""Values that are checked in one step."""


def check_finite(path: Path, names: Collection[str]) -> None:
    """Refuse weights that are not finite.

    Args:
        path: a file whose header `read_header` has accepted.
        names: the tensors to check.
    Raises: CheckpointError that names the first tensor with NaN or infinity.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name in names:
        entry = header[name]
        begin, end = entry["data_offsets"]
        kind, exponent = EXPONENTS[entry["dtype"]]
        values = np.memmap(path, np.uint8, "r")[8 + length + begin : 8 + length + end].view(np.dtype(kind))
        bits = np.array(exponent, kind)
        if any(((values[i : i + AT_ONCE] & bits) == bits).any() for i in range(0, len(values), AT_ONCE)):
            raise CheckpointError(f"{file_name(str(path))}: {name}: holds numbers that are not finite; use other weights.")
