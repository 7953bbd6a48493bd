"""The record of a submitted search (`submitted.json` in its folder), and the state of searches on a cluster.

The record says who submitted the search, with which version, and whether it should run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from vit_search.config.strict_json import Count, Moment, build
from vit_search.errors import ClusterError, VitSearchError
from vit_search.files import locked, make_folder, open_to_write, write_whole
from vit_search.ledger import search_state, searches
from vit_search.ledger.events import Ended, Reported
from vit_search.ledger.file import is_held, read_events
from vit_search.ledger.search_state import SearchState, Snapshot

STORAGE = "VIT_SEARCH_STORAGE"
"""Environment variable on every node: the folder that all nodes share. It is set where Ray is started."""

HEAD_STATE = Path("/mnt/vit_search-head")
"""Default folder of the services on the head."""

RECORD = "submitted.json"
FILE = "submitted.yaml"
"""The search file as it was submitted. It stays there after the search has begun."""

LOCK = "driver.lock"
"""Lock file. The job that runs the search holds it, and so does the driver that the job starts."""

KEEPER = "keeper.json"
"""File in the storage: when the keeper last checked the searches, in seconds since 1970."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One submitted search: where it came from, and whether it should run."""

    search: str
    """The name of the folder. It is also the id of the first job."""
    user: str
    key: str
    """Makes a further search of the same file: another key, another search. Empty by default."""
    version: str
    """Version of vit_search on the machine that submitted it."""
    space_hash: str
    download: bool
    """Whether a missing data set may be downloaded."""
    at: Moment
    launches: Count = 0
    """Number of jobs that ran it."""
    wanted: Literal["running", "stopped"] = "running"
    """What people asked for. If it is "running" and no driver runs, the keeper submits the search again."""
    ended: int | None = None
    """Exit code of a driver that ended by itself; None before that, or if the driver was killed."""

    @property
    def asleep(self) -> bool:
        """Whether the search must not be started again until somebody asks for it."""
        return self.wanted == "stopped" or self.ended is not None


def storage() -> Path:
    """The folder that all nodes share.

    Raises: ClusterError if this node does not know the folder.
    """
    value = os.environ.get(STORAGE, "")
    if not Path(value).is_absolute():
        problem = f"is {value!r}, no full path" if value else "is not set"
        raise ClusterError(
            f"{STORAGE} {problem} on this node; set it to the folder that all nodes see, e.g. /mnt/vit_search, and restart Ray."
        )
    return Path(value)


def folder_of(search: str) -> Path:
    """The folder of a search on the cluster.

    Raises: ClusterError if `search` is not a valid name.
    """
    if not re.fullmatch(NAME, search):
        raise ClusterError(f"{search!r} is no name of a search; `vit-search list` shows them.")
    return storage() / "searches" / search


def surroundings(storage: Path) -> dict[str, str]:
    """The environment of a driver. Decoded images go to the storage, unless `VIT_SEARCH_CACHE` is set on the head."""
    return {"VIT_SEARCH_CACHE": str(storage / "cache")} | os.environ


def submitted(folder: Path) -> bool:
    """Whether the search was submitted to a cluster."""
    return (folder / RECORD).is_file()


def read(folder: Path) -> Submission:
    """The record of a search's folder.

    Raises: ClusterError if there is none or it is damaged.
    """
    try:
        return build(Submission, json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ClusterError(f"{folder}: no search was submitted here; see `vit-search list`.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ClusterError(f"{folder / RECORD}: cannot be read ({error}); submit the search file again with --again.") from None


def begin(folder: Path, submission: Submission, text: str) -> None:
    """Make the folder of a new search, with the search file and the record."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_folder(folder)
    searches.check_own(folder)
    write_whole(folder / FILE, text)
    _write(folder, submission)


def change(folder: Path, **values: Any) -> Submission:
    """Change fields of the record. Several processes can do this at the same time."""
    searches.check_own(folder)
    with locked(folder / f"{RECORD}.lock"):
        changed = replace(read(folder), **values)
        _write(folder, changed)
    return changed


def all_of(storage_folder: Path) -> Iterator[tuple[Path, Submission]]:
    """All readable records in a storage, sorted by name."""
    for path in sorted(storage_folder.glob(f"searches/*/{RECORD}")):
        try:
            yield path.parent, read(path.parent)
        except ClusterError:
            continue


def running(folder: Path) -> bool:
    """Whether a driver holds the search's ledger now."""
    path = folder / "ledger.jsonl"
    return path.exists() and is_held(path)


def taken(lock: IO[str]) -> bool:
    """Lock a file, or return False if another process holds it. The lock lasts until all processes that share the open file close it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def driven(folder: Path) -> bool:
    """Whether a job, or a driver that was started by hand, runs the search now."""
    if running(folder):
        return True
    path = folder / LOCK
    if not path.exists():
        return False
    with open_to_write(path) as lock:
        return not taken(lock)


def snapshot(folder: Path) -> Snapshot:
    """The current state of a search that has begun, on a cluster or on one machine.

    Raises: SearchError if the folder holds no search.
    """
    submission = read(folder) if submitted(folder) else None
    awaited = submission is not None and not submission.asleep
    now = search_state.read(folder, awaited=awaited)
    if submission is not None and now.state.word == "running" and submission.wanted == "stopped":
        return replace(now, state=SearchState("ending"))
    if awaited and not now.state.driven and driven(folder):  # a job runs it, but its driver does not hold the ledger: not yet, or no longer
        return replace(now, state=SearchState("ending" if now.state.word == "finished" else "starting"))
    return now


def state(folder: Path) -> SearchState:
    """The current state of a search. It may be submitted and not yet begun.

    Raises: SearchError or ClusterError if the folder holds no search.
    """
    if (folder / "ledger.jsonl").exists():
        return snapshot(folder).state
    submission = read(folder)
    if not submission.asleep:
        return SearchState("starting" if driven(folder) else "waiting for a driver")
    return SearchState("stopped" if submission.ended is None else "refused" if submission.ended == 2 else "failed")


def states() -> dict[str, dict[str, str]]:
    """The states of all searches in this node's storage, by name, without those that cannot be read."""
    by_search = {}
    for folder, _ in all_of(storage()):
        with contextlib.suppress(VitSearchError):
            by_search[folder.name] = asdict(state(folder))
    return by_search


def progress(folder: Path) -> int:
    """Number of epochs and ended trials so far. It grows while a driver makes progress."""
    path = folder / "ledger.jsonl"
    if not path.exists():
        return 0
    steps = (event for event in read_events(path) if isinstance(event, Reported | Ended))
    return sum(not (isinstance(event, Ended) and event.outcome == "interrupted") for event in steps)


def _write(folder: Path, submission: Submission) -> None:
    write_whole(folder / RECORD, json.dumps(asdict(submission), indent=1))
