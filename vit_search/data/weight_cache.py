"""The cache of pretrained weights that are not the user's own files: a record says where the weights of each source are.

    weights/KEY.json        a record; KEY is a hash of the source's text
    weights/SHA256/         model.safetensors and config.json of a registered version
    remote/                 files of servers, see fetch.py

A source that may later mean other weights, such as a branch, has a record of its latest meaning.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vit_search.config.strict_json import build, parse
from vit_search.data.cache_folder import cannot_be_written, make_cache, refuse_open_to_others
from vit_search.data.file_hashes import sha256_of
from vit_search.files import locked, write_whole


@dataclass(frozen=True, kw_only=True)
class Record:
    """Weights in the cache."""

    source: str
    """The source without a sha256."""
    revision: str
    sha256: str
    licence: str | None
    path: str
    """Path of the file below the cache."""

    def file(self, cache: Path) -> Path:
        """The file with the weights."""
        return cache / self.path


def find(text: str, cache: Path) -> Record | None:
    """What a source meant when it was last fetched; None if it is not in the cache, or is damaged there.

    Raises: DataError if other accounts could change the weights in the cache.
    """
    refuse_open_to_others(cache, cache / "weights")
    try:
        record = build(Record, parse(_place(text, cache).read_bytes()))
        file = record.file(cache)
        inside = file.resolve().is_relative_to(cache.resolve())
    except (OSError, ValueError):
        return None
    if not inside or not file.is_file():
        return None
    parts = Path(record.path).parts[:-1]
    refuse_open_to_others(*(cache.joinpath(*parts[: i + 1]) for i in range(min(len(parts), 3))))
    return record if sha256_once(file) == record.sha256 else None


_hashed: dict[tuple[Path, int, int, int], str] = {}
"""sha256 values that this process has computed, by path, inode, modification time in ns, and size."""


def sha256_once(path: Path) -> str:
    """sha256 of a file. It is computed again only if the file changed: a gigabyte takes about a second.

    Raises: DataError if the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError:
        return sha256_of(path)
    version = (path, status.st_ino, status.st_mtime_ns, status.st_size)
    if version not in _hashed:
        _hashed[version] = sha256_of(path)
    return _hashed[version]


def keep(record: Record, cache: Path, texts: tuple[str, ...]) -> None:
    """Write a record for each text that means these weights.

    Raises: DataError if the cache cannot be written.
    """
    try:
        _make(cache)
        for text in texts:
            place = _place(text, cache)
            write_whole(place, json.dumps(asdict(record), indent=1))
            place.chmod(0o644)
    except OSError as error:
        raise cannot_be_written(cache, error) from None


def put(sha256: str, cache: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder in the cache for these weights, filled by `fill`. A folder that exists is replaced.

    Raises: DataError if the cache cannot be written; whatever `fill` raises.
    """
    folder = cache / "weights" / sha256
    try:
        _make(cache)
        with locked(cache / "weights" / ".lock"):
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
            try:
                fill(fresh)
                for path in fresh.iterdir():
                    path.chmod(0o644)
                fresh.chmod(0o755)
                if folder.exists():  # the old folder is damaged, or has another config.json
                    shutil.rmtree(folder)
                fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise cannot_be_written(cache, error) from None
    return folder


def _make(cache: Path) -> None:
    make_cache(cache)
    (cache / "weights").mkdir(exist_ok=True)
    (cache / "weights").chmod(0o755)


def _place(text: str, cache: Path) -> Path:
    return cache / "weights" / f"{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
