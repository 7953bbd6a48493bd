"""Files that are written whole or not at all."""

from __future__ import annotations

import uuid
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write under a name that no other process takes, then rename.

    Raises: OSError where the folder cannot be written; an older file is then still there.
    """
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
