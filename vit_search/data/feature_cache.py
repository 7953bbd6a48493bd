"""What the cache holds of features, the outputs of the frozen parts of models. vit/features.py computes them.

    features/KEY/features.npy   float32: (images, dim) if the head alone is trained, else (images, tokens, dim)
    features/KEY/facts.json     all that decides the values, and the sha256 of the file

KEY is made of the facts. So features are never out of date, and they may be deleted at any time. Those that nobody has used for longest
make room for new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_search.config.cost import in_units
from vit_search.config.strict_json import parse
from vit_search.data.cache_folder import make_cache
from vit_search.data.weight_cache import sha256_once
from vit_search.errors import DataError

_log = logging.getLogger(__name__)

FEATURES, FACTS = "features.npy", "facts.json"

SPARED = 2**30
"""Bytes of the disk that are left free: checkpoints need room, too."""

Facts = Mapping[str, Any]
"""What features are computed from, in plain JSON values."""


def home_of(cache: Path) -> Path:
    """The folder of all features."""
    return cache / "features"


def folder_of(cache: Path, facts: Facts) -> Path:
    """The folder of some features."""
    return home_of(cache) / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def opened(folder: Path, facts: Facts, shape: tuple[int, ...]) -> np.ndarray | None:
    """Features as a memory map (writing changes this process's copy alone); None if they are not there, or not what was written."""
    try:
        document = parse((folder / FACTS).read_text())
        sound = document["facts"] == json.loads(json.dumps(facts)) and document["sha256"] == sha256_once(folder / FEATURES)
        array: np.ndarray | None = np.load(folder / FEATURES, mmap_mode="c", allow_pickle=False) if sound else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        array = None
    if array is None or array.shape != shape or array.dtype != np.float32:
        _log.warning("%s: these features are damaged; they are computed again.", folder)
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)  # it was used last
    return array


def put(folder: Path, facts: Facts, shape: tuple[int, ...], batches: Iterable[np.ndarray]) -> None:
    """Write features into a new folder, then rename it. The caller holds the lock of the folder.

    Raises: OSError if the disk is full or cannot be written.
    """
    unfinished = f".new-{folder.name}-"
    for left in folder.parent.glob(f"{unfinished}*"):  # by a process that was killed, since we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=unfinished, dir=folder.parent))
    try:
        digest = _write(fresh / FEATURES, shape, batches)
        (fresh / FACTS).write_text(json.dumps({"facts": facts, "sha256": digest}, indent=1))
        for path in fresh.iterdir():
            path.chmod(0o644)
        fresh.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # what is there is damaged
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write(path: Path, shape: tuple[int, ...], batches: Iterable[np.ndarray]) -> str:
    """Write a file of NumPy, batch after batch; not through a map, which would kill the process on a full disk. Returns: its sha256."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    digest = hashlib.sha256(header.getvalue())
    with path.open("xb") as file:
        file.write(header.getvalue())
        for batch in batches:
            content = np.ascontiguousarray(batch, dtype="<f4").tobytes()
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def room_problem(cache: Path, sizes: Mapping[Path, int]) -> str:
    """Why features cannot be kept, in words; empty if they can. Older ones are deleted if that makes enough room.

    Args:
        sizes: bytes of each, by its folder. Those that are there already need no room.
    """
    home = home_of(cache)
    needed = sum(size for folder, size in sizes.items() if not (folder / FACTS).is_file())
    if not needed:
        return ""
    try:
        make_cache(home)
        if not os.access(home, os.W_OK):
            return f"{home}: this account cannot write there, so the outputs of the frozen parts cannot be kept"
        free = _after_deleting_oldest(home, needed + SPARED, sizes.keys())
    except OSError as error:
        return f"{home}: the outputs of the frozen parts cannot be kept ({error.strerror})"
    if free >= needed + SPARED:
        return ""
    return f"{home}: the outputs of the frozen parts take {in_units(needed)}, and {in_units(max(0, free - SPARED))} can be used"


def _after_deleting_oldest(home: Path, enough: int, wanted: Iterable[Path]) -> int:
    """Bytes that are free. Features that nobody has used for longest are deleted if that leads to `enough`. Open maps stay readable."""
    free = shutil.disk_usage(home).free
    others = [path for path in home.iterdir() if not path.name.startswith(".") and path not in set(wanted)]
    if free >= enough or free + sum(map(_size_of, others)) < enough:
        return free
    for path in sorted(others, key=_used_at):
        shutil.rmtree(path, ignore_errors=True)
        free = shutil.disk_usage(home).free
        if free >= enough:
            break
    return free


def _used_at(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _size_of(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / FEATURES).stat().st_size
    return 0
