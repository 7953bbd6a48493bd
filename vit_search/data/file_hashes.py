"""sha256 of files: of one, and of all files of a data set at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vit_search.errors import DataError


def sha256_of(path: Path) -> str:
    """Of one file's content, in hexadecimal digits.

    Raises: DataError where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give this account the right to read it, or remove it.") from None


def sha256_by_name(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Of each file, by its name below the root."""
    return dict(zip((str(path.relative_to(root)) for path in files), sha256_of_all(files), strict=True))


def sha256_of_all(files: Sequence[Path]) -> list[str]:
    """Of each file's content, several at once."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(sha256_of, files))


def fingerprint_of(hashes: Mapping[str, str]) -> bytes:
    """Names and contents of all files as one text, in the order of the mapping: what a data hash is made of."""
    return b"".join(os.fsencode(f"{name}\n{content}\n") for name, content in hashes.items())
