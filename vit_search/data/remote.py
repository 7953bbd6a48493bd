"""List the files behind a URL and their versions, through fsspec; say in one line why a server does not answer.

fetch.py copies the files. Credentials come from the environment, where the libraries for s3:// and gs:// look for them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote, urlsplit

from vit_search.config.data_urls import PROTOCOLS, before_braces, check_url, expanded, has_braces
from vit_search.data.progress import step
from vit_search.errors import DataError

THREADS = 16
"""Requests at once: enough for small files, whose time is mostly that of the round trip."""

FOLDER_DEPTH = 20
"""Folders below each other on a web server. Without a limit, a page that links back to itself would have no end."""

CONNECT_S, SILENT_S = 20, 60
"""Seconds in which a server must accept a connection, and seconds for which it may send nothing."""

_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs"}
_SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "FSSPEC_S3_SECRET", "FSSPEC_S3_KEY", "FSSPEC_S3_TOKEN"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
)

_OPERATION = re.compile(r"^An error occurred \(\w+\) when calling the \w+ operation( \(reached max retries: \d+\))?: ")
"""What botocore puts before a server's message."""

_ENDPOINT = re.compile(r'"(https?://[^/?"]+)[^"]*"')
"""The address of a request in botocore's message. Readers need only the server's part."""

_UNREACHED = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ConnectionTimeoutError",
    "ConnectionRefusedError",
}
"""Errors of the libraries if no connection to a server can be made."""

_BROKEN = {
    "ClientPayloadError",
    "ServerDisconnectedError",
    "ClientOSError",
    "ConnectionResetError",
    "ResponseStreamingError",
    "IncompleteRead",
}
"""Errors of the libraries if a connection ends before the answer does."""


@dataclass(frozen=True)
class RemoteFile:
    """One file behind a URL."""

    name: str
    """Path below the URL, with `/` between folders."""
    address: str
    """What its file system opens."""
    size: int | None
    """Bytes; None if the server does not say."""
    version: str
    """A text that changes whenever the content changes, as far as the server says."""
    md5: str = ""
    """MD5 of its content, in hexadecimal digits; empty if the server does not say."""

    protocol: str = ""
    sha256: str = ""
    """sha256 of its content; empty if the server does not say."""

    @property
    def url(self) -> str:
        """The file's URL, for messages."""
        return self.address if "://" in self.address else f"{self.protocol}://{self.address}"

    @property
    def identity(self) -> str:
        """A name for this version of the file; another version has another name."""
        return hashlib.sha256(f"{self.name}\0{self.size}\0{self.version}".encode(errors="surrogateescape")).hexdigest()[:40]


@dataclass(frozen=True)
class Listing:
    """All files behind a URL at one moment."""

    url: str
    files: tuple[RemoteFile, ...]
    """Sorted by name."""
    path: str = ""
    """The URL's own target below the folder of these files: empty for the folder itself, else one file or a pattern with braces."""

    @property
    def identity(self) -> str:
        """A text that changes whenever a file is added, removed or changed."""
        return hashlib.sha256("\n".join(file.identity for file in self.files).encode()).hexdigest()[:40]

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.size or 0 for file in self.files)


class Passing(Exception):
    """A fault that may be gone at the next try: a broken connection, an overloaded server."""


class UnreachableError(DataError):
    """There is no connection to a server."""


def file_system(url: str, *, key: str = "data.path", headers: Mapping[str, str] | None = None) -> Any:
    """The fsspec file system of a URL.

    Args:
        key: see `check_url`.
        headers: sent with each request to a web server. A redirect to another server does not get them.
    Raises: SpecError for a URL of a kind that is not supported; DataError if the package for it is missing.
    """
    check_url(url, key)
    protocol = urlsplit(url).scheme.lower()
    package = PROTOCOLS[protocol]
    if package and find_spec(package) is None:
        extra = f"uv pip install '{package}', or pip install 'vit_search[{_EXTRAS[package]}]'"
        raise DataError(f"{protocol}:// needs the package {package}, which is not installed; {extra}.")
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol == "s3":
        limits = {"connect_timeout": CONNECT_S, "read_timeout": SILENT_S, "max_pool_connections": 2 * THREADS}
        options["config_kwargs"] = {**limits, "retries": {"max_attempts": 2, "mode": "standard"}}
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True, "headers": headers}  # trust_env: proxies
    if protocol == "gs":
        from gcsfs.core import GCSFileSystem  # fsspec's own name for it gives a class that asks for the bucket's type at each call

        logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)  # it prints tracebacks of errors that become one line here

        return GCSFileSystem(**options)
    return fsspec.filesystem(protocol, **options)


def list_files(url: str, beside: tuple[str, ...] = ()) -> Listing:
    """List all files that a URL names: a folder or bucket, one file, or a pattern with braces. No file is read.

    Args:
        beside: endings of files that name other files in their folder: their whole folder is listed.
    Raises: SpecError for a URL of a kind that is not supported; DataError in one line if it does not exist, or cannot be reached or read.
    """
    system = file_system(url)
    try:
        if beside and url.lower().endswith(beside):
            folder, _, path = url.rpartition("/")
            of_folder = list_files(f"{folder}/")
            if all(file.name != path for file in of_folder.files):
                raise DataError(f"{url}: not there; check the name.")
            return Listing(url, of_folder.files, path)
        if has_braces(url):
            folder, path = before_braces(url)
            listing = Listing(url, _described(system, folder, [folder + name for name in expanded(path)]), path)
        elif urlsplit(url).scheme.lower() in ("http", "https"):
            listing = _of_server(system, url)
        else:
            listing = _of_bucket(system, url)
    except Exception as error:
        if isinstance(error, DataError):
            raise
        raise _as_data_error(url, error) from None
    if not listing.files:
        raise DataError(f"{url}: there are no files; check the name.")
    check_names(listing)
    return listing


def list_with_neighbours(url: str, names: Sequence[str]) -> Listing:
    """List one file, and those of some names that exist beside it.

    Raises: see `list_files`.
    """
    listing = list_files(url)
    if not listing.path or has_braces(url):
        raise DataError(f"{url}: a folder; name one file.")
    system, files = file_system(url), list(listing.files)
    folder = url.partition("?")[0].rpartition("/")[0] + "/"
    for name in names:
        try:
            about = system.info(folder + name)
        except Exception as error:
            if _is_missing(error):
                continue
            raise _as_data_error(folder + name, error) from None
        if about.get("mimetype") != "text/html" and about.get("type") != "directory":  # some servers have a page for every address
            files.append(_remote_file(about, folder if "://" in about["name"] else folder.partition("://")[2]))
    return Listing(url, tuple(sorted(files, key=lambda file: file.name)), listing.path)


def _as_data_error(url: str, error: Exception) -> DataError:
    kind = UnreachableError if {type(one).__name__ for one in _chain(error)} & _UNREACHED else DataError
    return kind(f"{url}: {reason(error)}")


def _is_missing(error: BaseException) -> bool:
    """Whether a server says that there is no such file. Servers that hide what they have, such as S3, say "access denied" instead."""
    status = next((status for one in _chain(error) if (status := _status(one))), None)
    return status in (401, 403, 404) or (
        status is None and any(isinstance(one, FileNotFoundError | PermissionError) for one in _chain(error))
    )


def _of_bucket(system: Any, url: str) -> Listing:
    root = system._strip_protocol(url).rstrip("/")
    found = system.find(root, detail=True)
    if list(found) == [root]:
        folder, _, path = root.rpartition("/")
        return Listing(url, (_remote_file(found[root], folder + "/"),), path)
    files = [_remote_file(about, root + "/") for name, about in found.items() if about["type"] == "file" and not name.endswith("/")]
    return Listing(url, tuple(sorted(files, key=lambda file: file.name)))


def _of_server(system: Any, url: str) -> Listing:
    """List a web server. A folder is a page with links to its content; anything else is a file."""
    if not url.endswith("/"):
        about = system.info(url)
        if about.get("mimetype") != "text/html":
            folder, _, path = url.rpartition("/")
            return Listing(url, (_remote_file({**about, "name": url}, folder + "/"),), unquote(path.partition("?")[0]))
    folder = f"{url.rstrip('/')}/"
    return Listing(url, _described(system, folder, sorted(_linked(system, folder))))


def _linked(system: Any, folder: str, depth: int = 0) -> Iterator[str]:
    """The files that a folder's page and the pages below it link to. Links that sort the page or lead elsewhere are ignored."""
    if depth > FOLDER_DEPTH:
        raise DataError(f"{folder}: more than {FOLDER_DEPTH} folders below each other; name a folder with images.")
    for address in system.ls(folder, detail=False):
        below = address[len(folder) :]
        if not address.startswith(folder) or not below or any(sign in below for sign in "?#") or ".." in below.split("/"):
            continue
        if address.endswith("/"):
            yield from _linked(system, address, depth + 1)
        else:
            yield address


def _described(system: Any, folder: str, addresses: list[str]) -> tuple[RemoteFile, ...]:
    """Ask for the size and version of each file, many at once."""
    with step("listing", len(addresses), "files") as advance, ThreadPoolExecutor(THREADS) as threads:

        def describe(address: str) -> RemoteFile:
            try:
                about = system.info(address)
            except Exception as error:
                raise DataError(f"{address}: {reason(error)}") from None
            advance(1)
            protocol, _, rest = folder.partition("://")
            plain = folder if protocol.startswith("http") else rest
            return _remote_file(about, plain)

        try:
            files = list(threads.map(describe, addresses))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return tuple(sorted(files, key=lambda file: file.name))


def _remote_file(about: dict[str, Any], folder: str) -> RemoteFile:
    """Convert a file system's answer about one file."""
    address = about["name"]
    name = address[len(folder) :]
    if address.startswith(("http://", "https://")):
        name = unquote(name.partition("?")[0])
    etag = str(about.get("ETag") or about.get("etag") or "").strip('"')
    changed = about.get("generation") or about.get("Last-Modified") or about.get("LastModified") or ""
    md5 = ""
    if about.get("md5Hash"):  # gs
        md5 = base64.b64decode(about["md5Hash"]).hex()
    elif about.get("Content-MD5"):  # http
        try:
            md5 = base64.b64decode(about["Content-MD5"], validate=True).hex()
        except (binascii.Error, ValueError):
            md5 = ""
    elif "StorageClass" in about and len(etag) == 32 and all(digit in "0123456789abcdef" for digit in etag):  # s3, in one part
        md5 = etag
    protocol = "gs" if "md5Hash" in about or "generation" in about else "s3"
    return RemoteFile(name, address, about.get("size"), etag or str(changed), md5, protocol)


def check_names(listing: Listing) -> None:
    """Refuse names that a file cannot have here.

    Raises: DataError.
    """
    names = {file.name for file in listing.files}
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part or len(os.fsencode(part)) > 255 for part in parts):
            raise DataError(f"{listing.url}: {name!r:.300} is no name that a file can have here; rename it there.")
        above = next((folder for i in range(1, len(parts)) if (folder := "/".join(parts[:i])) in names), None)
        if above is not None:
            raise DataError(f"{listing.url}: {above!r:.300} is a file and a folder; rename one of them.")


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, Passing):
        return True
    status = next((status for one in _chain(error) if (status := _status(one))), None)
    if status is not None:
        return status in (408, 429) or status >= 500
    final = ("NoCredentialsError", "PartialCredentialsError", "RefreshError", "DefaultCredentialsError")
    names = {type(one).__name__ for one in _chain(error)}
    if names & set(final) or any(isinstance(one, PermissionError) for one in _chain(error)):
        return False
    return not (isinstance(error, FileNotFoundError) and error.__cause__ is None)


def reason(error: BaseException) -> str:
    """What is wrong and how to fix it, in one line, without a password."""
    names = {type(one).__name__ for one in _chain(error)}
    status = next((status for one in _chain(error) if (status := _status(one))), None)
    text = _in_short(error)
    if "DefaultCredentialsError" in names:
        return "no credentials in the environment; set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account."
    if names & {"NoCredentialsError", "PartialCredentialsError"}:
        mend = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket, set FSSPEC_S3_ANON=true"
        return f"no credentials in the environment; {mend}."
    if any(isinstance(one, PermissionError) for one in _chain(error)) or status in (401, 403):
        return f"access denied ({text}); check the credentials in the environment, and that they may list and read it."
    if "ClientConnectorCertificateError" in names:
        return f"the certificate of the server is not valid ({text}); if you trust it, name its file in SSL_CERT_FILE."
    if "ClientConnectorSSLError" in names:
        return f"the server speaks no https there ({text}); try http://."
    if names & _UNREACHED:
        return f"the server cannot be reached ({text}); check the address and the network."
    if names & _BROKEN:
        return "the connection broke; check the network."
    if status == 404 or (isinstance(error, FileNotFoundError) and status is None):
        return f"not there ({text}); check the name." if "://" not in text else "not there; check the name."  # the line begins with the URL
    if status is not None:
        return f"the server refuses it ({text}); try again later."
    return f"cannot be read ({text}); check the address and the network."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that led to it."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of one of the libraries; None if it has none."""
    kind = type(error).__name__
    if kind == "ClientError":  # botocore
        status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif kind in ("ClientResponseError", "HttpError"):  # aiohttp, gcsfs
        status = getattr(error, "status", None) or getattr(error, "code", None)
    else:  # the `code` of other errors, such as aiohttp's for a body that breaks off, is no answer of a server
        return None
    return int(status) if isinstance(status, (int, str)) and str(status).isdigit() else None


def _in_short(error: BaseException) -> str:
    """The first line of the most telling error: the first one of aiohttp or botocore, else the error itself."""
    told = error
    for one in _chain(error):
        if str(one) and (type(one).__module__ or "").startswith(("aiohttp", "botocore")):
            told = one
            break
    if type(told).__name__ == "ClientResponseError":  # its text repeats the URL
        text = f"HTTP {getattr(told, 'status', '')} {getattr(told, 'message', '')}".strip()
    elif type(told).__name__.startswith("ClientConnector"):  # its text repeats the URL, and mentions aiohttp's ssl:default
        text = _of_connection(getattr(told, "certificate_error", None) or getattr(told, "os_error", None) or told)
    else:
        text = _OPERATION.sub("", (str(told).splitlines() or [""])[0]).strip(" .") or type(told).__name__
        text = _ENDPOINT.sub(r"\1", text)
    return without_secrets(text)[:300]


def _of_connection(error: BaseException) -> str:
    """Why there is no connection: `Connection refused`, `Name or service not known`, `self-signed certificate`."""
    said = getattr(error, "verify_message", "") or (getattr(error, "reason", None) or "").replace("_", " ").lower()
    number = getattr(error, "errno", None)
    if said:
        return str(said)
    return os.strerror(number) if isinstance(number, int) and number > 0 else getattr(error, "strerror", None) or str(error)


def without_secrets(text: str) -> str:
    """Replace every secret that a variable of the environment holds by the variable's name."""
    for name in _SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) > 3:
            text = text.replace(secret, f"${name}")
    return text
