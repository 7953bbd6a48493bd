"""Check and split the URLs that `data.path` may be: which protocols can be read, and what a URL must not contain. Opens nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard
from urllib.parse import parse_qsl, unquote, urlsplit

from vit_search.errors import SpecError
from vit_search.text import nearest

PROTOCOLS = {"s3": "s3fs", "gs": "gcsfs", "https": "", "http": "", "file": ""}
"""Protocols that can be read, with the package that each needs in addition to our own dependencies."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET = re.compile(r"sig|token|key|credential|secret|pass|auth|x-(amz|goog|ms)-", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_url(path: str | None) -> TypeGuard[str]:
    """Whether a path is a URL of any protocol."""
    return path is not None and _URL.match(path) is not None


def is_remote(path: str | None) -> TypeGuard[str]:
    """Whether a path is a URL whose files must be fetched. `file://` is a path on this machine."""
    return is_url(path) and not path.lower().startswith("file://")


def check_url(url: str, key: str = "data.path") -> None:
    """Reject a URL that cannot be read, or that contains a password. The message never repeats the URL.

    Args:
        key: the key of the search file that has the URL, for the message.
    Raises: SpecError.
    """
    parts = urlsplit(url)
    protocol = parts.scheme.lower()
    if protocol not in PROTOCOLS:
        raise SpecError(f"{key}: unknown protocol {protocol}://; {nearest(protocol, list(PROTOCOLS))}")
    if _has_password(url):
        mend = "remove them, and set them in the environment (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        raise SpecError(f"{key}: the {protocol} URL has a user name or a password, which the search would write into its files; {mend}.")
    secrets = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)]
    if secrets:
        fact = f"the {protocol} URL has {secrets[0]}=…, which looks like a password, and the search would write it into its files"
        raise SpecError(f"{key}: {fact}; give a URL that is not signed.")
    if protocol == "file" and parts.netloc not in ("", "localhost"):
        raise SpecError(f"{key}: file://{parts.netloc} names another machine; write three slashes: file:///folder.")
    if protocol != "file" and not parts.netloc:
        raise SpecError(f"{key}: the URL names no {'bucket' if PROTOCOLS[protocol] else 'server'}; write {protocol}://NAME/folder.")


def _has_password(url: str) -> bool:
    """Whether a URL contains something like `name:password@`. A `/` in the password can hide where it ends: `s3://KEY:a/b@bucket`."""
    protocol, _, rest = url.partition("://")
    server, _, path = rest.partition("/")
    if protocol.lower() not in ("http", "https"):
        return ":" in server or "@" in server
    port = server.rpartition(":")[2] if ":" in server.rpartition("]")[2] else ""
    return "@" in server or not (port.isdecimal() or not port) or (port != "" and "@" in path)


def local_path(path: str) -> Path:
    """The path on this machine that a text names, also as `file:///folder`."""
    return Path(unquote(urlsplit(path).path) if is_url(path) else path).expanduser()


def has_files(path: Path) -> bool:
    """Whether a path exists. If it has braces: whether the folder above the first part with braces exists."""
    return path.exists() or (has_braces(str(path)) and Path(before_braces(str(path))[0]).exists())


def near_path(path: Path) -> str:
    """A hint `did you mean photos?` for a missing path, if its folder has a similar name; else an empty text."""
    try:
        names = sorted(other.name for other in path.parent.iterdir() if not other.name.startswith("."))
    except OSError:
        return ""
    found = nearest(path.name, names) if names else ""
    if not found.startswith("did"):
        return ""
    return f"did you mean {path.parent / found.removeprefix('did you mean ').removesuffix('?')}?"


def expanded(pattern: str) -> list[str]:
    """All texts that a text with braces stands for: `a-{08..10}.tar` is a-08.tar, a-09.tar and a-10.tar; `{a,b}.tar` is a.tar and b.tar."""
    parts = _BRACES.split(pattern)  # texts outside and inside braces alternate
    choices = [list(_inside(part)) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def has_braces(path: str) -> bool:
    """Whether a path has braces that `expanded` would replace."""
    return _BRACES.search(path) is not None


def before_braces(path: str) -> tuple[str, str]:
    """Split a path before its first part with braces: the folder with its slash, and the rest."""
    cut = path.rfind("/", 0, path.find("{")) + 1
    return path[:cut], path[cut:]


def _inside(text: str) -> Iterator[str]:
    """The texts that one pair of braces stands for."""
    numbers = _RANGE.fullmatch(text)
    if numbers is None:
        yield from text.split(",")
        return
    first, last = numbers.groups()
    for number in range(int(first), int(last) + 1):
        yield str(number).zfill(len(first))
