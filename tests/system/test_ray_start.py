"""How a Ray of our own starts: in a folder that no other account can enter, and with the cause in one line where it cannot."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from helpers.commands import COMMAND
from helpers.servers import until

from vit_search.errors import ClusterError
from vit_search.runtime import ray_folder

UNSHARED = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="root and unshare: mounts and networks of its own"
)
FILE = """
name: small
data: {name: digits, train_limit: 200}
trials: 1
epochs: 1
concurrency: 1
stopping: {kind: none}
model: {patch_size: 4, depth: 1, dim: 16, heads: 2}
"""
SESSION = """
import os, stat, sys
from pathlib import Path
from vit_search.runtime import ray_session
with ray_session.session():
    import ray
    sockets = Path(ray._private.worker._global_node.plasma_store_socket_name).parent
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    for folder in (sockets, *sockets.parents):
        about = folder.stat()
        print("folder", folder, stat.S_IMODE(about.st_mode), about.st_uid)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            os.rename(sockets / "plasma_store", sockets / "taken")
        except OSError as error:
            os.write(1, f"attack {error.strerror}\\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
print("left", sockets.exists())
"""


@UNSHARED
def test_no_other_account_reaches_the_sockets_and_neither_tmpdir_nor_home_matters(tmp_path):
    """TMPDIR is too long for a socket, and HOME can be read alone."""
    long, home = tmp_path / ("x" * 90), tmp_path / "home"
    long.mkdir()
    home.mkdir()
    script = tmp_path / "session.py"
    script.write_text(SESSION)
    inside = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o ro none {home} && exec "$@"', "sh"]
    around = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"} | {"TMPDIR": str(long), "HOME": str(home)}
    done = subprocess.run([*inside, sys.executable, script], env=around, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["attack", "Permission", "denied"] in lines
    assert ["left", "False"] in lines
    folders = [(Path(path), int(mode), int(uid)) for kind, path, mode, uid in (line for line in lines if line[0] == "folder")]
    (closed,) = [path for path, mode, uid in folders if mode == 0o700 and uid == os.getuid() and path.name.startswith(ray_folder.PREFIX)]
    for path, mode, uid in folders:
        if path in closed.parents:  # nobody may put another folder in the place of ours
            assert uid == 0
            assert mode & 0o022 == 0 or mode & 0o1000, path


SLOW_AGENTS = """
import sys, time
if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv):
    time.sleep(17)
"""


def test_agents_that_need_longer_than_ray_waits_for_them_on_a_busy_machine_delay_its_start_alone(tmp_path):
    """Ray's raylet gives them 15 s to choose their ports."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENTS)
    script = tmp_path / "session.py"
    script.write_text(SESSION.replace("    child = os.fork()", "    print('tried', sockets.parents[1].name)\n    child = os.fork()"))
    around = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=around, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "tried 0" in done.stdout.splitlines()  # the folder of the first attempt


@pytest.fixture
def short():
    """A short path: a socket's would lie in it."""
    with tempfile.TemporaryDirectory(prefix="vs-", dir="/tmp") as place:
        yield Path(place)


def test_a_folder_goes_at_the_end_and_what_a_killed_process_left_goes_at_the_next_start(short, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    code = "from vit_search.runtime import ray_folder\nimport time\n"
    code += "with ray_folder.private():\n    print('in', flush=True)\n    time.sleep(600)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.read(2) == b"in"
        assert len(list(short.iterdir())) == 2
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        with ray_folder.private() as folder:
            assert folder.stat().st_mode & 0o077 == 0
            assert len(list(short.iterdir())) == 2, "the living one's, and this"
        assert len(list(short.iterdir())) == 1
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("named", "mode", "said"),
    [
        ("x" * 90, 0o700, "and a socket's path leaves room for"),
        ("open", 0o777, "other accounts may write into"),
        ("missing", None, "no such file or directory"),
    ],
)
def test_a_ray_tmpdir_that_will_not_do_is_refused(named, mode, said, short, monkeypatch):
    place = short / named
    if mode is not None:
        place.mkdir()
        place.chmod(mode)
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    with pytest.raises(ClusterError, match=f"^RAY_TMPDIR=.*{said}.*; name another folder.$"):
        ray_folder.around()


@UNSHARED
@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (["unshare", "-n"], "error: 127.0.0.1 cannot be reached (Network is unreachable), and Ray needs it; try `ip link set lo up`.\n"),
        (
            ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh"],
            "error: /dev/shm cannot be written, and Ray keeps objects there; mount it as a tmpfs of mode 1777.\n",
        ),
    ],
)
def test_a_machine_on_which_ray_cannot_start_is_refused_before_ray_starts_and_leaves_no_search(inside, said, tmp_path):
    (tmp_path / "small.yaml").write_text(FILE)
    done = subprocess.run([*inside, COMMAND, "run", "small.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert (done.returncode, done.stderr) == (2, said)
    assert not list(tmp_path.glob("searches/*"))


def daemon(folder, name):
    """A daemon of the Ray that runs in a folder; None where there is none."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].endswith(f"/{name}") and any(str(folder) in word for word in words):
            return process
    return None


@pytest.mark.parametrize(
    ("name", "number", "later_s"),
    [("gcs_server", signal.SIGTERM, 12), ("raylet", signal.SIGTERM, 0), ("raylet", signal.SIGINT, 0)],
)
def test_a_signal_while_ray_starts_ends_the_search_with_one_line_and_leaves_nothing(name, number, later_s, short, tmp_path):
    """The daemon is held, so that Ray would wait for it for five minutes. Its C++ warns after 5 s and after 10 s."""
    (tmp_path / "small.yaml").write_text(FILE)
    around = os.environ | {"RAY_TMPDIR": str(short)}
    with subprocess.Popen(
        [COMMAND, "run", "small.yaml"], cwd=tmp_path, env=around, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            until(lambda: daemon(short, name))
            daemon(short, name).suspend()
            time.sleep(later_s)
            run.send_signal(number)
            said, warned = run.communicate(timeout=1800)
        finally:
            run.kill()
    assert (run.returncode, said, warned) == (130, "", "interrupted; nothing was started.\n")
    until(lambda: not any(daemon(short, name) for name in ("gcs_server", "raylet")))
    assert not list(short.iterdir())
    assert not list(tmp_path.glob("searches/*"))


FAILING = """
import os
from pathlib import Path
from ray._private import node
from vit_search.runtime import ray_processes, ray_session
starts = []
def start(self, *args, **words):
    starts.append(Path(self._ray_params.temp_dir))
    if len(starts) == 1:
        assert [p for p in ray_processes.running_in(starts[0]) if "gcs_server" in p.name()]
        raise RuntimeError("the first one fails")
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    print("left by the first start:", [p.name() for p in ray_processes.running_in(starts[0])])
    raise SystemExit
node.Node.start_ray_processes = start
with ray_session.session():
    pass
"""


def test_a_start_of_ray_that_failed_leaves_no_process_to_the_next_and_none_gets_another_programs_folder_of_metrics(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    around = os.environ | {"PROMETHEUS_MULTIPROC_DIR": "/missing"}  # with it, no replica of a server would start
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=around, capture_output=True, text=True, timeout=1800)
    assert (done.returncode, done.stdout) == (0, "left by the first start: []\n"), done.stderr


COLLECTING = """
import gc, threading, time
import ray
from vit_search.runtime import ray_session

def left_behind():
    made = [ray.put(1)]
    made.append(made)

def collect():
    while ray.is_initialized():
        time.sleep(0)
    for _ in range(200):
        gc.collect()
        time.sleep(0)

gc.disable()
with ray_session.session():
    for _ in range(5000):
        left_behind()
    threading.Thread(target=collect).start()
print("over")
"""


def test_garbage_that_another_thread_collects_while_ray_shuts_down_does_not_end_the_program(tmp_path):
    script = tmp_path / "collecting.py"
    script.write_text(COLLECTING)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr
