"""Where the cache of decoded and fetched data is, and whether it can be trusted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vit_search.errors import DataError
from vit_search.files import open_to_others


def default_cache() -> Path:
    """`$VIT_SEARCH_CACHE`, else `$XDG_CACHE_HOME/vit_search`, else `~/.cache/vit_search`.

    Raises: DataError where none of them says where.
    """
    folder = os.environ.get("VIT_SEARCH_CACHE")
    try:
        return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_search"
    except RuntimeError:
        raise DataError("this account has no home folder for decoded images; set HOME, or name a folder with VIT_SEARCH_CACHE.") from None


def make_cache(cache: Path) -> None:
    """Make the folder, which other accounts can read and not change, whatever the umask is.

    Raises: OSError where that does not work.
    """
    if not cache.exists():
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o755)  # see refuse_open_to_others


def refuse_open_to_others(*folders: Path) -> None:
    """Raises: DataError where other accounts could put other images or labels into the cache."""
    for folder in folders:
        with contextlib.suppress(OSError):  # missing; what cannot be looked at cannot be read either
            reason = open_to_others(folder)
            if reason:
                mend = "chown it and chmod go-w, or set VIT_SEARCH_CACHE to another"
                raise DataError(f"{folder}: images of this cache cannot be trusted: {reason}; {mend}.")


def cannot_be_written(cache: Path, error: OSError) -> DataError:
    """The line for a cache that has no room, or belongs to others."""
    return DataError(f"{cache}: the data cache cannot be written ({error.strerror}); set VIT_SEARCH_CACHE to a folder that can.")
