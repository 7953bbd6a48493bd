"""A lock that needs only MLflow. It prevents two promotions of one name at the same time, with any store and from any machine.

MLflow has neither locks nor compare-and-swap. But if two calls create a registered model with the same name, one of them fails. So the lock
of NAME is a registered model `NAME (promotion in progress)`. Its tags name its holder. The holder deletes it at the end.

If the holder is dead, the next process creates `NAME (promotion in progress, 2)`, which only one can do, and so holds the lock. If that one
dies, too, the next creates `, 3`. When a holder has written everything, it deletes the locks of the dead, the lowest first, and then its
own. So the right to break a lock is itself a lock, and a process that dies while it breaks one does not block the next.

The clocks of two machines are never compared. A waiting process counts a holder as dead when it has seen the same token for a whole lease
by its own clock. A holder stops writing and deleting after half of the lease by its own clock. The other half is for a call that is still
running (MLflow gives up on a call after 20 s). If the holder was a process of this machine that is gone, nobody waits for the lease.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.errors import PromotionError
from vit_search.runtime.user import user_name

LEASE_S = 60.0
"""How long a holder must be watched until it counts as dead, in seconds. Each lock has its own value."""

SETTLE_S = 1.0
"""Seconds for which a server may still work on the last call of a process that is gone."""

MOST_DEAD = 8
"""The most dead holders that a new one can pass."""

UNANSWERED = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's error codes after which the call may or may not have been carried out, or that are temporary."""

_MARK = " (promotion in progress"


@dataclass(frozen=True)
class Holder:
    """The holder of a lock, from the lock's tags."""

    lock_name: str
    token: str
    by: str
    host: str
    machine: str
    """Host, boot and process namespace. A process id is unique only within one of these."""
    pid: int
    started: str
    """When the process started, in ticks since boot. It tells the process from a later one with the same id."""
    at: str
    lease_s: float

    @property
    def dead(self) -> bool:
        """Whether its process is certainly gone. False if this process cannot know it."""
        return self.machine != "" and self.machine == _machine() and self.started != _started(self.pid)


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds."""

    name: str
    lock_name: str
    token: str
    lease_s: float
    began: float
    """When the lock was requested, by a clock that also runs while the machine sleeps."""
    dead: tuple[str, ...]
    """The locks of dead holders that were passed."""

    @property
    def spent(self) -> bool:
        """Whether half of the lease is over: nothing may be written any more."""
        return _now() - self.began > self.lease_s / 2

    def check(self) -> None:
        """Call this before each write.

        Raises: PromotionError if half of the lease is over, because another process may take the lock soon.
        """
        if self.spent:
            raise PromotionError(
                f"{self.name}: MLflow was too slow, half of the {self.lease_s:g} s of the lock went by; nothing more is written. "
                f"See what stands: vit-search repair {self.name}"
            )


def insist(call: Callable[..., Any], *arguments: Any, first: Callable[[], None] = lambda: None, **named: Any) -> Any:
    """Make a call that is harmless to repeat, and repeat it if MLflow may not have carried it out.

    Args:
        first: called before each try. It may raise an error.
    """
    for pause in (0.1, 0.5, None):
        first()
        try:
            return call(*arguments, **named)
        except MlflowException as error:
            if pause is None or error.error_code not in UNANSWERED:
                raise
            time.sleep(pause)
    raise AssertionError


@contextlib.contextmanager
def locked(client: MlflowClient, name: str, *, lease_s: float = LEASE_S, wait_s: float | None = None) -> Iterator[Lock]:
    """Hold the lock of a registered model's name.

    Args:
        wait_s: how long to wait for another holder; by default two leases, which is enough if the holder died on another machine.
    Raises: PromotionError that names the holder, if the wait was in vain; MlflowException if MLflow does not answer.
    """
    lock = _acquire(client, name, lease_s, 2 * lease_s if wait_s is None else wait_s)
    try:
        yield lock
    finally:
        _release(client, lock)


def is_lock(model: str) -> bool:
    """Whether a registered model is a lock."""
    return _MARK in model


def abandoned(client: MlflowClient, name: str) -> bool:
    """Whether the holder of a name's lock is certainly dead."""
    holder = _holder(client, _lock_names(name)[0])
    return holder is not None and holder.dead


def sweep(client: MlflowClient, lock: Lock) -> int:
    """Delete the locks above this one whose holders are certainly dead. Returns: their number."""
    deleted = 0
    lock_names = _lock_names(lock.name)
    for lock_name in lock_names[lock_names.index(lock.lock_name) + 1 :]:
        holder = _holder(client, lock_name)
        if holder is not None and holder.dead:
            insist(client.delete_registered_model, lock_name, first=lock.check)
            deleted += 1
    return deleted


def _acquire(client: MlflowClient, name: str, lease_s: float, wait_s: float) -> Lock:
    end, pause = time.monotonic() + wait_s, 0.02
    watched: dict[str, tuple[str, float]] = {}
    while True:
        met = _attempt(client, name, lease_s, watched)
        if isinstance(met, Lock):
            return met
        if met is not None and time.monotonic() > end:
            raise PromotionError(
                f"{name}: {met.by} on {met.host} (process {met.pid}) has held its lock since {met.at}, and {wait_s:g} s of waiting were "
                f"not enough; wait for the end of it, or where it hangs: vit-search repair {name}"
            )
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 -- so that waiters do not ask in step
        pause = min(pause * 1.5, 0.5)


def _attempt(client: MlflowClient, name: str, lease_s: float, watched: dict[str, tuple[str, float]]) -> Lock | Holder | None:
    """Try once to get the lock. Returns: the lock; or the holder that is in the way; or None if something has changed meanwhile.

    Args:
        watched: for each lock, the last token and since when it has been seen, by our clock. It is updated.
    """
    dead: list[Holder] = []
    for lock_name in _lock_names(name):
        if lock_name not in watched or _holder(client, lock_name) is None:
            lock = _create(client, name, lock_name, lease_s, dead)
            if lock is not None:
                if all(_token(client, passed.lock_name) == passed.token for passed in dead):
                    return lock
                _release(client, lock, passed=False)  # another process was faster, and has deleted the locks of the dead
                return None
        holder = _holder(client, lock_name)
        if holder is None:
            return None
        token, since = watched.get(lock_name, ("", 0.0))
        if token != holder.token or lock_name not in watched:
            since = time.monotonic()
            watched[lock_name] = (holder.token, since)
        seen_s = time.monotonic() - since
        settle_s = 0.0 if client.tracking_uri.startswith("sqlite") else SETTLE_S  # SQLite: a dead process cannot write any more
        if seen_s < holder.lease_s and not (holder.dead and seen_s >= settle_s):
            return holder
        dead.append(holder)
    raise PromotionError(
        f"{name}: {len(dead)} promotions died one after another; when none runs any more, delete the registered models "
        f"`{_lock_names(name)[0]}` and so on."
    )


def _create(client: MlflowClient, name: str, lock_name: str, lease_s: float, dead: list[Holder]) -> Lock | None:
    """Create the registered model that is the lock. None if another process has it."""
    token = secrets.token_hex(8)
    lock = Lock(name, lock_name, token, lease_s, _now(), tuple(passed.lock_name for passed in dead if passed.token))
    tags = {
        "owner": token,
        "by": user_name(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": str(os.getpid()),
        "started": _started(os.getpid()),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "lease_s": str(lease_s),
    }
    says = f"Held while the champion of {name} changes. Where it stays: vit-search repair {name}"
    for tries in range(3):
        try:
            client.create_registered_model(lock_name, tags=tags, description=says)
            return lock
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # it existed, and was deleted while MLflow looked at it
                return None
            if error.error_code != "RESOURCE_ALREADY_EXISTS" and error.error_code not in UNANSWERED:
                raise
            holder = _holder(client, lock_name)
            if holder is not None:
                return lock if holder.token == token else None  # ours, if only the answer was lost
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                return None
            if tries == 2:
                raise
            time.sleep(0.2)
    raise AssertionError


def _release(client: MlflowClient, lock: Lock, *, passed: bool = True) -> None:
    """Release the lock. Errors are ignored: a lock that stays blocks nobody for longer than a lease.

    The lowest lock goes first: while a dead holder's lock exists, nobody who passes it may find the lock above it free.
    """
    for lock_name in (*(lock.dead if passed else ()), lock.lock_name):
        if lock.spent:
            return
        with contextlib.suppress(MlflowException):  # never repeated: by then it may belong to another process
            client.delete_registered_model(lock_name)


def _lock_names(name: str) -> list[str]:
    return [f"{name}{_MARK}{f', {n}' if n > 1 else ''})" for n in range(1, MOST_DEAD + 2)]


def _holder(client: MlflowClient, lock_name: str) -> Holder | None:
    try:
        tags: dict[str, Any] = insist(client.get_registered_model, lock_name).tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    try:
        pid, lease_s = int(tags.get("pid", 0)), float(tags.get("lease_s", LEASE_S))
    except ValueError:
        pid, lease_s = 0, LEASE_S
    texts = {key: str(tags.get(key, "")) for key in ("by", "host", "machine", "started", "at")}
    return Holder(lock_name=lock_name, token=str(tags.get("owner", "")), pid=pid, lease_s=lease_s, **texts)


def _token(client: MlflowClient, lock_name: str) -> str | None:
    holder = _holder(client, lock_name)
    return holder.token if holder is not None else None


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _machine() -> str:
    """What two processes must have in common to see each other's ids; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since boot. Empty if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name in parentheses may contain anything
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
