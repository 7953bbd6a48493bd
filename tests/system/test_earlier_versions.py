"""A project that the version of 2026-11-29 (commit 23e3772) wrote is still read: its searches resume, its champion is promoted and served.

tests/fixtures/project-2026-11-29.tar.xz holds it: `small-1`, a finished search whose winner is the champion of `small`; `cut-1`, a search
whose driver was killed in the middle; their MLflow database and the champion's files. Left out are the report and what Ray wrote.
The file is never made anew: that a later version reads it is the point.
"""

import fcntl
import json
import subprocess
import tarfile
import urllib.request

import pytest
from helpers.commands import COMMAND, vit_search, vit_search_process
from helpers.paths import FIXTURES
from helpers.servers import free_port, until

from vit_search.ledger.events import Reported
from vit_search.ledger.file import read_events, read_trials

PROJECT = FIXTURES / "project-2026-11-29.tar.xz"
ANSWERS = {"digit-0.png": ("0", 0.8632600903511047), "digit-1.png": ("1", 0.7875924706459045), "digit-2.png": ("2", 0.6191431879997253)}
"""What the champion answered when it was made."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(PROJECT) as packed:
        packed.extractall(folder, filter="data")
    return folder


def test_a_search_that_was_killed_resumes_where_it_stood(project):
    ledger = project / "searches/cut-1/ledger.jsonl"
    before = read_events(ledger)
    vit_search_process(project, "resume", "cut-1")
    after = read_events(ledger)
    assert after[: len(before)] == before
    trials = read_trials(ledger)
    assert len(trials) == 8
    assert all(trial.over for trial in trials)
    pairs = [(event.trial, event.result.epoch) for event in after if isinstance(event, Reported)]
    assert len(set(pairs)) == len(pairs)  # no epoch twice
    assert json.loads(vit_search(project, "status", "cut-1", "--json").stdout)["state"] == "finished"


def test_the_champion_answers_as_it_did(project):
    told = json.loads(vit_search(project, "predict", "--model", "small@champion", "--json", *ANSWERS).stdout)
    assert {one["image"]: (one["label"], pytest.approx(one["probability"], abs=1e-5)) for one in told} == ANSWERS


def test_the_champion_is_served(project):
    port = free_port()
    server = subprocess.Popen([COMMAND, "serve", "small@champion", "--port", str(port)], cwd=project, stdout=subprocess.PIPE, text=True)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict", data=(project / "digit-0.png").read_bytes(), headers={"Content-Type": "image/png"}
    )

    def answer():
        assert server.poll() is None
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except OSError:
            return None

    try:
        until(answer)
        (first,) = answer()["predictions"]
    finally:
        server.terminate()
        server.wait(1800)
    assert (first["label"], first["probability"]) == (ANSWERS["digit-0.png"][0], pytest.approx(ANSWERS["digit-0.png"][1], abs=1e-5))


def test_its_records_are_read(project):
    assert "0.7486" in vit_search(project, "show", "small-1").stdout
    assert "force" in vit_search(project, "history", "small", "--verify").stdout
    assert "val_accuracy" in vit_search(project, "report", "small-1").stdout
    shown = vit_search(project, "promote", "small-1", "--policy", "policy.yaml", "--dry-run").stdout
    assert "version 1" in shown


def test_a_search_that_still_runs_is_not_promoted(project):
    with (project / "searches/small-1/ledger.jsonl").open() as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)  # as its driver does
        said = vit_search(project, "promote", "small-1", "--policy", "policy.yaml", code=2).stderr
    assert "is running this search; wait for it or stop it." in said
    assert not (project / "searches/small-1/promotions/2").exists()


def test_what_its_searches_cannot_do_is_told_with_what_can_be_done(project):
    assert (
        "this search is finished; `vit-search extend small-1 --trials N` goes on" in vit_search(project, "pause", "small-1", code=2).stderr
    )
    assert "there is no trial 99; `vit-search show small-1` lists its trials" in vit_search(project, "gate", "small-1", "99", code=2).stderr
    assert "are one search" in vit_search(project, "compare", "small-1", "searches/small-1", code=2).stderr
    assert vit_search(project, "status", "small-1", "--watch").stdout.count("small-1 is finished") == 1
