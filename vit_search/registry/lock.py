"""A lock that needs nothing but MLflow: two promotions of one name never write at once, on any store, from any machine.

MLflow has neither locks nor compare-and-swap, but of two calls that make a registered model of one name, one fails. So the lock of
NAME is a registered model, `NAME (promotion in progress)`, whose tags say who holds it; it is deleted at the end. Where its holder is
dead, the next one makes `NAME (promotion in progress, 2)`, which again one alone can, and holds the lock by that; `, 3` where that one
died as well. It deletes those of the dead, the lowest first, when it has nothing more to write. So the right to break a lock is itself
a lock, and no breaker that dies leaves anything that the next one could not pass.

No two machines' clocks are compared. A waiter takes a holder for dead once it has seen the same token for the whole lease by its own
clock; a holder neither writes nor deletes once half of the lease has gone by its own. The other half is for a call that is under way
(MLflow gives up on one after 20 s). A holder on this machine whose process is gone is passed at once.
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
"""How long a lock must be watched before its holder counts as dead; each lock carries its own."""

SETTLE_S = 1.0
"""For so long a server may still be at work on the last call of a process that is gone."""

MOST_DEAD = 8
"""Dead holders, one above the other, that are passed."""

UNANSWERED = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""Error codes of MLflow after which nobody knows whether the call was carried out, or that pass."""

_MARK = " (promotion in progress"


@dataclass(frozen=True)
class Holder:
    """Whom a lock's tags name."""

    lock_name: str
    """The registered model that is the lock."""
    token: str
    by: str
    host: str
    machine: str
    """Host, boot and process namespace: a process id means something within one of these."""
    pid: int
    started: str
    """Of the process, in ticks since the machine's boot: another process with its id began at another tick."""
    at: str
    lease_s: float

    @property
    def dead(self) -> bool:
        """Whether its process is known to be gone; False where that cannot be told from here."""
        return self.machine != "" and self.machine == _machine() and self.started != _started(self.pid)


@dataclass(frozen=True)
class Lock:
    """The lock, held."""

    name: str
    lock_name: str
    token: str
    lease_s: float
    began: float
    """By the clock that runs on while a machine sleeps; before MLflow was asked."""
    dead: tuple[str, ...]
    """The locks of dead holders that this one has passed."""

    @property
    def spent(self) -> bool:
        """Whether it may not be relied on any more."""
        return _now() - self.began > self.lease_s / 2

    def check(self) -> None:
        """Before each write.

        Raises: PromotionError when half of the lease is over: somebody else may take the lock soon.
        """
        if self.spent:
            raise PromotionError(
                f"{self.name}: MLflow was too slow, half of the {self.lease_s:g} s of the lock went by; nothing more is written. "
                f"See what stands: vit-search repair {self.name}"
            )


def insist(call: Callable[..., Any], *arguments: Any, first: Callable[[], None] = lambda: None, **named: Any) -> Any:
    """A call that may be done twice without harm, sent again where nobody knows whether it was carried out.

    Args:
        first: done before each try; it may raise.
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
        wait_s: how long to wait for another holder, by default two leases, so that one who died elsewhere is outwaited.
    Raises: PromotionError, who holds it, after waiting in vain; MlflowException when MLflow does not answer.
    """
    lock = _acquire(client, name, lease_s, 2 * lease_s if wait_s is None else wait_s)
    try:
        yield lock
    finally:
        _release(client, lock)


def is_lock(model: str) -> bool:
    """Whether a registered model is a lock, not a model."""
    return _MARK in model


def abandoned(client: MlflowClient, name: str) -> bool:
    """Whether somebody who is known to be dead holds the lock of a name."""
    holder = _holder(client, _lock_names(name)[0])
    return holder is not None and holder.dead


def sweep(client: MlflowClient, lock: Lock) -> int:
    """Delete what dead holders above this one have left, as far as they are known to be dead; how many there were."""
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
    """The lock; or who is in the way; or None where that has changed while we looked.

    Args:
        watched: for each lock the token seen last, and since when, by our clock; it is brought up to date.
    """
    dead: list[Holder] = []
    for lock_name in _lock_names(name):
        if lock_name not in watched or _holder(client, lock_name) is None:
            lock = _create(client, name, lock_name, lease_s, dead)
            if lock is not None:
                if all(_token(client, passed.lock_name) == passed.token for passed in dead):
                    return lock
                _release(client, lock, passed=False)  # another one was quicker, and has cleared the dead away
                return None
        holder = _holder(client, lock_name)
        if holder is None:
            return None
        token, since = watched.get(lock_name, ("", 0.0))
        if token != holder.token or lock_name not in watched:
            since = time.monotonic()
            watched[lock_name] = (holder.token, since)
        seen_s = time.monotonic() - since
        settle_s = 0.0 if client.tracking_uri.startswith("sqlite") else SETTLE_S  # a process takes its own writes to SQLite with it
        if seen_s < holder.lease_s and not (holder.dead and seen_s >= settle_s):
            return holder
        dead.append(holder)
    raise PromotionError(
        f"{name}: {MOST_DEAD} promotions died one upon the other; when none runs any more, delete the registered models "
        f"`{_lock_names(name)[0]}` and so on."
    )


def _create(client: MlflowClient, name: str, lock_name: str, lease_s: float, dead: list[Holder]) -> Lock | None:
    """The lock by a registered model of ours; None where the model is somebody else's."""
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
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # it was there, and went while MLflow looked at it
                return None
            if error.error_code != "RESOURCE_ALREADY_EXISTS" and error.error_code not in UNANSWERED:
                raise
            holder = _holder(client, lock_name)
            if holder is not None:
                return lock if holder.token == token else None  # ours, where only the answer was lost
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                return None
            if tries == 2:
                raise
            time.sleep(0.2)
    raise AssertionError


def _release(client: MlflowClient, lock: Lock, *, passed: bool = True) -> None:
    """Let go. What cannot be deleted is in nobody's way for longer than a lease, so an error here ends nothing.

    The lowest goes first: while a dead holder's lock stands, whoever passes it must not find the lock above it free.
    """
    for lock_name in (*(lock.dead if passed else ()), lock.lock_name):
        if lock.spent:
            return
        with contextlib.suppress(MlflowException):  # never twice: it may be another's the second time
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
    """What must be equal for two processes to see each other by their ids; "" where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine's boot; "" for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name in parentheses may hold anything
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
