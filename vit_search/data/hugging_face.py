"""Repositories of pretrained weights at Hugging Face: find the commit of a revision, its files and its licence, and fetch them.

huggingface_hub says what there is: it knows HF_ENDPOINT, HF_TOKEN and the server's errors. fetch.py fetches the files, because
huggingface_hub loses a partly fetched file when its process ends. Only `.safetensors` and JSON files are fetched, never a pickle.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vit_search.config.backbone_settings import FILES
from vit_search.config.weight_sources import ENDING, PICKLES, WeightSource
from vit_search.data.fetch import fetch_listed
from vit_search.data.remote import Listing, RemoteFile, UnreachableError, check_names, file_system, without_secrets
from vit_search.errors import DataError
from vit_search.text import file_name, listed, nearest, one_line

WEIGHTS = "model.safetensors"
TIMEOUT_S = 30
"""Seconds that the server may take to say what a repository holds."""

TOKEN = "set HF_TOKEN to a token that may read it"  # noqa: S105 -- a sentence
OUR_PACKAGE = "uv pip install huggingface_hub, or pip install 'vit_search[huggingface]'"


@dataclass(frozen=True)
class Repository:
    """A repository at one commit: the parts of it that vit_search needs."""

    commit: str
    """40 hexadecimal digits."""
    listing: Listing
    """The weights, and the settings files beside them. `listing.path` is the weights."""
    licence: str | None
    headers: dict[str, str] = field(repr=False)
    """Headers of the requests for its files: the token, if there is one."""

    @property
    def sha256(self) -> str:
        """sha256 of the weights; empty if the server does not say."""
        return next(file.sha256 for file in self.listing.files if file.name == self.listing.path)


def look_up(source: WeightSource) -> Repository:
    """Ask the server what a source means now. Nothing is fetched.

    Raises: UnreachableError without a network; DataError in one line if the repository, the revision or the file does not exist.
    """
    if find_spec("huggingface_hub") is None:
        raise DataError(f"{source.unpinned}: needs the package huggingface_hub, which is not installed; {OUR_PACKAGE}.")
    import huggingface_hub as hub
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not in its __all__

    try:
        address = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        api = hub.HfApi(endpoint=address)
        about = api.model_info(source.repository, revision=source.revision or None, files_metadata=True, timeout=TIMEOUT_S)
        commit = about.sha or ""
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise ValueError("it names no commit")
        files = {sibling.rfilename: sibling for sibling in about.siblings or ()}
        weights = _weights_among(sorted(files), source)
        url = hub.hf_hub_url(source.repository, weights, revision=commit, endpoint=address)
        head = hub.get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=address)
        token = build_hf_headers().get("authorization")
    except DataError:
        raise
    except Exception as error:
        raise _as_data_error(source, error) from None
    folder = weights.rpartition("/")[0]
    names = [weights, *(name for beside in FILES.values() if (name := f"{folder}/{beside}".lstrip("/")) in files)]
    addresses = [hub.hf_hub_url(source.repository, name, revision=commit, endpoint=address) for name in names]
    remote = [_remote_file(files[name], name, at, head if name == weights else None) for name, at in zip(names, addresses, strict=True)]
    listing = Listing(source.at("").unpinned, tuple(sorted(remote, key=lambda file: file.name)), weights)
    check_names(listing)
    return Repository(commit, listing, _licence(about), {"Authorization": token} if token else {})


def fetch(repository: Repository, cache: Path) -> Path:
    """Fetch the files of a repository into the cache, unless they are there.

    Returns: path of the weights.
    Raises: see `fetch_listed`.
    """
    address = repository.listing.files[0].address
    return fetch_listed(repository.listing, cache, file_system(address, key="HF_ENDPOINT", headers=repository.headers)).at


def _remote_file(sibling: Any, name: str, address: str, head: Any) -> RemoteFile:
    """Describe one file, from the repository's list and, for the weights, from the answer to a HEAD request."""
    sha256, size = (sibling.lfs.sha256, sibling.lfs.size) if sibling.lfs else ("", sibling.size)
    version = sha256 or sibling.blob_id or ""
    if head is not None:
        size = head.size if size is None else size
        sha256 = sha256 or (head.etag if re.fullmatch(r"[0-9a-f]{64}", head.etag or "") else "")
        version = version or head.etag or ""
    return RemoteFile(name, address, size, version, sha256=sha256)


def _weights_among(names: list[str], source: WeightSource) -> str:
    """Choose the file with the weights.

    Raises: DataError if there is none, or more than one that could be meant.
    """
    where = source.unpinned
    found = [name for name in names if name.endswith(ENDING)]
    if source.file:
        if source.file in names:
            return source.file
        mend = nearest(source.file, found) if found else f"it has no {ENDING} file."
        raise DataError(f"{where}: the repository has no file {source.file}; {mend}")
    of_root = [name for name in found if "/" not in name]
    if WEIGHTS in of_root:
        return WEIGHTS
    if f"{WEIGHTS}.index.json" in names:
        raise DataError(f"{where}: its weights are in {len(of_root)} files, which are not read; take a smaller model.")
    if len(of_root) == 1:
        return of_root[0]
    if found:
        several = listed([file_name(name) for name in found])
        raise DataError(f"{where}: the repository has no {WEIGHTS}, but {several}; write hf:{source.repository}/FILE{ENDING} for one.")
    pickles = [file_name(name) for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        mend = "fetch one yourself, and use `vit-search convert-weights`"
        raise DataError(f"{where}: the repository has only pickles ({listed(pickles)}), which can hold programs; {mend}.")
    raise DataError(f"{where}: the repository has no {ENDING} file; name another.")


def _licence(about: Any) -> str | None:
    """The licence in the model card: an identifier such as apache-2.0, or the name of a licence of their own; None if it states none."""
    card = about.card_data
    stated = getattr(card, "license", None) or next((tag.partition(":")[2] for tag in about.tags or () if tag.startswith("license:")), None)
    name = getattr(card, "license_name", None) if stated in (None, "other") else None
    texts = name or stated
    text = one_line(", ".join(map(str, texts)) if isinstance(texts, list) else str(texts or ""))[:200]
    return text or None


def _as_data_error(source: WeightSource, error: Exception) -> DataError:
    """Turn an error of the server or the network into one line without a token."""
    from huggingface_hub import errors

    where, place = source.unpinned, source.repository
    status = getattr(getattr(error, "response", None), "status_code", None)
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UnreachableError(f"{where}: HF_HUB_OFFLINE is set, so nothing is fetched; unset it.")
    if isinstance(error, errors.GatedRepoError):
        mend = f"accept its terms on the page of {place}, and set HF_TOKEN to a token of the account that did so"
        return DataError(f"{where}: its owner grants access to it one by one; {mend}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return DataError(f"{where}: {place} has no revision {source.revision}; name one of its branches, tags or commits behind the @.")
    if isinstance(error, errors.EntryNotFoundError):
        return DataError(f"{where}: the server lists its weights, and does not have them; try again later.")
    if isinstance(error, errors.RepositoryNotFoundError):
        tag = " (names of timm have a tag: timm:vit_small_patch16_224.augreg_in21k)" if source.kind == "timm" and "." not in place else ""
        return DataError(f"{where}: no repository {place}, or a private one; check the name{tag}, or {TOKEN}.")
    if status in (401, 403):
        return DataError(f"{where}: access denied (HTTP {status}); {TOKEN}, or remove one that is no longer valid.")
    if status is not None:
        return DataError(f"{where}: the server refuses it (HTTP {status}); try again later.")
    if names & {"TransportError", "NetworkError", "TimeoutException"}:
        fact = without_secrets(one_line(str(error)) or type(error).__name__)[:200].rstrip(". ")
        return UnreachableError(f"{where}: Hugging Face cannot be reached ({fact}); check the network, and HF_ENDPOINT if you set it.")
    fact = without_secrets(one_line(str(error)) or type(error).__name__)[:200].rstrip(". ")
    return DataError(f"{where}: the answer of the server is not understood ({fact}); check HF_ENDPOINT, and try again.")
