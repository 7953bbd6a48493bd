"""Move the alias `champion` under a lock: promote, roll back, and repair after a crash.

registry/promotion_history.py lists the tags and aliases. A move writes in this order:

1. the intent: a tag with the complete record of the move
2. the alias `champion`
3. the alias `previous`
4. the record
5. the head of the history

Then it removes the intent. Every move, rollback and repair first looks for an intent that a crash left. While `champion` names the old
version, nothing has happened, and the intent is dropped. If it names the new version, the other steps are done. Because `champion` moves
before `previous`, nothing ever has to be undone. The intent is the record word for word, so a process that completes a move for a dead one
adds nothing of its own.

Not covered: a process that is suspended for more than half a lease between two instructions and then writes. MLflow has no call that
rejects such a write. `history --verify` shows it.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.errors import PromotionError, PromotionRefusedError
from vit_search.registry.lock import LEASE_S, Lock, insist, locked, sweep
from vit_search.registry.promotion_history import (
    CHAMPION,
    HEAD,
    INTENT,
    PREVIOUS,
    Record,
    RegistryState,
    as_tracking_error,
    describe_champion,
    noun_of,
    parse_record,
    read_state,
    sha256_of,
)
from vit_search.text import counted

VERDICTS = ("passed", "forced")
"""Values of a version's tag `verdict` with which it may become the champion."""

MOST_CHARACTERS = 5000
"""The longest tag of a registered model in PostgreSQL, in characters. MLflow itself would allow 100,000."""

MOST_REASON = 1000
"""The longest reason, in characters."""


def move_champion(
    client: MlflowClient,
    name: str,
    version: str,
    *,
    action: str,
    expected: str | None,
    reason: str = "",
    by: str,
    facts: Mapping[str, str] | None = None,
    once_champion: bool = False,
    lease_s: float = LEASE_S,
    wait_s: float | None = None,
) -> Record:
    """Make a version the champion, if the champion is still the one that the decision was based on.

    You may repeat a call whose answer was lost: it changes nothing and returns the record that exists.

    Args:
        version: a registered version whose `verdict` allows it.
        expected: the champion that it was compared with; None if there was none.
        facts: short strings for the record. The longest are cut if they do not fit.
        once_champion: whether a version that was champion before needs no verdict.
        lease_s, wait_s: of the lock; see registry/lock.py.
    Raises: PromotionRefusedError if the champion has changed, or the version has not passed; PromotionError for an unknown name or version,
        or if somebody else holds the lock; TrackingError if MLflow does not answer.
    """
    version = str(version)
    if len(reason) > MOST_REASON:
        raise PromotionError(f"{name}: the reason has {len(reason):,} characters; give at most {MOST_REASON:,}.")
    with as_tracking_error(name), locked(client, name, lease_s=lease_s, wait_s=wait_s) as lock:
        state, _ = _finish_or_drop_move(client, lock, read_state(client, name))
        last = state.last
        if state.champion == version != expected and last is not None and (last.version, last.came_from) == (version, expected):
            return last
        _check_expected(name, version, state, expected, action)
        _check_eligible(client, name, version, state, once_champion)
        record = Record(
            n=state.next_number,
            action=action,
            version=version,
            came_from=expected,
            by=by,
            host=socket.gethostname(),
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            reason=reason,
            before=state.before,
        )
        record = dataclasses.replace(record, facts=_shorten_facts(facts or {}, MOST_CHARACTERS - len(record.text())))
        _write(lock, client.set_registered_model_tag, name, INTENT, record.text())
        _write(lock, client.set_registered_model_alias, name, CHAMPION, version)
        _complete_move(client, lock, record)
    return record


def rollback_champion(
    client: MlflowClient,
    name: str,
    *,
    to: str | None = None,
    reason: str,
    by: str,
    check: Callable[[Any], str] = lambda version: "",
    lease_s: float = LEASE_S,
    wait_s: float | None = None,
) -> Record:
    """Make an earlier version the champion again.

    Args:
        to: a version that was champion before or has passed; by default the one that `previous` names.
        check: called with MLflow's version before anything moves. It returns why the version cannot serve; empty if it can.
    Raises: PromotionRefusedError if the version may not or cannot serve; the champion does not change then. Other errors: see
        `move_champion`.
    """
    with as_tracking_error(name):
        state = read_state(client, name)
        if state.intent is not None:
            repair_champion(client, name, lease_s=lease_s, wait_s=wait_s)
            state = read_state(client, name)
        target = str(to) if to is not None else _rollback_target(name, state)
        if state.champion is None:
            raise PromotionError(f"{name}: there is no champion to roll back from; promote a version.")
        if target == state.champion:
            raise PromotionError(f"{name}: version {target} is the champion already; name another one with --to.")
        version = _check_eligible(client, name, target, state, once_champion=True)
        problem = check(version)
        if problem:
            raise PromotionRefusedError(
                f"{name}: version {target} cannot take over; the champion stays version {state.champion} ({problem})"
            )
        return move_champion(
            client,
            name,
            target,
            action="rollback",
            expected=state.champion,
            reason=reason,
            by=by,
            facts={key: version.tags[key] for key in ("test_accuracy", "data_hash") if key in version.tags},
            once_champion=True,
            lease_s=lease_s,
            wait_s=wait_s,
        )


def repair_champion(client: MlflowClient, name: str, *, lease_s: float = LEASE_S, wait_s: float | None = None) -> str:
    """Complete or drop the move that a dead process has left, and delete its lock.

    Returns: what was done, in one line.
    """
    with as_tracking_error(name):
        read_state(client, name)  # for an unknown name, this fails before a lock is created
        with locked(client, name, lease_s=lease_s, wait_s=wait_s) as lock:
            state, repairs = _finish_or_drop_move(client, lock, read_state(client, name))
            cleared = len(lock.dead) + sweep(client, lock)
            last = state.last
    if cleared:
        repairs.append(f"cleared the lock of {counted(cleared, 'dead process')} away")
    if state.champion != (last.version if last else None):
        should = f"the last record says version {last.version}" if last else "the history is empty"
        repairs.append(f"{describe_champion(state.champion)}, but {should}: somebody else moved the alias, and it is left so")
    return f"{name}: {'; '.join(repairs) or 'nothing to repair'}."


def _finish_or_drop_move(client: MlflowClient, lock: Lock, state: RegistryState) -> tuple[RegistryState, list[str]]:
    """Complete or drop the move that a dead process has begun. Returns: the new state, and what was done."""
    if state.intent is None:
        return state, []
    record = parse_record(state.intent)
    if record is None:
        note = f"the tag {INTENT} could not be read and was removed"
    elif state.champion == record.version or state.texts.get(record.n) == state.intent:
        if state.texts.get(record.n, state.intent) != state.intent:  # another move has written a record with this number
            record = dataclasses.replace(record, n=state.next_number, before=state.before)
        _complete_move(client, lock, record, moved=state.champion == record.version)
        return read_state(client, lock.name), [
            f"finished the {noun_of(record.action)} to version {record.version} that {_describe_start(record)}"
        ]
    else:
        note = f"dropped the {noun_of(record.action)} to version {record.version} that {_describe_start(record)}"
        if state.champion == record.came_from:
            note += f": {describe_champion(state.champion)} as before"
    _write(lock, client.delete_registered_model_tag, lock.name, INTENT)
    return dataclasses.replace(state, intent=None), [note]


def _complete_move(client: MlflowClient, lock: Lock, record: Record, *, moved: bool = True) -> None:
    """Do the steps of a move after the alias `champion`. Repeating them changes nothing.

    Args:
        moved: False if the record exists already and somebody has moved the alias since. The aliases are then left as they are.
    """
    name, text, previous = lock.name, record.text(), None
    if moved and record.came_from is not None:
        try:
            _write(lock, client.set_registered_model_alias, name, PREVIOUS, record.came_from)
            previous = record.came_from
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the old version was deleted, so `previous` cannot name it
                raise
    state = read_state(client, name)
    for alias, wanted, named in ((CHAMPION, record.version, state.champion), (PREVIOUS, previous, state.previous)):
        if moved and wanted is not None and named != wanted:
            raise PromotionError(
                f"{name}: `{alias}` was set to version {wanted} and names {named or 'nothing'}: somebody moves the aliases by hand. "
                f"When that has ended: vit-search repair {name}"
            )
    if record.n not in state.texts:
        _write(lock, client.set_registered_model_tag, name, f"history.{record.n:06d}", text)
    _write(lock, client.set_registered_model_tag, name, HEAD, f"{record.n} {sha256_of(text)}")
    _write(lock, client.delete_registered_model_tag, name, INTENT)


def _write(lock: Lock, call: Callable[..., object], *arguments: str) -> None:
    insist(call, *arguments, first=lock.check)


def _check_expected(name: str, version: str, state: RegistryState, expected: str | None, action: str) -> None:
    """Reject a move that was decided with another champion than the present one."""
    if state.champion != expected:
        change = f"moved to version {state.champion}" if state.champion is not None else "was taken away"
        again = "roll back" if action == "rollback" else "promote"
        raise PromotionRefusedError(
            f"{name}: the champion {change} while this {noun_of(action)} ran (expected {expected or 'none'}); look at it and {again} again."
        )
    if version == expected:
        raise PromotionError(f"{name}: version {version} is the champion already.")


def _check_eligible(client: MlflowClient, name: str, version: str, state: RegistryState, once_champion: bool) -> Any:
    """The version from MLflow, if it may become the champion."""
    try:
        registered = insist(client.get_model_version, name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        versions = sorted((str(v.version) for v in insist(client.search_model_versions, f"name = '{name}'")), key=int)
        raise PromotionError(f"{name}: there is no version {version}; there are {', '.join(versions) or 'none'}.") from None
    if registered.status != "READY":
        raise PromotionRefusedError(f"{name}: version {version} is not ready ({registered.status}); see that its upload ends.")
    verdict = registered.tags.get("verdict")
    if verdict not in VERDICTS and not (once_champion and version in _all_champions(state)):
        problem = f"its verdict is {verdict}" if verdict else "it has no verdict"
        mend = "it was never champion either; name one from `vit-search history`." if once_champion else "promote it through the gates."
        raise PromotionRefusedError(f"{name}: version {version} has not passed the gates ({problem}); {mend}")
    return registered


def _all_champions(state: RegistryState) -> set[str]:
    """All versions that a record made the champion, and the one before the first record."""
    records = [r for _, text in sorted(state.texts.items()) if (r := parse_record(text)) is not None]
    first = {records[0].came_from} if records and records[0].n == 1 and records[0].came_from is not None else set()
    return {r.version for r in records} | first


def _rollback_target(name: str, state: RegistryState) -> str:
    """The version of a rollback without `--to`."""
    if state.previous is None:
        raise PromotionError(f"{name}: there is no `{PREVIOUS}` to roll back to; name a version with --to.")
    last = state.last
    if last is not None and last.action == "rollback" and last.came_from == state.previous:  # `previous` has just failed
        others = sorted(_all_champions(state) - {state.previous, state.champion or ""}, key=int)
        raise PromotionError(
            f"{name}: rolled back already, from version {last.came_from} to {last.version} at {last.at}; name the version with --to"
            f"{f', e.g. {others[-1]}' if others else ''}."
        )
    return state.previous


def _shorten_facts(facts: Mapping[str, str], room: int) -> dict[str, str]:
    """Cut the longest facts until their JSON has at most `room` characters."""
    fitting = {key: str(value) for key, value in facts.items()}
    while len(json.dumps(fitting, ensure_ascii=False)) > room and any(len(value) > 1 for value in fitting.values()):
        longest = max(fitting, key=lambda key: len(fitting[key]))
        fitting[longest] = fitting[longest][: len(fitting[longest]) * 3 // 4] + "…"
    return fitting


def _describe_start(record: Record) -> str:
    return f"{record.by} began on {record.host} at {record.at}"
