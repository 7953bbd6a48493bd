"""Copy the files behind a URL into the cache, once per machine, so that a source can open them as files.

    remote/KEY/                 one folder for each URL
      .lock                     held by the process that fetches; others wait for it
      objects/IDENTITY          one version of one file; it gets this name after a check, so it is always complete
      objects/IDENTITY.part     the beginning of a file; the next start continues it
      LISTING/                  all files by name, as links to the objects; it gets this name last, so it is always complete

If files behind the URL change, only those are fetched, into a new LISTING. A search that still reads the old LISTING is not disturbed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vit_search.config.cost import in_units
from vit_search.config.data_config import DataConfig
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.data_urls import before_braces, has_braces, is_remote, is_url, local_path
from vit_search.data.cache_folder import cannot_be_written, default_cache, make_cache, refuse_open_to_others
from vit_search.data.file_hashes import sha256_of
from vit_search.data.progress import Advance, step
from vit_search.data.remote import THREADS, Listing, Passing, RemoteFile, file_system, is_passing, list_files, reason
from vit_search.errors import DataError
from vit_search.files import locked
from vit_search.text import counted

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Seconds between tries to fetch a file. After a try that brought a part of it, the list starts again."""

BLOCK = 8 * 2**20
"""Bytes per request for a file in a bucket. A broken connection loses at most so many."""


class _Stopped(Exception):
    """Another file could not be fetched, or the user interrupted."""


@dataclass(frozen=True)
class LocalCopy:
    """The copy of what is behind a URL on this machine."""

    url: str
    folder: Path
    """Folder of all files."""
    path: str
    """See Listing.path."""

    @property
    def at(self) -> Path:
        """Where the URL's own target is: a folder, one file, or a path with braces."""
        return self.folder / self.path if self.path else self.folder

    @contextlib.contextmanager
    def naming_url(self) -> Iterator[None]:
        """Errors about a local file name the file behind the URL, because the user can change that one."""
        above = before_braces(self.url)[0] if has_braces(self.url) else self.url.rpartition("/")[0] if self.path else self.url
        try:
            yield
        except DataError as error:
            raise type(error)(str(error).replace(str(self.folder), above.rstrip("/"))) from None


@contextlib.contextmanager
def fetched(config: DataConfig, cache: Path | None = None) -> Iterator[DataConfig]:
    """The config with a local path. If its path is a URL, the files are fetched first, unless an up-to-date copy is there.

    Raises: see `fetch`.
    """
    if config.path is None or not is_url(config.path):
        yield config
    elif not is_remote(config.path):
        yield replace(config, path=str(local_path(config.path)))
    else:
        copy = fetch(config.path, cache, DATA_SETS[config.name].beside)
        with copy.naming_url():
            yield replace(config, path=str(copy.at))


def fetch(url: str, cache: Path | None = None, beside: tuple[str, ...] = ()) -> LocalCopy:
    """Copy all files behind a URL into the cache, unless they are there.

    Two processes may call this at once: one fetches, and the other waits.

    Args:
        beside: see `list_files`.
    Raises: DataError in one line; SpecError for a URL of a kind that is not supported. The next call continues with what has arrived.
    """
    return fetch_listed(list_files(url, beside), cache)


def fetch_listed(listing: Listing, cache: Path | None = None, system: Any = None) -> LocalCopy:
    """Copy all files of a listing into the cache; see `fetch`.

    Args:
        system: an fsspec file system. Default: the one for the listing's URL.
    """
    cache = cache or default_cache()
    home = _home(listing.url, cache)
    folder = home / listing.identity
    refuse_open_to_others(cache, home.parent, home, folder)
    try:
        if not folder.is_dir():
            make_cache(cache)
            (home / "objects").mkdir(parents=True, exist_ok=True)
            for made in (home.parent, home, home / "objects"):
                made.chmod(0o755)
            with locked(home / ".lock"):
                if not folder.is_dir():
                    _fetch_objects(listing, home / "objects", system or file_system(listing.url))
                    _put_in_place(listing, home / "objects", folder)
    except OSError as error:
        raise cannot_be_written(cache, error) from None
    return LocalCopy(listing.url, folder, listing.path)


def local_copy(listing: Listing, cache: Path | None = None) -> LocalCopy | None:
    """The copy of these files; None if it is not complete. Nothing is fetched."""
    folder = _home(listing.url, cache or default_cache()) / listing.identity
    refuse_open_to_others(folder.parent, folder)
    return LocalCopy(listing.url, folder, listing.path) if folder.is_dir() else None


def _home(url: str, cache: Path) -> Path:
    return cache / "remote" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]


def _fetch_objects(listing: Listing, objects: Path, system: Any) -> None:
    """Fetch every file that has no object yet, many at once.

    Raises: DataError for the first file that cannot be fetched.
    """
    there = {entry.name for entry in os.scandir(objects)}
    missing = [file for file in {file.identity: file for file in listing.files}.values() if file.identity not in there]
    if not missing:
        return
    size = sum(file.size or 0 for file in missing)
    free = shutil.disk_usage(objects).free
    if size > free:
        fact = f"{counted(len(missing), 'file')} to fetch have {in_units(size)}, and {in_units(free)} are free in the cache {objects}"
        raise DataError(f"{listing.url}: {fact}; make room, or set VIT_SEARCH_CACHE to a larger disk.")
    stopped = threading.Event()
    sizes_known = all(file.size is not None for file in missing)
    with step(f"fetching {counted(len(missing), 'file')}", size if sizes_known else None, "bytes") as advance:
        one = _Fetcher(system, objects, advance, stopped)
        threads = ThreadPoolExecutor(THREADS)
        try:
            tasks = [threads.submit(one.fetch, file) for file in missing]
            wait(tasks, return_when=FIRST_EXCEPTION)
            failed = next((error for task in tasks if task.done() and not task.cancelled() and (error := task.exception())), None)
            if failed is not None:
                raise failed
        finally:
            stopped.set()
            threads.shutdown(cancel_futures=True)


class _Fetcher:
    """Fetches single files. Many threads share one."""

    def __init__(self, system: Any, objects: Path, advance: Advance, stopped: threading.Event) -> None:
        self._system, self._objects, self._advance, self._stopped = system, objects, advance, stopped
        self._protocols = system.protocol if isinstance(system.protocol, (tuple, list)) else (system.protocol,)

    def fetch(self, file: RemoteFile) -> None:
        """Fetch one file, check it, and give it its final name.

        Raises: DataError if it cannot be fetched after several tries, or has changed meanwhile; OSError if it cannot be written.
        """
        part = self._objects / f"{file.identity}.part"
        bring = self._stream if "http" in self._protocols else self._blocks
        pauses, before = list(PAUSES_S), -1
        if part.exists():
            self._advance(part.stat().st_size)
        while True:
            try:
                bring(file, part)
                self._check(file, part)
                part.replace(self._objects / file.identity)
                return
            except (_Stopped, DataError):
                raise
            except Exception as error:
                if _is_ours(error):
                    raise
                come = part.stat().st_size if part.exists() else 0
                if come > before >= 0:
                    pauses = list(PAUSES_S)
                before = come
                if not pauses or not is_passing(error):
                    kept = "; what has arrived stays in the cache, and the next start goes on from there"
                    raise DataError(f"{file.url}: {reason(error).rstrip('.')}{kept}.") from None
                if self._stopped.wait(pauses.pop(0)):
                    raise _Stopped from None

    def _blocks(self, file: RemoteFile, part: Path) -> None:
        """Append the missing part, block by block."""
        assert file.size is not None, "buckets say the size of each file"
        with part.open("ab") as out:
            while (begin := out.tell()) < file.size:
                if self._stopped.is_set():
                    raise _Stopped
                end = min(begin + BLOCK, file.size)
                block = self._system.cat_file(file.address, start=begin, end=end)
                if len(block) != end - begin:
                    raise Passing(f"{len(block):,} of {end - begin:,} bytes arrived")
                out.write(block)
                self._advance(len(block))

    def _stream(self, file: RemoteFile, part: Path) -> None:
        """Append the missing part, or fetch the whole file again if the server sends no parts."""
        with part.open("ab") as out:
            begin = out.tell()
            if begin and begin == file.size:
                return
            headers = {"Accept-Encoding": "identity"}
            if begin:
                headers["Range"] = f"bytes={begin}-"
            self._system.get_file(file.address, out, callback=_watching(self, out, begin, file.size), headers=headers)

    def _check(self, file: RemoteFile, part: Path) -> None:
        """Compare what arrived with what the server says.

        Raises: Passing if they differ; DataError if the file changed while it was fetched.
        """
        size = part.stat().st_size
        if file.size is not None and size < file.size:
            raise Passing(f"{size:,} of {file.size:,} bytes arrived")
        if file.size is not None and size > file.size:
            part.unlink()
            raise Passing(f"{size:,} bytes arrived, and the server has {file.size:,}")
        if file.md5 and _md5(part) != file.md5 and not self._is_encrypted(file):
            part.unlink()
            raise Passing("it arrived damaged: its MD5 is another one than the server's")
        if file.sha256 and sha256_of(part) != file.sha256:
            part.unlink()
            raise Passing("it arrived damaged: its sha256 is another one than the server's")
        if size > BLOCK and not file.md5 and "http" not in self._protocols:  # the blocks may be of two versions
            about = self._system.info(file.address)
            etag = str(about.get("ETag") or about.get("etag") or "").strip('"')
            if etag and etag != file.version:
                part.unlink()
                raise DataError(f"{file.url}: changed while it was fetched; start again.")

    def _is_encrypted(self, file: RemoteFile) -> bool:
        """Whether an S3 bucket encrypts the file with a key of its owner. Its ETag is then no MD5."""
        if "s3" not in self._protocols:
            return False
        bucket, key, _ = self._system.split_path(file.address)
        about = self._system.call_s3("head_object", Bucket=bucket, Key=key)
        return "SSECustomerAlgorithm" in about or str(about.get("ServerSideEncryption", "")).startswith("aws:kms")


def _watching(fetcher: _Fetcher, out: Any, begin: int, size: int | None) -> Any:
    """A callback for fsspec that counts what arrives. It starts again at 0 if the server sends the whole file."""
    from fsspec.callbacks import Callback

    class Watching(Callback):  # type: ignore[misc]  # fsspec has no types
        def set_size(self, length: int | None) -> None:
            if begin and (length is None or length == size):
                out.seek(0)
                out.truncate()
                fetcher._advance(-begin)

        def relative_update(self, arrived: int = 1) -> None:
            if fetcher._stopped.is_set():
                raise _Stopped
            fetcher._advance(arrived)

    return Watching()


def _is_ours(error: Exception) -> bool:
    """Whether an error comes from the disk here, not from the network."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def make_folders(listing: Listing, folder: Path) -> None:
    """Make the folders of all files below a folder that exists."""
    for above in sorted({file.name.rpartition("/")[0] for file in listing.files} - {""}):
        (folder / above).mkdir(parents=True, exist_ok=True)


def _put_in_place(listing: Listing, objects: Path, folder: Path) -> None:
    """Make the folder that has all files by name, and rename it into place when it is complete."""
    for left in folder.parent.glob(".new-*"):  # of a process that was killed, because we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        put = _putter(objects, fresh)
        make_folders(listing, fresh)
        for file in listing.files:
            put(str(objects / file.identity), f"{fresh}/{file.name}")
        fresh.chmod(0o755)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _putter(objects: Path, fresh: Path) -> Callable[[str, str], Any]:
    """How to give a file a second name: a hard link, or a copy on file systems without links."""
    tried = objects / f".link-{time.time_ns()}"
    tried.touch()
    try:
        os.link(tried, fresh / tried.name)
        (fresh / tried.name).unlink()
        return os.link
    except OSError:
        return shutil.copyfile
    finally:
        tried.unlink()
