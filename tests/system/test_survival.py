"""What a search on a cluster survives: each fault is done to a real cluster of several nodes while a real search runs on it.

No trial may be lost and none doubled; the epochs begun a second time are counted. `pytest -m "slow or not slow" -s
tests/system/test_survival.py` prints the figures, which are in docs/results/reliability.md.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import time

import mlflow
import psutil
import pytest
from helpers import servers
from helpers.multinode import BINARIES, ROOT, Cluster, Search, figure, timed
from helpers.servers import until

from vit_search.ledger.file import read_events

pytestmark = pytest.mark.skipif(not ROOT, reason="network namespaces: root and `ip` are needed")

FILE = """
name: small
data: {name: digits, train_limit: 200}
trials: 4
epochs: 5
stopping: {kind: none}
seed: 3
concurrency: 2
keep_checkpoints: 1
model: {patch_size: 4, dim: 16, depth: {int: [1, 4]}, heads: 2, mlp_ratio: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64}
"""


@pytest.fixture(scope="module")
def network():
    """A cluster of two workers, which each test leaves as it was; a node is taken for lost after 5 s without a sign."""
    with Cluster(2, RAY_health_check_period_ms="1000") as made:
        yield made


@pytest.fixture
def cluster(network):
    yield network
    for number in (1, 2):
        if not network.processes(number):
            network.start(number)
    for number in (1, 2):
        network.wait(number)
    if network.processes(3):
        network.kill(3)


def sound(told, repeated):
    assert (told["lost"], told["doubled"]) == (0, 0)
    assert told["repeated"] <= repeated


def skewed(cluster, place, name, hours):
    """An environment whose Python processes take the time to be so many hours off, as the file `name` says from then on."""
    (place / name).write_text(str(hours))
    clock = "import os, time\nreal = time.time\ntime.time = lambda: real() + 3600 * float(open(os.environ['SKEW']).read())\n"
    (place / "sitecustomize.py").write_text(clock)
    return {"PYTHONPATH": f"{place}:{cluster.environment['PYTHONPATH']}", "SKEW": str(place / name)}


def one_line(said):
    """The one error that a driver has told, beside what its trials waited for and how they ended."""
    assert "Traceback" not in said
    (told,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return told


def test_a_search_goes_on_when_a_process_and_then_a_node_is_lost_and_uses_one_that_joins_late(cluster, tmp_path):
    text = FILE.replace("concurrency: 2", "concurrency: 3\nstall_minutes: 60")
    with Search(cluster, tmp_path, text, slow_s=1).run() as search:
        search.until(lambda: search.reported() >= 2)
        with search.held():  # a busy machine may start the node later than it trains the trials
            psutil.Process(search.notes()[-1]["pid"]).kill()
            cluster.start(3)
            cluster.wait(3)
            late = cluster.node_id(3)
            search.until(lambda: search.notes_of(late) and cluster.workers(2))
            cluster.kill(2)
        code, said = search.end()
        assert code == 0, said
        told = search.told(trials=4)
        figure("F1, F8, F9, F19 process killed, node killed, node joins late", **told, epochs_on_the_late_node=len(search.notes_of(late)))
        sound(told, repeated=2)


@pytest.mark.slow
def test_a_spot_notice_moves_a_trial_after_its_epoch(cluster, tmp_path):
    text = FILE.replace("trials: 4", "trials: 1").replace("epochs: 5", "epochs: 15")
    with Search(cluster, tmp_path, text, slow_s=2).run() as search:
        search.until(lambda: search.reported() >= 2)
        leaving = search.notes()[-1]["node"]
        number = next(number for number in (1, 2) if cluster.node_id(number) == leaving)
        began = time.time()
        cluster.ray(
            "drain-node", "--node-id", leaving, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
            "--deadline-remaining-seconds", "60",
        )  # fmt: skip
        moved = timed(lambda: search.notes()[-1]["node"] != leaving, 1800)
        cluster.kill(number)
        code, said = search.end()
        assert code == 0, said
        told = search.told(trials=1)
        last = max(note["at"] for note in search.notes_of(leaving)) - began
        figure("F18 spot notice", **told, last_epoch_begun_there_after_s=last, goes_on_elsewhere_after_s=moved)
        sound(told, repeated=0)


@pytest.mark.slow
def test_thirty_seconds_without_a_cable_lose_nothing_and_move_nothing(tmp_path):
    with Cluster(1) as own, Search(own, tmp_path, FILE.replace("trials: 4", "trials: 2"), slow_s=2).run() as search:
        search.until(lambda: search.reported() >= 2)
        own.network.cable(1, "down")
        time.sleep(30)
        own.network.cable(1, "up")
        code, said = search.end()
        assert code == 0, said
        told = search.told(trials=2)
        figure("F63 partition of 30 s", **told, processes=len({note["pid"] for note in search.notes()}))
        sound(told, repeated=0)


@pytest.mark.slow
def test_a_node_that_is_cut_off_for_long_gives_its_trial_up_and_writes_no_more(cluster, tmp_path):
    text = FILE.replace("trials: 4", "trials: 1").replace("epochs: 5", "epochs: 12")
    with Search(cluster, tmp_path, text, slow_s=2).run() as search:
        search.until(lambda: search.reported() >= 2)
        here = next(number for number in (1, 2) if cluster.workers(number))
        (old,) = {note["pid"] for note in search.notes()}
        cluster.network.cable(here, "down")
        moved = timed(lambda: len({note["pid"] for note in search.notes()}) == 2, 1800)
        search.until(lambda: search.notes()[-1]["epoch"] >= 8)
        cluster.network.cable(here, "up")
        code, said = search.end()
        assert code == 0, said
        told, notes = search.told(trials=1), search.notes()
        taken = min(note["at"] for note in notes if note["pid"] != old)
        accepted = search.kept_by(old, after=taken)
        figure("F63 partition until the trial is moved", **told, moved_after_s=moved, epochs_of_the_old_copy_kept_after_that=accepted)
        sound(told, repeated=2)
        assert accepted == 0
        until(lambda: not cluster.workers(here))
        cluster.kill(here)


@pytest.mark.slow
def test_a_hung_trial_is_ended_and_tried_on_another_node(cluster, tmp_path):
    text = FILE.replace("trials: 4", "trials: 1").replace("epochs: 5", "epochs: 8")
    with Search(cluster, tmp_path, text, slow_s=1).run() as search:
        search.until(lambda: search.reported() >= 3)
        hung = search.notes()[-1]
        process = psutil.Process(hung["pid"])
        process.suspend()
        noticed = timed(lambda: search.notes()[-1]["pid"] != hung["pid"], 1800)
        code, said = search.end()
        assert code == 0, said
        told, again = search.told(trials=1), search.notes()[-1]
        figure("F11 hung trial", **told, begins_again_after_s=noticed, elsewhere=again["node"] != hung["node"])
        sound(told, repeated=1)
        assert again["node"] != hung["node"]
        until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.slow
def test_a_driver_that_is_killed_is_followed_by_one_that_goes_on(cluster, tmp_path):
    with Search(cluster, tmp_path, FILE.replace("trials: 4", "trials: 2"), slow_s=1).run() as search:
        search.until(lambda: search.reported() >= 4)
        search.kill()
        code, said = search.resume().end()
        assert code == 0, said
        told = search.told(trials=2)
        figure("F3 driver killed and resumed", **told)
        sound(told, repeated=2)


@pytest.mark.slow
def test_a_lost_head_ends_the_driver_soon_and_a_new_cluster_takes_the_search_up(tmp_path):
    with Cluster(1) as own, Search(own, tmp_path, FILE.replace("trials: 4", "trials: 2"), slow_s=2).run() as search:
        search.until(lambda: search.reported() >= 2)
        own.kill(0)
        began = time.monotonic()
        code, said = search.end()
        ended = time.monotonic() - began
        assert code == 6, said
        assert "the head of the Ray cluster has not answered for 20 s" in said
        one_line(said)
        own.kill(1)
        for number in (0, 1):
            own.start(number)
            own.wait(number)
        code, said = search.resume().end()
        assert code == 0, said
        told = search.told(trials=2)
        figure("F7 head killed", **told, driver_ended_after_s=ended)
        sound(told, repeated=2)


@pytest.mark.slow
def test_a_full_disk_ends_the_search_and_room_lets_it_go_on(cluster, tmp_path):
    ballast = cluster.shared / "ballast"
    with Search(cluster, tmp_path, FILE.replace("trials: 4", "trials: 2"), slow_s=1).run() as search:
        search.until(lambda: search.reported() >= 3)
        try:
            subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], check=False, capture_output=True)
            began = time.monotonic()
            code, said = search.end(600)
            ended = time.monotonic() - began
        finally:
            ballast.unlink()
        assert code == 2, said
        assert "make room" in one_line(said)
        code, said = search.resume().end()
        assert code == 0, said
        told = search.told(trials=2)
        figure("F25, F26 shared disk full", **told, driver_ended_after_s=ended)
        sound(told, repeated=6)  # each of two trials begins its epoch anew on up to three nodes


@pytest.mark.slow
def test_storage_that_is_read_only_on_a_node_for_ten_seconds_is_waited_for(cluster, tmp_path):
    text = FILE.replace("trials: 4", "trials: 1").replace("epochs: 5", "epochs: 8")
    with Search(cluster, tmp_path, text, slow_s=1).run() as search:
        search.until(lambda: search.reported() >= 2)
        here = next(number for number in (1, 2) if cluster.workers(number))
        cluster.mounted(here, "mount", "-o", "remount,bind,ro", str(cluster.shared))
        time.sleep(10)
        before = search.reported()
        time.sleep(3)
        assert search.reported() == before
        cluster.mounted(here, "mount", "-o", "remount,bind,rw", str(cluster.shared))
        code, said = search.end()
        assert code == 0, said
        told = search.told(trials=1)
        figure("F28, F64 storage read-only on the trial's node for 13 s", **told, processes=len({note["pid"] for note in search.notes()}))
        sound(told, repeated=0)


@pytest.mark.slow
def test_a_trial_whose_node_loses_the_storage_goes_on_elsewhere(cluster, tmp_path):
    text = FILE.replace("trials: 4", "trials: 1").replace("epochs: 5", "epochs: 8")
    with Search(cluster, tmp_path, text, slow_s=1).run() as search:
        search.until(lambda: search.reported() >= 2)
        first = search.notes()[-1]
        here = next(number for number in (1, 2) if cluster.workers(number))
        cluster.mounted(here, "mount", "-t", "tmpfs", "none", str(cluster.shared))
        moved = timed(lambda: search.notes()[-1]["node"] != first["node"], 1800)
        cluster.mounted(here, "umount", str(cluster.shared))
        code, said = search.end()
        assert code == 0, said
        told = search.told(trials=1)
        figure("F28 storage gone from the trial's node", **told, goes_on_elsewhere_after_s=moved)
        sound(told, repeated=2)


@pytest.mark.slow
def test_storage_that_no_node_sees_ends_the_search_with_one_line(cluster, tmp_path):
    for number in (1, 2):
        cluster.mounted(number, "mount", "-t", "tmpfs", "none", str(cluster.shared))
    try:
        with Search(cluster, tmp_path, FILE).run() as search:
            began = time.monotonic()
            code, said = search.end()
            figure("F27 storage that the nodes do not share", exit_code=code, ended_after_s=time.monotonic() - began, said=one_line(said))
            assert code == 2
            assert "is not seen on the node" in said
            assert "have every node mount it at the same place" in said
            one_line(said)
            assert {trial.outcome for trial in search.trials()} == {"interrupted"}
    finally:
        for number in (1, 2):
            cluster.mounted(number, "umount", str(cluster.shared))


@pytest.mark.slow
def test_storage_that_stands_still_half_of_the_time_costs_time_alone(cluster, tmp_path):
    took = {}
    for kind in ("steady", "slow"):
        place = tmp_path / kind
        place.mkdir()
        with Search(cluster, place, FILE.replace("trials: 4", "trials: 1"), slow_s=0.5).run() as search:
            search.until(lambda: search.reported() >= 1)
            began = time.monotonic()
            while search.driver.poll() is None:
                time.sleep(2)
                if kind == "slow":
                    subprocess.run(["fsfreeze", "-f", str(cluster.shared)], check=True)
                    time.sleep(2)
                    subprocess.run(["fsfreeze", "-u", str(cluster.shared)], check=True)
            took[kind] = time.monotonic() - began
            code, said = search.end()
            assert code == 0, said
            told = search.told(trials=1)
            sound(told, repeated=0)
    figure("F28 storage frozen for 2 s of every 4", **told, seconds=took["slow"], seconds_without=took["steady"])


@pytest.mark.slow
def test_a_slow_node_changes_no_decision(cluster, tmp_path):
    text = FILE.replace("kind: none", "grace_epochs: 1, reduction_factor: 2").replace("epochs: 5", "epochs: 3")
    text = text.replace("concurrency: 2", "concurrency: 1")
    found = {}
    for kind in ("steady", "slow"):
        place = tmp_path / kind
        place.mkdir()
        with Search(cluster, place, text, slow_s=0.2).run() as search:
            while search.driver.poll() is None:
                for stopping in (True, False):
                    for process in cluster.workers(1) + cluster.workers(2) if kind == "slow" else []:
                        with contextlib.suppress(psutil.NoSuchProcess):
                            process.suspend() if stopping else process.resume()
                    time.sleep(0.5)
            code, said = search.end()
            assert code == 0, said
            told = search.told(trials=4)
            sound(told, repeated=0)
            found[kind] = [(trial.params, trial.outcome, len(trial.results)) for trial in search.trials()]
    differing = sum(a != b for a, b in zip(found["steady"], found["slow"], strict=True))
    figure("F10 node at half speed", **told, decisions_that_differ=differing)
    assert differing == 0


@pytest.mark.slow
def test_clocks_a_day_apart_and_one_that_jumps_back_change_no_order(tmp_path):
    with Cluster(0) as own:
        for number, hours in ((1, 24), (2, -24)):
            own.start(number, **skewed(own, tmp_path, f"node-{number}", hours))
            own.wait(number)
        text = FILE.replace("kind: none", "grace_epochs: 1, reduction_factor: 2")
        with Search(own, tmp_path, text, slow_s=1, **skewed(own, tmp_path, "driver", 0)).run() as search:
            search.until(lambda: search.reported() >= 3)
            (tmp_path / "driver").write_text("-1")
            code, said = search.end()
            assert code == 0, said
            told = search.told(trials=4)
            events = read_events(search.folder / "ledger.jsonl")
            back = sum(after.at - before.at < -3000 for before, after in itertools.pairwise(events))
            trials, notes = search.trials(), search.notes()
        days = sorted({round((note["at"] - time.time()) / 86400) for note in notes})
        disordered = sum([result.epoch for result in trial.results] != list(range(1, len(trial.results) + 1)) for trial in trials)
        negative = sum(result.seconds < 0 for trial in trials for result in trial.results)
        figure("F66 clocks", **told, days_off=days, steps_back=back, order_errors=disordered, negative_durations=negative)
        sound(told, repeated=0)
        assert (days, back) == ([-1, 1], 1)  # they were wrong indeed
        assert (disordered, negative) == (0, 0)


@pytest.mark.slow
def test_a_cable_of_one_megabit_costs_time_alone(tmp_path):
    took = {}
    with Cluster(1) as own:
        for kind in ("fast", "narrow"):
            place = tmp_path / kind
            place.mkdir()
            if kind == "narrow":
                own.network.narrow(1, "1mbit")
            began = time.monotonic()
            with Search(own, place, FILE.replace("trials: 4", "trials: 1"), slow_s=0.5).run() as search:
                code, said = search.end(500)
                took[kind] = time.monotonic() - began
                assert code == 0, said
                told = search.told(trials=1)
                sound(told, repeated=0)
    figure("F65 network of 1 Mbit/s to the worker", **told, seconds=took["narrow"], seconds_without=took["fast"])


@pytest.mark.slow
@pytest.mark.skipif(servers.POSTGRES is None, reason="PostgreSQL: no server binary here (apt-get install postgresql)")
def test_a_postgresql_that_crashes_and_comes_back_has_each_run_and_each_point_once(tmp_path):
    """On this machine alone: only the driver speaks to MLflow, with or without a cluster."""
    place = tmp_path / "searches"
    (tmp_path / "small.yaml").write_text(FILE.replace("concurrency: 2", "concurrency: 1"))
    with servers.postgres_server() as database:
        environment = os.environ | {"MLFLOW_TRACKING_URI": database.uri}
        command = [str(BINARIES / "vit-search"), "run", "small.yaml"]
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
            ledger = place / "small-1/ledger.jsonl"
            until(lambda: ledger.exists() and ledger.read_text().count('"event":"reported"') >= 2)
            database.end(signal.SIGQUIT)
            until(lambda: ledger.read_text().count('"event":"ended"') >= 2)
            database.start()
            _, said = driver.communicate(timeout=1800)
        assert driver.returncode == 0, said
        client = mlflow.MlflowClient(database.uri)
        runs = [r for r in client.search_runs([client.get_experiment_by_name("small").experiment_id]) if "trial" in r.data.tags]
        points = [point.step for run in runs for point in client.get_metric_history(run.info.run_id, "val_accuracy")]
        figure("F13, F15 PostgreSQL crashed and restarted", runs=len(runs), points=len(points), missing=20 - len(points))
        assert len(runs) == 4
        assert sorted(points) == sorted([1, 2, 3, 4, 5] * 4)
