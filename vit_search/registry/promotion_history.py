"""The history of a registered model's champion, in MLflow's tags and aliases. This module reads and verifies it.

| Name | Kind | Content |
|---|---|---|
| champion, previous | alias | the version in production, and the one before it |
| promotion_intent | tag | the record of a move that has begun; exists only during a move |
| history.000001 … | tag | one record for each move, written once; it holds the sha256 of the record before |
| history_head | tag | number and sha256 of the last record, so that a change or removal of that record is found |

registry/champion.py writes all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.config.strict_json import parse
from vit_search.errors import PromotionError, TrackingError
from vit_search.registry.lock import insist, is_lock
from vit_search.text import nearest
from vit_search.tracking.mlflow_client import in_short

CHAMPION, PREVIOUS = "champion", "previous"

INTENT, HEAD = "promotion_intent", "history_head"

_KEY = re.compile(r"history\.(\d{6,})")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One move of the alias `champion`."""

    n: int
    """Number of the record, from 1."""
    action: str
    """`promote`, `force` or `rollback`."""
    version: str
    """The new champion."""
    came_from: str | None
    """The champion before; None if there was none. Its key in the text is `from`."""
    by: str
    host: str
    at: str
    """UTC in ISO 8601, by the clock of the host."""
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Short facts behind the decision: test_accuracy, gate, data_hash."""
    before: str = ""
    """sha256 of the text of the record before; empty in the first record."""

    def text(self) -> str:
        """The record as it is stored in a tag."""
        values = {key: dict(value) if key == "facts" else value for key, value in vars(self).items()}
        return json.dumps({("from" if key == "came_from" else key): value for key, value in values.items()}, ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Record:
        """The inverse of `text`.

        Raises: ValueError if the text is not a record.
        """
        try:
            values = parse(text)
            record = cls(came_from=values.pop("from"), **values)
            texts = [record.action, record.by, record.host, record.at, record.reason, record.before, *record.facts, *record.facts.values()]
            versions = [record.version, *([] if record.came_from is None else [record.came_from])]
            if not (type(record.n) is int and all(isinstance(t, str) for t in texts) and all(v.isdecimal() for v in versions)):
                raise ValueError("a value of another type")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"no record ({error})") from None
        return record


@dataclass(frozen=True)
class RegistryState:
    """What MLflow holds of a registered model, read in one call."""

    champion: str | None
    previous: str | None
    intent: str | None
    head: str
    texts: dict[int, str]
    """The texts of the records, by number."""

    @property
    def last(self) -> Record | None:
        """The last readable record."""
        for n in sorted(self.texts, reverse=True):
            with contextlib.suppress(ValueError):
                return Record.parse(self.texts[n])
        return None

    @property
    def next_number(self) -> int:
        """A number that no record has or had."""
        return max([_head(self.head)[0], *self.texts]) + 1

    @property
    def before(self) -> str:
        """`Record.before` of the next record."""
        return sha256_of(self.texts[max(self.texts)]) if self.texts else ""


def read_history(client: MlflowClient, name: str) -> list[Record]:
    """All readable records, oldest first. `verify_history` reports the others."""
    with as_tracking_error(name):
        texts = read_state(client, name).texts
    records = []
    for n in sorted(texts):
        with contextlib.suppress(ValueError):
            records.append(Record.parse(texts[n]))
    return records


def verify_history(client: MlflowClient, name: str) -> list[str]:
    """What is wrong with the history and the aliases; empty if nothing is. It needs no lock."""
    with as_tracking_error(name):
        state = read_state(client, name)
        for _ in range(20):  # a move in progress ends within this second
            if state.intent is None:
                break
            time.sleep(0.05)
            state = read_state(client, name)
        versions = {str(v.version) for v in insist(client.search_model_versions, f"name = '{name}'")}
    problems = _chain_problems(state)
    last = state.last
    if state.intent is not None:
        with contextlib.suppress(ValueError):
            begun = Record.parse(state.intent)
            return [
                *problems,
                f"a {noun_of(begun.action)} to version {begun.version}, begun at {begun.at} by {begun.by} on {begun.host}, has not ended: "
                f"wait for it, or vit-search repair {name}",
            ]
        return [*problems, f"the tag {INTENT} cannot be read: vit-search repair {name}"]
    if last is not None and last.version not in versions:
        problems.append(f"version {last.version}, which the last record made the champion, was deleted")
    if state.champion != (last.version if last else None):
        problems.append(
            f"{describe_champion(state.champion)}, but {f'the last record says version {last.version}' if last else 'there is no record'}"
        )
    elif last is not None and last.came_from is not None and state.previous != last.came_from and last.came_from in versions:
        problems.append(f"`{PREVIOUS}` names {state.previous or 'nothing'}, but the last record says version {last.came_from}")
    gone = {r.version for r in map(parse_record, state.texts.values()) if r is not None} - versions - {last.version if last else ""}
    problems += [f"version {version}, which has been champion, was deleted" for version in sorted(gone)]
    return problems


def read_state(client: MlflowClient, name: str) -> RegistryState:
    """Read what MLflow holds of a registered model.

    Raises: PromotionError for an unknown name, with the nearest known one; MlflowException.
    """
    try:
        model = insist(client.get_registered_model, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [m.name for m in client.search_registered_models(max_results=1000) if not is_lock(m.name)]
        mend = nearest(name, names) if names else "none is registered yet: vit-search promote."
        raise PromotionError(f"{name}: no registered model of this name; {mend}") from None
    texts = {int(match[1]): text for key, text in model.tags.items() if (match := _KEY.fullmatch(key))}
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    return RegistryState(aliases.get(CHAMPION), aliases.get(PREVIOUS), model.tags.get(INTENT), model.tags.get(HEAD, ""), texts)


def _chain_problems(state: RegistryState) -> list[str]:
    problems = []
    end, digest = _head(state.head)
    before: Record | None = None
    for n in range(1, max([end, *state.texts], default=0) + 1):
        text = state.texts.get(n)
        if text is None:
            problems.append(f"record {n} is missing")
            before = None
            continue
        record = parse_record(text)
        if record is None or record.n != n:
            problems.append(f"record {n} was changed: it {'cannot be read' if record is None else f'says that it is record {record.n}'}")
        elif n - 1 in state.texts and record.before != sha256_of(state.texts[n - 1]):
            problems.append(f"record {n - 1} is not the one that record {n} was written after: one of the two was changed or put in")
        elif n == 1 and record.before:
            problems.append("record 1 was changed: it names one before it")
        elif before is not None and record.came_from != before.version:
            origin = f"version {record.came_from}" if record.came_from else "no version"
            problems.append(f"between records {n - 1} and {n} somebody else moved the champion from version {before.version} to {origin}")
        before = record
    if state.texts and not state.head:
        problems.append(f"the tag {HEAD} is missing")
    elif state.texts and state.intent is None and end != max(state.texts):
        problems.append(f"the tag {HEAD} says that there are {end} records, and there are {max(state.texts)}")
    elif end in state.texts and digest != sha256_of(state.texts[end]):
        problems.append(f"record {end} was changed: its sha256 is not the one in the tag {HEAD}")
    return problems


@contextlib.contextmanager
def as_tracking_error(name: str) -> Iterator[None]:
    """Turn errors of MLflow into a TrackingError."""
    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"{name}: MLflow did not do it ({in_short(error)}); when it answers: vit-search repair {name}") from None


def parse_record(text: str) -> Record | None:
    """A record from its text; None if it cannot be read."""
    try:
        return Record.parse(text)
    except ValueError:
        return None


def _head(text: str) -> tuple[int, str]:
    """Number and sha256 of the last record; 0 and empty if there is none."""
    number, _, digest = text.partition(" ")
    return (int(number), digest) if number.isdecimal() else (0, "")


def sha256_of(text: str) -> str:
    """The sha256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def noun_of(action: str) -> str:
    """The word for an action in messages: `promotion` or `rollback`."""
    return "promotion" if action in ("promote", "force") else action


def describe_champion(champion: str | None) -> str:
    """The version that the alias names, in words."""
    return f"`{CHAMPION}` names version {champion}" if champion is not None else f"`{CHAMPION}` names no version"
