"""Where the cache for decoded and fetched data is, and whether it can be trusted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vit_search.errors import DataError
from vit_search.files import open_to_others


def default_cache() -> Path:
    """The cache folder: `$VIT_SEARCH_CACHE`, or `$XDG_CACHE_HOME/vit_search`, or `~/.cache/vit_search`.

    Raises: DataError if neither is set and the account has no home folder.
    """
    folder = os.environ.get("VIT_SEARCH_CACHE")
    try:
        return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_search"
    except RuntimeError:
        raise DataError("this account has no home folder for decoded images; set HOME, or name a folder with VIT_SEARCH_CACHE.") from None


def make_cache(cache: Path) -> None:
    """Make the folder. Whatever the umask is, other accounts can only read it.

    Raises: OSError if that fails.
    """
    if not cache.exists():
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o755)  # see refuse_open_to_others


def refuse_open_to_others(*folders: Path) -> None:
    """Refuse folders of the cache that other accounts could change. A missing folder is fine.

    Raises: DataError.
    """
    for folder in folders:
        with contextlib.suppress(OSError):  # it is missing, or cannot be read anyway
            reason = open_to_others(folder)
            if reason:
                mend = "chown it and chmod go-w, or set VIT_SEARCH_CACHE to another"
                raise DataError(f"{folder}: images of this cache cannot be trusted: {reason}; {mend}.")


def cannot_be_written(cache: Path, error: OSError) -> DataError:
    """The error for a cache without space or without the right to write."""
    return DataError(f"{cache}: the data cache cannot be written ({error.strerror}); set VIT_SEARCH_CACHE to a folder that can.")
