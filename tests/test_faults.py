"""What becomes of a search whose trials die, hang, fail alike, or run out of memory: with a real Ray, one for all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, str(Path(__file__).with_name("faulty.py"))]
    folder = tmp_path_factory.mktemp("faults")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def test_a_trial_whose_process_dies_each_time_fails_after_three_retries_and_the_others_go_on(found):
    told = found["dies"]
    assert told["outcomes"] == ["completed", "failed", "completed", "completed", "completed"]
    assert told["attempts"] == [1, 4, 1, 1, 1]
    assert told["reasons"][1].endswith("(after 3 retries)")


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
