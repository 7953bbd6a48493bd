"""What becomes of a search whose trials die, hang, fail alike, or run out of memory, with one real Ray for all of them; and of one whose
machine has too little of something, each with its own."""

import json
import os
import shutil
import subprocess
import sys

import mlflow
import psutil
import pytest
from helpers.commands import COMMAND
from helpers.paths import TESTS

FILE = """
name: small
data: {name: digits, train_limit: 200}
trials: 3
epochs: 2
stopping: {kind: none}
seed: 3
concurrency: 2
model: {patch_size: 4, dim: 16, depth: {int: [1, 4]}, heads: 2, mlp_ratio: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64}
"""
UNSHARED = pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="root and unshare: a mount of its own")
ROOT = pytest.mark.skipif(os.getuid() != 0, reason="root: another account's limits, another /dev/shm")


def searched(folder, *names, before=()):
    """What became of a search for each kind of faulty work. `before`: words in front of the command."""
    command = [*before, sys.executable, "-m", "helpers.faulty", *names]
    around = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text()) | {"folder": folder, "printed": done.stdout + done.stderr}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("faults"), "dies", "hangs", "raises", "gets_small", "loses_idle_worker")


def test_a_trial_whose_process_dies_each_time_fails_after_three_retries_and_the_others_go_on(found):
    told = found["dies"]
    assert told["outcomes"] == ["completed", "failed", "completed", "completed", "completed"]
    assert told["attempts"] == [1, 4, 1, 1, 1]
    assert told["reasons"][1].endswith("(after 3 retries)")


def test_each_breakdown_leaves_its_reason_in_the_ledger_the_logs_status_report_and_mlflow(found):
    died = "its worker process died"
    assert found["dies"]["breakdowns"] == [[], [died] * 4, [], [], []]
    assert found["hangs"]["breakdowns"][0][0].startswith("it hung: not heard of for ")
    assert found["gets_small"]["breakdowns"] == [["its worker process was ended for lack of memory"], [], [], [], []]
    assert found["raises"]["breakdowns"][0] == []

    def said(*words):
        command = [COMMAND, *words, "--output", "dies"]
        return subprocess.run(command, cwd=found["folder"], capture_output=True, text=True, check=True).stdout

    lines = [line[16:] for line in said("logs", "faulty-1/1").splitlines()]
    assert lines[2:] == [f"broke down: {died}; it is tried again from its last checkpoint"] * 3 + [
        f"broke down: {died}",
        f"failed: {died} (after 3 retries)",
    ]
    assert f"trial 1: broke down: {died}; it is tried again" in said("logs", "faulty-1")
    assert f"trial 1 broke down 4 times, the last time: {died}" in said("status", "faulty-1")
    assert [one["again"] for one in json.loads(said("status", "faulty-1", "--json"))["breakdowns"]] == [True, True, True, False]
    assert f"| 1 | 4 | {died} |" in (found["folder"] / "dies/faulty-1/report.md").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{found['folder'] / 'mlruns.db'}")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "faulty"]
    runs = client.search_runs([experiment], "tags.trial = '1'", order_by=["attributes.start_time"])
    assert (runs[0].data.tags["breakdowns"], runs[0].data.tags["breakdown_reasons"]) == ("4", f"4 times: {died}")
    assert "breakdowns" not in runs[1].data.tags  # `hangs`, where trial 0 did


def test_ray_itself_prints_nothing(found):
    """Its daemons would tell of each dead worker, and its Tune of each trial that ends without a result."""
    assert "raylet" not in found["printed"]
    assert "Last result" not in found["printed"]


def test_a_trial_that_hangs_is_ended_and_tried_again(found):
    told = found["hangs"]
    assert told["outcomes"] == ["completed"] * 5
    assert told["attempts"] == [2, 1, 1, 1, 1]
    assert told["seconds"] > 6  # stall_minutes is 0.1


def test_three_trials_that_fail_alike_end_the_search(found):
    told = found["raises"]
    assert told["outcomes"][:3] == ["failed"] * 3
    assert len(told["outcomes"]) <= 4  # two run at the same time
    assert "none of" in told["said"]
    assert "ValueError: no such thing" in told["said"]


def test_a_lack_of_memory_halves_the_micro_batch_of_that_trial_alone(found):
    told = found["gets_small"]
    assert told["outcomes"] == ["completed"] * 5
    assert told["attempts"] == [2, 1, 1, 1, 1]
    assert told["halvings"] == [1, 0, 0, 0, 0]


@UNSHARED
def test_a_trial_that_rays_memory_monitor_kills_is_tried_again_and_the_search_goes_on(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemFree: 6000000 kB\nMemAvailable: 6000000 kB\n")
    mounted = ["unshare", "--mount", "sh", "-c", 'mount --bind meminfo /proc/meminfo && exec "$@"', "sh"]
    told = searched(tmp_path, "lacks_memory", before=mounted)["lacks_memory"]
    assert told["outcomes"] == ["completed"] * 5
    assert told["attempts"] == [2, 1, 1, 1, 1]
    assert told["breakdowns"][0][0] == "its worker process was ended for lack of memory"


def test_a_worker_that_dies_while_it_waits_for_a_trial_does_not_hold_up_the_search(found):
    told = found["loses_idle_worker"]
    assert told["outcomes"] == ["completed"] * 5
    assert told["attempts"][0] == 2
    assert told["breakdowns"] == [["its worker process died"] * 2, [], [], [], []]


def run(folder, *before):
    """A search of three trials, in a shell that something was done to before."""
    (folder / "small.yaml").write_text(FILE)
    return subprocess.run([*before, COMMAND, "run", "small.yaml"], cwd=folder, capture_output=True, text=True, timeout=1800)


def test_a_shell_with_too_few_open_files_is_refused_before_ray_starts_and_leaves_no_search(tmp_path):
    done = run(tmp_path, "bash", "-c", 'ulimit -n 128; exec "$@"', "bash")
    assert done.returncode == 2
    assert done.stderr == "error: a process here may open 128 files, and Ray needs 256; raise that, e.g. `ulimit -n 65536`.\n"
    assert not list(tmp_path.glob("searches/*"))


@pytest.mark.parametrize(
    ("change", "environment", "said"),
    [
        (
            ("concurrency: 2", "concurrency: 2\nresources: {cpus: 999}"),
            {},
            "resources.cpus: a trial asks for 999 CPUs and this machine has",
        ),
        (("", ""), {"RAY_TMPDIR": "/proc/nowhere"}, "/proc/nowhere"),
    ],
    ids=["too large", "Ray does not start"],
)
def test_a_run_that_is_refused_leaves_no_search_neither_here_nor_in_mlflow(tmp_path, change, environment, said):
    (tmp_path / "small.yaml").write_text(FILE.replace(*change, 1))
    command = [COMMAND, "run", "small.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode in (2, 6), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("searches/*"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    assert not client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@ROOT
def test_an_account_with_too_few_processes_is_refused():
    code = """
import os, resource
from vit_search.runtime import ray_session
from vit_search.errors import ClusterError
resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
ray_session.check_limits(2)  # root is not held to it
os.setuid(65534)
try:
    ray_session.check_limits(2)
except ClusterError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("this account may have 200 processes and threads and has "), done.stdout
    assert "and Ray needs 310 more; raise that, e.g. `ulimit -u 4096`" in done.stdout


@pytest.mark.slow
@ROOT
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare: not here")
def test_a_shared_memory_of_one_megabyte_is_enough(tmp_path):
    done = run(tmp_path, "unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"', "sh")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" completed ") == 3


@pytest.mark.slow
def test_ray_starts_on_a_machine_that_is_asked_for_four_times_what_it_has():
    code = """
import time
from vit_search.runtime import ray_session
began = time.monotonic()
with ray_session.session():
    print(round(time.monotonic() - began), end=" ", flush=True)
    import ray
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
print(round(time.monotonic() - began))
"""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * psutil.cpu_count())]
    try:
        for attempt in range(4):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
            assert done.returncode == 0, done.stderr
            started, answered = done.stdout.split()
            print(f"\nF69 | {attempt + 1} of 4: Ray up after {started} s, a task done and Ray ended after {answered} s")
    finally:
        for process in busy:
            process.kill()
            process.wait()
