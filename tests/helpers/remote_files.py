"""Servers of files on 127.0.0.1: S3 as moto's process, folders over HTTP, and a server whose network fails."""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.servers import free_port

KEY, SECRET = "AKIDOFTHETEST", "Never/Written+Anywhere-0123456789abcdef"


def photos(folder, classes=("cat", "dog"), each=6, side=8, first=0):
    """PNG files of noise, a folder for each class: 6 images of 8x8 pixels in each by default."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + each):
            pixels = np.random.default_rng((label, i)).integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@contextlib.contextmanager
def s3_server(log):
    """moto's server as a process of its own, which wants credentials; yields the environment of its clients."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    around = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "1000000"}
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with Path(log).open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=around)
    try:
        until_answered(f"{address}/moto-api/", process)
        yield {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    finally:
        process.terminate()
        process.wait()


def until_answered(url, process):
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)


def s3_client(environment):
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


def upload(client, bucket, folder, prefix="", **options):
    """All files of a folder, under their names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=prefix + str(path.relative_to(folder)), Body=path.read_bytes(), **options)


class Served:
    """A server of a folder: its address, and the requests that it had."""

    def __init__(self, server):
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.gets = []
        self.drops = {}
        """Path: how often its connection is cut after half of what was asked for."""
        self.status = {}
        """Path: what it is answered with."""
        self.ranges = True
        self.sizes = True
        """Whether it says how long a file is."""


@contextlib.contextmanager
def http_server(folder):
    """Files and folders by Python's own server, which also takes ranges, cuts connections and refuses, as it is told."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_HEAD(self):
            if self._refused():
                return
            if served.sizes:
                super().do_HEAD()
            else:
                self.send_response(200)
                self.end_headers()

        def do_GET(self):
            path = urllib.parse.unquote(self.path)
            served.gets.append((path, self.headers.get("Range")))
            if self._refused():
                return
            file = Path(self.translate_path(self.path))
            if not file.is_file():
                super().do_GET()
                return
            content, begin = file.read_bytes(), 0
            asked = self.headers.get("Range") if served.ranges else None
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                begin, end = int(first), int(last) + 1 if last else len(content)
                if begin >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
                content = content[begin:end]
            else:
                self.send_response(200)
            if served.sizes:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if served.drops.get(path, 0) > 0:
                served.drops[path] -= 1
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.connection.close()
                return
            self.wfile.write(content)

        def _refused(self):
            status = served.status.get(urllib.parse.unquote(self.path))
            if status:
                self.send_error(status)
            return status

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    served = Served(server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def gs_server(folder, bucket):
    """The part of Google Cloud Storage's JSON API that lists and reads a bucket, whose objects are the files of a folder."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            parts = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(parts.query)
            words = parts.path.removeprefix("/download").removeprefix("/storage/v1").strip("/").split("/")
            if words[:2] != ["b", bucket]:
                return self._answer(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
            if len(words) == 3:
                prefix = query.get("prefix", [""])[0]
                names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
                return self._answer(200, {"kind": "storage#objects", "items": [self._about(n) for n in names if n.startswith(prefix)]})
            name = urllib.parse.unquote(words[3])
            if not (folder / name).is_file():
                return self._answer(404, {"error": {"code": 404, "message": f"No such object: {name}"}})
            if query.get("alt") != ["media"] and not parts.path.startswith("/download"):
                return self._answer(200, self._about(name))
            content = (folder / name).read_bytes()
            asked = self.headers.get("Range")
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                content = content[int(first) : int(last) + 1 if last else None]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _about(self, name):
            content = (folder / name).read_bytes()
            md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
            about = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content)), "md5Hash": md5, "etag": md5[:8]}
            return about | {"generation": "1", "updated": "2026-11-29T00:00:00.000Z", "timeCreated": "2026-11-29T00:00:00.000Z"}

        def _answer(self, status, document):
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_address[1]}"}
    finally:
        server.shutdown()
        server.server_close()
