"""A data set behind a URL for `lint` and `plan`: its files are listed, but none is fetched."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vit_search.config.cost import in_units
from vit_search.config.data_config import DataConfig
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.data_urls import is_remote, is_url, local_path
from vit_search.data.fetch import LocalCopy, local_copy, make_folders
from vit_search.data.remote import Listing, list_files
from vit_search.errors import DataError
from vit_search.text import counted

LISTED_FOR_S = 60.0
"""Seconds for which a listing is kept. `plan` asks several questions about one data set."""

_listings: dict[str, tuple[float, Listing | DataError]] = {}


class NotFetchedError(DataError):
    """Files behind a URL would have to be read, and are not on this machine."""


@contextlib.contextmanager
def not_fetched(config: DataConfig, *, by_names: bool) -> Iterator[DataConfig]:
    """The config with a path on this machine: the fetched copy or, without one, a temporary folder of empty files with the same names.

    Args:
        by_names: whether the files' names alone tell classes and labels.
    Raises: DataError if the files cannot be listed; NotFetchedError if they would have to be read.
    """
    if config.path is None or not is_url(config.path):
        yield config
        return
    if not is_remote(config.path):
        yield replace(config, path=str(local_path(config.path)))
        return
    listing = _listed(config)
    copy = local_copy(listing)
    if copy is None and not by_names:
        fact = f"{counted(len(listing.files), 'file')}, {_size(listing.size)}, not on this machine yet"
        raise NotFetchedError(f"{listing.url}: {fact}; `vit-search run` fetches them, and images are counted then.")
    with contextlib.ExitStack() as around:
        if copy is None:
            copy = LocalCopy(listing.url, Path(around.enter_context(tempfile.TemporaryDirectory(prefix="vit_search-"))), listing.path)
            _outline(listing, copy.folder)
        around.enter_context(copy.naming_url())
        yield replace(config, path=str(copy.at))


def described(config: DataConfig) -> str:
    """What is behind the URL of a data set, in one line.

    Raises: DataError if it cannot be listed.
    """
    listing = _listed(config)
    where = "already on this machine" if local_copy(listing) else "fetched into the cache when the search starts"
    return f"{listing.url}: {counted(len(listing.files), 'file')}, {_size(listing.size)}, {where}"


def _size(count: int) -> str:
    """A size in words, in KiB if it is small: 0 MiB would read as if there were no files."""
    return in_units(count) if count >= 2**20 else f"{math.ceil(count / 2**10):,} KiB"


def _listed(config: DataConfig) -> Listing:
    url = config.path or ""
    at, known = _listings.get(url, (0.0, None))
    if known is None or time.monotonic() - at > LISTED_FOR_S:
        try:
            known = list_files(url, DATA_SETS[config.name].beside)
        except DataError as error:  # kept too, so that plan waits only once for a server that does not answer
            known = error
        _listings[url] = (time.monotonic(), known)
    if isinstance(known, DataError):
        raise type(known)(*known.args)
    return known


def _outline(listing: Listing, folder: Path) -> None:
    """Make empty files with the names of a listing."""
    make_folders(listing, folder)
    for file in listing.files:
        (folder / file.name).touch()
