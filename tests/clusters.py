"""A real Ray cluster for the tests: a head with its dashboard and token authentication on 127.0.0.1, and nodes that join it."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from servers import free_port, until

BIN = Path(sys.executable).parent
NODE_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",  # this machine may be busy
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes an address that others reach, and listens everywhere
    "OMP_NUM_THREADS": "1",
}


class Cluster:
    """Nodes are started and killed one by one; all of them die with `end`.

    Args:
        home: of the storage, the token and HOME of the nodes.
        environment: of the head, beside what a cluster of ours has.
    """

    def __init__(self, home, cpus=2, **environment):
        self.home, self._cpus = Path(home), cpus
        self.storage, self.token_file = self.home / "storage", self.home / "auth_token"
        self.storage.mkdir(exist_ok=True)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(16))
        self.gcs, self.dashboard = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.dashboard}"
        self.nodes = []
        self._temp = tempfile.mkdtemp(prefix="rc", dir="/tmp")  # short: Ray's sockets have at most 107 letters
        self._environment = environment

    def environment(self, **more):
        """What a node, or a shell beside it, has."""
        paths = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.home), "VIT_SEARCH_STORAGE": str(self.storage)}
        known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "VIT_SEARCH_"))}
        return known | NODE_ENV | paths | {"RAY_AUTH_TOKEN_PATH": str(self.token_file)} | self._environment | more

    def start(self):
        """The head; on a busy machine at the third try at the latest."""
        for attempt in range(3):
            try:
                self._start_head()
                return self
            except AssertionError:
                self.end(keep=True)
                if attempt == 2:
                    raise
        return self

    def _start_head(self):
        listening = [
            "--node-ip-address=127.0.0.1",
            f"--port={self.gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}",
        ]
        agent = [f"--dashboard-agent-listen-port={free_port()}"]  # Ray's own choice may be taken by another cluster on this machine
        self._node("--head", *listening, *agent, f"--num-cpus={self._cpus}", "--include-dashboard=true", f"--temp-dir={self._temp}")
        until(self.answers, 120)

    def answers(self):
        """Whether the Jobs API takes our token, and its agent is there."""
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {self.token_file.read_text()}"})
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except OSError:
            return False

    def join(self, cpus=1, gpus=0, **environment):
        """One more node; its process."""
        agent = [f"--dashboard-agent-listen-port={free_port()}"]
        sizes = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=80000000"]
        return self._node(f"--address=127.0.0.1:{self.gcs}", "--node-ip-address=127.0.0.1", *sizes, *agent, **environment)

    def _node(self, *options, **environment):
        log = (self.home / f"node-{len(self.nodes)}.log").open("ab")
        command = [BIN / "ray", "start", "--block", "--disable-usage-stats", *options]
        with log:
            node = subprocess.Popen(
                command, env=self.environment(**environment), stdout=log, stderr=log, cwd=self.home, start_new_session=True
            )
        self.nodes.append(node)
        time.sleep(1)
        assert node.poll() is None, Path(log.name).read_text()
        return node

    def kill(self, node):
        """SIGKILL for a node with all that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            known = psutil.Process(node.pid)
            family = [known, *known.children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=20)
        node.wait()
        self.nodes.remove(node)

    def processes(self, *words):
        """Those of this cluster whose command line holds all words."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            line, around = process.info["cmdline"] or [], process.info["environ"] or {}
            if around.get("VIT_SEARCH_STORAGE") == str(self.storage) and all(word in line for word in words):
                found.append(process)
        return found

    def end(self, keep=False):
        """Kill everything; the storage stays, and with `keep` another head may be started on it."""
        for node in list(self.nodes):
            self.kill(node)
        for process in self.processes():  # whatever Ray has cut loose
            if process.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        shutil.rmtree(self._temp, ignore_errors=True)
        if keep:
            Path(self._temp).mkdir(exist_ok=True)
