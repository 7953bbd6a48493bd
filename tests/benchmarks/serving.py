"""How fast the server answers, ours against `mlflow models serve` of the same registered model, and what a promotion costs its clients.

    python tests/benchmarks/serving.py [--seconds 5] [--rounds 3] [--replicas 1] [--shapes digits 28x28]
    python tests/benchmarks/serving.py --promotions [--requests 10000]

Both servers run at once and are asked in turns, by a load generator in a process of its own (asyncio, aiohttp, uvloop) on the same
cores; each connection sends its next request when the last is answered. The image is one PNG of the trained size: MLflow gets it
as base64 in JSON, the only form it has; ours as it is, and in MLflow's form too. Models: 2 blocks of width 96 over 8x8 digits,
and 4 blocks of width 128 over 28x28. `--promotions` moves the alias with the MLflow client, three promotions and a rollback,
while 32 connections ask.

What was learned, 2026-11-25, digits, 32 connections, on a machine whose two cores four others used as well:
- Ray Serve's own ways in limit, not the model. The same ASGI application and batches behind Serve's HTTP proxy answered 151
  requests a second, behind the proxy as FastAPI ingress 193, with direct ingress (RAY_SERVE_ENABLE_DIRECT_INGRESS=1) 229, with
  direct ingress, RAY_SERVE_THROUGHPUT_OPTIMIZED=1 and user code in the replica's own loop 209; with uvicorn on a port that the
  replicas share by SO_REUSEPORT, within the same replicas, 1,260 to 2,080. So Serve starts, watches and replaces the replicas, and
  requests go to them directly. HAProxy was not tried: it fronts direct ingress, so it is not faster than that.
- Of 310 us of processor time a request then took (a profile without Ray): the event loop 107, of which uvicorn's protocol is the
  half; decoding a PNG of 140 bytes 65; classifying 119 at a mean batch of 12; writing JSON 17. Alone a forward pass takes 790 us:
  batching divides that by 7. The queue is two SimpleQueues between threads; the results of a batch come back in one wake-up.
- The load generator takes 150 to 200 us a request of the same two cores: what is measured at 32 is held down by it.
- Registry polls, downloads and smoke tests run in another process; around a reload p99 was 0.9 times that of the steady state.
- Python takes 2 to 7 s to end a process that has loaded torch, Ray and MLflow, which is why the command leaves by os._exit.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the tests

import numpy as np
import torch
from helpers import servers
from PIL import Image
from rounds import surroundings, table

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.registry import smoke
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint, evaluation, training

BIN = Path(sys.executable).parent
CONCURRENCIES = (1, 8, 32)
SHAPES = {
    "digits": {"image_size": (8, 8), "patch_size": 4, "dim": 96, "depth": 2, "heads": 4},
    "28x28": {"image_size": (28, 28), "patch_size": 7, "dim": 128, "depth": 4, "heads": 4},
}


@dataclass(frozen=True)
class Load:
    """What one run of the generator saw."""

    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failed: int


def make(home: Path, uri: str, name: str, versions: int) -> bytes:
    """Register untrained models of a shape, alias at the first; an image for them."""
    client = client_for(uri)
    client.create_registered_model(name)
    found = client.get_experiment_by_name("t")
    experiment = found.experiment_id if found else client.create_experiment("t", artifact_location=(home / "artifacts").as_uri())
    model = ModelConfig(in_channels=1, num_classes=10, **SHAPES[name])
    for seed in range(1, versions + 1):
        config = TrialConfig(data=DataConfig(name="digits"), model=model, training=TrainingConfig(epochs=1), seed=seed)
        folder = home / f"{name}-{seed}"
        state = training.start(config, evaluation.Normalisation.of((0.4,), (0.3,)))
        checkpoint.save(folder, state, classes=tuple("0123456789"), data_hash="h")
        run = client.create_run(experiment).info.run_id
        client.set_terminated(run)
        logged = log_model(folder, run_id=run)
        tags = {"golden": smoke.golden(checkpoint.load_model(folder)), "verdict": "passed"}
        client.create_model_version(name, logged, tags=tags, model_id=logged.rpartition("/")[2])
    client.set_registered_model_alias(name, "champion", "1")
    raw = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, model.image_size, np.uint8)).save(raw, "PNG")
    return raw.getvalue()


@contextlib.contextmanager
def mlflow_serving(home: Path, uri: str, name: str) -> Iterator[str]:
    """As the README starts it."""
    port = servers.free_port()
    command = ["mlflow", "models", "serve", "-m", f"models:/{name}@champion", "--env-manager", "local", "--port", str(port)]
    place = home / f"mlflow-{name}"
    place.mkdir()
    process = servers.start(command, place, port, MLFLOW_TRACKING_URI=uri, PATH=f"{BIN}:{os.environ['PATH']}")
    try:
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        servers.end(process)


@contextlib.contextmanager
def our_serving(home: Path, uri: str, name: str, replicas: int) -> Iterator[str]:
    """`vit-search serve`."""
    port = servers.free_port()
    place = home / f"ours-{name}"
    place.mkdir()
    command = [str(BIN / "vit-search"), "serve", f"{name}@champion", "--port", str(port), "--tracking-uri", uri]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--replicas", str(replicas)],
            stdout=log,
            stderr=log,
            env=os.environ | {"VIT_SEARCH_CACHE": str(home / "cache")},
            start_new_session=True,
        )
    try:
        servers.until(lambda: f":{port}" in (place / "log").read_text() or process.poll() is not None, 120)
        assert process.poll() is None, (place / "log").read_text()
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        process.terminate()
        process.wait(60)


def load(url: str, concurrency: int, seconds: float, body: bytes, kind: str, answers: Path | None = None) -> Load:
    """Run the generator in a process of its own."""
    command = [sys.executable, __file__, "--load", url, str(concurrency), str(seconds), kind, str(answers or "")]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    return Load(**json.loads(done.stdout))


def generate(url: str, concurrency: int, seconds: float, kind: str, answers: str, body: bytes) -> None:
    """The generator itself: prints a Load, and writes (end, seconds, version) of every answer where it is told to."""
    import aiohttp
    import uvloop

    took: list[float] = []
    seen: list[tuple[float, float, str]] = []
    failed = 0

    async def work(session: aiohttp.ClientSession, end: float) -> None:
        nonlocal failed
        while (began := time.perf_counter()) < end:
            try:
                async with session.post(url, data=body, headers={"content-type": kind}) as answer:
                    raw = await answer.read()
                    good = answer.status == 200
            except aiohttp.ClientError:
                good, raw = False, b""
            failed += not good
            took.append(time.perf_counter() - began)
            if answers:
                versions = {row["version"] for row in json.loads(raw)["predictions"]} if good else set()
                seen.append((time.time(), took[-1], " ".join(sorted(versions))))

    async def run() -> float:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            began = time.perf_counter()
            await asyncio.gather(*[work(session, began + seconds) for _ in range(concurrency)])
            return time.perf_counter() - began

    lasted = uvloop.run(run())
    at = np.percentile(took, [50, 95, 99]) * 1000
    if answers:
        Path(answers).write_text(json.dumps(seen))
    sys.stdout.write(json.dumps({"per_s": len(took) / lasted, "p50_ms": at[0], "p95_ms": at[1], "p99_ms": at[2], "failed": failed}))


def compare(home: Path, uri: str, options: argparse.Namespace) -> None:
    """The table of both servers."""
    for name in options.shapes:
        image = make(home, uri, name, 1)
        text = json.dumps({"inputs": [base64.b64encode(image).decode()]}).encode()
        with mlflow_serving(home, uri, name) as theirs, our_serving(home, uri, name, options.replicas) as ours:
            contenders: dict[str, tuple[Any, ...]] = {
                "mlflow models serve": (theirs, text, "application/json"),
                "vit-search serve, JSON": (ours, text, "application/json"),
                "vit-search serve": (ours, image, "image/png"),
            }
            for url, body, kind in contenders.values():  # warm
                load(url, 8, 2, body, kind)
            rows = []
            for concurrency in CONCURRENCIES:
                found: dict[str, list[Load]] = {who: [] for who in contenders}
                for _ in range(options.rounds):
                    for who, (url, body, kind) in contenders.items():
                        found[who].append(load(url, concurrency, options.seconds, body, kind))
                base = found["mlflow models serve"]
                for who, loads in found.items():
                    middle = {field: statistics.median(getattr(one, field) for one in loads) for field in vars(loads[0])}
                    ratios = sorted(one.per_s / other.per_s for one, other in zip(loads, base, strict=True))
                    rows.append(
                        [
                            str(concurrency),
                            who,
                            f"{middle['per_s']:,.0f}",
                            *(f"{middle[field]:.1f}" for field in ("p50_ms", "p95_ms", "p99_ms")),
                            str(sum(one.failed for one in loads)),
                            f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})",
                        ]
                    )
        print(f"\n{name}, a PNG of {len(image)} bytes, {options.replicas} replica(s), {options.rounds} rounds of {options.seconds:g} s\n")
        print(table(["connections", "server", "requests/s", "p50 ms", "p95 ms", "p99 ms", "failed", "speed to MLflow's"], rows), flush=True)


def promotions(home: Path, uri: str, options: argparse.Namespace) -> None:
    """Three promotions and a rollback under load."""
    name, moves = "digits", ("2", "3", "4", "3")
    image = make(home, uri, name, 4)
    client = client_for(uri)
    with our_serving(home, uri, name, options.replicas) as url:
        rate = load(url, 32, 3, image, "image/png").per_s
        seconds = max(60.0, 1.1 * options.requests / rate)
        answers = home / "answers.json"
        command = [sys.executable, __file__, "--load", url, "32", str(seconds), "image/png", str(answers)]
        generator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert generator.stdin is not None
        generator.stdin.write(image)
        generator.stdin.close()
        moved = []
        for version in moves:
            time.sleep(seconds / (len(moves) + 1) + 0.3 * int(version))  # at no fixed phase of the polls
            client.set_registered_model_alias(name, "champion", version)
            moved.append(time.time())
        generator.wait()
        assert generator.stdout is not None
        whole = Load(**json.loads(generator.stdout.read()))
    seen = json.loads(answers.read_text())
    mixed = sum(" " in versions for *_, versions in seen)
    rows, within = [], np.zeros(len(seen), bool)
    ends, took = np.array([end for end, *_ in seen]), np.array([one for _, one, _ in seen])
    for at, version, until in zip(moved, moves, [*moved[1:], float("inf")], strict=True):
        old = [end for end, _, versions in seen if at < end < until and versions != f"{name}/{version}"]
        live = max(old, default=at) - at
        window = (ends > at) & (ends < at + live + 1)
        within |= window
        rows.append([f"{name}/{version}", f"{live:.1f}", f"{np.percentile(took[window], 99) * 1000:.0f}"])
    steady = np.percentile(took[~within], 99) * 1000
    print(f"\n{len(seen):,} requests by 32 connections, {whole.per_s:,.0f}/s: {whole.failed} failed, {mixed} of mixed versions\n")
    print(table(["alias moved to", "all answers by it after, s", "p99 from then to 1 s later, ms"], rows))
    print(f"\np99 in steady state {steady:.0f} ms, around reloads {np.percentile(took[within], 99) * 1000:.0f} ms: ", end="")
    print(f"{np.percentile(took[within], 99) * 1000 / steady:.2f} times")


def main() -> None:
    """Parse and run."""
    if sys.argv[1:2] == ["--load"]:
        url, concurrency, seconds, kind, answers = sys.argv[2:]
        generate(url, int(concurrency), float(seconds), kind, answers, sys.stdin.buffer.read())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--promotions", action="store_true")
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # ends the servers, too
    print(surroundings(torch.device("cpu"), "ray", "mlflow", "uvicorn"))
    home = Path(tempfile.mkdtemp())
    try:
        (promotions if options.promotions else compare)(home, f"sqlite:///{home / 'mlruns.db'}", options)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
