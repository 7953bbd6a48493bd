"""Trials that share a GPU which a real Ray is told of: where Ray places them, and what becomes of one that outgrows its share."""

import json
import os
import subprocess
import sys

import pytest
from helpers.paths import TESTS

from vit_search.ledger.events import Infeasible, OutgrewShare, Reported
from vit_search.ledger.file import read_events
from vit_search.ledger.trials import Progress


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.sharing"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "found.json").read_text())
    return folder, found["said"], found["starts"]


def test_gpus_that_do_not_tell_their_memory_end_the_search_before_its_first_trial_with_the_mend(searched):
    folder, said, _ = searched
    mend = "write it, e.g. gpu_memory: 80GiB."
    assert said == f"resources.gpu_memory: a node does not tell what its GPUs have; {mend}"
    assert not list((folder / "refused").glob("shared-*"))


def test_two_trials_with_half_a_gpu_run_at_the_same_time_and_one_with_a_whole_has_it_alone(searched):
    _, _, (first, second, third) = searched
    assert [(start["gpus"], start["which"], start["others"]) for start in first + second] == [(0.5, ["0"], [1]), (0.5, ["0"], [0])]
    assert (third[-1]["gpus"], third[-1]["others"]) == (1.0, [])
    assert [(start["cores"], start["threads"]) for start in (first[0], third[-1])] == [(2.0, 2), (4.0, 4)]


def test_a_trial_that_runs_out_of_memory_goes_on_with_the_next_larger_share_from_where_it_stood(searched):
    folder, _, (_, _, third) = searched
    assert [(start["gpus"], start["halves"]) for start in third] == [(0.5, False), (1.0, True)]
    events = read_events(folder / "shared-1" / "ledger.jsonl")
    assert [(e.trial, e.gpus) for e in events if isinstance(e, OutgrewShare)] == [(2, 0.5)]
    assert [(e.trial, e.result.epoch, e.devices) for e in events if isinstance(e, Reported) and e.trial == 2] == [(2, 1, 0.5), (2, 2, 1.0)]
    progress = Progress.of(events, 2)
    assert [trial.outcome for trial in progress.trials.values()] == ["completed"] * 3
    assert progress.spent.device_seconds(None) == pytest.approx(0.1 * (5 * 0.5 + 1))
    (refused,) = [event for event in events if isinstance(event, Infeasible)]
    assert "of a GPU, and a whole one has 15.2 GiB" in refused.reason
