"""Kill it at any moment and resume: the same trials, the same numbers, each epoch once (law 2), with real processes."""

import json
import shutil
import signal
import subprocess
import time

import mlflow
import psutil
import pytest
from helpers.commands import COMMAND, vit_search_process
from helpers.servers import until
from helpers.walk import FILE, killed_and_resumed, rows

from vit_search.ledger.events import Ended, Infeasible, Proposed, Reported
from vit_search.ledger.file import read_events


def assert_equal(folder, whole, killed):
    """Two searches of one seed went the same way, and the killed one trained no epoch again that a checkpoint held."""
    assert rows(folder, whole) == rows(folder, killed)

    def facts(search):
        kinds = (Proposed, Infeasible, Reported, Ended)
        told = [e for e in read_events(folder / "searches" / search / "ledger.jsonl") if isinstance(e, kinds)]
        fields = [
            {k: v for k, v in vars(e).items() if k not in ("at", "reason", "system")}
            for e in told
            if getattr(e, "outcome", "") != "interrupted"
        ]
        clocks = ("seconds", "images_per_s", "peak_memory_bytes")
        return [f | {"result": {k: v for k, v in vars(f["result"]).items() if k not in clocks}} if "result" in f else f for f in fields]

    assert facts(whole) == facts(killed)
    reported = {
        (e.trial, e.result.epoch): e.result.seconds
        for e in read_events(folder / "searches" / killed / "ledger.jsonl")
        if isinstance(e, Reported)
    }
    kept = list((folder / "searches" / killed / "trials").glob("*/checkpoint/config.json"))
    assert 1 <= len(kept) <= 2  # keep_checkpoints
    for path in kept:
        for result in json.loads(path.read_text())["history"]:  # an epoch trained twice would have another time
            assert reported[int(path.parts[-3]), result["epoch"]] == result["seconds"]


def test_a_killed_search_resumes_to_the_same_trials_and_the_same_numbers(walked):
    folder, _, _, killed_at = walked
    assert len(killed_at) == 3
    assert_equal(folder, "small-1", "small-2")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_five_kills_at_random_moments_change_nothing(walked, seed, tmp_path):
    """25 kills in all, of the driver; `make test-slow` runs them."""
    folder, _, _, _ = walked
    (tmp_path / "small.yaml").write_text(FILE)
    shutil.copytree(folder / "searches/small-1", tmp_path / "searches/whole")
    killed_and_resumed(tmp_path, "small-1", kills=5, seed=seed)
    vit_search_process(tmp_path, "resume", "small-1")
    assert_equal(tmp_path, "whole", "small-1")


def test_a_search_whose_trials_wait_at_a_last_rung_survives_kills_and_trains_its_best_to_full_length(tmp_path):
    pasha = FILE.replace("epochs: 4", "epochs: 9").replace("{grace_epochs", "{kind: pasha, audit_share: 0, grace_epochs")
    (tmp_path / "small.yaml").write_text(pasha)
    assert len(killed_and_resumed(tmp_path, "small-1", kills=2, seed=4)) == 2
    vit_search_process(tmp_path, "resume", "small-1")
    events = read_events(tmp_path / "searches/small-1/ledger.jsonl")
    reported = [(e.trial, e.result.epoch) for e in events if isinstance(e, Reported)]
    assert len(reported) == len(set(reported))
    found = rows(tmp_path, "small-1")
    lengths = {row["epochs"]: row["outcome"] for row in found.values()}
    assert lengths.pop(9) == "completed"
    assert lengths.keys() <= {1, 2, 4, 8} and set(lengths.values()) == {"stopped"}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 6  # five trials and their parent


def test_a_worker_that_is_killed_is_retried_from_its_checkpoint(walked, tmp_path):
    folder, _, _, _ = walked
    (tmp_path / "small.yaml").write_text(FILE)
    with subprocess.Popen(
        [COMMAND, "run", "small.yaml"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as driver:
        ledger = tmp_path / "searches/small-1/ledger.jsonl"
        until(lambda: ledger.exists() and '"epoch":2' in ledger.read_text())
        workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if p.name().startswith("ray::ImplicitF")]
        assert workers
        for worker in workers:
            worker.kill()
        _, said = driver.communicate(timeout=1800)
    assert driver.returncode == 0, said
    found = rows(tmp_path, "small-1")
    assert sum(row.pop("breakdowns", 0) for row in found.values()) >= 1
    assert found == rows(folder, "small-1")


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]],
    ids=["ctrl-c", "sigterm", "twice", "sigterm-twice"],
)
def test_ctrl_c_closes_all_and_names_resume(tmp_path, signals):
    (tmp_path / "small.yaml").write_text(FILE)
    with subprocess.Popen(
        [COMMAND, "run", "small.yaml"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        ledger = tmp_path / "searches/small-1/ledger.jsonl"
        until(lambda: ledger.exists() and ledger.read_text().count('"reported"') >= 2)
        for one in signals:
            driver.send_signal(one)
            time.sleep(0.1)
        _, said = driver.communicate(timeout=1800)
    assert driver.returncode == 130
    assert "vit-search resume small-1" in said
    assert "Traceback" not in said
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert runs
    assert not [run for run in runs if run.info.status == "RUNNING"]
