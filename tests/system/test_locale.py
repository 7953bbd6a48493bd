"""A locale that lacks a character ends no command and hides no failure."""

import json
import os
import subprocess
import sys

import pytest
from helpers.commands import COMMAND
from helpers.synthetic import begin

from vit_search.ledger.events import Launched, Proposed
from vit_search.ledger.file import Ledger

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN_1 = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "iso-8859-1"}
TINY = """
name: tiny
data: {name: digits}
trials: 1
epochs: 2
stopping: {kind: none}
concurrency: 1
model: {patch_size: 4, dim: 32, depth: 1, heads: 2}
training: {lr: {float: [1e-3, 5e-3], log: true}}
"""
POLICY = "top: 1\nseeds: 1\nallow_dirty: true\n"
BROKEN = """
import sys
from pathlib import Path
from vit_search.search import trial
from vit_search.search.messages import TrialOrder
try:
    raise ValueError("\\u03b1\\u65e5\\udce9")
except ValueError as error:
    print(ascii(trial.failure_report(TrialOrder(trial=0, config={}, folder=Path(sys.argv[1])), error).outcome))
"""


def run(environment, *words, folder):
    return subprocess.run(words, cwd=folder, env=os.environ | environment, capture_output=True, timeout=1800)


def test_why_a_trial_failed_is_kept_whatever_characters_it_has(tmp_path):
    done = run(ASCII, sys.executable, "-c", BROKEN, str(tmp_path / "0000"), folder=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == "'failed'"
    assert "ValueError: α日\\udce9" in (tmp_path / "0000" / "error.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("environment", "dash"), [(ASCII, b"\\u2013"), (LATIN_1, b"\\u2013"), ({"PYTHONIOENCODING": "utf-8"}, "–".encode())]
)
def test_a_leaderboard_is_printed_in_any_locale(tmp_path, environment, dash):
    folder, _, _ = begin(tmp_path / "searches")
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(Launched(host="here", pid=1))
    ledger.append(Proposed(trial=0, params={"dim": 32, "depth": 1, "lr": 1e-3}))
    ledger.close()
    done = run(environment, COMMAND, "show", folder=tmp_path)  # a trial without a value has a dash
    assert done.returncode == 0, done.stderr.decode()
    assert dash in done.stdout


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with a search of one trial, whose finalist is trained anew, and a policy that a small model passes."""
    folder = tmp_path_factory.mktemp("locale")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    done = run({}, COMMAND, "run", "tiny.yaml", folder=folder)
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.mark.parametrize(("name", "environment"), [("ascii", ASCII), ("latin", LATIN_1)])
def test_a_model_is_promoted_in_any_locale(searched, name, environment):
    """Its output has dashes and arrows, which neither locale has; so has the reason, which the history keeps."""
    again = ["--tracking-uri", "sqlite:///mlruns.db"]
    promote = ["promote", "tiny-1", "--policy", "policy.yaml", "--name", name, *again]
    planned = run(environment, COMMAND, *promote, "--dry-run", folder=searched)
    assert planned.returncode == 0, planned.stderr.decode()
    done = run(environment, COMMAND, *promote, "--force", "--reason", "größer – α", folder=searched)
    assert done.returncode == 0, done.stderr.decode()
    assert f"{name} version 1 is now champion" in done.stdout.decode("latin-1")
    kept = run(environment, COMMAND, "history", name, "--json", *again, folder=searched)
    assert json.loads(kept.stdout)[0]["reason"] == "größer – α"
    for words in (["history", name, "--verify"], ["promote", "tiny-1", "--name", name, "--policy", "policy.yaml"], ["repair", name]):
        told = run(environment, COMMAND, *words, *again, folder=searched)
        assert told.returncode == 0, (words, told.stderr.decode())
