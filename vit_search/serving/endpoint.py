"""The ASGI application of one replica. It answers requests for predictions and for monitoring."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vit_search.errors import DataError, TooLargeError
from vit_search.serving.batching import Batcher
from vit_search.serving.host_header import Hosts
from vit_search.serving.limits import HeldBytes, ReplicaLimits
from vit_search.serving.metrics import CONTENT_TYPE, Metrics, joined
from vit_search.text import counted

_log = logging.getLogger(__name__)

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PREDICT = ("/predict", "/invocations")
METHODS = dict.fromkeys(PREDICT, ("POST",)) | dict.fromkeys(("/healthz", "/readyz", "/version", "/metrics"), ("GET", "HEAD"))
RETRY_AFTER_S = 1
JSON_VALUES = 2**21
"""Maximum number of values in a JSON request: the pixels of ten images of 224x224.

Parsing a list of this length takes 0.5 s. An image file as base64 is one value.
"""


class RefusedError(Exception):
    """A request that is answered with an error: a status code and a reason."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class ReplicaStatus:
    """What the replica reports about itself."""

    ready: Mapping[str, Any]
    """Content of /readyz."""
    version: Mapping[str, Any]
    """Content of /version."""
    others: list[str]
    """Metrics of the other replicas and of the follower, in the text form of metrics.py."""
    draining: bool = False


class Endpoint:
    """The ASGI application. Each error is one line of JSON, `{"error": …}`."""

    def __init__(
        self, batcher: Batcher, metrics: Metrics, limits: ReplicaLimits, token: str, status: Callable[[], ReplicaStatus], hosts: Hosts
    ) -> None:
        self._batcher, self._metrics, self._limits, self._status, self._hosts = batcher, metrics, limits, status, hosts
        self._token = hashlib.sha256(token.encode()).digest() if token else b""
        self.held = HeldBytes(limits.held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        path, predicts = scope["path"], scope["path"] in PREDICT
        headers = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
        kind = b"application/json"
        try:
            if problem := self._hosts.problem(scope["headers"], scope["http_version"]):
                raise RefusedError(*problem, connection="close")
            status, body = await self._predict(scope, receive) if predicts else self._about(scope)
            if path == "/metrics":
                kind = CONTENT_TYPE.encode()
        except RefusedError as refused:
            status, body = refused.status, json.dumps({"error": " ".join(str(refused).split())}).encode()
            headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in refused.headers.items()]
        except ConnectionResetError:  # the client has gone
            status, body = 499, b""
        except Exception:
            _log.exception("a request to %s failed", path)
            status, body = 500, b'{"error": "internal error; the server\'s log says more."}'
        headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        self._metrics.count_request(path if path in METHODS else "other", status)
        if predicts:
            self._metrics.seconds.observe(time.perf_counter() - began)
        if status != 499:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _about(self, scope: Scope) -> tuple[int, bytes]:
        """Answer the paths for monitoring."""
        path = scope["path"]
        if path != "/healthz":
            self._authorise(scope)
        _check_method(scope)
        if path == "/healthz":
            return 200, b'{"status": "alive"}'
        status = self._status()
        if path == "/metrics":
            return 200, joined([self._metrics.text(self._batcher.model), *status.others])
        if path == "/version":
            return 200, json.dumps(status.version).encode()
        return 503 if status.draining else 200, json.dumps(status.ready).encode()

    def _authorise(self, scope: Scope) -> None:
        """Check the token. Both sides are hashed first, so that the time reveals neither its length nor a letter."""
        if not self._token:
            return
        scheme, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if not hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._token) or scheme.lower() != b"bearer":
            raise RefusedError(401, "give the server's token as `Authorization: Bearer TOKEN`.", www_authenticate="Bearer")

    async def _predict(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        self._authorise(scope)
        _check_method(scope)
        kind = self._content_type(scope)
        self._check_queue()
        read, held = False, 0
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                parts: list[bytes] = []
                while not read:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    parts.append(message.get("body", b""))
                    held += len(parts[-1])
                    room = self.held.add(len(parts[-1]))
                    if held > self._limits.body_bytes:
                        raise self._too_long(held)
                    if not room:
                        raise _full()
                    read = not message.get("more_body")
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                if not body:
                    raise RefusedError(400, "an empty body; send an image file.")
                values = self._inputs(body) if kind == "application/json" else [body]
                self._check_queue()
                decoded = len(values) * self._batcher.model.image_bytes
                held += decoded
                if not self.held.add(decoded):
                    raise _full()
                self._metrics.queue_length += 1
                try:
                    model, chances = await self._batcher.submit(values, named=kind == "application/json")
                finally:
                    self._metrics.queue_length -= 1
        except TimeoutError:
            if not read:
                raise RefusedError(408, f"the request did not arrive within {self._limits.timeout_s:g} s.", connection="close") from None
            raise RefusedError(503, f"no answer within {self._limits.timeout_s:g} s.", retry_after=str(RETRY_AFTER_S)) from None
        except TooLargeError as error:
            raise RefusedError(413, str(error)) from None
        except DataError as error:
            raise RefusedError(422, str(error)) from None
        finally:
            self.held.remove(held)
        return 200, model.answer(chances)

    def _content_type(self, scope: Scope) -> str:
        """The content type of a request for predictions. Raises: RefusedError if it is not an image or too long."""
        headers = dict(scope["headers"])
        kind: str = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if not (kind.startswith("image/") or kind in ("application/octet-stream", "application/json")):
            raise RefusedError(
                415,
                f"content type {kind or 'missing'}; send one image file as image/png, image/jpeg or application/octet-stream, "
                'or {"inputs": [BASE64, …]} as application/json.',
            )
        length = int(headers.get(b"content-length", b"0"))  # the HTTP parser accepts only digits here
        if length > self._limits.body_bytes:
            raise self._too_long(length)
        return kind

    def _check_queue(self) -> None:
        if self._metrics.queue_length >= self._limits.queue:
            raise _full()

    def _too_long(self, length: int) -> RefusedError:
        return RefusedError(413, f"a body of {length:,} bytes or more; send at most {self._limits.body_bytes:,}.")

    def _inputs(self, body: bytes) -> list[Any]:
        """The images of a JSON request. Python's parser blocks everything else, so the number of values is limited first."""
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        if values > JSON_VALUES:
            raise RefusedError(413, f"{values:,} values in the JSON; give at most {JSON_VALUES:,}, or image files as base64.")
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0] if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise RefusedError(400, f'no JSON ({reason}); send {{"inputs": [BASE64, …]}}.') from None
        inputs = content.get("inputs", content.get("instances")) if isinstance(content, dict) else None
        if not isinstance(inputs, list):
            raise RefusedError(400, 'no list `inputs`; send {"inputs": [BASE64, …]}.')
        if not inputs:
            raise RefusedError(400, "no image: `inputs` is empty; give at least one.")
        if len(inputs) > self._limits.images:
            raise RefusedError(413, f"{counted(len(inputs), 'image')}; give at most {self._limits.images} in one request.")
        return inputs


def _full() -> RefusedError:
    return RefusedError(503, "the queue is full; come again.", retry_after=str(RETRY_AFTER_S))


def _check_method(scope: Scope) -> None:
    allowed = METHODS.get(scope["path"])
    if allowed is None:
        raise RefusedError(404, f"no such path; there are {', '.join(METHODS)}.")
    if scope["method"] not in allowed:
        raise RefusedError(405, f"{scope['method']} is not for this path.", allow=", ".join(allowed))
