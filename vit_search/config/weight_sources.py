"""Parse the text that says where pretrained weights come from, in a search file or on the command line. Nothing is opened here.

    weights/vit_small.safetensors            a file, or a folder with one
    https://SERVER/vit_small.safetensors     a URL, as data.path may be
    models:/digits@champion, models:/digits/3    a version in MLflow's registry
    timm:vit_small_patch16_224.augreg_in21k  the repository of a timm model at Hugging Face
    hf:ORG/REPO, hf:ORG/REPO@REVISION, hf:ORG/REPO/FILE.safetensors    a repository at Hugging Face

Each may end with `#sha256=HEX`: the source is then pinned, and the weights must have this SHA-256.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from vit_search.config.data_urls import check_url, has_braces, is_url, local_path
from vit_search.errors import SpecError
from vit_search.text import file_name, nearest

Kind = Literal["file", "url", "models", "timm", "hf"]

SHA256 = "#sha256="
"""Comes before the digits of a pinned source."""

KEY = "model.pretrained"
"""The key of the search file, for messages."""

ENDING = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")

FORMS = "write FILE.safetensors, a URL, models:/NAME@ALIAS, timm:NAME or hf:ORG/REPO"

_OTHER_NAMES = {"huggingface": "hf", "hf-hub": "hf", "hf_hub": "hf", "hub": "hf", "mlflow": "models", "runs": "models"}
"""Names that other programs use for a kind of source."""

_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9_+-]+):(?!//)")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class WeightSource:
    """One set of weights, as the user names it."""

    kind: Kind
    place: str
    """The path, the URL, the name of the registered model or of the timm model, or `ORG/REPO`."""
    revision: str = ""
    """For a registered model: `@ALIAS` or the number of a version. For a repository: a branch, a tag or a commit. Else empty."""
    sha256: str = ""
    """64 hexadecimal digits; empty if the source is not pinned."""
    file: str = ""
    """The file in a repository, if the user names one."""

    @property
    def unpinned(self) -> str:
        """The source as the user writes it, without the sha256."""
        if self.kind in ("file", "url"):
            return self.place
        if self.kind == "models":
            return f"models:/{self.place}{'' if self.revision.startswith('@') else '/'}{self.revision}"
        return f"{self.kind}:{self.place}{f'/{self.file}' if self.file else ''}{f'@{self.revision}' if self.revision else ''}"

    def __str__(self) -> str:
        return self.unpinned + (SHA256 + self.sha256 if self.sha256 else "")

    @property
    def repository(self) -> str:
        """`ORG/REPO` at Hugging Face, for the kinds timm and hf."""
        return f"timm/{self.place}" if self.kind == "timm" else self.place

    @property
    def is_exact(self) -> bool:
        """Whether the revision always means the same weights. Only a commit does; version 3 is another model in another registry."""
        return bool(_COMMIT.fullmatch(self.revision))

    def at(self, revision: str) -> WeightSource:
        """The same source at another revision."""
        return replace(self, revision=revision)


def parse(text: str, key: str = KEY) -> WeightSource:
    """Parse the text of a source.

    Args:
        key: the key that a message begins with.
    Raises: SpecError in one line.
    """
    if not isinstance(text, str) or not text.strip():
        raise SpecError(f"{key}: {text!r} names no weights; {FORMS}.")
    if "\0" in text or "\n" in text:
        raise SpecError(f"{key}: {file_name(text)[:100]!r}: a source is one line; {FORMS}.")
    bare, sha256 = _without_sha256(text, key)
    return replace(_parse(bare, key), sha256=sha256)


def _without_sha256(text: str, key: str) -> tuple[str, str]:
    bare, sign, digits = text.rpartition("#")
    if not sign or not digits.lower().startswith("sha256"):
        return text, ""
    digits = digits[len("sha256") :].removeprefix("=")
    if not bare or not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        number = f"{len(digits)} characters" if len(digits) != 64 else "other characters"
        raise SpecError(f"{key}: {SHA256}… needs 64 hexadecimal digits and has {number}; copy it from `vit-search weights SOURCE`.")
    return bare, digits.lower()


def _parse(text: str, key: str) -> WeightSource:
    if text.startswith("hf://"):
        raise SpecError(f"{key}: {text}: unknown protocol hf://; write hf:{text.removeprefix('hf://')}.")
    if is_url(text):
        return _url(text, key)
    prefix = _PREFIX.match(text)
    if prefix is None:
        return WeightSource("file", text)
    kind, rest = prefix[1], text[prefix.end() :]
    if kind == "models":
        return _models(text, rest, key)
    if kind == "timm":
        return _timm(text, rest, key)
    if kind == "hf":
        return _hf(text, rest, key)
    near = _OTHER_NAMES.get(kind.lower())
    mend = f"did you mean {near}:?" if near else nearest(kind.lower(), ["timm", "hf", "models"])
    raise SpecError(f"{key}: {text}: unknown kind of source {kind}:; {mend} For a file of this name, write ./{text}.")


def _url(url: str, key: str) -> WeightSource:
    if url.lower().startswith("file://"):
        check_url(url, key)
        return WeightSource("file", str(local_path(url)))
    check_url(url, key)
    path = urlsplit(url).path
    if has_braces(url):
        raise SpecError(f"{key}: the URL has braces, which stand for several files; name one {ENDING} file.")
    if path.lower().endswith(PICKLES):
        raise SpecError(f"{key}: {url}: a pickle, which can hold programs; fetch it yourself, and use `vit-search convert-weights`.")
    if not path.endswith(ENDING):
        mend = f"name the {ENDING} file itself, or write hf:ORG/REPO for a repository at Hugging Face"
        raise SpecError(f"{key}: {url}: names no {ENDING} file; {mend}.")
    return WeightSource("url", url)


def _models(text: str, rest: str, key: str) -> WeightSource:
    match = re.fullmatch(r"/([^/:@#]+)(@[A-Za-z0-9_.-]+|/[0-9]+)", rest)
    if match is None:
        raise SpecError(f"{key}: {text}: names no registered version; write models:/NAME@ALIAS or models:/NAME/3.")
    return WeightSource("models", match[1], match[2].removeprefix("/"))


def _timm(text: str, rest: str, key: str) -> WeightSource:
    name, revision = _revision(text, rest, key)
    if not _is_name(name):
        mend = "write timm:NAME with a name of timm, as timm:vit_small_patch16_224.augreg_in21k, or hf:ORG/REPO"
        raise SpecError(f"{key}: {text}: {name!r} is no name of a timm model; {mend}.")
    return WeightSource("timm", name, revision)


def _hf(text: str, rest: str, key: str) -> WeightSource:
    place, revision = _revision(text, rest, key)
    parts = place.split("/")
    if len(parts) < 2 or not all(map(_is_name, parts)):
        raise SpecError(f"{key}: {text}: {place!r} names no repository; write hf:ORG/REPO, or hf:ORG/REPO@REVISION.")
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    if file.lower().endswith(PICKLES):
        mend = f"name a {ENDING} file of the repository, or fetch it yourself and use `vit-search convert-weights`"
        raise SpecError(f"{key}: {text}: {file} is a pickle, which can hold programs; {mend}.")
    if file and not file.endswith(ENDING):
        raise SpecError(f"{key}: {text}: {file} is no {ENDING} file; write hf:ORG/REPO, or hf:ORG/REPO/FILE{ENDING}.")
    return WeightSource("hf", repository, revision, file=file)


def _revision(text: str, rest: str, key: str) -> tuple[str, str]:
    """The parts before and after the `@`."""
    place, sign, revision = rest.partition("@")
    if sign and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith("/")):
        raise SpecError(f"{key}: {text}: {revision!r} is no revision; write a branch, a tag or a commit behind the @.")
    return place, revision


def _is_name(part: str) -> bool:
    """Whether a text may be part of a repository's name. Such a name can never be a path that leads elsewhere."""
    return bool(_NAME.fullmatch(part)) and ".." not in part and "--" not in part
