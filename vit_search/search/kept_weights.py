"""Pretrained weights in the folder of a search: a copy that every node sees, and that stays as it is while trials start from it.

    weights/SHA256/model.safetensors    and the config.json and preprocessor_config.json that were beside it

Its rights follow the umask, as those of the trials' folders do. The folder of the search is closed to other accounts.
A promotion's trainings take those of their search.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from vit_search.config.backbone_settings import FILES
from vit_search.config.weight_sources import parse
from vit_search.data.file_hashes import sha256_of
from vit_search.data.weight_files import WEIGHTS
from vit_search.errors import DataError, SearchError, SpecError
from vit_search.files import locked, make_folder
from vit_search.vit.checkpoint_files import PRETRAINED

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.ledger.searches import SearchFacts


def folder_of(search: Path, facts: SearchFacts) -> Path:
    """Where a search keeps its weights.

    Args:
        search: its folder, which lies in that of another search if it is a promotion's.
    """
    return (search.parents[1] if facts.promotes else search).resolve() / PRETRAINED


def keep(spec: SearchSpec, folder: Path, *, needed: bool = True) -> None:
    """Copy the weights of a search into a folder. What is there already and sound is left as it is.

    Args:
        spec: with pinned sources.
        needed: whether trials start from them. Otherwise only checkpoints need them, and it is no error if they are missing.
    Raises: SpecError that begins with the key if weights are needed and missing, or have changed; SearchError if the folder cannot be
        written.
    """
    if not spec.pretrained:
        return
    try:
        make_folder(folder, mode=0o777)
        with locked(folder / ".lock"):  # a search and its promotion may do so at once
            for left in folder.glob("*.new"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            for source in spec.pretrained:
                with contextlib.suppress(*(() if needed else (SpecError, SearchError))):
                    _keep(source, folder, fetch=needed)  # nothing is fetched that nobody may need; a copy in the cache will do
    except OSError as error:
        if not needed:
            return
        raise SearchError(f"{folder}: the pretrained weights cannot be written ({error.strerror}); make room or mend it.") from None


def _keep(source: str, folder: Path, *, fetch: bool) -> None:
    from vit_search.data import backbones  # here: a worker needs `checked` alone

    sha256 = parse(source).sha256
    target = folder / sha256
    if not _is_sound(target / WEIGHTS, sha256):
        try:
            found = backbones.find(source, fetch=fetch)
        except SpecError as error:
            fact = str(error).rpartition(";")[0] or str(error).rstrip(".")
            raise SpecError(
                f"{fact}; put the file that the search began with back, or put it and the .json files beside it into {target}."
            ) from None
        _copy(found.file.path, target)
        if not _is_sound(target / WEIGHTS, sha256):
            raise SearchError(f"{found.file.path}: changed while the search copied it; start the search again.")


def seen(folder: Path, source: str) -> Path:
    """The file of a pinned source. Its content is not checked.

    Raises: OSError if this node does not see it, or its storage fails.
    """
    path = folder / parse(source).sha256 / WEIGHTS
    with path.open("rb") as file:
        file.read(1)
    return path


def checked(folder: Path, source: str) -> Path:
    """The file of a pinned source.

    Raises: OSError if this node does not see it, or its storage fails; SearchError if it is damaged.
    """
    path, sha256 = seen(folder, source), parse(source).sha256
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        search = folder.parent
        raise SearchError(
            f"{path}: read on the node {socket.gethostname()}, the pretrained weights are damaged; remove the file, "
            f"then `vit-search resume {search.name}` copies it again."
        )
    return path


def _is_sound(path: Path, sha256: str) -> bool:
    try:
        return path.is_file() and sha256_of(path) == sha256
    except DataError:
        return False


def _copy(path: Path, target: Path) -> None:
    """Whole or not at all, with the files that belong to it."""
    fresh = target.with_name(f"{target.name}.{uuid.uuid4().hex}.new")
    try:
        fresh.mkdir()
        shutil.copyfile(path, fresh / WEIGHTS)
        for name in FILES.values():
            if (path.parent / name).is_file():
                shutil.copyfile(path.parent / name, fresh / name)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
