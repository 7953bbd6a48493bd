"""A real Ray cluster of several nodes on this machine, with token authentication, and searches on it that faults are done to.

Each node is what `ray start` makes: a raylet with its agents and workers, and on the head the GCS. Each has a network namespace, and
so an interface, of its own, as machines have: ports do not meet, and a cable can be pulled. That needs root.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from helpers.paths import ROOT as CHECKOUT
from helpers.paths import TESTS
from helpers.servers import until
from vit_search.ledger.events import Reported
from vit_search.ledger.file import read_events, read_trials

BINARIES = Path(sys.executable).parent
PORT = 6379
SHARED_BYTES = 64 * 2**20
ROOT = os.getuid() == 0 and shutil.which("ip") is not None


class Namespaces:
    """Of the nodes, each with a cable to a bridge on the head."""

    _counted = itertools.count(7 + 60 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))  # at most four processes run tests at once

    def __init__(self):
        self._name, self._made = f"vs{secrets.token_hex(3)}", []
        self._net = f"10.83.{next(self._counted)}"  # Ray takes a process that names the same address for one of its own, wherever that is

    def address(self, number):
        if number not in self._made:
            self._make(number)
        return f"{self._net}.{number + 1}"

    def inside(self, number):
        return ["ip", "netns", "exec", self._space(number)]

    def cable(self, number, state):
        """Pull a worker's cable (`down`) or put it back (`up`)."""
        ip("-n", self._space(0), "link", "set", f"v{number}", state)

    def narrow(self, number, rate):
        """Let no more through a worker's cable than this, e.g. `1mbit`, either way."""
        for space, device in ((self._space(0), f"v{number}"), (self._space(number), "hub")):
            limit = ["rate", rate, "burst", "16kb", "latency", "400ms"]
            ip("netns", "exec", space, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def close(self):
        for number in reversed(self._made):
            ip("netns", "del", self._space(number))

    def _space(self, number):
        return f"{self._name}n{number}"

    def _make(self, number):
        space, head = self._space(number), self._space(0)
        ip("netns", "add", space)
        self._made.append(number)
        ip("-n", space, "link", "set", "lo", "up")
        if number == 0:
            ip("-n", head, "link", "add", "hub", "type", "bridge")
        else:
            ip("-n", head, "link", "add", f"v{number}", "type", "veth", "peer", "name", "hub", "netns", space)
            ip("-n", head, "link", "set", f"v{number}", "master", "hub", "up")
        ip("-n", space, "address", "add", f"{self._net}.{number + 1}/24", "dev", "hub")
        ip("-n", space, "link", "set", "hub", "up")


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Cluster:
    """A head without CPUs, some workers of one CPU each, and `shared`, a disk that all of them see; all are ended with the context.

    Args:
        workers: nodes beside the head.
        environment: of all nodes and of the drivers, beside the usual.
    """

    def __init__(self, workers=2, **environment):
        self.network = Namespaces()
        self.home = Path(tempfile.mkdtemp(prefix="vs-", dir="/tmp"))  # Ray's sockets have short paths
        self._nodes = {}
        (self.home / "ray").mkdir()
        self.shared = self.home / "shared"
        self.shared.mkdir()
        image = self.home / "shared.ext4"
        with image.open("wb") as file:
            file.truncate(SHARED_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(self.shared)], check=True)
        token = self.home / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{CHECKOUT}:{TESTS}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_raylet_start_wait_time_s": "300",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "",
            **environment,
        }
        self._workers = workers

    @property
    def address(self):
        return f"{self.network.address(0)}:{PORT}"

    def __enter__(self):
        try:
            self.start(0)
            self.wait(0)
            for number in range(1, self._workers + 1):
                self.start(number)
            for number in self._nodes:
                self.wait(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for number in list(self._nodes):
            self.kill(number)
        self.network.close()
        subprocess.run(["umount", "-l", str(self.shared)], check=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self, number, cpus=1, **environment):
        """Start a node, 0 being the head; `wait` says when it is there."""
        own = self.network.address(number)
        command = [*self._inside(number), str(BINARIES / "ray"), "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={own}", "--object-store-memory=80000000"]
        if number == 0:
            command += ["--head", f"--port={PORT}", "--num-cpus=0", f"--temp-dir={self.home / 'ray'}", "--include-dashboard=false"]
        else:
            command += [f"--address={self.address}", f"--num-cpus={cpus}"]
        with self._log(number).open("wb") as log:
            self._nodes[number] = subprocess.Popen(
                command, env=self.environment | environment, stdout=log, stderr=log, cwd=self.home, start_new_session=True
            )

    def _inside(self, number):
        """On a worker's machine, which has a disk of its own for Ray's files."""
        if number == 0:
            return self.network.inside(0)
        disk = self.home / f"disk-{number}"
        disk.mkdir(exist_ok=True)
        mount = 'mount --bind "$0" "$1" && shift && exec "$@"'
        return [*self.network.inside(number), "unshare", "-m", "sh", "-c", mount, str(disk), str(self.home / "ray")]

    def mounted(self, number, *words):
        """Change what a worker's machine sees of the disks, by a command."""
        (top, *_) = self.processes(number)
        subprocess.run(["nsenter", "-t", str(top.pid), "-m", *words], check=True, capture_output=True)

    def wait(self, number):
        """Until a node has joined."""

        def there():
            assert self._nodes[number].poll() is None, self._log(number).read_text()
            return "Ray runtime started" in self._log(number).read_text()

        until(there)

    def processes(self, number):
        """All processes of a node, the drivers on it not among them."""
        try:
            top = psutil.Process(self._nodes[number].pid)
            return [top, *top.children(recursive=True)]
        except (KeyError, psutil.NoSuchProcess):
            return []

    def workers(self, number):
        """The processes of the trials on a node."""
        return [p for p in self.processes(number) if _name(p).startswith("ray::ImplicitF")]

    def kill(self, number):
        """A node is gone as if its plug had been pulled."""
        if number in self._nodes:
            for process in self.processes(number):  # first nobody may act on the others' death
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            for process in self.processes(number):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._nodes.pop(number).wait()

    def ray(self, *words):
        """Ray's own command line, on the head."""
        command = [*self.network.inside(0), str(BINARIES / "ray"), *words, f"--address={self.address}"]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=1800, check=True).stdout

    def node_id(self, number):
        """Ray's id of a node."""
        code = f"""
import json, ray
ray.init(address={self.address!r}, log_to_driver=False, logging_level=40)
print(json.dumps({{n["NodeManagerAddress"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}}))
"""
        command = [*self.network.inside(0), sys.executable, "-c", code]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=1800, check=True)
        return json.loads(done.stdout.splitlines()[-1])[self.network.address(number)]

    def _log(self, number):
        return self.home / f"node-{number}.log"


def _name(process):
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


class Search:
    """A search on a cluster, its driver a process on the head, its folder on the shared disk.

    Args:
        place: for what the test itself keeps, and for MLflow's database.
        slow_s: seconds that each epoch takes longer.
        environment: of the driver, beside the cluster's.
    """

    def __init__(self, cluster, place, text, *, slow_s=0.0, **environment):
        self.cluster, self.output, self._place, self._name = cluster, cluster.shared / place.name, place, "small-1"
        self.folder, self._file, self.counted = self.output / self._name, place / "small.yaml", place / "counted.jsonl"
        self._file.write_text(text)
        self._environment = {
            **cluster.environment,
            "COUNTED": str(self.counted),
            "SLOW_S": str(slow_s),
            "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlruns.db'}",
            **environment,
        }
        self.driver = None

    def run(self):
        return self._start("run", str(self._file), "--output", str(self.output), "--as", self._name)

    def resume(self):
        return self._start("resume", str(self.folder))

    def _start(self, *words):
        command = [*self.cluster.network.inside(0), sys.executable, "-c", "from helpers import counted; counted.main()"]
        command += [*words, "--address", self.cluster.address]
        with (self._place / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                command, env=self._environment, cwd=self._place, stdout=log, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.communicate()
        shutil.rmtree(self.output, ignore_errors=True)  # the shared disk is small

    def until(self, condition, seconds=1800):
        """Wait for something that becomes true while the driver runs."""

        def met():
            assert self.driver.poll() is None, self.driver.communicate()[1]
            return condition()

        until(met, seconds)

    def reported(self):
        """Epochs that the driver has heard of."""
        ledger = self.folder / "ledger.jsonl"
        return ledger.read_text().count('"event":"reported"') if ledger.exists() else 0

    @contextlib.contextmanager
    def held(self):
        """The epochs that are begun go on after this block."""
        held = Path(f"{self.counted}.held")
        held.touch()
        yield
        held.unlink()

    def end(self, seconds=1800):
        """Its exit code and what it said, once it is over."""
        _, said = self.driver.communicate(timeout=seconds)
        return self.driver.returncode, said

    def kill(self):
        self.driver.send_signal(signal.SIGKILL)
        self.driver.communicate()

    def notes(self):
        """The epochs that were trained, one dictionary each."""
        return [json.loads(line) for line in self.counted.read_text().splitlines()] if self.counted.exists() else []

    def notes_of(self, node):
        """Those of a node, by Ray's id."""
        return [note for note in self.notes() if note["node"] == node]

    def at_work(self):
        """By trial, who has begun an epoch of it last."""
        return {note["trial"]: note for note in self.notes()}

    def kept_by(self, pid, after):
        """Epochs in the checkpoints that are there now which a process began after a moment."""
        began = {(note["trial"], note["epoch"]): note for note in self.notes() if note["pid"] == pid and note["at"] > after}
        seconds = {}
        for path in self.folder.glob("trials/*/checkpoint/config.json"):
            seconds |= {(int(path.parts[-3]), result["epoch"]): result["seconds"] for result in json.loads(path.read_text())["history"]}
        heard = {(e.trial, e.result.epoch): e.result.seconds for e in self._reports()}
        return sum(key in began and heard.get(key) != value for key, value in seconds.items())

    def _reports(self):
        return [event for event in read_events(self.folder / "ledger.jsonl") if isinstance(event, Reported)]

    def trials(self):
        return read_trials(self.folder / "ledger.jsonl")

    def told(self, trials):
        """The figures of a search that should have had so many trials: law 2 in numbers."""
        import mlflow

        known = self.trials()
        reports = Counter((event.trial, event.result.epoch) for event in self._reports())
        trained = Counter((note["trial"], note["epoch"]) for note in self.notes())
        client = mlflow.MlflowClient(self._environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("small").experiment_id
        runs = Counter(run.data.tags["trial"] for run in client.search_runs([experiment]) if "trial" in run.data.tags)
        return {
            "trials": len(known),
            "lost": trials - sum(trial.outcome in ("completed", "stopped") for trial in known),
            "doubled": sum(reports.values()) - len(reports) + sum(runs.values()) - len(runs),
            "epochs": sum(trained.values()),
            "repeated": sum(trained.values()) - len(trained),
        }


def figure(row, **figures):
    """Print the figures of a row of RELIABILITY.md, 3.2; `pytest -s` shows them."""
    print(f"\n{row} | " + ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in figures.items()), flush=True)


def _text(value):
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def timed(condition, seconds):
    """Seconds until something is true."""
    began = time.monotonic()
    until(condition, seconds)
    return time.monotonic() - began
