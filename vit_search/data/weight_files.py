"""The files of pretrained weights on this machine, by the source that the user names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vit_search.config.data_urls import near_path
from vit_search.config.weight_sources import ENDING, KEY, WeightSource, parse
from vit_search.data.file_hashes import sha256_of
from vit_search.errors import CheckpointError
from vit_search.text import file_name, listed

WEIGHTS = "model.safetensors"
"""The usual name of weights in a folder."""


@dataclass(frozen=True)
class Origin:
    """Where weights come from, for the record of a model that starts from them."""

    source: str
    """As the user writes it, without a sha256."""
    revision: str = ""
    """The commit of a repository, or the number of a registered version. A file or a URL has none."""
    licence: str | None = None
    """As the source states it; None if it states none."""


@dataclass(frozen=True)
class WeightFile:
    """A `.safetensors` file on this machine. The config.json that belongs to it is beside it."""

    path: Path
    sha256: str
    origin: Origin

    @property
    def pinned(self) -> str:
        """The source that always means these weights: with their revision, if it has one, and their sha256."""
        source = parse(self.origin.source)
        return str(replace(source.at(self.origin.revision), sha256=self.sha256))


def local_file(source: str, *, download: bool = False, key: str = KEY) -> WeightFile:
    """The file that a source means.

    Args:
        download: whether to fetch it if it is missing.
        key: what a message about the source begins with.
    Raises: SpecError for a source that cannot be read; CheckpointError or DataError if it is missing, or has another sha256.
    """
    named = parse(source, key)
    if named.kind != "file":
        raise CheckpointError(f"{key}: {named.unpinned}: only files are read by this version.")
    return _checked(named, _of_folder(named, key), key)


def _of_folder(source: WeightSource, key: str) -> Path:
    """The file that a path means: itself, or the one in the folder of this name."""
    path = Path(source.place).expanduser()
    if path.is_dir():
        files = sorted(file.name for file in path.glob(f"*{ENDING}"))
        if WEIGHTS in files:
            return path / WEIGHTS
        if len(files) == 1:
            return path / files[0]
        fact = f"has {len(files)} {ENDING} files ({listed([file_name(name) for name in files])})" if files else f"has no {ENDING} file"
        raise CheckpointError(f"{key}: {_shown(path)}: this folder {fact}; name the file itself.")
    if not path.exists():
        registered = source.place.partition("@")[2] and "/" not in source.place
        mend = f"for a registered model, write models:/{source.place}." if registered else near_path(path) or f"name a {ENDING} file."
        raise CheckpointError(f"{key}: {_shown(path)}: no such file; {mend}")
    return path


def _checked(source: WeightSource, path: Path, key: str) -> WeightFile:
    sha256 = sha256_of(path)
    if source.sha256 and source.sha256 != sha256:
        fact = f"the file has changed: its sha256 is {sha256[:12]}…, and {source.sha256[:12]}… is expected"
        raise CheckpointError(f"{key}: {_shown(path)}: {fact}; put the former file there, or remove #sha256=… from the source.")
    return WeightFile(path, sha256, Origin(source.unpinned))


def _shown(path: Path) -> str:
    return file_name(str(path))
