"""The server answers as the model that was trained, refuses what it cannot read, and follows the alias without a failed request."""

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import pytest
import torch
from helpers import servers
from helpers.commands import COMMAND
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.decode import read_image
from vit_search.errors import PromotionError, ServingError
from vit_search.registry import references, smoke
from vit_search.serving import alias_follower, listener
from vit_search.serving.batching import Batcher
from vit_search.serving.endpoint import Endpoint, ReplicaStatus
from vit_search.serving.host_header import hosts_of
from vit_search.serving.limits import HeldBytes, ReplicaLimits
from vit_search.serving.loaded_model import load
from vit_search.serving.metrics import Metrics, follower_text, joined
from vit_search.serving.server import serve
from vit_search.serving.settings import ServingSettings
from vit_search.serving.state import Version, read_state
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import augment, checkpoint, checkpoint_files, evaluation, training

CLASSES = tuple("0123456789")
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (30, 41, 3), np.uint8)
"""Neither the size nor the channels that the model was trained on."""


def file(pixels, kind="PNG"):
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, kind)
    return raw.getvalue()


def text(raw):
    return base64.b64encode(raw).decode()


def header_of(width, height):
    """A PNG whose header says that size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + file(PHOTO)[24:29]
    return file(PHOTO)[:12] + header + zlib.crc32(header).to_bytes(4, "big") + file(PHOTO)[33:]


HUNDRED_MEGAPIXELS = header_of(10_000, 10_000)
IMAGES = [file(RNG.integers(0, 256, (8, 8), np.uint8)) for _ in range(20)]


@dataclass
class Registry:
    """Models in a store, each version another seed."""

    uri: str
    home: Path
    name: str = "digits"
    seeds: dict[str, int] = field(default_factory=dict)
    """Of the versions added."""

    @property
    def client(self):
        return client_for(self.uri)

    def add(self, seed, size=8, **tags):
        """One more version; its number."""
        config = TrialConfig(
            data=DataConfig(name="digits"),
            model=ModelConfig(image_size=(size, size), in_channels=1, num_classes=10, patch_size=4, dim=16, heads=2, depth=2),
            training=TrainingConfig(epochs=1),
            seed=seed,
        )
        state = training.start(config, evaluation.Normalisation.of((0.4,), (0.3,)))
        folder = self.home / f"seed-{seed}"
        checkpoint.save(folder, state, classes=CLASSES, data_hash="h")
        client = self.client
        with contextlib.suppress(Exception):
            client.create_registered_model(self.name)
        found = client.get_experiment_by_name("t")
        experiment = found.experiment_id if found else client.create_experiment("t", artifact_location=self.location)
        run = client.create_run(experiment).info.run_id
        client.set_terminated(run)
        uri = log_model(folder, run_id=run)
        model = client.get_logged_model(uri.rpartition("/")[2])
        given = {"golden": smoke.golden(checkpoint.load_model(folder)), "weights_sha256": self.sha256(seed), "verdict": "passed"}
        given["files_sha256"] = model.tags["files_sha256"]
        made = client.create_model_version(self.name, uri, tags=given | tags, model_id=model.model_id)
        self.seeds[str(made.version)] = seed
        return str(made.version)

    @property
    def location(self):
        return None if self.uri.startswith("http") else (self.home / "artifacts").as_uri()

    def sha256(self, seed):
        return json.loads((self.home / f"seed-{seed}/config.json").read_text())["sha256"]["model.safetensors"]

    def point(self, version, alias="champion"):
        self.client.set_registered_model_alias(self.name, alias, version)

    def weights(self, version):
        """The file of a version's weights, in the store."""
        place = Path(self.client.get_model_version_download_uri(self.name, version).removeprefix("file://"))
        return place / "artifacts/checkpoint/model.safetensors"


def samples_of(text, name):
    """Those of one name in Prometheus's text form."""
    return [sample for metric in text_string_to_metric_families(text) for sample in metric.samples if sample.name == name]


@dataclass
class Server:
    """A running `vit-search serve`."""

    process: subprocess.Popen
    url: str
    log: Path

    def get(self, path, **headers):
        return asyncio.run(self.ask("GET", path, headers=headers))

    def post(self, body, kind="image/png", path="/predict", **headers):
        return asyncio.run(self.ask("POST", path, data=body, headers={"content-type": kind} | headers))

    async def ask(self, method, path, **options):
        """Status, headers, and the JSON or text of the answer."""
        async with aiohttp.ClientSession() as session, session.request(method, self.url + path, **options) as answer:
            raw = await answer.text()
            return answer.status, answer.headers, json.loads(raw) if "json" in answer.content_type else raw

    def version(self):
        return self.get("/readyz")[2]["version"]

    def metric(self, name):
        """The sum over all that it is labelled by."""
        return sum(sample.value for sample in samples_of(self.get("/metrics")[2], name))

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self):
        """SIGTERM; the exit code and what it took, in seconds."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(1800)
        return code, time.monotonic() - began


def started(home, model, uri, *options, ready=True, **environment):
    """`vit-search serve`, once it answers."""
    port = servers.free_port()
    log = home / f"serve-{port}.log"
    command = [COMMAND, "serve", model, "--port", str(port), "--tracking-uri", uri, *options]
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=home, env=os.environ | environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def answers():
        assert process.poll() is None, log.read_text()
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    if ready:
        try:
            servers.until(answers)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return Server(process, f"http://127.0.0.1:{port}", log)


def killed(server):
    """End it and all that it started, whatever state it is in."""
    rest = []
    if server.process.poll() is None:
        rest = server.children()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(1800)
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    for process in psutil.wait_procs(rest, 5)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def refused_at_once(*arguments, **environment):
    """The exit code and what a `vit-search serve` says that is not to start."""
    done = subprocess.run(
        [COMMAND, "serve", *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=1800, check=False
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    home = tmp_path_factory.mktemp("registry")
    made = Registry(f"sqlite:///{home / 'mlruns.db'}", home)
    made.point(made.add(1))
    made.add(2)
    return made


@pytest.fixture(scope="module")
def server(registry, tmp_path_factory):
    """One server for the module; every test leaves the alias at version 1."""
    found = started(
        tmp_path_factory.mktemp("server"),
        "digits@champion",
        registry.uri,
        *("--max-mib", "1", "--timeout", "5", "--poll", "0.5"),
        VIT_SEARCH_SERVE_TOKEN="",
    )
    yield found
    killed(found)


@pytest.fixture
def first(server, registry):
    """The server, at version 1 before and after."""
    yield server
    registry.point("1")
    servers.until(lambda: server.version() == "digits/1")


def chances(registry, images, seed=1):
    """The trained model's probabilities of image files, in one batch."""
    served = checkpoint.load_model(registry.home / f"seed-{seed}")
    pixels = torch.from_numpy(np.stack([read_image(image, (8, 8), 1) for image in images]))
    with torch.inference_mode():
        logits = served.model(augment.normalise(pixels, served.normalisation.mean, served.normalisation.std))
    return logits.softmax(-1).double().numpy()


def given(answer):
    return np.array([[row["probabilities"][name] for name in CLASSES] for row in answer["predictions"]])


# What is served is what was trained


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_a_batch_gives_the_trained_model_s_probabilities_to_the_bit(server, registry, count):
    images = (IMAGES * 2)[:count]
    status, _, answer = server.post(json.dumps({"inputs": [text(image) for image in images]}), "application/json")
    assert status == 200, answer
    expected = chances(registry, images)
    assert (given(answer) == expected).all()
    for row, truth in zip(answer["predictions"], expected, strict=True):
        assert row["label"] == CLASSES[truth.argmax()]
        assert row["probability"] == truth.max()
        assert (row["version"], row["weights_sha256"]) == ("digits/1", registry.sha256(1))


def test_images_that_are_batched_with_others_give_the_same_within_1e_5(server, registry):
    async def together():
        async with aiohttp.ClientSession() as session:

            async def one(image):
                async with session.post(f"{server.url}/predict", data=image, headers={"content-type": "image/png"}) as answer:
                    return given(await answer.json())[0]

            return await asyncio.gather(*[one(image) for image in IMAGES * 5])

    alone = np.array([chances(registry, [image])[0] for image in IMAGES] * 5)
    for _ in range(20):  # until some were classified together: a slow client's requests may come one by one
        before = server.metric("vit_search_batch_images_count")
        assert np.abs(np.array(asyncio.run(together())) - alone).max() < 1e-5
        if server.metric("vit_search_batch_images_count") - before < 100:
            break
    else:
        pytest.fail("no two images were classified together")
    assert server.metric("vit_search_queue_length") == 0


def test_more_images_than_a_batch_holds_are_answered_in_one_request(server, registry):
    images = (IMAGES * 5)[:100]
    status, _, answer = server.post(json.dumps({"inputs": [text(image) for image in images]}), "application/json")
    assert status == 200
    assert np.abs(given(answer) - chances(registry, images)).max() < 1e-5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_an_image_of_another_size_and_kind_is_resized_as_in_training(server, registry, kind):
    raw = file(PHOTO, kind)
    for answer in (
        server.post(raw, f"image/{kind.lower()}"),
        server.post(raw, "application/octet-stream", "/invocations"),
        server.post(json.dumps({"inputs": [text(raw)]}), "application/json; charset=utf-8", "/invocations"),
        server.post(json.dumps({"instances": [text(raw)]}), "application/json"),
    ):
        assert answer[0] == 200, answer
        assert (given(answer[2]) == chances(registry, [raw])).all()


def test_pixels_are_taken_as_mlflow_takes_them(server, registry):
    status, _, answer = server.post(json.dumps({"inputs": [PHOTO.tolist()]}), "application/json")
    assert status == 200
    assert (given(answer) == chances(registry, [file(PHOTO)])).all()


# What it refuses

BAD = {
    "a text file": (b"hello, I am no image\n" * 9, "image/png", 422, "of no known format"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 422, "of no known format"),
    "an empty body": (b"", "image/png", 400, "an empty body"),
    "a truncated image": (file(PHOTO)[:900], "image/png", 422, "truncated"),
    "a 100-megapixel PNG": (HUNDRED_MEGAPIXELS, "image/png", 413, "10000x10000 pixels; give an image of at most 25,000,000"),
    "another content type": (file(PHOTO), "text/plain", 415, "content type text/plain; send one image file"),
    "a form": (file(PHOTO), "application/x-www-form-urlencoded", 415, "send one image file"),
    "too large a body": (b"\0" * (2**20 + 1), "image/png", 413, "a body of 1,048,577 bytes or more; send at most 1,048,576"),
    "not JSON": (b"{", "application/json", 400, "no JSON"),
    "bytes that are no text": (b'{"inputs": ["\xff"]}', "application/json", 400, "no JSON"),
    "deep JSON": (b"[" * 100_000, "application/json", 400, "no JSON"),
    "a list": (b"[]", "application/json", 400, "no list `inputs`"),
    "no known key": (b'{"images": []}', "application/json", 400, "no list `inputs`"),
    "inputs of another kind": (b'{"inputs": {"a": 1}}', "application/json", 400, "no list `inputs`"),
    "an empty batch": (b'{"inputs": []}', "application/json", 400, "`inputs` is empty"),
    "too large a batch": (json.dumps({"inputs": ["a"] * 129}).encode(), "application/json", 413, "129 images; give at most 128"),
    "no base64": (b'{"inputs": ["?"]}', "application/json", 422, "row 0: text that is not base64"),
    "one bad row": (json.dumps({"inputs": [text(file(PHOTO)), "aGVsbG8="]}).encode(), "application/json", 422, "row 1: no image that can"),
    "a bomb in JSON": (json.dumps({"inputs": [text(HUNDRED_MEGAPIXELS)]}).encode(), "application/json", 413, "row 0: 10000x10000"),
    "numbers": (b'{"inputs": [1, 2]}', "application/json", 422, "row 0: shape ()"),
    "nothing": (b'{"inputs": [null]}', "application/json", 422, "row 0: nothing"),
    "floats": (b'{"inputs": [[[[0.5]]]]}', "application/json", 422, "row 0: values of type float64"),
    "large numbers": (b'{"inputs": [[[[%s]]]]}' % (b"9" * 40), "application/json", 422, "row 0: values of type object"),
    "ragged pixels": (b'{"inputs": [[[[1], [2]], [[3]]]]}', "application/json", 422, "row 0: rows of different lengths"),
}


@pytest.mark.parametrize(("body", "kind", "status", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_refused_with_one_line(server, body, kind, status, said):
    seen, headers, answer = server.post(body, kind)
    assert seen == status, answer
    assert list(answer) == ["error"]
    assert said in answer["error"]
    assert "\n" not in answer["error"]
    assert "Traceback" not in answer["error"]
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "server" not in {name.lower() for name in headers}


def test_a_body_without_a_stated_length_is_limited_too(server):
    async def pieces():
        for _ in range(40):
            yield b"\0" * 2**16

    status, _, answer = asyncio.run(server.ask("POST", "/predict", data=pieces(), headers={"content-type": "image/png"}))
    assert (status, list(answer)) == (413, ["error"])


def test_other_paths_and_methods_are_refused(server):
    assert server.get("/predicts")[0] == server.get("/")[0] == server.get("/predict/")[0] == 404
    status, headers, answer = server.get("/predict")
    assert (status, headers["allow"]) == (405, "POST")
    assert "GET is not for this path" in answer["error"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert asyncio.run(server.ask(method, "/healthz"))[0] == 405


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"\x16\x03\x01", b"POST /predict HTTP/9.9\r\n\r\n", b"\r\n" * 9]
)
def test_what_is_no_http_closes_its_connection_alone(server, head):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 5) as connection:
        connection.sendall(head + b"x" * 100)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100)[:12] in (b"", b"HTTP/1.1 400")
    assert server.get("/healthz")[0] == 200


def test_a_body_that_never_ends_is_given_up_and_holds_up_nobody(server):
    """Slow loris: the headers promise 100 bytes, and 10 come."""
    port = int(server.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 600)) for _ in range(30)]
        for connection in slow:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\n0123456789"
            )
        began = time.monotonic()
        assert server.post(IMAGES[0])[0] == 200
        assert time.monotonic() - began < 5  # before the others are given up
        for connection in slow:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert 4 < time.monotonic() - began < 300  # --timeout 5
    servers.until(lambda: server.metric("vit_search_queue_length") == 0)


async def load_of(url, bodies, *, workers=8, until=None, **headers):
    """Post bodies, each (body, content type), over some connections; a Counter of statuses and the answers in order of their ends."""
    statuses, answers, left = Counter(), [], iter(bodies)

    async def work(session):
        for body, kind in left:
            if until is not None and until.is_set():
                return
            began = time.perf_counter()
            try:
                async with session.post(f"{url}/predict", data=body, headers={"content-type": kind} | headers) as answer:
                    raw = await answer.read()
                    assert (answer.status == 503) == ("retry-after" in answer.headers)
                    statuses[answer.status] += 1
                    answers.append((time.perf_counter(), time.perf_counter() - began, answer.status, raw, body))
            except aiohttp.ClientError as error:
                statuses[type(error).__name__] += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*[work(session) for _ in range(workers)])
    return statuses, answers


def test_the_memory_of_large_images_is_given_back(server):
    """Each takes 200 MB while it is decoded."""
    (replica,) = (process for process in server.children() if "ServeReplica" in " ".join(process.cmdline()))
    raw = io.BytesIO()
    Image.new("RGBA", (5000, 5000), (9, 8, 7, 100)).save(raw, "PNG")
    assert server.post(IMAGES[0])[0] == 200
    before = replica.memory_info().rss
    assert {server.post(raw.getvalue())[0] for _ in range(3)} == {200}
    assert replica.memory_info().rss - before < 100e6


def test_bad_requests_among_good_ones_fail_alone(server, registry):
    bad = [(body, kind) for body, kind, *_ in BAD.values()]
    good = [(image, "image/png") for image in IMAGES]
    mixed = [random.Random(i).choice(bad) if i % 10 == 3 else good[i % 20] for i in range(600)]
    statuses, answers = asyncio.run(load_of(server.url, mixed))
    assert statuses[200] == 540
    assert sum(count for status, count in statuses.items() if isinstance(status, int) and 400 <= status < 500) == 60, statuses
    truth = {image: chances(registry, [image])[0] for image in IMAGES}
    for _, _, status, raw, body in answers:
        if status == 200:
            assert np.abs(given(json.loads(raw))[0] - truth[body]).max() < 1e-5


def test_bodies_at_random_are_answered_or_refused_and_never_break_anything(server):
    chance = random.Random(5)
    sound = [file(PHOTO, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")]
    sound.append(json.dumps({"inputs": [text(IMAGES[0])] * 2}).encode())
    sound.append(json.dumps({"inputs": [PHOTO[:4, :4].tolist()]}).encode())
    bodies = []
    for number in range(500):
        body = bytearray(chance.choice(sound) if number % 4 else chance.randbytes(chance.randrange(300)))
        del body[chance.randrange(len(body) + 1) if chance.random() < 0.3 else len(body) :]
        for _ in range(chance.randrange(6)):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        bodies.append((bytes(body), chance.choice(["image/png", "application/octet-stream", "application/json", "image/", ""]) or "x"))
    statuses, answers = asyncio.run(load_of(server.url, bodies))
    assert sum(statuses.values()) == 500
    assert set(statuses) <= {200, 400, 413, 415, 422}, statuses
    assert len(statuses) > 3
    for _, _, status, raw, _ in answers:
        assert status == 200 or list(json.loads(raw)) == ["error"]
    assert server.get("/readyz")[0] == 200


# What it tells of itself


def test_it_tells_what_it_serves(server, registry):
    status, _, ready = server.get("/readyz")
    assert (status, ready["ready"], ready["version"], ready["alias"]) == (200, True, "digits/1", "champion")
    assert ready["weights_sha256"] == registry.sha256(1)
    assert (ready["stale_since"], ready["not_taken"], ready["replicas"]) == (None, None, ["digits/1"])
    assert 0 <= ready["lag_s"] < 10
    assert server.get("/healthz")[2] == {"status": "alive"}
    told = server.get("/version")[2]
    assert (told["version"], told["weights_sha256"]) == ("digits/1", registry.sha256(1))


def test_its_metrics_count_what_it_has_done(server, registry):
    def counts():
        return {
            name: server.metric(f"vit_search_{name}")
            for name in ("requests_total", "request_seconds_count", "batch_images_sum", "batch_images_count", "reload_failures_total")
        }

    before = counts()
    for _ in range(5):
        server.post(IMAGES[0])
    server.post(b"")
    after = counts()
    assert after["request_seconds_count"] - before["request_seconds_count"] == 6
    assert after["batch_images_sum"] - before["batch_images_sum"] == 5
    assert after["batch_images_count"] - before["batch_images_count"] == 5  # one after the other: none to batch with
    status, headers, exposed = server.get("/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    (refused,) = [
        s for s in samples_of(exposed, "vit_search_requests_total") if (s.labels["path"], s.labels["code"]) == ("/predict", "400")
    ]
    assert refused.value >= 1
    (info,) = samples_of(exposed, "vit_search_model_info")
    assert info.value == 1
    assert info.labels == {"replica": refused.labels["replica"], "version": "digits/1", "weights_sha256": registry.sha256(1)}
    buckets = [sample.value for sample in samples_of(exposed, "vit_search_request_seconds_bucket")]
    assert len(buckets) == 14
    assert buckets == sorted(buckets)
    kinds = {metric.name: metric.type for metric in text_string_to_metric_families(exposed)}
    assert kinds == {  # nothing of the process or the platform; the parser drops the `_total` of a counter's name
        "vit_search_requests": "counter",
        "vit_search_request_seconds": "histogram",
        "vit_search_batch_images": "histogram",
        "vit_search_queue_length": "gauge",
        "vit_search_reloads": "counter",
        "vit_search_reload_failures": "counter",
        "vit_search_model_info": "gauge",
        "vit_search_alias_seen_timestamp_seconds": "gauge",
    }
    assert {s.labels["replica"] for s in samples_of(exposed, "vit_search_reload_failures_total")} == {refused.labels["replica"], "follower"}
    (seen,) = samples_of(exposed, "vit_search_alias_seen_timestamp_seconds")
    assert time.time() - 60 < seen.value <= time.time()


def test_the_replica_loads_no_pickle_and_no_mlflow_and_listens_on_this_machine_alone(server):
    (replica,) = [process for process in server.children() if "ServeReplica" in " ".join(process.cmdline())]
    environment = replica.environ()
    assert environment["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert not [mapped.path for mapped in replica.memory_maps() if "mlflow" in mapped.path or "sqlalchemy" in mapped.path]
    listening = {
        connection.laddr.ip
        for process in [psutil.Process(server.process.pid), *server.children()]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


# It follows the alias


def versions(answers):
    return [{row["version"] for row in json.loads(raw)["predictions"]} for _, _, status, raw, _ in answers if status == 200]


def moved_under_load(server, registry, moves, *, least, workers=8):
    """Move the alias while requests run; statuses, answers, and the seconds from each move until every answer is of the new version."""
    stop, result = threading.Event(), {}
    pair = json.dumps({"inputs": [text(image) for image in IMAGES[:3]]}).encode()
    bodies = ((pair, "application/json") if i % 5 == 0 else (IMAGES[i % 20], "image/png") for i in range(10**9))

    def run():
        result["load"] = asyncio.run(load_of(server.url, bodies, until=stop, workers=workers))

    thread = threading.Thread(target=run)
    thread.start()
    at = []
    try:
        time.sleep(1)
        for number, version in enumerate(moves, 1):
            registry.point(version)
            at.append(time.perf_counter())
            servers.until(lambda wanted=version: server.version() == f"digits/{wanted}")
            wanted = least * number / len(moves)
            servers.until(lambda wanted=wanted: server.metric("vit_search_requests_total") >= wanted)
            time.sleep(1)
    finally:
        stop.set()
        thread.join()
    statuses, answers = result["load"]
    took = []
    for moved, wanted, end in zip(at, moves, [*at[1:], float("inf")], strict=True):
        old = [ended for ended, _, _, raw, _ in answers if moved < ended < end and f'"digits/{wanted}"'.encode() not in raw]
        took.append(max(old, default=moved) - moved)
    return statuses, answers, took


def check_moves(registry, statuses, answers, took, moves):
    assert set(statuses) == {200}, statuses
    seen = versions(answers)
    assert all(len(of_one) == 1 for of_one in seen)  # none mixes two
    assert {name for of_one in seen for name in of_one} == {"digits/1", *(f"digits/{version}" for version in moves)}
    assert max(took) < 10, took
    truth = {version: {image: chances(registry, [image], registry.seeds[version])[0] for image in IMAGES} for version in {"1", *moves}}
    for _, _, _, raw, body in answers[:: max(1, len(answers) // 500)]:
        if body in truth["1"]:  # each answer is that of the version it names
            answer = json.loads(raw)
            version = answer["predictions"][0]["version"].rpartition("/")[2]
            assert np.abs(given(answer)[0] - truth[version][body]).max() < 1e-5


def test_a_promotion_and_a_rollback_are_live_within_10_seconds_with_no_failed_request(first, registry):
    moves = ["2", "1"]
    reloads = first.metric("vit_search_reloads_total")
    statuses, answers, took = moved_under_load(first, registry, moves, least=0)
    check_moves(registry, statuses, answers, took, moves)
    assert sum(statuses.values()) > 300
    assert first.metric("vit_search_reloads_total") - reloads == 2


@pytest.mark.slow
def test_ten_thousand_requests_across_three_promotions_and_a_rollback_all_succeed(first, registry):
    third, fourth = registry.add(3), registry.add(4)
    moves = ["2", third, fourth, third]
    statuses, answers, took = moved_under_load(first, registry, moves, least=first.metric("vit_search_requests_total") + 10_000, workers=32)
    assert statuses[200] >= 10_000
    check_moves(registry, statuses, answers, took, moves)


def not_taken(server, registry, version, said):
    """Point the alias at a version, and see that the first one stays, and says why."""
    failures = server.metric("vit_search_reload_failures_total")
    registry.point(version)
    servers.until(lambda: server.get("/readyz")[2]["alias_names"] == f"digits/{version}")
    servers.until(lambda: server.get("/readyz")[2]["not_taken"])
    status, _, ready = server.get("/readyz")
    assert (status, ready["version"]) == (200, "digits/1")
    assert re.search(said, ready["not_taken"]), ready
    time.sleep(1.5)  # three polls
    assert server.metric("vit_search_reload_failures_total") - failures == 1  # not tried again and again
    assert server.post(IMAGES[0])[2]["predictions"][0]["version"] == "digits/1"
    assert len(re.findall(f"digits/{version} is rejected", server.log.read_text())) == 1
    registry.point("1")
    servers.until(lambda: server.get("/readyz")[2]["not_taken"] is None)


def test_a_version_whose_weights_have_one_byte_flipped_is_not_taken(first, registry):
    version = registry.add(30)
    weights = registry.weights(version)
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    not_taken(first, registry, version, "holds another artifacts/checkpoint/model.safetensors than was registered")


def test_a_version_whose_class_names_are_swapped_is_not_taken(first, registry):
    version = registry.add(29)
    config = registry.weights(version).with_name("config.json")
    document = json.loads(config.read_text())
    document["classes"] = document["classes"][::-1]
    config.write_text(checkpoint_files.signed(document))
    not_taken(first, registry, version, "holds another artifacts/checkpoint/config.json than was registered")


def test_a_version_that_is_another_than_the_registered_one_is_not_taken(first, registry):
    version = registry.add(31, weights_sha256="0" * 64)
    registry.client.delete_model_version_tag("digits", version, "files_sha256")  # as a version of vit_search 0.1 is registered
    not_taken(first, registry, version, "holds other weights than were registered")


def test_a_version_that_does_not_answer_as_it_did_is_not_taken(first, registry):
    other = smoke.golden(checkpoint.load_model(registry.home / "seed-1"))
    not_taken(first, registry, registry.add(32, golden=other), "fails its smoke test: the logits are .* from the golden ones")


def test_a_version_that_failed_its_gates_is_not_taken(first, registry):
    not_taken(first, registry, registry.add(33, verdict="refused"), "its gates refused it")


def test_a_version_without_files_is_not_taken(first, registry):
    version = registry.add(34)
    shutil.rmtree(registry.weights(version).parents[2])
    not_taken(first, registry, version, "")


def test_a_version_without_tags_is_taken_for_what_it_is(first, registry):
    version = registry.add(35)
    for tag in ("golden", "weights_sha256", "files_sha256", "verdict"):
        registry.client.delete_model_version_tag("digits", version, tag)
    registry.point(version)
    servers.until(lambda: first.version() == f"digits/{version}")
    assert first.get("/readyz")[2]["weights_sha256"] == registry.sha256(35)


def test_a_model_of_another_image_size_takes_over_under_load(first, registry):
    version = registry.add(36, size=12)
    statuses, answers, _ = moved_under_load(first, registry, [version, "1"], least=0)
    assert set(statuses) == {200}
    assert {"digits/1"} in versions(answers)
    assert {f"digits/{version}"} in versions(answers)


def test_a_champion_that_is_deleted_goes_on_answering(first, registry):
    version = registry.add(37)
    registry.point(version)
    servers.until(lambda: first.version() == f"digits/{version}")
    registry.client.delete_registered_model_alias("digits", "champion")
    registry.client.delete_model_version("digits", version)
    servers.until(lambda: first.get("/readyz")[2]["alias_names"] is None)
    assert first.version() == f"digits/{version}"
    assert first.post(IMAGES[0])[2]["predictions"][0]["version"] == f"digits/{version}"


# The registry is away; tokens; the queue; the end


@pytest.mark.slow
def test_a_registry_that_is_away_changes_nothing_and_a_new_start_comes_from_the_cache(tmp_path):
    """MLflow's server is killed while the model is served, and stays dead when it is started again."""
    store, environment = f"sqlite:///{tmp_path / 'mlruns.db'}", {"VIT_SEARCH_CACHE": str(tmp_path / "cache")}
    port = servers.free_port()
    mlflow_server = servers.start_mlflow(tmp_path, store, port)
    uri = f"http://127.0.0.1:{port}"
    found = None
    try:
        registry = Registry(uri, tmp_path)
        registry.point(registry.add(1))
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        found = started(tmp_path, "models:/digits@champion", uri, "--poll", "0.5", **environment)
        assert found.get("/readyz")[2]["stale_since"] is None
        servers.end(mlflow_server)
        servers.until(lambda: found.get("/readyz")[2]["stale_since"])
        assert found.post(IMAGES[0])[2]["predictions"][0]["version"] == "digits/1"
        children = found.children()
        os.killpg(found.process.pid, signal.SIGINT)  # Ctrl-C, as a terminal sends it: to all of them
        assert found.process.wait(1800) == 0
        assert psutil.wait_procs(children, 5)[1] == []

        found = started(tmp_path, "digits@champion", uri, "--poll", "0.5", **environment)
        status, _, ready = found.get("/readyz")
        assert (status, ready["version"], ready["weights_sha256"]) == (200, "digits/1", registry.sha256(1))
        assert ready["stale_since"]
        assert (given(found.post(IMAGES[0])[2]) == chances(registry, IMAGES[:1])).all()
        assert "served from the cache" in found.log.read_text()

        mlflow_server = servers.start_mlflow(tmp_path, store, port)
        servers.until(lambda: found.get("/readyz")[2]["stale_since"] is None)  # and it is found again
        version = registry.add(2)
        registry.point(version)
        servers.until(lambda: found.version() == "digits/2")
        assert found.end()[0] == 0

        servers.end(mlflow_server)
        for weights in (tmp_path / "cache").rglob("model.safetensors"):
            raw = bytearray(weights.read_bytes())
            raw[-5] ^= 1
            weights.write_bytes(raw)
        code, said = refused_at_once("digits@champion", "--tracking-uri", uri, **environment)
        assert code == 2
        assert "the cache's copy of digits/2 is no good" in said
        assert "the tracking server does not answer" in said
    finally:
        servers.end(mlflow_server)
        if found is not None:
            killed(found)


def test_two_replicas_share_the_port_the_token_and_the_metrics_and_end_cleanly(registry, tmp_path):
    """And a queue of one request, past which a client is told to come again."""
    found = started(
        tmp_path, "digits/1", registry.uri, "--replicas", "2", "--queue", "1", "--timeout", "4", VIT_SEARCH_SERVE_TOKEN="s3cret-Token"
    )
    try:
        key = {"authorization": "Bearer s3cret-Token"}
        for path in ("/readyz", "/version", "/metrics", "/nowhere"):
            status, headers, answer = found.get(path)
            assert (status, headers["www-authenticate"], list(answer)) == (401, "Bearer", ["error"])
        assert found.get("/healthz")[0] == 200
        for wrong in ("Bearer s3cret-Toke", "Bearer", "Basic s3cret-Token", "s3cret-Token", "Bearer s3cret-Token2", "Bearer \u00fc"):
            assert found.post(IMAGES[0], authorization=wrong)[0] == 401
        assert found.post(IMAGES[0], **key)[0] == 200

        servers.until(lambda: found.get("/readyz", **key)[2]["replicas"] == ["digits/1"] * 2)
        servers.until(lambda: len(samples_of(found.get("/metrics", **key)[2], "vit_search_model_info")) == 2)

        vast = file(np.zeros((5000, 5000), np.uint8))  # 25 million pixels in some kilobytes take their time to decode
        statuses, answers = asyncio.run(load_of(found.url, [(vast, "image/png")] * 12, workers=12, **key))
        assert set(statuses) == {200, 503}
        (refusal,) = {raw for *_, status, raw, _ in answers if status == 503}
        assert json.loads(refusal) == {"error": "the queue is full; come again."}
        assert found.post(IMAGES[0], **key)[0] == 200

        token_in = [process.pid for process in found.children() if "s3cret-Token" in " ".join(process.cmdline())]
        assert not token_in
        children = found.children()
        assert len([process for process in children if "ServeReplica" in " ".join(process.cmdline())]) == 2
        port = int(found.url.rpartition(":")[2])
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret-Token\r\n"
        head += b"Content-Type: image/png\r\nContent-Length: "
        slow = socket.create_connection(("127.0.0.1", port), 600)  # a request that is under way when the end comes is answered
        slow.sendall(head + b"%d\r\n\r\n" % len(IMAGES[0]))
        time.sleep(0.3)
        found.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(1)
        slow.sendall(IMAGES[0])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        assert found.process.wait(1800) == 0
        assert time.monotonic() - began < 300
        assert psutil.wait_procs(children, 5)[1] == []
        assert "Traceback" not in found.log.read_text()
    finally:
        killed(found)


def test_a_mistake_is_one_line_and_exit_code_2(registry):
    code, said = refused_at_once("nothing@champion", "--tracking-uri", registry.uri)
    assert (code, len(said.strip().splitlines())) == (2, 1)
    assert "error: nothing@champion: no registered model named nothing; choose from digits." in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.invalid"])
def test_others_may_reach_it_only_with_a_token(registry, host, monkeypatch):
    monkeypatch.delenv("VIT_SEARCH_SERVE_TOKEN", raising=False)
    with pytest.raises(ServingError, match=f"--host {host}: others can reach it; set VIT_SEARCH_SERVE_TOKEN"):
        serve("digits@champion", ServingSettings(host=host, port=0), tracking_uri=registry.uri)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("digits@chempion", "digits@chempion: digits has no alias chempion; did you mean champion"),
        ("digits/99", "digits/99: digits has no version 99; there are 1, "),
        ("digit@champion", "digit@champion: no registered model named digit; did you mean digits"),
        ("digits", "digits: names no model; write it like digits@champion, digits/3 or trained/digits"),
        ("models:/m-123", "names no model"),
        ("runs:/x/model", "names no model"),
    ],
)
def test_a_model_that_there_is_not_is_refused(registry, model, said):
    with pytest.raises((ServingError, PromotionError), match=said):
        serve(model, ServingSettings(port=0), tracking_uri=registry.uri)


def test_a_port_that_is_taken_is_one_line(registry, server):
    port = server.url.rpartition(":")[2]
    with pytest.raises(ServingError, match=f"127.0.0.1:{port}: cannot be listened on"):
        serve("digits@champion", ServingSettings(port=int(port)), tracking_uri=registry.uri)


@pytest.mark.parametrize("library", ["uvicorn", "prometheus_client"])
def test_without_the_extra_it_is_named(registry, tmp_path, library):
    (tmp_path / f"{library}.py").write_text(f"raise ImportError('no module named {library}')")
    environment = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    code, said = refused_at_once("digits@champion", "--tracking-uri", registry.uri, **environment)
    assert code == 2
    assert "pip install 'vit_search[serve]'" in said


# Its parts


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("digits@champion", references.Reference("digits", alias="champion")),
        ("models:/digits@champion", references.Reference("digits", alias="champion")),
        ("my digits/3", references.Reference("my digits", version="3")),
        ("models:/digits/12", references.Reference("digits", version="12")),
    ],
)
def test_a_target_is_read(text, target):
    assert references.parse(text) == target


@pytest.mark.parametrize("text", ["", "digits", "digits@", "digits/", "digits/x", "@champion", "a/b/3", "digits@a@b", "models:/"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(PromotionError, match="write it like digits@champion, digits/3 or trained/digits"):
        references.parse(text)


def test_a_version_that_failed_is_tried_again_after_longer_and_longer(registry, tmp_path):
    said, now = [], [1000.0]
    registry.point("1", "trial")
    target, place = references.Reference("digits", "trial"), tmp_path / "state.json"
    follower = alias_follower.AliasFollower(target, registry.uri, place, tmp_path, said.append, clock=lambda: now[0])
    follower.start()
    bad = registry.add(40, verdict="refused")
    registry.point(bad, "trial")
    tries = []
    for _ in range(150):
        follower.poll()
        if not tries or read_state(place).failures > len(tries):
            tries.append(now[0] - 1000)
        now[0] += 10
    assert tries == [0, 10, 30, 70, 150, 310, 630, 1230]
    assert len([line for line in said if "is rejected" in line]) == 1
    registry.client.set_model_version_tag("digits", bad, "verdict", "forced")  # mended
    now[0] += 600
    follower.poll()
    state = read_state(place)
    assert (state.version.name, state.failed) == (f"digits/{bad}", "")


def test_a_model_that_was_registered_anew_under_the_same_number_is_fetched_again(registry, tmp_path):
    registry.point("1", "again")
    target = references.Reference("digits", "again")
    state = alias_follower.AliasFollower(target, registry.uri, tmp_path / "s", tmp_path, lambda line: None).start()
    copy = Path(state.version.folder)
    told = json.loads((copy / "version.json").read_text())
    (copy / "version.json").write_text(json.dumps(told | {"created": 7}))
    before = (copy / "model.safetensors").stat().st_ino
    alias_follower.AliasFollower(target, registry.uri, tmp_path / "s", tmp_path, lambda line: None).start()
    assert (copy / "model.safetensors").stat().st_ino != before


def test_the_samples_of_several_replicas_stand_together(registry):
    model = load(Version("digits/1", "", "", str(registry.home / "seed-1"), 0))
    one, other = Metrics("a"), Metrics("b")
    one.seconds.observe(0.002)
    other.batches.observe(32)
    other.count_request("/predict", 200)
    one.queue_length = 3
    exposed = joined([one.text(model), other.text(model), follower_text(2, 1764512345.678)]).decode()
    names = [metric.name for metric in text_string_to_metric_families(exposed)]
    assert len(names) == len(set(names)) == 8  # each once: Prometheus refuses a text in which one comes again

    def buckets(name):
        return {(s.labels["replica"], float(s.labels["le"])): s.value for s in samples_of(exposed, name)}

    seconds, batches = buckets("vit_search_request_seconds_bucket"), buckets("vit_search_batch_images_bucket")
    assert (seconds["a", 0.001], seconds["a", 0.0025], seconds["b", np.inf]) == (0, 1, 0)
    assert (batches["b", 16], batches["b", 32], batches["a", np.inf]) == (0, 1, 0)
    (answered,) = samples_of(exposed, "vit_search_requests_total")
    assert (answered.labels, answered.value) == ({"replica": "b", "path": "/predict", "code": "200"}, 1)
    assert [(s.labels["replica"], s.value) for s in samples_of(exposed, "vit_search_queue_length")] == [("a", 3), ("b", 0)]
    assert [s.value for s in samples_of(exposed, "vit_search_reload_failures_total")] == [0, 0, 2]
    assert [s.value for s in samples_of(exposed, "vit_search_alias_seen_timestamp_seconds")] == [1764512345.678]


def test_the_metrics_name_the_model_that_answers_now_and_escape_its_name(registry):
    old = load(Version("digits/1", "", "", str(registry.home / "seed-1"), 0))
    new = load(Version('a "quoted\\name"\nof two lines/2', "", "", str(registry.home / "seed-1"), 0))
    metrics = Metrics("a")
    metrics.text(old)
    (info,) = samples_of(joined([metrics.text(new)]).decode(), "vit_search_model_info")
    assert info.labels["version"] == 'a "quoted\\name"\nof two lines/2'


# What comes before a body: over real connections to a listener in this process, whose application answers "hi"


async def _hello(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def listening(talk, held=None):
    """What `await talk(connect)` returns; `await connect()` gives a reader and a writer."""

    async def run():
        sock = listener.bind("127.0.0.1", 0)
        server = listener.server(_hello, timeout_s=1, held=held or HeldBytes(2**20))
        running = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            return await talk(lambda: asyncio.open_connection(*sock.getsockname()))
        finally:
            server.should_exit = True
            await running

    return asyncio.run(run())


def answer_to(pieces, held=None):
    """All that comes back until the connection is closed, and how many bytes went there before that."""

    async def talk(connect):
        reader, writer = await connect()
        answer, sent = asyncio.create_task(reader.read()), 0
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(0)
                if answer.done():
                    break
        try:
            return await asyncio.wait_for(answer, 60), sent
        except ConnectionError:  # what was on its way when the other side closed
            return b"", sent

    return listening(talk, held)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSE = b"Connection: close\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET + CLOSE + b"A: " + b"x" * 30_000 + b"\r\n\r\n", 200),
        (GET + CLOSE + b"A: " + b"x" * 60_000 + b"\r\n\r\n", 431),
        (GET + b"A: " + b"x" * 60_000, 431),
        (GET + CLOSE + b"A: x\r\n" * 98 + b"\r\n", 200),
        (GET + CLOSE + b"A: x\r\n" * 99 + b"\r\n", 431),
        (b"GET /" + b"x" * 4_000 + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", 200),
        (b"GET /" + b"x" * 4_096 + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", 414),
        (POST + b"3\r\nabc\r\n0\r\nA: x\r\n\r\n" + GET + CLOSE + b"\r\n", 200),
        (POST + b"3;" + b"x" * 60_000 + b"\r\nabc\r\n0\r\n\r\n", 431),
        (POST + b"3\r\nabc\r\n0\r\nA: " + b"x" * 60_000 + b"\r\n\r\n", 431),
        (POST + b"3\r\nabc\r\n0\r\n" + b"A: x\r\n" * 101 + b"\r\n", 431),
        (b"no http\r\n\r\n", 400),
    ],
)
def test_what_frames_a_request_is_limited(request_, status):
    answer, _ = answer_to([request_])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    if status != 200:
        assert b"connection: close" in head
        assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(
    "endless", [GET + b"A: ", GET, b"GET /", POST + b"3;", POST + b"3\r\nabc\r\n0\r\nA: ", POST + b"3\r\nabc\r\n0\r\n"]
)
def test_what_never_ends_before_or_behind_a_body_is_cut_off(endless):
    """The attack held 382 MB on one connection; system buffers may take some megabytes more than the server reads."""
    piece = b"B: b\r\n" * 10_000 if endless.endswith(b"\r\n") else b"x" * 60_000
    held = HeldBytes(2**30)
    _, sent = answer_to([endless, *[piece] * 4_000], held)
    assert sent < 30e6
    assert held.bytes == 0


def test_headers_of_all_connections_are_limited_together():
    held = HeldBytes(100_000)

    async def talk(connect):
        slow = [await connect() for _ in range(5)]
        for _, writer in slow:
            writer.write(GET + b"A: " + b"x" * 19_000)
        while held.bytes < 95_000:
            await asyncio.sleep(0.01)
        reader, writer = await connect()
        writer.write(GET + b"A: " + b"x" * 19_000)
        refused = await reader.read()
        for _, writer in slow:
            writer.close()
        while held.bytes:
            await asyncio.sleep(0.01)
        reader, writer = await connect()
        writer.write((GET + b"\r\n") * 9 + GET + CLOSE + b"\r\n")
        return refused, await reader.read()

    refused, answered = listening(talk, held)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert answered.count(b"HTTP/1.1 200 ") == 10
    assert held.bytes == 0


def test_connections_beyond_the_limit_are_closed_and_the_others_answered(monkeypatch):
    monkeypatch.setattr(listener, "CONNECTIONS", 3)

    async def talk(connect):
        held = [await connect() for _ in range(3)]
        await asyncio.sleep(0.1)
        reader, _ = await connect()
        assert await asyncio.wait_for(reader.read(), 60) == b""
        answers = []
        for reader, writer in held:
            writer.write(GET + CLOSE + b"\r\n")
            answers.append(await reader.read())
        reader, writer = await connect()
        writer.write(GET + CLOSE + b"\r\n")
        return [*answers, await reader.read()]

    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in listening(talk))


def test_headers_that_come_a_letter_at_a_time_and_connections_that_idle_are_closed(monkeypatch):
    """The limits are shorter than in production."""
    monkeypatch.setattr(listener, "IDLE_S", 1)
    monkeypatch.setattr(listener, "HEADERS_S", 1)

    async def talk(connect):
        reader, writer = await connect()
        began, closed = time.monotonic(), asyncio.create_task(reader.read())
        for letter in b"GET / HTTP/1.1\r\nHost: " + b"x" * 600:
            if closed.done():
                break
            writer.write(bytes([letter]))
            await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            assert await closed == b""
        dripped = time.monotonic() - began
        reader, writer = await connect()
        writer.write(GET + b"\r\n")
        return dripped, await asyncio.wait_for(reader.read(), 60)

    dripped, idled = listening(talk)
    assert 0.9 < dripped < 50  # the letters would take a minute
    assert idled.startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_replica_that_dies_is_replaced_while_the_other_answers(registry, tmp_path):
    found = started(tmp_path, "digits/1", registry.uri, "--replicas", "2")
    try:
        servers.until(lambda: len(found.get("/readyz")[2]["replicas"]) == 2)
        replicas = [process for process in found.children() if "ServeReplica" in " ".join(process.cmdline())]
        replicas[0].kill()
        replicas[0].wait(1800)
        time.sleep(0.5)
        for _ in range(50):
            assert found.post(IMAGES[0])[0] == 200
        servers.until(lambda: len([p for p in found.children() if "ServeReplica" in " ".join(p.cmdline())]) == 2)
        time.sleep(12)  # what the dead one told last is no longer counted
        servers.until(lambda: len(found.get("/readyz")[2]["replicas"]) == 2)
    finally:
        killed(found)


def asked(registry, body, kind, limits, *, broken=False):
    """The status and the JSON that an endpoint in this process answers, and the bytes that it holds afterwards."""

    async def call():
        model = load(Version("digits/1", "", "", str(registry.home / "seed-1"), 0))
        metrics = Metrics("a")
        batcher = Batcher(model, asyncio.get_running_loop(), 4, metrics.batches.observe)
        if broken:
            model.served.model.forward = None  # the device is gone, say
        endpoint = Endpoint(batcher, metrics, limits, "", lambda: ReplicaStatus({}, {}, []), hosts_of("127.0.0.1"))
        sent = []

        async def receive():
            return {"type": "http.request", "body": body}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "http_version": "1.1", "path": "/predict"}
        scope["headers"] = [(b"host", b"localhost"), (b"content-type", kind)]
        await endpoint(scope, receive, send)
        assert batcher.alive
        return sent[0]["status"], json.loads(sent[1]["body"]), endpoint.held.bytes

    return asyncio.run(call())


@pytest.mark.parametrize("values", [b"[],", b"{},", b"0,"])
def test_json_of_more_values_than_images_can_have_is_refused_before_it_is_parsed(registry, values):
    body = b'{"inputs": [%s0]}' % (values * (15 * 2**20 // len(values)))
    status, answer, held = asked(registry, body, b"application/json", ReplicaLimits())
    assert (status, held) == (413, 0)
    assert "values in the JSON; give at most 2,097,152, or image files as base64" in answer["error"]


def test_the_pixels_that_a_request_is_decoded_to_count_as_held(registry):
    body = json.dumps({"inputs": [text(IMAGES[0])] * 4}).encode()  # 4 images of 64 bytes each
    enough = ReplicaLimits(held_bytes=len(body) + 256)
    status, answer, held = asked(registry, body, b"application/json", enough)
    assert (status, len(answer["predictions"]), held) == (200, 4, 0)
    status, answer, held = asked(registry, body, b"application/json", ReplicaLimits(held_bytes=len(body) + 255))
    assert (status, answer["error"], held) == (503, "the queue is full; come again.", 0)


def test_a_fault_of_the_server_is_500_without_its_reason(registry):
    """An ASGI call, since no request is known that leads there."""

    status, answer, held = asked(registry, IMAGES[0], b"image/png", ReplicaLimits(), broken=True)
    assert (status, held) == (500, 0)
    assert answer == {"error": "internal error; the server's log says more."}
