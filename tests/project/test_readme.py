"""What the README shows is true: its example runs, its search file is read, its error is what is printed, its commands exist."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.clusters import MARK, marked
from helpers.paths import ROOT

from vit_search.config import search_file
from vit_search.errors import SpecError
from vit_search.ledger.file import read_trials
from vit_search.promotion import policy

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


def test_the_policy_file_is_read_and_its_limits_are_the_ones_shown():
    _, _, shown = block("yaml")
    rules = policy.parse(shown)
    assert (rules.top, rules.approval, rules.limits.latency_ms.cpu_batch_1_p95) == (3, "always", 20)
    assert rules.export.formats == ("safetensors", "pt2", "onnx")
    defaults = policy.load(None)
    for name, value in {"alpha": 0.05, "least_gain": 0.002, "margin": 0.005, "cheaper": 0.2, "most_readings": 20}.items():
        assert getattr(defaults.better, name) == value  # as the text says


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


@pytest.mark.slow
def test_a_cluster_of_one_machine_runs_a_search_by_the_lines_shown(tmp_path):
    (lines,) = [one for one in block("sh") if "ray start --head" in one]
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    around = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "VIT_SEARCH_"))}
    around |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", MARK: str(tmp_path)}
    try:
        done = subprocess.run(["bash", "-euc", lines], cwd=tmp_path, env=around, capture_output=True, text=True, timeout=900)
        listening = {p.laddr.ip for one in marked(tmp_path) for p in one.net_connections("tcp") if p.status == psutil.CONN_LISTEN}
    finally:
        for one in marked(tmp_path):
            with contextlib.suppress(psutil.Error):
                one.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nready\n" in done.stdout
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    (folder,) = (tmp_path / "shared" / "searches").iterdir()
    assert sum(trial.outcome == "completed" for trial in read_trials(folder / "ledger.jsonl")) >= 1
