"""A real Ray cluster for the tests, with its dashboard and token authentication: a head on a loopback address, and nodes that join it."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import psutil

from helpers.servers import free_port, until

BIN = Path(sys.executable).parent
MARK = "VIT_SEARCH_TEST_CLUSTER"
"""By which the processes of a cluster are found; Ray cuts some of them loose from those that have started them."""

ADDRESS = "127.0.0.2"
"""Loopback too, but Ray takes 127.0.0.1 for a mistake in a cluster of several nodes and puts the machine's own address in its place."""

NODE_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",  # this machine may be busy
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_AUTH_MODE": "token",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",
}


def marked(value):
    """The processes whose environment bears our mark with this value."""
    every = psutil.process_iter(["cmdline", "environ"])
    return [process for process in every if (process.info["environ"] or {}).get(MARK) == str(value) and process.pid != os.getpid()]


class Cluster:
    """Nodes are started and killed one by one; all of them, and what they have started, die with `end`.

    Args:
        home: of the storage, the token, and the nodes' HOME.
        cpus: of the head.
        environment: of every node, beside what a cluster of ours has.
    """

    def __init__(self, home, cpus=2, **environment):
        self.home, self._cpus, self._environment = Path(home), cpus, environment
        self.storage, self.token_file = self.home / "storage", self.home / "auth_token"
        self.storage.mkdir(exist_ok=True)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(16))
        self.temp = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # short: Ray's sockets have names of at most 107 letters
        self.gcs, self.dashboard = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.dashboard}"
        self.nodes = []

    def environment(self, **more):
        """What a node has, and a shell on it."""
        known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "VIT_SEARCH_"))}
        own = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "VIT_SEARCH_STORAGE": str(self.storage),
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            MARK: str(self.temp),
        }
        return known | NODE_ENV | own | self._environment | more

    def start(self):
        """The head; on a busy machine at the third try at the latest."""
        for attempt in range(3):
            try:
                self._start()
                return self
            except AssertionError:
                self.end()
                if attempt == 2:
                    raise
        return self

    def _start(self):
        self.temp.mkdir(exist_ok=True)
        ports = [f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
        self._node("--head", *ports, f"--num-cpus={self._cpus}", f"--temp-dir={self.temp}")
        until(self.answers)

    def answers(self):
        """Whether the Jobs API takes our token."""
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {self.token_file.read_text()}"})
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except OSError:
            return False

    def join(self, cpus=1, gpus=0, own_storage=False, **environment):
        """One more node, once the head knows it; its process.

        Args:
            own_storage: whether what it sees in the place of the storage is an empty folder of its own; needs root.
        """
        options = [f"--address={ADDRESS}:{self.gcs}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        alone = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$VIT_SEARCH_STORAGE" && exec "$@"', "sh"]
        return self._node(*options, before=alone if own_storage else (), **environment)

    def keep(self):
        """The keeper, which a supervisor keeps alive on a head of ours."""
        command = [BIN / "vit-search", "cluster", "keep", "--address", self.url, "--every", "1"]
        with (self.home / "keeper.log").open("ab") as log:
            return subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log, cwd=self.home)

    def _node(self, *options, before=(), **environment):
        path = self.home / f"node-{len(self.nodes)}.log"
        agent = f"--dashboard-agent-listen-port={free_port()}"  # Ray's own choice may be another cluster's on this machine
        command = [
            *before,
            BIN / "ray",
            "start",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={ADDRESS}",
            agent,
            "--object-store-memory=80000000",
        ]
        with path.open("wb") as log:
            around = self.environment(**environment)
            node = subprocess.Popen([*command, *options], env=around, stdout=log, stderr=log, cwd=self.home, start_new_session=True)
        self.nodes.append(node)

        def started():
            assert node.poll() is None, path.read_text()
            return "Ray runtime started." in path.read_text()

        until(started)
        return node

    def leave(self, node):
        """End one node in peace."""
        node.terminate()
        node.wait()
        self.nodes.remove(node)

    def processes(self, *words):
        """Those of this cluster, with all these words in their command line."""
        return [process for process in marked(self.temp) if all(word in (process.info["cmdline"] or []) for word in words)]

    def end(self):
        """Kill everything at once, as a power cut would; the storage stays, and `start` makes a new Ray on it."""
        for _ in range(3):  # what is being started may slip through once
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        for node in self.nodes:
            node.wait()
        self.nodes.clear()
        shutil.rmtree(self.temp, ignore_errors=True)
