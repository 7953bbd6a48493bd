"""Which version is the champion: moved under a lock, written down before and after, mended after a crash, and rolled back.

MLflow holds all of it, as tags and aliases of the registered model:

    champion, previous   aliases: the version in production, and the one before it
    promotion_intent     tag: the record of a move that has begun; absent at rest
    history.000001 …     tags: one record for each move, never written twice; each holds the sha256 of the one before
    history_head         tag: number and sha256 of the last record, so that a last one that is edited or removed shows

A move writes the intent, the alias `champion`, the alias `previous`, the record, the head, and takes the intent away. Whoever comes
next (every move, rollback and repair looks first) can tell how far a dead one came: while `champion` names the old version nothing has
happened, and the intent is dropped; once it names the new one, the rest is done. That is why `champion` moves before `previous`: there
is nothing to put back. The intent is the record itself, word for word, so who finishes a move adds nothing of his own.

Not covered: a process that stops for longer than half a lease between two instructions, and then writes; MLflow has no call that
would refuse it. It shows in `verify`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.config.strict_json import parse
from vit_search.errors import CheckpointError, PromotionError, PromotionRefusedError, TrackingError
from vit_search.registry import references
from vit_search.registry.lock import LEASE_S, Lock, insist, is_lock, locked, sweep
from vit_search.text import counted, nearest
from vit_search.tracking import model_files
from vit_search.tracking.model_files import CHECKPOINT
from vit_search.tracking.store import in_short

if TYPE_CHECKING:
    from vit_search.vit.checkpoint import ServedModel

CHAMPION, PREVIOUS = "champion", "previous"
INTENT, HEAD = "promotion_intent", "history_head"
VERDICTS = ("passed", "forced")
"""Values of a version's tag `verdict` that let it become the champion."""

MOST_CHARACTERS = 5000
"""Of a registered model's tag in PostgreSQL, though MLflow itself would let 100,000 pass."""

MOST_REASON = 1000
"""Characters of a reason."""

_KEY = re.compile(r"history\.(\d{6,})")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One move of the alias `champion`."""

    n: int
    """Its number, from 1."""
    action: str
    """`promote`, `force` or `rollback`."""
    version: str
    """The champion from then on."""
    came_from: str | None
    """The champion until then; None where there was none. `from` in the record's text."""
    by: str
    host: str
    at: str
    """UTC, ISO 8601, by the clock of the host."""
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What it was decided on, in short: test_accuracy, gate, data_hash."""
    before: str = ""
    """sha256 of the text of the record before; empty for the first."""

    def text(self) -> str:
        """As it is kept."""
        values = {key: dict(value) if key == "facts" else value for key, value in vars(self).items()}
        return json.dumps({("from" if key == "came_from" else key): value for key, value in values.items()}, ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Record:
        """Raises: ValueError for what is not a record's text."""
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
class _State:
    """What MLflow holds of a registered model, read in one call."""

    champion: str | None
    previous: str | None
    intent: str | None
    head: str
    texts: dict[int, str]
    """The records by their number, unread."""

    @property
    def last(self) -> Record | None:
        """The last record that can be read."""
        for n in sorted(self.texts, reverse=True):
            with contextlib.suppress(ValueError):
                return Record.parse(self.texts[n])
        return None

    @property
    def next_number(self) -> int:
        """One that no record has or had."""
        return max([_head(self.head)[0], *self.texts]) + 1

    @property
    def before(self) -> str:
        """What the next record says of the last one."""
        return _sha256(self.texts[max(self.texts)]) if self.texts else ""


def move(
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
    """Make a version the champion, if the champion is still the one that the decision was made against.

    Done again, after an answer that was lost, it changes nothing and gives the record that is there.

    Args:
        version: registered, and with a `verdict` that lets it pass.
        expected: the champion that it was compared with; None for "there is none".
        facts: short strings, kept with the record; the longest are cut where they would not fit.
        once_champion: a version that has been champion before needs no verdict.
        lease_s, wait_s: of the lock; registry/lock.py.
    Raises: PromotionRefusedError when the champion is another one by now, or the version has not passed; PromotionError for an unknown
        name or version, or a lock that somebody holds; TrackingError when MLflow does not answer.
    """
    version = str(version)
    if len(reason) > MOST_REASON:
        raise PromotionError(f"{name}: the reason has {len(reason):,} characters; give at most {MOST_REASON:,}.")
    with _spoken(name), locked(client, name, lease_s=lease_s, wait_s=wait_s) as lock:
        state, _ = _settled(client, lock, _read(client, name))
        last = state.last
        if state.champion == version != expected and last is not None and (last.version, last.came_from) == (version, expected):
            return last
        if state.champion != expected:
            seen = f"moved to version {state.champion}" if state.champion is not None else "was taken away"
            again = "roll back" if action == "rollback" else "promote"
            raise PromotionRefusedError(
                f"{name}: the champion {seen} while this {_noun(action)} ran (expected {expected or 'none'}); look at it and {again} again."
            )
        if version == expected:
            raise PromotionError(f"{name}: version {version} is the champion already.")
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
        record = dataclasses.replace(record, facts=_fitting(facts or {}, MOST_CHARACTERS - len(record.text())))
        _write(lock, client.set_registered_model_tag, name, INTENT, record.text())
        _write(lock, client.set_registered_model_alias, name, CHAMPION, version)
        _complete(client, lock, record)
    return record


def rollback(
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
        check: says of the MLflow version what forbids it to serve, or nothing; asked before anything moves.
    Raises: PromotionRefusedError for a version that may not or cannot serve; the champion then stays. Else as `move`.
    """
    with _spoken(name):
        state = _read(client, name)
        if state.intent is not None:
            repair(client, name, lease_s=lease_s, wait_s=wait_s)
            state = _read(client, name)
        target = str(to) if to is not None else _target(name, state)
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
        return move(
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


def repair(client: MlflowClient, name: str, *, lease_s: float = LEASE_S, wait_s: float | None = None) -> str:
    """Finish or undo what a dead process has left, and clear its lock away; what was done, in a line."""
    with _spoken(name):
        _read(client, name)  # an unknown name is told before a lock is made
        with locked(client, name, lease_s=lease_s, wait_s=wait_s) as lock:
            state, said = _settled(client, lock, _read(client, name))
            cleared = len(lock.dead) + sweep(client, lock)
            last = state.last
    if cleared:
        said.append(f"cleared the lock of {counted(cleared, 'dead process')} away")
    if state.champion != (last.version if last else None):
        should = f"the last record says version {last.version}" if last else "the history is empty"
        said.append(f"{_named(state.champion)}, but {should}: somebody else moved the alias, and it is left so")
    return f"{name}: {'; '.join(said) or 'nothing to repair'}."


def history(client: MlflowClient, name: str) -> list[Record]:
    """All records that can be read, the oldest first; `verify` tells of the others."""
    with _spoken(name):
        texts = _read(client, name).texts
    found = []
    for n in sorted(texts):
        with contextlib.suppress(ValueError):
            found.append(Record.parse(texts[n]))
    return found


def verify(client: MlflowClient, name: str) -> list[str]:
    """What is wrong with the history, and with the aliases beside it; empty where all is well. Takes no lock."""
    with _spoken(name):
        state = _read(client, name)
        for _ in range(20):  # a move that is under way ends within this second
            if state.intent is None:
                break
            time.sleep(0.05)
            state = _read(client, name)
        versions = {str(v.version) for v in insist(client.search_model_versions, f"name = '{name}'")}
    problems = _chain_problems(state)
    last = state.last
    if state.intent is not None:
        with contextlib.suppress(ValueError):
            begun = Record.parse(state.intent)
            return [
                *problems,
                f"a {_noun(begun.action)} to version {begun.version}, begun at {begun.at} by {begun.by} on {begun.host}, has not ended: "
                f"wait for it, or vit-search repair {name}",
            ]
        return [*problems, f"the tag {INTENT} cannot be read: vit-search repair {name}"]
    if last is not None and last.version not in versions:
        problems.append(f"version {last.version}, which the last record made the champion, was deleted")
    if state.champion != (last.version if last else None):
        problems.append(f"{_named(state.champion)}, but {f'the last record says version {last.version}' if last else 'there is no record'}")
    elif last is not None and last.came_from is not None and state.previous != last.came_from and last.came_from in versions:
        problems.append(f"`{PREVIOUS}` names {state.previous or 'nothing'}, but the last record says version {last.came_from}")
    gone = {r.version for r in map(_parsed, state.texts.values()) if r is not None} - versions - {last.version if last else ""}
    problems += [f"version {version}, which has been champion, was deleted" for version in sorted(gone)]
    return problems


def fetch_files(client: MlflowClient, version: Any, place: Path) -> Path:
    """The checkpoint of a registered version, fetched into a folder; only weights and config.json are.

    Args:
        version: as MLflow gives it; its tags record the files.
    Raises: PromotionError when the files are gone, damaged, or others than were registered.
    """
    uri = f"models:/{version.name}/{version.version}/{CHECKPOINT}"
    with _loading(version, place):
        home = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(place), tracking_uri=client.tracking_uri))
        model_files.check(home, version.tags or {}, _whose(version))
        return home


def fetch_logged(client: MlflowClient, uri: str, place: Path) -> tuple[Path, str]:
    """The checkpoint of a model that is not registered, fetched into a folder.

    Args:
        uri: `models:/m-…`, or `runs:/RUN/NAME`, whose record is the logged model's of that run and name.
    Returns: the folder, and what of it was recorded; see model_files.check.
    Raises: PromotionError.
    """
    uri = uri.rstrip("/")
    try:
        logged = _logged_model(client, uri)
        source = f"{logged.artifact_location if logged else uri}/{CHECKPOINT}"
        home = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(place), tracking_uri=client.tracking_uri))
        return home, model_files.check(home, logged.tags if logged else {}, uri)
    except (MlflowException, OSError) as error:
        raise PromotionError(f"{uri}: no model of vit_search can be loaded from there ({in_short(error)}); {references.FORMS}.") from None


def _logged_model(client: MlflowClient, uri: str) -> Any:
    """As MLflow gives it; None where it has the files of a run, and no logged model of them."""
    if uri.startswith("models:/"):
        return client.get_logged_model(uri.removeprefix("models:/"))
    run, _, name = uri.removeprefix("runs:/").partition("/")
    if not re.fullmatch("[0-9a-f]{32}", run):
        return None
    logged = client.search_logged_models([client.get_run(run).info.experiment_id], filter_string=f"source_run_id = '{run}'")
    return next((model for model in logged if model.name == name), None)


def fetch_version(client: MlflowClient, version: Any, place: Path) -> tuple[ServedModel, Path]:
    """The model of a registered version, and its checkpoint as `fetch_files` fetches it."""
    from vit_search.vit import checkpoint

    home = fetch_files(client, version, place)
    with _loading(version, place):
        return checkpoint.load_model(home), home


@contextlib.contextmanager
def _loading(version: Any, place: Path) -> Iterator[None]:
    """What goes wrong with the files of a version, in one line that does not name the folder they were fetched into."""
    try:
        yield
    except (MlflowException, OSError, CheckpointError) as error:
        said = in_short(error).replace(f"{place}/", "")
        if "downloading one or more artifacts" in said:  # MLflow's heading over a list of files
            said = f"of its files, {CHECKPOINT} cannot be had; a model that `vit-search promote` has registered holds it"
        elif "No such artifact" in said:  # MLflow knows the version, and has not got the files
            said = "its files are not where MLflow has put them; a database in the project needs its folder mlartifacts beside it"
        raise PromotionError(f"{_whose(version)} cannot be loaded ({said})") from None


def load_version(client: MlflowClient, version: Any) -> ServedModel:
    """The model of a registered version; otherwise as `fetch_version`."""
    with tempfile.TemporaryDirectory() as place:
        return fetch_version(client, version, Path(place))[0]


def load_problem(client: MlflowClient, version: Any) -> str:
    """Why a registered version cannot be loaded; empty where it can. For `rollback`."""
    try:
        load_version(client, version)
    except PromotionError as error:
        return str(error)
    return ""


def verify_files(client: MlflowClient, name: str, say: Callable[[str], None] = lambda text: None) -> tuple[list[str], list[str]]:
    """Hold all files of all versions of a model against what was recorded when they were registered; they are fetched for that.

    Args:
        say: told what is done next, in a few words.
    Returns: what is wrong, and what no record covers.
    """
    problems: list[str] = []
    covered: dict[str, list[str]] = {}
    with _spoken(name):
        versions = sorted(insist(client.search_model_versions, f"name = '{name}'"), key=lambda one: int(one.version))
    for version in versions:
        say(f"verifying the files of version {version.version}")
        with tempfile.TemporaryDirectory() as place:
            try:
                found, code = _verified(client, version, Path(place))
            except PromotionError as error:
                problems.append(str(error).removeprefix(f"{name}: "))
                continue
        covered.setdefault(found, []).append(str(version.version))
        if code:
            covered.setdefault(model_files.CACHE, []).append(str(version.version))
    notes = {
        model_files.WEIGHTS_ALONE: "only the weights are covered, since an earlier vit_search has registered it; promote it again",
        model_files.NOTHING: "no sha256 was recorded, so nothing vouches for its files; `vit-search promote` records them",
        model_files.CACHE: "holds compiled Python (__pycache__), which nothing covers; delete it before `mlflow models serve`",
    }
    return problems, [f"version {', '.join(covered[key])}: {text}" for key, text in notes.items() if key in covered]


def _verified(client: MlflowClient, version: Any, place: Path) -> tuple[str, int]:
    """What of a version's files is recorded, and how many of compiled Python it has."""
    uri = f"models:/{version.name}/{version.version}"
    with _loading(version, place):
        home = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(place), tracking_uri=client.tracking_uri))
        return model_files.check(home, version.tags or {}, _whose(version), inside=""), model_files.compiled(home)


def _whose(version: Any) -> str:
    return f"{version.name}: version {version.version}"


def _read(client: MlflowClient, name: str) -> _State:
    try:
        model = insist(client.get_registered_model, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = [m.name for m in client.search_registered_models(max_results=1000) if not is_lock(m.name)]
        mend = nearest(name, known) if known else "none is registered yet: vit-search promote."
        raise PromotionError(f"{name}: no registered model of this name; {mend}") from None
    texts = {int(found[1]): text for key, text in model.tags.items() if (found := _KEY.fullmatch(key))}
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    return _State(aliases.get(CHAMPION), aliases.get(PREVIOUS), model.tags.get(INTENT), model.tags.get(HEAD, ""), texts)


def _settled(client: MlflowClient, lock: Lock, state: _State) -> tuple[_State, list[str]]:
    """Finish or drop the move that a dead process has begun; the state then, and what was done."""
    if state.intent is None:
        return state, []
    record = _parsed(state.intent)
    if record is None:
        said = f"the tag {INTENT} could not be read and was removed"
    elif state.champion == record.version or state.texts.get(record.n) == state.intent:
        if state.texts.get(record.n, state.intent) != state.intent:  # somebody has written a record of this number
            record = dataclasses.replace(record, n=state.next_number, before=state.before)
        _complete(client, lock, record, moved=state.champion == record.version)
        return _read(client, lock.name), [f"finished the {_noun(record.action)} to version {record.version} that {_begun(record)}"]
    else:
        said = f"dropped the {_noun(record.action)} to version {record.version} that {_begun(record)}: {_named(state.champion)} as before"
        if state.champion != record.came_from:
            said = f"dropped the {_noun(record.action)} to version {record.version} that {_begun(record)}"
    _write(lock, client.delete_registered_model_tag, lock.name, INTENT)
    return dataclasses.replace(state, intent=None), [said]


def _complete(client: MlflowClient, lock: Lock, record: Record, *, moved: bool = True) -> None:
    """All that follows once `champion` names the new version; done twice it is as done once.

    Args:
        moved: False where the record stands already and somebody has moved the alias since; the aliases are then left.
    """
    name, text, previous = lock.name, record.text(), None
    if moved and record.came_from is not None:
        try:
            _write(lock, client.set_registered_model_alias, name, PREVIOUS, record.came_from)
            previous = record.came_from
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the old version was deleted; there is nothing to go back to
                raise
    state = _read(client, name)
    for alias, wanted, named in ((CHAMPION, record.version, state.champion), (PREVIOUS, previous, state.previous)):
        if moved and wanted is not None and named != wanted:
            raise PromotionError(
                f"{name}: `{alias}` was set to version {wanted} and names {named or 'nothing'}: somebody moves the aliases by hand. "
                f"When that has ended: vit-search repair {name}"
            )
    if record.n not in state.texts:
        _write(lock, client.set_registered_model_tag, name, f"history.{record.n:06d}", text)
    _write(lock, client.set_registered_model_tag, name, HEAD, f"{record.n} {_sha256(text)}")
    _write(lock, client.delete_registered_model_tag, name, INTENT)


def _write(lock: Lock, call: Callable[..., object], *arguments: str) -> None:
    insist(call, *arguments, first=lock.check)


def _check_eligible(client: MlflowClient, name: str, version: str, state: _State, once_champion: bool) -> Any:
    """The version, as MLflow gives it, if it may become the champion."""
    try:
        found = insist(client.get_model_version, name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        known = sorted((str(v.version) for v in insist(client.search_model_versions, f"name = '{name}'")), key=int)
        raise PromotionError(f"{name}: there is no version {version}; there are {', '.join(known) or 'none'}.") from None
    if found.status != "READY":
        raise PromotionRefusedError(f"{name}: version {version} is not ready ({found.status}); see that its upload ends.")
    verdict = found.tags.get("verdict")
    if verdict not in VERDICTS and not (once_champion and version in _champions(state)):
        seen = f"its verdict is {verdict}" if verdict else "it has no verdict"
        mend = "it was never champion either; name one from `vit-search history`." if once_champion else "promote it through the gates."
        raise PromotionRefusedError(f"{name}: version {version} has not passed the gates ({seen}); {mend}")
    return found


def _champions(state: _State) -> set[str]:
    """All versions that a record made the champion, and the one that was it before the first."""
    records = [r for _, text in sorted(state.texts.items()) if (r := _parsed(text)) is not None]
    first = {records[0].came_from} if records and records[0].n == 1 and records[0].came_from is not None else set()
    return {r.version for r in records} | first


def _target(name: str, state: _State) -> str:
    """Where a rollback goes by itself."""
    if state.previous is None:
        raise PromotionError(f"{name}: there is no `{PREVIOUS}` to roll back to; name a version with --to.")
    last = state.last
    if last is not None and last.action == "rollback" and last.came_from == state.previous:  # back to what was just found wanting?
        others = sorted(_champions(state) - {state.previous, state.champion or ""}, key=int)
        raise PromotionError(
            f"{name}: rolled back already, from version {last.came_from} to {last.version} at {last.at}; name the version with --to"
            f"{f', e.g. {others[-1]}' if others else ''}."
        )
    return state.previous


def _chain_problems(state: _State) -> list[str]:
    problems = []
    end, digest = _head(state.head)
    before: Record | None = None
    for n in range(1, max([end, *state.texts], default=0) + 1):
        text = state.texts.get(n)
        if text is None:
            problems.append(f"record {n} is missing")
            before = None
            continue
        record = _parsed(text)
        if record is None or record.n != n:
            problems.append(f"record {n} was changed: it {'cannot be read' if record is None else f'says that it is record {record.n}'}")
        elif n - 1 in state.texts and record.before != _sha256(state.texts[n - 1]):
            problems.append(f"record {n - 1} is not the one that record {n} was written after: one of the two was changed or put in")
        elif n == 1 and record.before:
            problems.append("record 1 was changed: it names one before it")
        elif before is not None and record.came_from != before.version:
            seen = f"version {record.came_from}" if record.came_from else "no version"
            problems.append(f"between records {n - 1} and {n} somebody else moved the champion from version {before.version} to {seen}")
        before = record
    if state.texts and not state.head:
        problems.append(f"the tag {HEAD} is missing")
    elif state.texts and state.intent is None and end != max(state.texts):
        problems.append(f"the tag {HEAD} says that there are {end} records, and there are {max(state.texts)}")
    elif end in state.texts and digest != _sha256(state.texts[end]):
        problems.append(f"record {end} was changed: its sha256 is not the one in the tag {HEAD}")
    return problems


@contextlib.contextmanager
def _spoken(name: str) -> Iterator[None]:
    """MLflow's errors as ours."""
    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"{name}: MLflow did not do it ({in_short(error)}); when it answers: vit-search repair {name}") from None


def _fitting(facts: Mapping[str, str], room: int) -> dict[str, str]:
    """The facts, the longest of them cut until their JSON takes no more than so many characters."""
    fitting = {key: str(value) for key, value in facts.items()}
    while len(json.dumps(fitting, ensure_ascii=False)) > room and any(len(value) > 1 for value in fitting.values()):
        longest = max(fitting, key=lambda key: len(fitting[key]))
        fitting[longest] = fitting[longest][: len(fitting[longest]) * 3 // 4] + "…"
    return fitting


def _parsed(text: str) -> Record | None:
    try:
        return Record.parse(text)
    except ValueError:
        return None


def _head(text: str) -> tuple[int, str]:
    """Number and sha256 of the last record; 0 where there is none."""
    number, _, digest = text.partition(" ")
    return (int(number), digest) if number.isdecimal() else (0, "")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _noun(action: str) -> str:
    return "promotion" if action in ("promote", "force") else action


def _begun(record: Record) -> str:
    return f"{record.by} began on {record.host} at {record.at}"


def _named(champion: str | None) -> str:
    return f"`{CHAMPION}` names version {champion}" if champion is not None else f"`{CHAMPION}` names no version"
