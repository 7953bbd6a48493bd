"""What answers requests for predictions: an ASGI application over a queue whose images are classified in batches, and its metrics.

A request goes from the event loop to a thread that decodes it, from there to the one thread that owns the device, and back. That
thread takes whatever has been decoded while it was busy, up to a limit, so a batch never waits for more. A request is decoded
for the model of that moment and is answered by it: a model that is swapped out classifies what was decoded for it, and no
answer holds two versions.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import queue
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_search.data.requests import pixels_of
from vit_search.errors import DataError, ServingError, TooLargeError
from vit_search.registry import smoke
from vit_search.serving.host_header import Hosts
from vit_search.serving.state import Version
from vit_search.text import counted
from vit_search.tracking import model_files
from vit_search.vit import augment, checkpoint

_log = logging.getLogger(__name__)

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PREDICT = ("/predict", "/invocations")
METHODS = dict.fromkeys(PREDICT, ("POST",)) | dict.fromkeys(("/healthz", "/readyz", "/version", "/metrics"), ("GET", "HEAD"))
RETRY_AFTER_S = 1
JSON_VALUES = 2**21
"""Of a request: pixels of ten images of 224x224. Lists of as many take 0.5 s to be made; image files as base64 are one value each."""
DECODERS = 2
"""Threads: Pillow leaves Python's lock alone while it decodes, so a large image does not hold up the small ones."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one replica takes on."""

    batch: int = 32
    """Images classified at once."""
    images: int = 128
    """Images in one JSON request."""
    queue: int = 256
    """Requests that wait or are classified; one more is told to come again. One that is still arriving takes no place."""
    body_bytes: int = 16 * 2**20
    """Of a request."""
    held_bytes: int = 256 * 2**20
    """Of all requests, as far as they have arrived: headers, bodies, and the pixels that they are decoded to."""
    timeout_s: float = 10.0
    """From a request's headers to its answer."""


class Held:
    """Bytes of a replica's requests, from their arrival to their answers. All of it is written in the event loop."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0

    def take(self, count: int) -> bool:
        """Count some more. Returns: whether there was room for them."""
        self.bytes += count
        return self.bytes <= self.limit

    def give(self, count: int) -> None:
        """Count some less."""
        self.bytes -= count


@dataclass(frozen=True)
class Loaded:
    """A model that has passed its smoke test on this device."""

    served: checkpoint.ServedModel
    version: str
    """`NAME/3`."""
    weights_sha256: str

    @property
    def image_bytes(self) -> int:
        """Of one decoded image, scaled to what the model takes."""
        shape = self.served.config.model
        return shape.in_channels * shape.image_size[0] * shape.image_size[1]

    def answer(self, chances: np.ndarray) -> bytes:
        """The JSON of a request's predictions; chances: float64 (images, classes)."""
        classes = self.served.classes
        rows = []
        for row, winner in zip(chances.tolist(), chances.argmax(1).tolist(), strict=True):
            rows.append(
                {
                    "label": classes[winner],
                    "probability": row[winner],
                    "probabilities": dict(zip(classes, row, strict=True)),
                    "version": self.version,
                    "weights_sha256": self.weights_sha256,
                }
            )
        return json.dumps({"predictions": rows}).encode()


def load(version: Version, *, device: str = "cpu", batch: int = 32) -> Loaded:
    """Load a version, hold its files against their sha256 and its golden logits, and warm it up for batches up to `batch`.

    Raises: CheckpointError; PromotionError for other files than were registered; ServingError when it does not answer as it should.
    """
    folder = Path(version.folder)
    try:
        model_files.check(folder, version.tags, version.name)
    except OSError as error:
        raise ServingError(f"{version.name}: its files cannot be read ({error.strerror})") from None
    served = checkpoint.load_model(folder, device)
    problem = smoke.problem(served, version.golden)
    if problem:
        raise ServingError(f"{version.name}: fails its smoke test: {problem}")
    loaded = Loaded(served, version.name, checkpoint.weights_sha256(folder))
    height, width = served.config.model.image_size
    size = 1
    while size <= batch:
        _chances(loaded, np.zeros((size, served.config.model.in_channels, height, width), np.uint8))
        size *= 2
    return loaded


@torch.inference_mode()
def _chances(loaded: Loaded, pixels: np.ndarray) -> np.ndarray:
    """uint8 (batch, channels, height, width) to probabilities, float64 (batch, classes)."""
    normalisation = loaded.served.normalisation
    images = augment.normalise(torch.from_numpy(pixels).to(normalisation.mean.device), normalisation.mean, normalisation.std)
    chances: np.ndarray = loaded.served.model(images).softmax(-1).double().cpu().numpy()
    return chances


@dataclass(eq=False)
class _Job:
    """The images of one request."""

    values: list[Any]
    named: bool
    """Whether a refusal names the row: a request that is one image has none."""
    done: asyncio.Future[tuple[Loaded, np.ndarray]]
    model: Loaded = field(init=False)
    pixels: np.ndarray = field(init=False)


class Batcher:
    """Decodes and classifies what is submitted, in threads of its own.

    Setting `model` swaps it: what is decoded from then on is classified by the new one.
    """

    def __init__(self, model: Loaded, loop: asyncio.AbstractEventLoop, batch: int, batched: Callable[[int], None]) -> None:
        self.model = model
        self._loop, self._batch, self._batched = loop, batch, batched
        self._encoded: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._decoded: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._decode, daemon=True, name=f"decode {i}") for i in range(DECODERS)]
        self._threads.append(threading.Thread(target=self._classify, daemon=True, name="classify"))
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all of its threads are."""
        return all(thread.is_alive() for thread in self._threads)

    async def submit(self, values: list[Any], *, named: bool) -> tuple[Loaded, np.ndarray]:
        """Classify the images of one request by one model.

        Returns: that model, and float64 (images, classes).
        Raises: DataError when one of them is no image.
        """
        done: asyncio.Future[tuple[Loaded, np.ndarray]] = self._loop.create_future()
        self._encoded.put(_Job(values, named, done))
        return await done

    def _decode(self) -> None:
        while True:
            job = self._encoded.get()
            job.model = self.model
            shape = job.model.served.config.model
            row = 0
            try:
                images = []
                for row, value in enumerate(job.values):  # noqa: B007 -- read below
                    if job.done.cancelled():
                        break
                    images.append(pixels_of(value, shape.image_size, shape.in_channels))
                if job.done.cancelled():  # its request has timed out
                    continue
                job.pixels = np.stack(images)
            except DataError as error:
                said = str(error).removeprefix("image: ")
                self._fail([job], type(error)(f"row {row}: {said}" if job.named else said))
            except Exception as error:
                self._fail([job], error)
            else:
                self._decoded.put(job)

    def _classify(self) -> None:
        ahead: _Job | None = None
        while True:
            jobs = [ahead or self._decoded.get()]
            ahead, count = None, len(jobs[0].pixels)
            while count < self._batch:
                try:
                    job = self._decoded.get_nowait()
                except queue.Empty:
                    break
                count += len(job.pixels)
                if count > self._batch or job.model is not jobs[0].model:
                    ahead, count = job, count - len(job.pixels)
                    break
                jobs.append(job)
            try:
                pixels = jobs[0].pixels if len(jobs) == 1 else np.concatenate([job.pixels for job in jobs])
                parts = [_chances(jobs[0].model, pixels[i : i + self._batch]) for i in range(0, count, self._batch)]
                chances = parts[0] if len(parts) == 1 else np.concatenate(parts)
            except Exception as error:
                self._fail(jobs, error)
            else:
                self._loop.call_soon_threadsafe(self._hand_out, jobs, chances)

    def _hand_out(self, jobs: list[_Job], chances: np.ndarray) -> None:
        """In the event loop."""
        self._batched(len(chances))
        start = 0
        for job in jobs:
            end = start + len(job.pixels)
            if not job.done.done():
                job.done.set_result((job.model, chances[start:end]))
            start = end

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        def fail() -> None:
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)

        self._loop.call_soon_threadsafe(fail)


LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts of values up to each bound, as Prometheus has them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        """In Prometheus's text form."""
        lines, running = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {running}')
        return [*lines, f"{name}_sum{{{labels}}} {self.total:.6f}", f"{name}_count{{{labels}}} {running}"]


HELP = {
    "requests_total": ("counter", "Requests answered, by path and status code."),
    "request_seconds": ("histogram", "From a prediction request's headers to its answer."),
    "batch_images": ("histogram", "Images classified at once."),
    "queue_length": ("gauge", "Requests that wait or are classified."),
    "reloads_total": ("counter", "Models taken after the first."),
    "reload_failures_total": ("counter", "Models that were not taken; the one before stays. The follower is the driver's process."),
    "model_info": ("gauge", "The model that answers."),
    "alias_seen_timestamp_seconds": ("gauge", "When the registry last told what the alias names."),
}


class Metrics:
    """What one replica counts. All of it is written in the event loop."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds, self.batches = Histogram(LATENCIES_S), Histogram(BATCHES)
        self.queue_length = self.reloads = self.reload_failures = 0

    def samples(self, model: Loaded) -> dict[str, list[str]]:
        """Lines by metric; each carries this replica's name, so that those of several replicas can stand together."""
        own = f'replica="{self.replica}"'
        requests = sorted(self.requests.items())
        return {
            "requests_total": [
                f'vit_search_requests_total{{{own},path="{path}",code="{code}"}} {count}' for (path, code), count in requests
            ],
            "request_seconds": self.seconds.lines("vit_search_request_seconds", own),
            "batch_images": self.batches.lines("vit_search_batch_images", own),
            "queue_length": [f"vit_search_queue_length{{{own}}} {self.queue_length}"],
            "reloads_total": [f"vit_search_reloads_total{{{own}}} {self.reloads}"],
            "reload_failures_total": [f"vit_search_reload_failures_total{{{own}}} {self.reload_failures}"],
            "model_info": [f'vit_search_model_info{{{own},version="{_label(model.version)}",weights_sha256="{model.weights_sha256}"}} 1'],
        }


def exposition(parts: list[Mapping[str, list[str]]]) -> bytes:
    """The samples of all replicas in Prometheus's text form."""
    lines = []
    for name, (kind, text) in HELP.items():
        lines += [f"# HELP vit_search_{name} {text}", f"# TYPE vit_search_{name} {kind}"]
        lines += [line for part in parts for line in part.get(name, ())]
    return ("\n".join(lines) + "\n").encode()


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class RefusedError(Exception):
    """A request that is answered with a status code and a reason."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class Told:
    """What the endpoint tells of itself beyond its model."""

    ready: Mapping[str, Any]
    """For /readyz."""
    version: Mapping[str, Any]
    """For /version."""
    others: list[Mapping[str, list[str]]]
    """Samples of the other replicas and of the follower."""
    draining: bool = False


class Endpoint:
    """The ASGI application. Errors are one line of JSON, `{"error": …}`."""

    def __init__(self, batcher: Batcher, metrics: Metrics, limits: Limits, token: str, tell: Callable[[], Told], hosts: Hosts) -> None:
        self._batcher, self._metrics, self._limits, self._tell, self._hosts = batcher, metrics, limits, tell, hosts
        self._token = hashlib.sha256(token.encode()).digest() if token else b""
        self.held = Held(limits.held_bytes)

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
                kind = b"text/plain; version=0.0.4; charset=utf-8"
        except RefusedError as refused:
            status, body = refused.status, json.dumps({"error": " ".join(str(refused).split())}).encode()
            headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in refused.headers.items()]
        except ConnectionResetError:  # the client has gone
            status, body = 499, b""
        except Exception:
            _log.exception("a request to %s failed", path)
            status, body = 500, b'{"error": "internal error; the server\'s log says more."}'
        headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        self._metrics.requests[path if path in METHODS else "other", status] += 1
        if predicts:
            self._metrics.seconds.add(time.perf_counter() - began)
        if status != 499:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _about(self, scope: Scope) -> tuple[int, bytes]:
        """All but predictions."""
        path = scope["path"]
        if path != "/healthz":
            self._authorise(scope)
        _check_method(scope)
        if path == "/healthz":
            return 200, b'{"status": "alive"}'
        told = self._tell()
        if path == "/metrics":
            return 200, exposition([self._metrics.samples(self._batcher.model), *told.others])
        if path == "/version":
            return 200, json.dumps(told.version).encode()
        return 503 if told.draining else 200, json.dumps(told.ready).encode()

    def _authorise(self, scope: Scope) -> None:
        """Both sides are hashed first, so that neither the token's length nor a letter shows in the time it takes."""
        if not self._token:
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if not hmac.compare_digest(hashlib.sha256(given.strip()).digest(), self._token) or scheme.lower() != b"bearer":
            raise RefusedError(401, "give the server's token as `Authorization: Bearer TOKEN`.", www_authenticate="Bearer")

    async def _predict(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        self._authorise(scope)
        _check_method(scope)
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if not (kind.startswith("image/") or kind in ("application/octet-stream", "application/json")):
            raise RefusedError(
                415,
                f"content type {kind or 'missing'}; send one image file as image/png, image/jpeg or application/octet-stream, "
                'or {"inputs": [BASE64, …]} as application/json.',
            )
        length = int(headers.get(b"content-length", b"0"))  # the parser lets digits through alone
        if length > self._limits.body_bytes:
            raise self._too_long(length)
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
                    room = self.held.take(len(parts[-1]))
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
                if not self.held.take(decoded):
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
            self.held.give(held)
        return 200, model.answer(chances)

    def _check_queue(self) -> None:
        if self._metrics.queue_length >= self._limits.queue:
            raise _full()

    def _too_long(self, length: int) -> RefusedError:
        return RefusedError(413, f"a body of {length:,} bytes or more; send at most {self._limits.body_bytes:,}.")

    def _inputs(self, body: bytes) -> list[Any]:
        """The images of a JSON request. Python's parser holds up all else, so there is a limit on what it has to make."""
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        if values > JSON_VALUES:
            raise RefusedError(413, f"{values:,} values in the JSON; give at most {JSON_VALUES:,}, or image files as base64.")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError) as error:
            said = str(error).splitlines()[0] if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise RefusedError(400, f'no JSON ({said}); send {{"inputs": [BASE64, …]}}.') from None
        inputs = given.get("inputs", given.get("instances")) if isinstance(given, dict) else None
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
