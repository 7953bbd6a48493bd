"""Servers of files on 127.0.0.1: S3 as moto's process, folders over HTTP, and a server whose network fails."""

import contextlib
import functools
import http.server
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


@contextlib.contextmanager
def http_server(folder):
    """Files and folders by Python's own server, which also takes ranges, cuts connections and refuses, as it is told."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_HEAD(self):
            if not self._refused():
                super().do_HEAD()

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
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
                content = content[begin:end]
            else:
                self.send_response(200)
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
