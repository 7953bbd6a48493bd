"""Searches on a real Ray cluster through its Jobs API, from a laptop outside: handed over once, driven, killed, stopped and taken up."""

import http.server
import json
import os
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from helpers.clusters import BIN, Cluster
from helpers.servers import SECRET, free_port, until
from rich.console import Console

from vit_search.cli import cluster as cluster_commands
from vit_search.cli import remote
from vit_search.cluster import record
from vit_search.cluster.jobs import driver, preflight
from vit_search.cluster.jobs.cluster_facts import Facts, Node, own_versions
from vit_search.cluster.jobs.connection import connect, submit_job
from vit_search.cluster.jobs.launches import launches
from vit_search.cluster.jobs.submit import hand_over, search_name
from vit_search.config import search_file
from vit_search.errors import ClusterError
from vit_search.ledger.events import Reported
from vit_search.ledger.file import read_events, read_trials
from vit_search.runtime.ray_session import Shape, nodes_to_come
from vit_search.search import execution

FILE = """
name: tiny
data: {name: digits, train_limit: 500}
trials: 2
epochs: 2
stopping: {kind: none}
seed: 3
concurrency: 2
model: {patch_size: 4, dim: 32, depth: {int: [1, 2]}, heads: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64}
"""
LONG = FILE.replace("tiny", "long").replace("epochs: 2", "epochs: 250").replace("patch_size: 4", "patch_size: 2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head with two CPUs and a keeper; its environment holds a secret, as that of an MLflow with accounts does."""
    made = Cluster(tmp_path_factory.mktemp("cluster"), cpus=2, MLFLOW_TRACKING_PASSWORD=SECRET)
    try:
        made.start()
        made.keep()
        yield made
    finally:
        made.end()


@pytest.fixture
def laptop(tmp_path):
    (tmp_path / "tiny.yaml").write_text(FILE)
    (tmp_path / "long.yaml").write_text(LONG)
    return tmp_path


def vit_search(folder, cluster, *words, check=True, **environment):
    """A command as typed outside of the cluster: with its token, and with nothing else of it."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VIT_SEARCH_"))}
    around = known | {"HOME": str(folder), "RAY_AUTH_TOKEN_PATH": str(cluster.token_file)} | environment
    command = [BIN / "vit-search", *words, "--address", cluster.url]
    done = subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True, timeout=1800)
    assert not check or done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def reached(cluster):
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(cluster.token_file)
    try:
        return connect(cluster.url)
    finally:
        del os.environ["RAY_AUTH_TOKEN_PATH"]


def submitted(done):
    return done.stdout.split()[0]


def epochs_of(cluster, search):
    """Epochs that each trial has reported, in their order."""
    path = cluster.storage / "searches" / search / "ledger.jsonl"
    found = {}
    for event in read_events(path) if path.exists() else []:
        if isinstance(event, Reported):
            found.setdefault(event.trial, []).append(event.result.epoch)
    return found


def assert_whole(cluster, search, trials, epochs):
    """No trial lost, none doubled, no epoch recorded twice, and MLflow has one run for each."""
    assert epochs_of(cluster, search) == {trial: list(range(1, epochs + 1)) for trial in range(trials)}
    told = read_trials(cluster.storage / "searches" / search / "ledger.jsonl")
    assert [trial.outcome for trial in told] == ["completed"] * trials
    client = mlflow.MlflowClient(f"sqlite:///{cluster.storage / 'mlruns.db'}")
    experiment = client.get_experiment_by_name(search.rpartition("-")[0])
    runs = client.search_runs([experiment.experiment_id], f"tags.search = '{search}'")
    assert sorted(run.data.tags["trial"] for run in runs if "trial" in run.data.tags) == [str(n) for n in range(trials)]
    assert len(runs) == trials + 1
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_search_is_handed_over_and_seen_through_and_no_secret_shows(cluster, laptop):
    search = submitted(vit_search(laptop, cluster, "submit", "tiny.yaml"))
    assert re.search(rf"^{search} is (starting|running|finished)", vit_search(laptop, cluster, "status").stdout, re.MULTILINE)
    done = vit_search(laptop, cluster, "submit", "tiny.yaml", "--wait")
    assert "2 of 2 trials" in done.stdout
    assert_whole(cluster, search, trials=2, epochs=2)

    assert search in vit_search(laptop, cluster, "list").stdout
    (shown,) = json.loads(vit_search(laptop, cluster, "list", "--json").stdout)
    assert (shown["search"], shown["state"], len(shown["jobs"])) == (search, "finished", 1)
    assert f"{search} is finished: 2 of 2 trials over" in vit_search(laptop, cluster, "status", search).stdout
    again = vit_search(laptop, cluster, "resume", search, check=False)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith(f"error: {search}: this search is finished; `vit-search extend {search} --trials N --address auto`, on ")
    assert [one.job for one in launches(reached(cluster).client)[search]] == [search]  # no job was started for that
    said = vit_search(laptop, cluster, "logs", search).stdout
    assert vit_search(laptop, cluster, "logs").stdout == said  # the newest by default
    asked, images, named, *rest = said.splitlines()
    assert asked.endswith("submitted.yaml: 2 trials, at most 2 epochs each")
    assert named.startswith(f"{search}: ")
    assert named.endswith(f"searches/{search}")
    assert images == "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; 1,039 images (train 500, val 179, holdout 90, test 270)"
    assert any(line.startswith("trial ") for line in rest)
    assert "2 of 2 trials" in said
    trial = vit_search(laptop, cluster, "logs", f"{search}/1").stdout
    assert "proposed: depth" in trial
    assert "epoch 2: train_loss" in trial
    assert trial.strip().endswith("completed")

    again = vit_search(laptop, cluster, "submit", "tiny.yaml")
    assert f"{search} was submitted before: finished." in again.stdout
    for command in ("logs", "cancel", "resume"):
        unknown = vit_search(laptop, cluster, command, search[:-1], check=False)
        assert (unknown.returncode, search in unknown.stderr) == (2, True)

    told = reached(cluster).client.list_jobs()
    (job,) = [job for job in told if job.submission_id == search]
    assert set(job.metadata) == {"vit_search", "search", "user", "version", "key", "space"}
    texts = [str(job) for job in told]
    for folder in (cluster.storage, cluster.temp):
        texts += [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    for secret in (SECRET, cluster.token_file.read_text()):
        assert not [text for text in texts if secret in text]


def test_a_running_search_takes_every_command_from_a_laptop(cluster, laptop):
    text = LONG.replace("name: long", "name: told")
    (laptop / "told.yaml").write_text(text)
    (laptop / "point.yaml").write_text("{depth: 2, lr: 0.005}\n")
    search = submitted(vit_search(laptop, cluster, "submit", "told.yaml"))
    until(lambda: sum(map(len, epochs_of(cluster, search).values())) >= 2)
    assert "2 running trials will be held" in vit_search(laptop, cluster, "pause", search).stdout
    paused = vit_search(laptop, cluster, "status", search).stdout
    assert f"{search} is paused" in paused and f"go on with:  vit-search continue {search} --address {cluster.url}\n" in paused
    vit_search(laptop, cluster, "set", search, "--trials", "9", "--hours", "2.5")
    vit_search(laptop, cluster, "add", "point.yaml", search)
    vit_search(laptop, cluster, "continue", search)
    bad = vit_search(laptop, cluster, "set", search, "--trials", "0", check=False)
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
    vit_search(laptop, cluster, "cancel", search)
    until(lambda: launches(reached(cluster).client)[search][-1].over)
    given = json.loads(vit_search(laptop, cluster, "status", search, "--json").stdout)["commands"]
    assert [(one["name"], one["arguments"]) for one in given] == [
        ("pause", {}),
        ("set", {"trials": 9, "hours": 2.5}),
        ("add", {"depth": 2, "lr": 0.005}),
        ("continue", {}),
    ]
    assert f"go on with:  vit-search resume {search} --address {cluster.url}\n" in vit_search(laptop, cluster, "status", search).stdout
    assert f"vit-search resume {search} --address {cluster.url}\n" in vit_search(laptop, cluster, "logs", search).stdout


def test_eight_at_once_are_one_search(cluster, laptop):
    there = reached(cluster)
    spec = search_file.load(laptop / "tiny.yaml")
    search = search_name(spec, "eight")
    with ThreadPoolExecutor(8) as eight:
        handed = list(eight.map(lambda _: hand_over(there, spec, search, key="eight"), range(8)))
    assert sorted(one.new for one in handed) == [False] * 7 + [True]
    assert {one.search for one in handed} == {search}
    assert len(launches(there.client)[search]) == 1
    assert search_name(spec, "") != search
    until(lambda: launches(there.client)[search][0].state == "finished")
    assert_whole(cluster, search, trials=2, epochs=2)
    assert "MLflow does not answer" not in vit_search(laptop, cluster, "logs", search).stdout  # Ray may have removed the job's folder
    assert list((cluster.storage / "mlartifacts").glob("*/*"))


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "it asks for a token and this machine has none; copy the head's ~/.ray/auth_token"),
        ("wrong-token-of-this-laptop", "it refuses this machine's token; copy the head's ~/.ray/auth_token again"),
    ],
)
def test_without_the_right_token_nothing_is_submitted(cluster, laptop, token, said):
    def left():
        return {job.submission_id for job in reached(cluster).client.list_jobs()}, sorted(cluster.storage.glob("searches/*"))

    before = left()
    path = laptop / "token"
    if token:
        path.touch(mode=0o600)
        path.write_text(token)
    for words in (["submit", "tiny.yaml", "--key", "x"], ["list"], ["stop", "tiny"]):
        done = vit_search(laptop, cluster, *words, check=False, RAY_AUTH_TOKEN_PATH=str(path))
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert "wrong-token" not in done.stderr
    assert left() == before


def test_a_token_that_others_can_read_is_not_used(cluster, laptop):
    path = laptop / "token"
    path.write_text(cluster.token_file.read_text())
    path.chmod(0o644)
    done = vit_search(laptop, cluster, "list", check=False, RAY_AUTH_TOKEN_PATH=str(path))
    assert (done.returncode, "mode 0644 opens a token to others" in done.stderr) == (2, True)


def test_what_no_node_can_run_and_paths_of_the_laptop_are_refused_before_anything_is_submitted(cluster, laptop):
    (laptop / "gpus.yaml").write_text(FILE + "resources: {gpus: 3}\n")
    done = vit_search(laptop, cluster, "submit", "gpus.yaml", check=False)
    assert done.returncode == 2
    assert "a trial asks for 1 CPU and 3 GPUs, and no node or node type has that many" in done.stderr
    (laptop / "here.yaml").write_text(FILE.replace("{name: digits, train_limit: 500}", "{name: image_folder, path: photos, image_size: 8}"))
    done = vit_search(laptop, cluster, "submit", "here.yaml", check=False)
    assert "'photos' is a path of this machine; name the folder on the cluster in full." in done.stderr
    assert not [job for job in reached(cluster).client.list_jobs() if "gpus" in str(job) or "here" in str(job.metadata)]


def test_a_node_without_the_shared_storage_is_found_and_named(cluster, laptop):
    ready = vit_search(laptop, cluster, "check", "tiny.yaml")
    assert ready.stdout.rstrip().endswith("ready")
    assert " (head)" in ready.stdout
    assert "no keeper" not in ready.stdout
    (laptop / "there.yaml").write_text(
        FILE.replace("{name: digits, train_limit: 500}", "{name: image_folder, path: /nowhere, image_size: 8}").replace(
            "model: {", "model: {pretrained: /nowhere/vit.safetensors, "
        )
    )
    node = cluster.join(VIT_SEARCH_STORAGE=str(laptop))
    try:
        done = vit_search(laptop, cluster, "check", "there.yaml", "--json", check=False)
        assert done.returncode == 2
        found = json.loads(done.stdout)
        assert len(found["nodes"]) == 2
        errors = [one["text"] for one in found["findings"] if one["severity"] == "error"]
        assert len(errors) == 3
        assert f"VIT_SEARCH_STORAGE is {laptop} there and {cluster.storage} on the head" in " ".join(errors)
        assert "data.path /nowhere is not there" in " ".join(errors)
        assert "model.pretrained /nowhere/vit.safetensors is not there" in " ".join(errors)
    finally:
        cluster.leave(node)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="a mount of its own needs root")
def test_a_node_that_has_mounted_something_else_is_found_and_nothing_is_submitted(cluster, laptop):
    node = cluster.join(own_storage=True)
    try:
        done = vit_search(laptop, cluster, "submit", "tiny.yaml", "--key", "unshared", check=False)
        assert done.returncode == 2
        assert f"{cluster.storage} is not shared: what " in done.stderr
        assert "wrote there is not seen; mount the same storage on every node. (1 more: `vit-search check" in done.stderr
        assert not list(cluster.storage.glob(".check-*"))
    finally:
        cluster.leave(node)


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on_by_itself(cluster, laptop):
    (laptop / "long.yaml").write_text(LONG.replace("epochs: 250", "epochs: 60"))
    search = submitted(vit_search(laptop, cluster, "submit", "long.yaml"))
    until(lambda: sum(map(len, epochs_of(cluster, search).values())) >= 4)
    (process,) = cluster.processes("run", search)
    process.send_signal(signal.SIGKILL)
    there = reached(cluster)
    until(lambda: launches(there.client)[search][-1].over)
    (job,) = launches(there.client)[search]
    assert job.state == "finished"
    assert_whole(cluster, search, trials=2, epochs=60)
    assert "its driver was killed by signal 9; it is started again" in vit_search(laptop, cluster, "logs", search).stdout


@pytest.mark.slow
def test_a_killed_job_is_taken_up_by_the_keeper_and_a_stopped_one_by_a_person_alone(cluster, laptop):
    there = reached(cluster)
    search = submitted(vit_search(laptop, cluster, "submit", "long.yaml"))
    until(lambda: sum(map(len, epochs_of(cluster, search).values())) >= 4)
    (job,) = cluster.processes("drive", search)
    job.send_signal(signal.SIGKILL)
    until(lambda: [one.job for one in launches(there.client)[search]] == [search, f"{search}-2"])
    known = sum(map(len, epochs_of(cluster, search).values()))
    until(lambda: sum(map(len, epochs_of(cluster, search).values())) > known)

    assert "ending now" in vit_search(laptop, cluster, "cancel", search).stdout
    until(lambda: launches(there.client)[search][-1].over)
    until(lambda: record.read(cluster.storage / "searches" / search).wanted == "stopped")  # the keeper has seen that it is meant
    time.sleep(3)
    assert len(launches(there.client)[search]) == 2
    assert f"{search} is interrupted" in vit_search(laptop, cluster, "status", search).stdout
    (listed,) = [one["state"] for one in json.loads(vit_search(laptop, cluster, "list", "--json").stdout) if one["search"] == search]
    assert listed == "interrupted"

    assert f"as job {search}-3" in vit_search(laptop, cluster, "resume", search).stdout
    busy = vit_search(laptop, cluster, "resume", search, check=False)
    assert (busy.returncode, "it is " in busy.stderr) == (2, True)
    watched = vit_search(laptop, cluster, "status", search, "--watch").stdout
    assert f"{search} is finished: 2 of 2 trials over" in watched
    assert "2 trials over, 0 running" in watched
    until(lambda: launches(there.client)[search][-1].state == "finished")
    assert_whole(cluster, search, trials=2, epochs=250)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "word"), [("cancel", "interrupted"), ("stop", "stopped")])
def test_list_and_status_say_the_same_of_a_search_that_a_person_has_ended(cluster, laptop, command, word):
    text = LONG.replace("trials: 2", "trials: 4").replace("concurrency: 2", "concurrency: 1").replace("epochs: 250", "epochs: 40")
    (laptop / "long.yaml").write_text(text.replace("name: long", f"name: {command}"))
    search = submitted(vit_search(laptop, cluster, "submit", "long.yaml"))
    until(lambda: sum(map(len, epochs_of(cluster, search).values())) >= 2)
    vit_search(laptop, cluster, command, search)
    there = reached(cluster)
    until(lambda: launches(there.client)[search][-1].over)
    (listed,) = [one["state"] for one in json.loads(vit_search(laptop, cluster, "list", "--json").stdout) if one["search"] == search]
    told = json.loads(vit_search(laptop, cluster, "status", search, "--json").stdout)
    assert (listed, told["state"], told["running"]) == (word, word, False)
    assert f"was submitted before: {word}." in vit_search(laptop, cluster, "submit", "long.yaml").stdout


@pytest.mark.slow
def test_a_search_outlives_its_whole_cluster(tmp_path, laptop):
    cluster = Cluster(tmp_path, cpus=2)
    try:
        cluster.start()
        search = submitted(vit_search(laptop, cluster, "submit", "long.yaml"))
        until(lambda: sum(map(len, epochs_of(cluster, search).values())) >= 4)
        cluster.end()
        cluster.keep()  # before Ray is there, as a supervisor may start it
        cluster.start()
        there = reached(cluster)
        until(lambda: search in launches(there.client))
        assert [one.job for one in launches(there.client)[search]] == [f"{search}-2"]
        assert f"{search} was submitted before" in vit_search(laptop, cluster, "submit", "long.yaml").stdout
        until(lambda: launches(there.client)[search][-1].state == "finished")
        assert_whole(cluster, search, trials=2, epochs=250)
    finally:
        cluster.end()


@pytest.mark.slow
def test_eight_commands_at_once_are_one_search(cluster, laptop):
    with ThreadPoolExecutor(8) as eight:
        done = list(eight.map(lambda _: vit_search(laptop, cluster, "submit", "tiny.yaml", "--key", "commands"), range(8)))
    assert len({submitted(one) for one in done}) == 1
    assert sum("is submitted." in one.stdout for one in done) == 1


# Without Ray


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("go on with:  vit-search resume a-1\n", "go on with:  vit-search resume a-1 --address http://h:1\n"),
        ("go on with:  vit-search resume a-1 --address URL\n", "go on with:  vit-search resume a-1 --address http://h:1\n"),
        ("vit-search resume a.b-1 --address auto", "vit-search resume a.b-1 --address auto"),
        (
            "see `vit-search logs a-1/3`, or vit-search status a-1.",
            "see `vit-search logs a-1/3 --address http://h:1`, or vit-search status a-1 --address http://h:1.",
        ),
        ('{"reason": "vit-search resume a-1"}', '{"reason": "vit-search resume a-1 --address http://h:1"}'),
        ("`vit-search resume` goes on; vit-search show a-1", "`vit-search resume` goes on; vit-search show a-1"),  # show has no address
    ],
)
def test_a_command_that_the_head_names_gets_the_address_that_works_here(said, expected):
    assert remote.addressed(said, "http://h:1") == expected


def test_a_head_is_quoted_in_whole_lines(capsys):
    with remote.writing("http://h:1") as write:
        for part in ("one\nvit-search res", "ume a-1", "\ntw", "o"):
            write(part)
    assert capsys.readouterr().out == "one\nvit-search resume a-1 --address http://h:1\ntwo"


class _Open(http.server.BaseHTTPRequestHandler):
    """A Jobs API that asks nobody for a token."""

    seen: list[str | None] = []  # noqa: RUF012 -- a list for all requests, which `open_cluster` empties

    def do_GET(self):
        self.seen.append(self.headers.get("Authorization"))
        body = b'{"ray_version": "2.60.0", "version": "4"}' if self.path == "/api/version" else b"[]"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def open_cluster():
    """The address of a Jobs API that answers without a token."""
    _Open.seen.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Open)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_cluster_that_asks_for_no_token_is_refused_and_never_told_one(monkeypatch, open_cluster):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")  # Ray would let it overrule the address that was given
    with pytest.raises(ClusterError, match=r"answers without a token.*ShadowRay.*RAY_AUTH_MODE=token.*or add --insecure\."):
        connect(open_cluster)
    there = connect(open_cluster, insecure=True)
    assert "ShadowRay" in there.warning
    assert launches(there.client) == {}
    assert set(_Open.seen) == {None}


def test_no_token_is_told_to_an_open_cluster_where_the_account_s_own_rays_want_one(
    tmp_path, open_cluster
):  # Ray reads that once in a process
    token = tmp_path / "token"
    token.write_text(SECRET)
    token.chmod(0o600)
    around = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    command = [BIN / "vit-search", "list", "--address", open_cluster, "--insecure"]
    subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, timeout=300, check=False)
    assert len(_Open.seen) > 1  # ours to see whether it is open, and those of Ray's client
    assert set(_Open.seen) == {None}


def test_a_head_whose_agent_is_not_there_yet_is_waited_for():
    tries = []

    class Starting:
        def submit_job(self, **job):
            tries.append(job)
            if len(tries) < 3:
                raise RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later.")

    submit_job(Starting(), submission_id="a")
    assert tries == [{"submission_id": "a"}] * 3

    with pytest.raises(RuntimeError, match="No available agent"):
        tries.clear()
        submit_job(Starting(), patience_s=0, submission_id="a")
    assert len(tries) == 1

    class Refusing:
        def submit_job(self, **job):
            raise RuntimeError("Job with submission_id a already exists.")

    with pytest.raises(RuntimeError, match="already exists"):
        submit_job(Refusing(), submission_id="a")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("auto", "no URL of a Jobs API; give one such as http://127.0.0.1:8265"),
        ("127.0.0.1:8265", "no URL of a Jobs API"),
        ("http://127.0.0.1:1", "cannot be reached .*its tunnel is up"),
    ],
)
def test_an_address_that_leads_nowhere(address, said):
    with pytest.raises(ClusterError, match=said):
        connect(address)


VERSIONS = {"python": "3.11.7", "vit_search": "0.1.0", "ray": "2.60.0", "torch": "2.15.0+cpu", "mlflow": "3.17.2", "optuna": "5.0.0"}
HEAD = Node(name="head", address="10.0.0.1", head=True, cpus=0, gpus=0, accelerator="", memory=1, versions=VERSIONS)
WORKER = replace(HEAD, name="worker", head=False, cpus=8, gpus=1)
FACTS = Facts(storage="/s", cache="/s/cache", mlflow="http://h:5000", mlflow_problem="", nodes=[HEAD, WORKER], types=[], kept_s=5.0)


@pytest.mark.parametrize(
    ("changes", "severity", "said"),
    [
        ({}, "", ""),
        ({"versions": VERSIONS | {"torch": "2.15.0+cu128", "python": "3.11.9"}}, "", ""),
        ({"versions": VERSIONS | {"torch": "2.14.1"}}, "error", "worker: versions differ: torch 2.15.0+cpu on the head and 2.14.1 there"),
        ({"versions": VERSIONS | {"python": "3.12.1"}}, "error", "python 3.11.7 on the head and 3.12.1 there"),
        ({"storage": "/s is not shared: …"}, "error", "worker: /s is not shared"),
        ({"cache": "/s/cache cannot be written …"}, "error", "worker: /s/cache cannot be written"),
        ({"trouble": "it did not answer within 120 s"}, "error", "worker: it did not answer"),
        ({"data": "data.path /d is not there"}, "warning", "worker: data.path /d"),
        ({"skew_s": -1.0}, "", ""),
        ({"skew_s": -30.0, "skew_error_s": 0.1}, "warning", "its clock is 30.0 s behind the head's"),
        ({"skew_s": 3.0, "skew_error_s": 2.0}, "", ""),
        ({"skew_s": 86400.0}, "error", "its clock is 86400.0 s ahead of the head's"),
    ],
)
def test_what_is_wrong_with_a_node_is_said(changes, severity, said):
    found = preflight.findings(replace(FACTS, nodes=[HEAD, replace(WORKER, **changes)]), versions=VERSIONS)
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert said in "".join(one.text for one in found)


def test_the_nodes_fit_80_columns_and_no_name_is_cut(capsys, monkeypatch):
    monkeypatch.setattr(cluster_commands, "out", Console(width=80, highlight=False))
    names = ["ip-10-20-30-41.us-west-2.compute.internal", "ip-10-20-30-42.us-west-2.compute.internal"]
    nodes = [replace(node, name=name, accelerator="NVIDIA H200") for node, name in zip([HEAD, WORKER], names, strict=True)]
    cluster_commands.print_facts(replace(FACTS, nodes=nodes), [])
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert [line.split()[0] for line in shown[:5]] == ["node", names[0], "memory", names[1], "memory"]


def test_versions_that_differ_from_the_laptops_an_mlflow_that_is_away_and_a_missing_keeper_are_told():
    (error,) = preflight.findings(FACTS, versions=VERSIONS | {"vit_search": "0.2.0", "optuna": "5.1.0"})
    assert "vit_search 0.2.0 here and 0.1.0 on the cluster, optuna 5.1.0 here and 5.0.0 on the cluster; install" in error.text
    (error,) = preflight.findings(replace(FACTS, mlflow_problem="it does not answer"), versions=VERSIONS)
    assert "MLflow, from the head: it does not answer" in error.text
    (error,) = preflight.findings(replace(FACTS, weights=["model.pretrained /w is not there"]), versions=VERSIONS)
    assert error.text == "head: model.pretrained /w is not there"
    (warning,) = preflight.findings(replace(FACTS, kept_s=90.0), versions=VERSIONS)
    assert (warning.severity, "the keeper has been silent for 90 s" in warning.text) == ("warning", True)
    assert "(1 more: `vit-search check" in str(preflight.refusal([error, error]))
    assert preflight.refusal([]) is None


@pytest.mark.parametrize(
    ("cpus", "gpus", "types", "fits"),
    [
        (8, 1, [], True),
        (9, 0, [], False),
        (1, 2, [], False),
        (1, 2, [Shape("big", 16, 4, 3)], True),
        (32, 4, [Shape("big", 16, 4, 3)], False),
        (8, 4, [Shape("thin", 4, 4, 3)], False),  # 8 CPUs and 4 GPUs there are, on no single node
        (64, 8, [Shape("unknown", float("inf"), float("inf"), 1)], True),
    ],
)
def test_a_trial_must_fit_on_one_node_that_is_there_or_may_come(cpus, gpus, types, fits):
    spec = search_file.parse(FILE + f"resources: {{cpus: {cpus}, gpus: {gpus}}}\n")
    places = [Shape("head", 0, 0), Shape("worker", 8, 1), *types]
    assert (preflight.lacks(spec, places) == "") is fits
    assert (execution.resource_problem(spec, places, "auto") == "") is fits
    found = preflight.findings(replace(FACTS, types=types), spec, versions=VERSIONS)
    assert (not found) is fits
    if not types:
        assert (execution.resource_problem(spec, [Shape("own", cpus, 0)], None) == "") is (gpus == 0)


def test_what_an_autoscaler_may_add_is_read_from_what_ray_up_leaves(tmp_path):
    path = tmp_path / "ray_bootstrap_config.yaml"
    assert nodes_to_come(path) == []
    kinds = {
        "head": {"resources": {"CPU": 0}},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 8},
        "none": {"resources": {"CPU": 4}, "max_workers": 0},
        "unknown": {},
    }
    path.write_text(json.dumps({"head_node_type": "head", "max_workers": 2, "available_node_types": kinds}))
    assert nodes_to_come(path) == [Shape("gpu", 4, 1, 8), Shape("unknown", float("inf"), float("inf"), 2)]
    path.write_text("available_node_types: [")
    assert nodes_to_come(path) == []


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_SEARCH_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    (tmp_path / "tiny.yaml").write_text(FILE)
    return tmp_path / "storage"


def pins(spec):
    return {
        "user": "me",
        "key": "",
        "pinned": own_versions()["vit_search"],
        "space_hash": spec.space.space_hash,
        "download": False,
    }


def test_a_cluster_that_would_run_something_else_refuses_and_leaves_nothing(storage, tmp_path):
    file = tmp_path / "tiny.yaml"
    good = pins(search_file.load(file))
    with pytest.raises(ClusterError, match=r"submitted with vit_search 9\.9, and this cluster has .*install the same version on both"):
        driver.begin("tiny-1", file, **good | {"pinned": "9.9"})
    with pytest.raises(ClusterError, match=r"its search space is .* here and 0123 where it was submitted"):
        driver.begin("tiny-1", file, **good | {"space_hash": "0123"})
    with pytest.raises(ClusterError, match="no name of a search"):
        driver.begin("../tiny", file, **good)
    assert not storage.exists()
    driver.begin("tiny-1", file, **good)
    folder = storage / "searches" / "tiny-1"
    assert (folder / record.FILE).read_text() == FILE
    assert folder.stat().st_mode & 0o777 == 0o700
    record.change(folder, version="9.9")  # the cluster was given another version since
    with pytest.raises(ClusterError, match=r"submitted with vit_search 9\.9"):
        driver.drive("tiny-1", print)
    assert record.read(folder).ended == 2  # and no keeper takes it up
    record.change(folder, version=good["pinned"], ended=None)
    (folder / record.FILE).write_text(FILE.replace("[1, 2]", "[1, 3]"))
    with pytest.raises(ClusterError, match="its search space is"):
        driver.drive("tiny-1", print)
    assert record.read(folder).ended == 2


def test_a_search_that_is_over_or_stopped_is_not_driven_again(storage, tmp_path):
    driver.begin("tiny-1", tmp_path / "tiny.yaml", **pins(search_file.load(tmp_path / "tiny.yaml")))
    folder, said = storage / "searches" / "tiny-1", []
    record.change(folder, ended=4)
    assert driver.drive("tiny-1", said.append) == 4
    record.change(folder, ended=None, wanted="stopped")
    assert driver.drive("tiny-1", said.append) == 130
    assert said == ["tiny-1 is over.", "tiny-1 was stopped."]
    assert record.read(folder).launches == 2


@pytest.mark.slow
def test_a_refusal_of_the_first_launch_ends_a_search_and_one_of_a_resume_is_left_to_the_keeper(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "PAUSES_S", (0,))
    file = tmp_path / "there.yaml"
    file.write_text(FILE.replace("{name: digits, train_limit: 500}", "{name: image_folder, path: /nowhere, image_size: 8}"))
    driver.begin("tiny-1", file, **pins(search_file.load(file)))
    folder, said = storage / "searches" / "tiny-1", []
    assert driver.drive("tiny-1", said.append) == 2
    assert (record.read(folder).ended, said) == (2, [])
    (folder / "search.json").write_text("damaged")
    assert driver.drive("tiny-1", said.append, again=True) == 2
    assert (record.read(folder).ended, record.read(folder).wanted) == (None, "running")
    assert said[-1] == "tiny-1: its driver ended with code 2, 2 times in a row without progress; given up for now."


def test_a_storage_that_is_not_named_is_refused(monkeypatch):
    monkeypatch.delenv("VIT_SEARCH_STORAGE", raising=False)
    with pytest.raises(ClusterError, match="VIT_SEARCH_STORAGE is not set on this node"):
        record.storage()
    monkeypatch.setenv("VIT_SEARCH_STORAGE", "storage")
    with pytest.raises(ClusterError, match="is 'storage', no full path on this node"):
        record.storage()


def test_a_job_that_waits_for_another_drivers_search_lets_go_when_it_is_stopped(storage, tmp_path):
    driver.begin("tiny-1", tmp_path / "tiny.yaml", **pins(search_file.load(tmp_path / "tiny.yaml")))
    folder = storage / "searches" / "tiny-1"
    with (folder / record.LOCK).open("w") as lock:
        assert record.taken(lock)
        assert record.driven(folder)
        second = subprocess.Popen([BIN / "vit-search", "cluster", "drive", "tiny-1"], stderr=subprocess.PIPE, text=True)
        assert "another driver runs it; waiting for it." in second.stderr.readline()
        second.terminate()
        assert second.wait(1800) == 130
    assert not record.driven(folder)
    assert not Path(folder / "ledger.jsonl").exists()
