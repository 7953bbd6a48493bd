"""The record of a submission in the folder of a search on a cluster: who submitted it, at which version, and whether it is to run."""

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
"""Names, on every node, the folder that all nodes see; set where Ray is started."""

HEAD_STATE = Path("/mnt/vit_search-head")
"""Folder of the head's services, unless another is named."""

RECORD = "submitted.json"
FILE = "submitted.yaml"
"""The search file as it was submitted, until and after the search has begun."""

LOCK = "driver.lock"
"""Held by the job that has the search, and by the driver that it has started."""

KEEPER = "keeper.json"
"""In the storage: when the keeper last looked, as seconds since 1970."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Why a search is in the storage of a cluster, and how it stands with its drivers."""

    search: str
    """The folder's name, and the id of its first job."""
    user: str
    key: str
    """By which the same file is another search; empty by default."""
    version: str
    """Of vit_search, where it was submitted."""
    space_hash: str
    download: bool
    """Whether a data set that is missing may be fetched."""
    at: Moment
    launches: Count = 0
    """Jobs that took it up."""
    wanted: Literal["running", "stopped"] = "running"
    """As people want it; a search that is to run and that nobody runs is submitted again by the keeper."""
    ended: int | None = None
    """Exit code of a driver that came to its own end; None while there is none, or where it was killed."""

    @property
    def asleep(self) -> bool:
        """Whether nobody is to take it up until somebody asks for it."""
        return self.wanted == "stopped" or self.ended is not None


def storage() -> Path:
    """The folder that every node sees.

    Raises: ClusterError where this node does not know it.
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

    Raises: ClusterError for what is no name of one.
    """
    if not re.fullmatch(NAME, search):
        raise ClusterError(f"{search!r} is no name of a search; `vit-search list` shows them.")
    return storage() / "searches" / search


def surroundings(storage: Path) -> dict[str, str]:
    """The environment of a driver: decoded images go to the storage where the head's own names no other place."""
    return {"VIT_SEARCH_CACHE": str(storage / "cache")} | os.environ


def submitted(folder: Path) -> bool:
    """Whether the search was submitted to a cluster."""
    return (folder / RECORD).is_file()


def read(folder: Path) -> Submission:
    """A folder's submission.

    Raises: ClusterError where it has none, or one that is damaged.
    """
    try:
        return build(Submission, json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ClusterError(f"{folder}: no search was submitted here; see `vit-search list`.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ClusterError(f"{folder / RECORD}: cannot be read ({error}); submit the search file again with --again.") from None


def begin(folder: Path, submission: Submission, text: str) -> None:
    """Make the folder of a new search, with its file and its submission."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_folder(folder)
    searches.check_own(folder)
    write_whole(folder / FILE, text)
    _write(folder, submission)


def change(folder: Path, **values: Any) -> Submission:
    """Write down what has changed; several processes may do so at once."""
    searches.check_own(folder)
    with locked(folder / f"{RECORD}.lock"):
        changed = replace(read(folder), **values)
        _write(folder, changed)
    return changed


def all_of(storage_folder: Path) -> Iterator[tuple[Path, Submission]]:
    """The submissions in a storage that can be read, by name."""
    for path in sorted(storage_folder.glob(f"searches/*/{RECORD}")):
        try:
            yield path.parent, read(path.parent)
        except ClusterError:
            continue


def running(folder: Path) -> bool:
    """Whether a driver holds the search's ledger at this moment."""
    path = folder / "ledger.jsonl"
    return path.exists() and is_held(path)


def taken(lock: IO[str]) -> bool:
    """Take a lock that is free; whoever has it keeps it while the file is open, in this process or one that inherits it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def driven(folder: Path) -> bool:
    """Whether a job has the search at this moment, or a driver that was started by hand."""
    if running(folder):
        return True
    path = folder / LOCK
    if not path.exists():
        return False
    with open_to_write(path) as lock:
        return not taken(lock)


def snapshot(folder: Path) -> Snapshot:
    """A search that has begun, on a cluster or on one machine, as it stands.

    Raises: SearchError where the folder holds no search.
    """
    submission = read(folder) if submitted(folder) else None
    awaited = submission is not None and not submission.asleep
    now = search_state.read(folder, awaited=awaited)
    if submission is not None and now.state.word == "running" and submission.wanted == "stopped":
        return replace(now, state=SearchState("ending"))
    if awaited and not now.state.driven and driven(folder):  # a job has it; its driver has not taken the ledger yet, or has left it
        return replace(now, state=SearchState("ending" if now.state.word == "finished" else "starting"))
    return now


def state(folder: Path) -> SearchState:
    """How a search stands, also one that was submitted and has not begun.

    Raises: SearchError, ClusterError where the folder holds neither.
    """
    if (folder / "ledger.jsonl").exists():
        return snapshot(folder).state
    submission = read(folder)
    if not submission.asleep:
        return SearchState("starting" if driven(folder) else "waiting for a driver")
    return SearchState("stopped" if submission.ended is None else "refused" if submission.ended == 2 else "failed")


def states() -> dict[str, dict[str, str]]:
    """How the searches in this node's storage stand, by name; those that cannot be read are left out."""
    by_search = {}
    for folder, _ in all_of(storage()):
        with contextlib.suppress(VitSearchError):
            by_search[folder.name] = asdict(state(folder))
    return by_search


def progress(folder: Path) -> int:
    """Epochs and ends of trials so far: what a driver that gets somewhere adds to."""
    path = folder / "ledger.jsonl"
    if not path.exists():
        return 0
    steps = (event for event in read_events(path) if isinstance(event, Reported | Ended))
    return sum(not (isinstance(event, Ended) and event.outcome == "interrupted") for event in steps)


def _write(folder: Path, submission: Submission) -> None:
    write_whole(folder / RECORD, json.dumps(asdict(submission), indent=1))
