"""Find the file of pretrained weights on this machine for the source that the user names; fetch it if needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vit_search.config.backbone_settings import FILES
from vit_search.config.data_urls import near_path
from vit_search.config.strict_json import parse as parse_json
from vit_search.config.weight_licences import licence_beside
from vit_search.config.weight_sources import ENDING, KEY, WeightSource, parse
from vit_search.data import hugging_face, weight_cache
from vit_search.data.cache_folder import default_cache
from vit_search.data.fetch import fetch_listed
from vit_search.data.remote import UnreachableError, list_with_neighbours
from vit_search.errors import CheckpointError, DataError, OtherWeightsError, VitSearchError
from vit_search.text import file_name, listed

WEIGHTS = "model.safetensors"
"""Usual name of the weights in a folder."""

PART = "trained.safetensors"
"""What a checkpoint of a search has in its place if it leaves frozen blocks out, see vit/checkpoint.py."""


@dataclass(frozen=True)
class Origin:
    """Where weights come from, for the record of a model that starts from them."""

    source: str
    """As the user writes it, without a sha256."""
    revision: str = ""
    """Commit of a repository, or number of a registered version. Empty for a file or a URL."""
    licence: str | None = None
    """As the source states it; None if it states none."""


@dataclass(frozen=True)
class WeightFile:
    """A `.safetensors` file on this machine. Its config.json, if any, is beside it."""

    path: Path
    sha256: str
    origin: Origin

    @property
    def pinned(self) -> str:
        """The source that always means these weights: with their sha256 and, if there is one, their revision."""
        source = parse(self.origin.source)
        return str(replace(source.at(self.origin.revision), sha256=self.sha256))

    @contextlib.contextmanager
    def naming_source(self) -> Iterator[None]:
        """Errors about a file in the cache name its source, because the user knows that one."""
        try:
            yield
        except VitSearchError as error:
            of_cache = parse(self.origin.source).kind != "file"
            raise type(error)(str(error).replace(_shown(self.path), self.origin.source) if of_cache else str(error)) from None


class Registry(Protocol):
    """MLflow's registry, as `vit_search.registry.weight_versions` implements it. This package does not import MLflow."""

    def look_up(self, source: WeightSource) -> Version:
        """The version that a source means now."""

    def fetch(self, version: Version, folder: Path) -> None:
        """Write model.safetensors and config.json of a version into a folder."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: str
    sha256: str
    """sha256 of its weights."""
    licence: str | None


def local_file(
    source: str,
    *,
    download: bool = False,
    fetch: bool = True,
    registry: Registry | None = None,
    cache: Path | None = None,
    key: str = KEY,
) -> WeightFile:
    """Find the file that a source means: a file of the user, or one in the cache. If it is missing there, it may be fetched.

    A URL and a registered version are always fetched if they are missing, a repository at Hugging Face only with `download`. A pinned
    source in the cache needs no server.

    Args:
        download: whether to ask Hugging Face, and to fetch what is missing.
        fetch: False: no server is asked, and a source that is not pinned is not found in the cache, since nobody knows what it means now.
        registry: where registered versions are. Without it, only those in the cache are found.
        cache: `default_cache()` by default.
        key: what messages begin with.
    Raises: SpecError if the source cannot be read; CheckpointError or DataError if the file is missing or has another sha256;
        PromotionError from the registry.
    """
    named = parse(source, key)
    if named.kind == "file":
        return _checked(named, _of_folder(named, key), key)
    try:
        return _of_cache(named, download, registry, cache or default_cache(), fetch=fetch)
    except VitSearchError as error:
        raise type(error)(f"{key}: {error}") from None


def _of_cache(source: WeightSource, download: bool, registry: Registry | None, cache: Path, *, fetch: bool) -> WeightFile:
    """Find weights that are not a file of the user."""
    kept = weight_cache.find(str(source), cache)
    if kept and source.sha256 not in ("", kept.sha256):
        kept = None
    if kept is None and source.sha256 and (last := weight_cache.find(source.unpinned, cache)) and last.sha256 == source.sha256:
        kept = last
    if kept and (source.sha256 or source.is_exact):
        return _recorded(source, kept, cache)
    if not fetch:
        raise CheckpointError(f"{source.unpinned}: not on this machine.")
    try:
        if source.kind == "models":  # not `kept`: the cache is shared by all projects, and two may have models of the same name
            return _registered(source, registry, cache)
        if source.kind == "url":
            return _behind_url(source, cache)
        if download:
            return _of_hub(source, cache)
    except UnreachableError:
        if kept is None:
            raise
    if kept is None:
        raise CheckpointError(f"{source.unpinned}: not on this machine; fetch it with `vit-search weights {source} --download`.")
    return _recorded(source, kept, cache)


def _of_hub(source: WeightSource, cache: Path) -> WeightFile:
    repository = hugging_face.look_up(source)
    _check_same(source, repository.sha256, f"revision {repository.commit[:12]}")
    exact = source.at(repository.commit)
    kept = weight_cache.find(str(replace(exact, sha256=repository.sha256)), cache) if repository.sha256 else None
    path = kept.file(cache) if kept else hugging_face.fetch(repository, cache)
    if repository.sha256 and weight_cache.sha256_once(path) != repository.sha256:
        raise _changed(path, cache)
    return _keep(source, path, cache, revision=repository.commit, licence=repository.licence)


def _changed(path: Path, cache: Path) -> DataError:
    home = cache.joinpath(*path.relative_to(cache).parts[:2])
    return DataError(f"{path}: not what was fetched there; remove {home}, and it is fetched again.")


def _behind_url(source: WeightSource, cache: Path) -> WeightFile:
    copy = fetch_listed(list_with_neighbours(source.place, tuple(FILES.values())), cache)
    return _keep(source, copy.at, cache)


def _registered(source: WeightSource, registry: Registry | None, cache: Path) -> WeightFile:
    if registry is None:
        raise CheckpointError(f"{source.unpinned}: not on this machine; fetch it with `vit-search weights {source}` first.")
    version = registry.look_up(source)
    _check_same(source, version.sha256, f"version {version.number}")
    exact = str(replace(source.at(version.number), sha256=version.sha256))
    kept = weight_cache.find(exact, cache)
    if kept:
        path = kept.file(cache)
    else:
        path = weight_cache.put(exact, cache, lambda fresh: registry.fetch(version, fresh)) / WEIGHTS
    return _keep(source, path, cache, revision=version.number, licence=version.licence)


def _check_same(source: WeightSource, sha256: str, what: str) -> None:
    """Raises: OtherWeightsError if a pinned source means other weights now."""
    if source.sha256 and sha256 and sha256 != source.sha256:
        fact = f"these are other weights now: {what} has sha256 {sha256[:12]}…, and {source.sha256[:12]}… is expected"
        mend = "remove #sha256=… to use them" if source.is_exact else "name the revision that you want, or remove #sha256=… to use them"
        raise OtherWeightsError(f"{source.unpinned}: {fact}; {mend}.")


def _keep(source: WeightSource, path: Path, cache: Path, *, revision: str = "", licence: str | None = None) -> WeightFile:
    """Record what was fetched, for each text that means it."""
    sha256, inside = weight_cache.sha256_once(path), str(path.relative_to(cache))
    last = weight_cache.recorded(source.unpinned, cache)
    if last is not None and last.path == inside and last.sha256 != sha256:
        raise _changed(path, cache)
    _check_same(source, sha256, revision or "the file")
    licence = licence or licence_beside(path)
    record = weight_cache.Record(source=source.unpinned, revision=revision, sha256=sha256, licence=licence, path=inside)
    exact = source.at(revision) if revision else source
    texts = {replace(one, sha256=digits) for one in (source, exact) for digits in ("", sha256)}
    weight_cache.keep(record, cache, tuple(sorted(map(str, texts))))
    return _recorded(source, record, cache)


def _recorded(source: WeightSource, record: weight_cache.Record, cache: Path) -> WeightFile:
    return WeightFile(record.file(cache), record.sha256, Origin(source.unpinned, record.revision, record.licence))


def is_there(source: WeightSource) -> bool:
    """Whether there is a file or a folder at the path of a source."""
    try:
        return Path(source.place).expanduser().exists()
    except (OSError, RuntimeError):  # see _of_folder
        return False


def _of_folder(source: WeightSource, key: str) -> Path:
    """The file that a path means: the path itself, or the weights in that folder."""
    try:
        path = Path(source.place).expanduser()
        is_folder, is_file, is_something = path.is_dir(), path.is_file(), path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder of others, the home of an unknown account
        fact = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise CheckpointError(f"{key}: {file_name(source.place)[:300]}: cannot be looked at ({fact}); name a {ENDING} file.") from None
    if is_folder:
        files = sorted(file.name for file in path.glob(f"*{ENDING}"))
        if WEIGHTS in files:
            return path / WEIGHTS
        if PART in files:
            _check_whole(path / PART, key)
        if len(files) == 1:
            return path / files[0]
        fact = f"has {len(files)} {ENDING} files ({listed([file_name(name) for name in files])})" if files else f"has no {ENDING} file"
        raise CheckpointError(f"{key}: {_shown(path)}: this folder {fact}; name the file itself.")
    if not is_something:
        registered = source.place.partition("@")[2] and "/" not in source.place
        mend = f"for a registered model, write models:/{source.place}." if registered else near_path(path) or f"name a {ENDING} file."
        raise CheckpointError(f"{key}: {_shown(path)}: no such file; {mend}")
    if not is_file:
        raise CheckpointError(f"{key}: {_shown(path)}: neither a file nor a folder; name a {ENDING} file.")
    if path.name == PART:
        _check_whole(path, key)
    return path


def _check_whole(path: Path, key: str) -> None:
    """Raises: CheckpointError if a file holds only what was trained, as the config.json beside it says."""
    try:
        document = parse_json((path.parent / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(document, dict) and document.get("left_out"):
        mend = f"make a whole one: vit-search export {_shown(path.parent)} --format safetensors --output FOLDER."
        raise CheckpointError(f"{key}: {_shown(path.parent)}: this checkpoint leaves out blocks of its pretrained weights; {mend}")


def _checked(source: WeightSource, path: Path, key: str) -> WeightFile:
    sha256 = weight_cache.sha256_once(path)
    if source.sha256 and source.sha256 != sha256:
        fact = f"the file has changed: its sha256 is {sha256[:12]}…, and {source.sha256[:12]}… is expected"
        raise CheckpointError(f"{key}: {_shown(path)}: {fact}; put the former file there, or remove #sha256=… from the source.")
    return WeightFile(path, sha256, Origin(source.unpinned, licence=licence_beside(path)))


def _shown(path: Path) -> str:
    return file_name(str(path))
