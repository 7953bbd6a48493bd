"""What lies around a search and must not matter: modules in the current folder, an account without a name, a terminal that goes away."""

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import psutil
import pytest
from helpers.commands import COMMAND
from helpers.paths import ROOT
from helpers.servers import until
from mlflow import MlflowClient

from vit_search.ledger.events import Launched, Reported
from vit_search.ledger.file import read_events, read_trials
from vit_search.runtime import signals

FILE = """
name: small
data: {name: digits, train_limit: 400}
trials: 2
epochs: 2
concurrency: 2
seed: 3
stopping: {kind: none}
model: {patch_size: 4, depth: 1, dim: 16, heads: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}}
"""
POLICY = """
top: 1
seeds: 1
floors: {accuracy: 0.2, linear_probe: false}
export: {formats: [safetensors]}
"""
HOSTILE = ("numpy", "pandas", "torch", "random", "ray", "vit_search", "sitecustomize", "mlflow/__init__")
MARK = "open({marker!r}, 'a').write(__name__ + ' in ' + ' '.join(__import__('sys').argv[:3]) + '\\n')\nraise SystemExit('run')\n"


def hostile(folder):
    """Modules in a folder which, imported, leave a mark, and a library which does so when it is looked for; the mark."""
    marker = folder / "marker"
    os.mkfifo(folder / "libcuda.so.1")  # whoever opens it to read lets the thread go on, and reads nothing

    def mark():
        with contextlib.suppress(OSError):  # the folder is gone
            while True:
                with (folder / "libcuda.so.1").open("wb"):
                    marker.write_text("libcuda.so.1")

    threading.Thread(target=mark, daemon=True).start()
    for name in HOSTILE:
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(MARK.format(marker=str(marker)))
    return marker


def said(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_lies_in_the_current_folder_is_not_imported_and_trials_are_as_nice_as_they_are_told(tmp_path):
    marker = hostile(tmp_path)
    (tmp_path / "small.yaml").write_text(FILE)
    command = [COMMAND, "run", "small.yaml", "--nice", "3"]
    nice = set()
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        while driver.poll() is None:
            for process in psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else ():
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("ray::Implicit"):
                        nice.add(process.nice())
            time.sleep(0.1)
        output = driver.stdout.read()
    assert not marker.exists(), marker.read_text()
    assert driver.returncode == 0, output
    assert "2 of 2 trials" in output
    assert nice == {3 + os.nice(0)}


@pytest.mark.parametrize("code", ["import torch", "import torchvision", "from vit_search.vit import model"])
def test_no_library_of_the_current_folder_is_loaded_with_torch(code, tmp_path):
    marker = hostile(tmp_path)
    code = f"import os, vit_search; {code}; print(os.getcwd())"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert not marker.exists(), marker.read_text()
    assert done.stdout.strip() == str(tmp_path), done.stderr


def test_torch_is_imported_from_a_folder_that_is_gone(tmp_path):
    code = "import os, vit_search; os.rmdir(os.getcwd()); import torch; print(torch.__name__, vit_search.__name__)"
    (tmp_path / "gone").mkdir()
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path / "gone", capture_output=True, text=True, timeout=1800)
    assert done.stdout.strip() == "torch vit_search", done.stderr


def test_every_ray_is_started_in_one_place_and_every_python_with_a_safe_path():
    for path in (ROOT / "vit_search").rglob("*.py"):
        text = path.read_text()
        assert "ray.init(" not in text or path.name == "ray_session.py", path
        for line in text.splitlines():
            if "[sys.executable" in line:
                assert '[sys.executable, "-P"' in line, f"{path}: {line}"


def test_niceness_of_a_cluster_is_refused(tmp_path):
    (tmp_path / "small.yaml").write_text(FILE)
    command = [COMMAND, "run", "small.yaml", "--nice", "0", "--address", "auto"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 2
    assert done.stderr.endswith("on a cluster, set RAY_worker_niceness where Ray is started.\n")


UID = 12345
BASE = Path(sys.base_prefix)
CLOSED = next((folder for folder in reversed(BASE.parents) if not folder.stat().st_mode & 0o001), None)
"""A folder on the way to Python that other accounts cannot enter, such as root's home."""

MOUNTS = "mount -t tmpfs -o mode=1777 none /tmp && mkdir -m 700 /tmp/ray"
"""A /tmp of its own, in which root has a /tmp/ray that others cannot enter."""

if CLOSED:
    MOUNTS += f" && mkdir /tmp/python && mount --bind {BASE} /tmp/python && mount -t tmpfs -o mode=755 none {CLOSED}"
    MOUNTS += f" && mkdir -p {BASE} && mount --bind /tmp/python {BASE}"
ALONE = ["unshare", "-m", "sh", "-c", f'{MOUNTS} && exec "$@"', "sh"]


@pytest.fixture
def nameless():
    """A folder of an account that the system does not know, with what it takes to run a command as that account."""
    before = [*ALONE, "setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "env"]
    if os.getuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("root, unshare and setpriv are needed")
    with tempfile.TemporaryDirectory(prefix="vs-", dir="/var/tmp") as place:
        (Path(place) / "home").mkdir()
        os.chown(place, UID, UID)
        os.chown(f"{place}/home", UID, UID)
        if subprocess.run([*before, COMMAND, "--version"], cwd=place, capture_output=True).returncode:
            pytest.skip("the environment cannot be read by another account")
        yield Path(place), before


def test_an_account_without_a_name_searches_promotes_and_predicts(nameless):
    folder, before = nameless
    hidden = {"LOGNAME", "USER", "LNAME", "USERNAME", "TMPDIR", "RAY_TMPDIR", "VIT_SEARCH_CACHE", "XDG_CACHE_HOME"}
    around = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(folder / "home")}

    def vit_search(*words):
        return said(subprocess.run([*before, COMMAND, *words], cwd=folder, env=around, capture_output=True, text=True, timeout=1800))

    marker = hostile(folder)
    (folder / "small.yaml").write_text(FILE)
    (folder / "policy.yaml").write_text(POLICY)
    vit_search("run", "small.yaml")
    promoted = vit_search("promote", "--policy", "policy.yaml", "--allow-dirty")
    assert "champion" in promoted
    image = folder / "image.png"
    make = "import sys; from PIL import Image; Image.new('L', (8, 8), 9).save(sys.argv[1])"
    subprocess.run([sys.executable, "-P", "-c", make, str(image)], check=True)
    image.chmod(0o644)
    vit_search("predict", "--model", "models:/small@champion", "image.png")
    assert not marker.exists(), marker.read_text()
    client = MlflowClient(f"sqlite:///{folder / 'mlruns.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.data.tags["mlflow.user"] for run in runs} == {f"uid-{UID}"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert f"uid-{UID}" in vit_search("history", "small")


def terminal_of(command, folder):
    """A process on a terminal of its own, and the end of that terminal which a person sits at."""
    master, slave = pty.openpty()

    def own_terminal():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal)
    os.close(slave)
    os.set_blocking(master, False)
    return process, master


def drained(master):
    """Read what was printed, as a terminal does."""
    with contextlib.suppress(BlockingIOError, OSError):
        while os.read(master, 65536):
            pass


def test_a_search_whose_terminal_goes_away_ends_as_by_sigterm(tmp_path):
    (tmp_path / "small.yaml").write_text(FILE.replace("epochs: 2", "epochs: 500"))
    process, master = terminal_of([COMMAND, "run", "small.yaml"], tmp_path)
    ledger = tmp_path / "searches" / "small-1" / "ledger.jsonl"

    def trains():
        drained(master)
        assert process.poll() is None
        return ledger.exists() and sum(isinstance(event, Reported) for event in read_events(ledger)) >= 3

    try:
        until(trains)
        os.close(master)
        assert process.wait(1800) == 130
    finally:
        process.kill()
        process.wait()
    assert {trial.outcome for trial in read_trials(ledger)} == {"interrupted"}
    assert [type(event) for event in read_events(ledger)].count(Launched) == 1
    facts = json.loads((ledger.parent / "search.json").read_text())
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name(facts["spec_name"]).experiment_id])
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"KILLED"}


@pytest.mark.parametrize(("before", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)], ids=["terminal", "nohup"])
def test_a_server_and_a_driver_end_with_their_terminal_but_not_under_nohup(before, ends):
    from vit_search.cluster.jobs import driver
    from vit_search.serving import server

    around, stop = signal.signal(signal.SIGHUP, before), threading.Event()
    try:
        with (
            server.stop_on_signals(stop),
            server.stop_on_signals(stop),
        ):  # the second time because Ray puts a handler of its own in between
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.wait(10 if ends else 0.3) == ends
        with driver.DriverProcess() as child:
            os.kill(os.getpid(), signal.SIGHUP)
            assert child.told_to_stop.wait(10 if ends else 0.3) == ends
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, around)


def test_a_terminal_that_is_gone_is_still_known_as_one(tmp_path):
    master, slave = pty.openpty()
    os.close(master)
    with (tmp_path / "file").open("w") as file:
        assert not signals.is_terminal(file.fileno())
    assert signals.is_terminal(slave)
    assert not os.isatty(slave)
    os.close(slave)


def test_an_account_without_name_and_home_is_told_what_to_set(nameless):
    folder, before = nameless
    code = """
from vit_search.runtime import ray_token
from vit_search.cluster.head import postgres
from vit_search.errors import VitSearchError
from vit_search.data import cache_folder
for ask in (ray_token.token_path, cache_folder.default_cache, postgres.system_user_name):
    try:
        print(ask())
    except VitSearchError as error:
        print(error)
"""
    command = [*before, "-u", "HOME", "-u", "VIT_SEARCH_CACHE", "-u", "XDG_CACHE_HOME", sys.executable, "-P", "-c", code]
    around = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN_PATH"}
    done = subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True, timeout=1800)
    assert done.stdout.splitlines() == [
        "this account has no home folder for Ray's token; set HOME, or name a file with RAY_AUTH_TOKEN_PATH.",
        "this account has no home folder for decoded images; set HOME, or name a folder with VIT_SEARCH_CACHE.",
        f"uid {UID} has no name on this machine, and PostgreSQL needs one; add it to /etc/passwd, or start the head as root.",
    ], done.stderr
