"""What a submitted job runs on the head: one search, in a child process that is restarted if it is killed.

The child is `vit-search run` or `vit-search resume`, as you would type it on the head. Signals to this process, for example when the
job is stopped, are passed on to the child. If this process is killed, the child ends cleanly and the keeper submits the search again.
So a running search always has a running job. Through it, you can list, follow and stop the search.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from vit_search.cluster import record
from vit_search.config import search_file
from vit_search.errors import ClusterError, VitSearchError
from vit_search.files import open_to_write
from vit_search.runtime.signals import ending_signals, leave_terminal
from vit_search.text import counted

INTERRUPTED = 130
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl(2): send this process a signal when its parent dies."""

PAUSES_S = (1, 5, 25)
"""Pauses before each restart of a search that makes no progress. After the last one, the keeper takes over."""

FINAL = {0, 3, 4, 5, INTERRUPTED}
"""Exit codes of a search that ended by itself. Code 2 counts, too, before the search has begun."""


def begin(search: str, file: Path, *, user: str, key: str, pinned: str, space_hash: str, download: bool) -> None:
    """Make the folder of a new search, unless it exists.

    Args:
        file: the search file as submitted.
        pinned: version of vit_search that submitted it.
        space_hash: of its search space, on that machine.
    Raises: ClusterError if this cluster would run something else than was submitted. Nothing is made then.
    """
    folder = record.folder_of(search)
    text = _checked(search, file, pinned, space_hash)
    if record.submitted(folder):
        return
    submission = record.Submission(
        search=search, user=user, key=key, version=pinned, space_hash=space_hash, download=download, at=time.time()
    )
    record.begin(folder, submission, text)


def drive(search: str, say: Callable[[str], None], *, again: bool = False, pinned: str | None = None) -> int:
    """Run a submitted search to its end. If another driver runs it, wait for that one.

    Args:
        say: called with one line for each thing that happens.
        again: run the search although it was stopped or has ended.
        pinned: version of vit_search from now on; by default the one that submitted the search.
    Returns: the exit code of the search.
    """
    folder = record.folder_of(search)
    submission = record.read(folder)
    try:
        _checked(search, folder / record.FILE, pinned or submission.version, submission.space_hash)
    except VitSearchError:
        if not record.driven(folder):
            record.change(folder, ended=2)
        raise
    changes = {"wanted": "running", "ended": None} if again else {}
    record.change(folder, launches=submission.launches + 1, **changes, **({"version": pinned} if pinned else {}))
    with DriverProcess() as child, open_to_write(folder / record.LOCK) as lock:
        while True:
            if not _alone(folder, lock, child, say):
                return INTERRUPTED
            now = record.read(folder)
            if now.asleep:
                say(f"{search} is over." if now.ended is not None else f"{search} was stopped.")
                return INTERRUPTED if now.ended is None else now.ended
            code, final = _see_through(folder, lock, child, say)
            if code != 2 or not record.running(folder):
                break
    if final and code != INTERRUPTED:
        record.change(folder, ended=code)
    elif final and not child.told_to_stop.is_set():  # stopped by `cancel`, and not because the job ended
        record.change(folder, wanted="stopped")
    return code


def _alone(folder: Path, lock: IO[str], child: DriverProcess, say: Callable[[str], None]) -> bool:
    """Wait until no other driver runs the search; False if this process is told to stop first."""
    waiting = False
    while not record.taken(lock) or record.running(folder):
        if not waiting:
            say(f"{folder.name}: another driver runs it; waiting for it.")
        waiting = True
        if child.told_to_stop.wait(1):
            return False
    return True


def _see_through(folder: Path, lock: IO[str], child: DriverProcess, say: Callable[[str], None]) -> tuple[int, bool]:
    """The exit code of the search, and whether it ended by itself. Restarts a killed child, after PAUSES_S if it makes no progress."""
    tries = 0
    while True:
        began, before = (folder / "search.json").exists(), record.progress(folder)
        code = child.run(_command(folder), folder.parents[1], lock)
        refused = code == 2 and not began and record.progress(folder) == 0  # after that, the cluster or the storage may be the cause
        if code in FINAL or refused:
            return code, True
        if code == 2 and record.running(folder):
            return code, False
        if child.told_to_stop.is_set() or record.read(folder).wanted == "stopped":
            return INTERRUPTED, True
        tries = 0 if record.progress(folder) > before else tries
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if tries == len(PAUSES_S):
            say(f"{folder.name}: its driver {how}, {counted(tries + 1, 'time')} in a row without progress; given up for now.")
            return code if code > 0 else 1, False
        say(f"{folder.name}: its driver {how}; it is started again in {PAUSES_S[tries]} s.")
        child.told_to_stop.wait(PAUSES_S[tries])
        tries += 1


def _command(folder: Path) -> list[str]:
    address = ["--address", "auto"]
    if (folder / "search.json").exists():
        return ["vit-search", "resume", str(folder), *address]
    download = ["--download"] if record.read(folder).download else []
    return ["vit-search", "run", str(folder / record.FILE), "--as", folder.name, "--output", str(folder.parent), *address, *download]


def _checked(search: str, file: Path, pinned: str, space_hash: str) -> str:
    """The text of the search file, if it means the same here as where it was submitted.

    Raises: ClusterError if it does not, SpecError if the file is damaged.
    """
    installed = version("vit_search")
    if pinned != installed:
        raise ClusterError(
            f"{search}: submitted with vit_search {pinned}, and this cluster has {installed}; "
            "install the same version on both, then `vit-search resume` from there goes on with it."
        )
    spec = search_file.load(file)
    if spec.space.space_hash != space_hash:
        raise ClusterError(
            f"{search}: its search space is {spec.space.space_hash} here and {space_hash} where it was submitted: "
            "two builds of one version; install the same build of vit_search on both."
        )
    return spec.text


class DriverProcess:
    """The child process that runs the search. Passes this process's signals on to it."""

    def __init__(self) -> None:
        self.told_to_stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DriverProcess:
        self._before = {number: signal.signal(number, self._stop) for number in ending_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: list[str], storage: Path, lock: IO[str]) -> int:
        """Run a command in the storage folder to its end. Returns its exit code; below 0 if a signal killed it.

        The child keeps the lock if this process dies first. The job's own folder belongs to Ray, and may be deleted before the job is over.
        """
        end_with_parent = functools.partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
        around = record.surroundings(storage)
        with subprocess.Popen(command, env=around, cwd=storage, pass_fds=[lock.fileno()], preexec_fn=end_with_parent) as self._process:
            if self.told_to_stop.is_set():
                self._stop()
            return self._process.wait()

    def _stop(self, number: int | None = None, frame: Any = None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        self.told_to_stop.set()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
