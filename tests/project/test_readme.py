"""What the README shows is true: its example runs, its search file is read, its error is what is printed, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

from vit_search.config import search_file
from vit_search.errors import SpecError
from vit_search.ledger.file import read_trials

README = (ROOT / "README.md").read_text()


def block(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_search_file_is_read_and_its_error_is_the_one_shown(tmp_path):
    shown, _, _ = block("yaml")
    spec = search_file.parse(shown)
    assert spec.space.feasible_share() > 0.5
    assert set(spec.space.searched) == {"patch_size", "depth", "dim", "heads", "dropout", "lr", "weight_decay"}
    typo = shown.replace("  depth:", "  depht:")
    with pytest.raises(SpecError) as refused:
        search_file.parse(typo, "my.yaml")
    message = str(refused.value)
    assert re.sub(r":\d+:", ":N:", message) in re.sub(r":\d+:", ":N:", README)


def test_the_further_keys_are_read():
    shown, further, _ = block("yaml")
    of_model, _, beside = further.partition("# beside them\n")
    whole = shown.replace("stopping:", "#").replace("training:", of_model.partition("\n")[2] + "training:") + beside
    spec = search_file.parse(whole)
    assert spec.space.conditional
    assert spec.limits.patience == 30
    assert [goal.metric for goal in spec.objectives] == ["params", "latency_ms"]


def test_the_python_example_runs(tmp_path):
    (code,) = block("python")
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    number, value, _ = done.stdout.strip().splitlines()[-1].split(maxsplit=2)
    trials = {t.number: t for t in read_trials(tmp_path / "searches/digits-1/ledger.jsonl")}
    assert len(trials) == 2
    assert float(value) == trials[int(number)].value("val_accuracy")


def test_every_command_named_exists_and_every_make_target_is_there():
    said = subprocess.run([str(Path(sys.executable).with_name("vit-search")), "--help"], capture_output=True, text=True, check=True).stdout
    for command in set(re.findall(r"vit-search ([a-z]+)", README)):
        assert f"  {command} " in said, command
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_the_lock_is_hash_pinned_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^[a-z0-9_.-]+(?:\[[a-z,]+\])?==\S+", lock, re.MULTILINE)
    assert len(pinned) > 100
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock
