"""The ledger file: all events of a search. It is append-only, and the search can be rebuilt from it after any crash.

Each event is one line: a checksum and JSON. It is written twice, to `ledger.jsonl` and then to `ledger.copy.jsonl`.

- A last line that a crash cut off is dropped.
- A file that is damaged before its end is repaired from the other one.
- If both are damaged, opening fails. The search never starts again from the beginning.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from vit_search.errors import SearchError
from vit_search.files import open_to_write, write_whole
from vit_search.ledger.events import Broke, Ended, Event, Launched, OutgrewShare, Proposed, Reported, decode, encode
from vit_search.ledger.trials import Progress, Trial


class Ledger:
    """The ledger of one search and its copy. One driver at a time holds it; any thread of the driver may append.

    Args:
        path: of `ledger.jsonl`. The file is created if it is missing.
    Raises: SearchError if another driver holds it, or if both files are damaged before their end.
    """

    def __init__(self, path: Path) -> None:
        self.folder, self._path = path.parent, path
        self._file: IO[bytes] = open_to_write(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise _taken(path) from None
        self.listeners: list[Callable[[Event], None]] = []
        """Called in this order with each event, after it was written."""
        self._lock = threading.RLock()
        lines = _sound_lines(path)
        self.events = _decoded(path, lines)
        whole = b"".join(lines)
        if not _holds(copy_path(path), whole):
            write_whole(copy_path(path), whole)
        if not _holds(path, whole):  # only after the copy is complete, so a crash here loses nothing
            self._file.truncate(0)
            self._file.write(whole)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._copy: IO[bytes] = open_to_write(copy_path(path), "ab")

    def append(self, event: Event) -> None:
        """Write an event, then call the listeners.

        Raises: SearchError if the disk is full or the file cannot be written.
        """
        with self._lock:
            line = encode(event)
            try:
                self._file.write(line)
                self._file.flush()
                if not isinstance(event, Reported):
                    os.fsync(self._file.fileno())
                self._copy.write(line)
                self._copy.flush()
            except OSError as error:
                raise SearchError(
                    f"{self._path}: cannot be written ({error.strerror}); make room, then `vit-search resume {self._path.parent.name}`."
                ) from None
            self.events.append(event)
            for listener in self.listeners:
                listener(event)

    def sync(self) -> None:
        """Force all events to the disk, so that a power failure cannot undo events that MLflow gets next."""
        for file in (self._file, self._copy):
            with contextlib.suppress(OSError, ValueError):  # `append` reports a full disk; a closed ledger is fine
                os.fsync(file.fileno())

    def close(self) -> None:
        """Release the file, so that another driver may hold it."""
        for file in (self._file, self._copy):
            with contextlib.suppress(OSError):  # the disk is full, which `append` has reported
                file.close()


def read_events(path: Path) -> list[Event]:
    """All events of a search. Any process may read them at any time.

    Raises: SearchError if the file is missing, or if it and its copy are damaged before their end.
    """
    if not path.exists() and not copy_path(path).exists():
        raise SearchError(f"{path}: missing; {path.parent} is not the folder of a search.")
    return _decoded(path, _sound_lines(path))


def read_trials(path: Path) -> list[Trial]:
    """The trials of a search, running or over, by number. Errors: see `read_events`."""
    return list(Progress.of(read_events(path), epochs=0).trials.values())


def is_held(path: Path) -> bool:
    """Whether a driver holds this search now."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def check_free(path: Path) -> None:
    """Raises: SearchError if a driver holds this search now."""
    if is_held(path):
        raise _taken(path)


def _decoded(path: Path, lines: Sequence[bytes]) -> list[Event]:
    """Decode and check the lines of a ledger.

    Raises: SearchError that names the bad line.
    """
    events: list[Event] = []
    proposed: set[int] = set()
    for number, line in enumerate(lines, 1):
        try:
            event = decode(line)
            if isinstance(event, Proposed):
                proposed.add(event.trial)
            elif isinstance(event, Reported | OutgrewShare | Broke | Ended) and event.trial not in proposed:
                raise ValueError(f"trial: {event.trial} was not proposed before")
        except (ValueError, RecursionError) as error:
            raise SearchError(f"{path}:{number}: {error or 'too many brackets'}; restore the file from a copy.") from None
        events.append(event)
    return events


def copy_path(path: Path) -> Path:
    """The path of the copy of a ledger."""
    return path.with_name(f"{path.stem}.copy{path.suffix}")


def _sound_lines(path: Path) -> list[bytes]:
    """The undamaged lines of the ledger, or of its copy if that has more."""
    lines, damaged = _prefix(path)
    more, other = _prefix(copy_path(path))
    if len(more) > len(lines):
        lines, damaged = more, other and damaged
    if damaged:
        raise SearchError(f"{path}:{damaged}: this line is damaged and others follow it; restore the file from a copy.")
    return lines


def _prefix(path: Path) -> tuple[list[bytes], int]:
    """The lines before the first damaged one, and the number of the damaged line if more lines follow it; otherwise 0."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines):
        checksum, _, body = line.partition(b" ")
        if not line.endswith(b"\n") or b"%08x" % zlib.crc32(body[:-1]) != checksum:
            return lines[:number], number + 1 if number + 1 < len(lines) else 0
    return lines, 0


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.stat().st_size == len(content) and path.read_bytes() == content


def _taken(path: Path) -> SearchError:
    return SearchError(f"{path.parent}: {_holder(path)} is running this search; wait for it or stop it.")


def _holder(path: Path) -> str:
    """A description of the process that runs this search."""
    last = [event for event in read_events(path) if isinstance(event, Launched)][-1:]
    return f"process {last[0].pid} on {last[0].host}" if last else "another vit-search"
