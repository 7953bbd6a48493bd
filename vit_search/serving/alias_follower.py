"""Follows the alias of a registered model. Downloads, verifies and tests the version that it points to, and gives it to the replicas.

The last good versions are kept in the data cache, so that serving can start while the registry is away:

    CACHE/serving/REGISTRY-AND-NAME/
      3/config.json, model.safetensors    checkpoint of version 3
      3/version.json                      its name, sha256 and golden logits
      champion.json                       the last version of the alias `champion`, and when that was read
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_search.config.strict_json import parse
from vit_search.errors import ServingError, TrackingError, VitSearchError
from vit_search.files import make_folder, open_to_others, write_whole
from vit_search.registry import references
from vit_search.registry.references import GONE, Reference
from vit_search.registry.version_files import fetch_files
from vit_search.serving.loaded_model import load
from vit_search.serving.state import ServingState, Version
from vit_search.tracking import mlflow_client, model_files, uris  # before mlflow: this module makes MLflow's settings
from vit_search.vit import checkpoint

from mlflow import MlflowClient  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

KEPT = 4
"""Number of versions in the cache. A rollback to one of them needs no download."""

AGAIN_S, AGAIN_AT_MOST_S = 10.0, 600.0
"""First and longest pause before a rejected version is tried again. The pause doubles each time."""

VERSION = "version.json"


class FixedModel:
    """Serves a model that was trained on this machine, instead of an AliasFollower. It serves a copy, which never changes."""

    def __init__(self, folder: Path, state: Path, say: Callable[[str], None]) -> None:
        self._source, self._file, self._say = folder, state, say

    def start(self) -> ServingState:
        """Copy the checkpoint and test it.

        Raises: CheckpointError; ServingError.
        """
        folder = self._file.with_name("model")
        checkpoint.copy_for_serving(self._source, folder)
        name = str(self._source)
        version = Version(name, "", "", str(folder), 0)
        version = dataclasses.replace(version, weights_sha256=load(version, batch=1).weights_sha256)
        self._state = ServingState(version, "", name, time.time())
        self._say("from its folder, which no gate has judged; `vit-search promote` has it judged")
        write_whole(self._file, json.dumps(dataclasses.asdict(self._state)))
        return self._state

    def poll(self) -> None:
        """Do nothing: a fixed model does not change."""

    def drain(self) -> None:
        """Tell the replicas to finish their requests and stop."""
        write_whole(self._file, json.dumps(dataclasses.asdict(dataclasses.replace(self._state, draining=True))))


class AliasFollower:
    """Keeps the state file up to date. Call `start` once, then `poll` regularly from one thread."""

    def __init__(
        self,
        target: Reference,
        tracking_uri: str | None,
        state: Path,
        cache: Path,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._target, self._uri, self._file, self._say = target, uris.of_newest(tracking_uri), state, say
        key = hashlib.sha256(f"{uris.public(self._uri)}\n{target.name}".encode()).hexdigest()[:24]
        self._home = cache / "serving" / key
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()
        self._tried = ""
        self._again = 0.0
        self._wait = AGAIN_S
        self._pointed: tuple[str, float] | None = None
        self._state: ServingState | None = None

    def start(self) -> ServingState:
        """Choose the version that the target names. If the registry is away, take the last good version from the cache.

        Raises: TrackingError if the registry is away and the cache is empty; ServingError if no such model exists, or it cannot be served.
        """
        make_folder(self._home, parents=True)
        if problem := open_to_others(self._home):
            raise ServingError(f"{problem}; chown it and chmod go-w, or set VIT_SEARCH_CACHE to another folder.")
        for left in self._home.glob(".new-*"):
            if time.time() - left.stat().st_mtime > 3600:  # left by a killed process
                shutil.rmtree(left, ignore_errors=True)
        now = time.time()
        try:
            named = self._named()
        except (TrackingError, MlflowException, OSError) as error:
            kept = self._kept()
            if kept is None:
                raise TrackingError(mlflow_client.in_short(error)) from None
            version, seen_at = kept
            self._say(f"the registry does not answer ({mlflow_client.in_short(error)}); {version.name} is served from the cache")
            return self._write_state(ServingState(version, self._target.alias, version.name, seen_at, stale_since=now))
        if named is None:
            raise ServingError(f"{self._target}: {references.missing(self._client, self._target)}")
        try:
            return self._write_state(ServingState(self._fetch_and_try(named), self._target.alias, _name(named), now))
        except (VitSearchError, MlflowException, OSError) as error:
            kept = self._kept()
            if kept is None:
                raise ServingError(f"{_name(named)}: cannot be served ({mlflow_client.in_short(error)}).") from None
            state = ServingState(kept[0], self._target.alias, _name(named), now)
            return self._write_state(self._refused(state, named, error))

    def poll(self) -> None:
        """Ask the registry. If the alias points to another version, and that one is good, serve it. Raises nothing."""
        state = self._state
        if not self._target.alias or state is None:
            return
        try:
            named = self._named()
        except Exception as error:
            self._client = None
            if state.stale_since is None:
                self._say(f"the registry does not answer ({mlflow_client.in_short(error)}); {state.version.name} stays")
            self._write_state(dataclasses.replace(state, stale_since=state.stale_since or time.time()))
            return
        if state.stale_since is not None:
            self._say("the registry answers again")
        before = state
        state = dataclasses.replace(state, seen=time.time(), stale_since=None, alias_names=named and _name(named))
        if named is None:
            if before.alias_names is not None:
                self._say(f"{self._target.name}: the alias {self._target.alias} is gone; {state.version.name} stays")
        elif _name(named) == state.version.name:
            state = dataclasses.replace(state, failed="")
        elif _name(named) != self._tried or self._clock() >= self._again:
            try:
                state = dataclasses.replace(state, version=self._fetch_and_try(named), failed="")
                self._say(f"{state.version.name} takes the place of {before.version.name}")
            except Exception as error:
                state = self._refused(state, named, error)
        self._write_state(state)

    def drain(self) -> None:
        """Tell the replicas to finish their requests and stop."""
        if self._state is not None:
            self._write_state(dataclasses.replace(self._state, draining=True))

    def _write_state(self, state: ServingState) -> ServingState:
        with self._lock:
            if self._state is not None and self._state.draining:  # a poll that ends after drain
                state = dataclasses.replace(state, draining=True)
            self._state = state
            write_whole(self._file, json.dumps(dataclasses.asdict(state)))
        pointed = (state.version.name, state.seen // 30)
        if self._target.alias and state.stale_since is None and pointed != self._pointed:
            write_whole(self._home / f"{self._target.alias}.json", json.dumps({"version": state.version.name, "seen": state.seen}))
            self._pointed = pointed
        return state

    def _named(self) -> Any:
        """The version that the target names, or None.

        Raises: MLflow's errors if the registry is away.
        """
        try:
            if self._client is None:
                self._client = mlflow_client.client_for(self._uri, needs="read")
            if self._target.alias:
                return self._client.get_model_version_by_alias(self._target.name, self._target.alias)
            return self._client.get_model_version(self._target.name, self._target.version)
        except MlflowException as error:
            if error.error_code in GONE:
                return None
            raise

    def _refused(self, state: ServingState, named: Any, error: Exception) -> ServingState:
        name, reason = _name(named), mlflow_client.in_short(error)
        self._wait = min(2 * self._wait, AGAIN_AT_MOST_S) if self._tried == name else AGAIN_S
        if self._tried != name or reason != state.failed:
            self._say(f"{name} is rejected: {reason}; {state.version.name} stays")
        self._tried, self._again = name, self._clock() + self._wait
        return dataclasses.replace(state, failed=reason, failures=state.failures + 1)

    def _fetch_and_try(self, named: Any) -> Version:
        """Download a version unless it is in the cache, verify it, and test it on this machine's CPU.

        Raises: any error that the version causes.
        """
        tags = named.tags or {}
        if tags.get("verdict") == "refused":
            raise ServingError(f"{_name(named)}: its gates refused it")
        folder = self._home / str(named.version)
        version = _read_version(folder)
        recorded = version and (version.created, tags.get("weights_sha256", version.weights_sha256))
        if version is None or recorded != (_created(named), version.weights_sha256):
            version = self._fetch(named, folder)
        version = dataclasses.replace(version, golden=tags.get("golden", ""), files_sha256=tags.get(model_files.RECORD, ""))
        try:
            loaded = load(version, batch=1)
        except VitSearchError:
            shutil.rmtree(folder, ignore_errors=True)  # the copy or the original is damaged; download it again next time
            raise
        version = dataclasses.replace(version, weights_sha256=loaded.weights_sha256)
        write_whole(folder / VERSION, json.dumps(dataclasses.asdict(version)))
        self._tried = ""
        self._evict(folder)
        return version

    def _fetch(self, named: Any, folder: Path) -> Version:
        """Download the checkpoint of a version, completely or not at all."""
        assert self._client is not None
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self._home))
        try:
            source = fetch_files(self._client, named, new)
            shutil.rmtree(folder, ignore_errors=True)
            source.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return Version(_name(named), (named.tags or {}).get("weights_sha256", ""), "", str(folder), _created(named))

    def _kept(self) -> tuple[Version, float] | None:
        """The last good version of the target in the cache, verified, and when the registry last named it."""
        number, seen_at = self._target.version, 0.0
        if self._target.alias:
            try:
                pointed = parse((self._home / f"{self._target.alias}.json").read_text())
                number, seen_at = pointed["version"].rpartition("/")[2], pointed["seen"]
            except (OSError, ValueError, KeyError):
                return None
        folder = self._home / number
        version = _read_version(folder)
        if version is None:
            return None
        try:
            load(version, batch=1)
        except VitSearchError as error:
            self._say(f"the cache's copy of {version.name} is no good ({error})")
            return None
        return version, seen_at or (folder / VERSION).stat().st_mtime

    def _evict(self, taken: Path) -> None:
        """Delete all but the newest versions. The replicas have read theirs into memory."""
        files = sorted((path for path in self._home.glob(f"*/{VERSION}")), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[KEPT:]:
            if path.parent != taken:
                shutil.rmtree(path.parent, ignore_errors=True)


def _name(version: Any) -> str:
    return f"{version.name}/{version.version}"


def _created(version: Any) -> int:
    return int(version.creation_timestamp or 0)


def _read_version(folder: Path) -> Version | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dataclasses.replace(Version(**parse((folder / VERSION).read_text())), folder=str(folder))
    return None
