"""What a command costs before it does anything: seconds from the shell to the answer, against `python -c "import torch"`.

    python tests/benchmarks/cold_start.py [--rounds 5] [--searches 3] [--only predict config]

The commands run one after the other, round by round, each in a process of its own, in a folder with one search and one registered
model (digits@champion). A ratio is taken within a round. Processor time counts the process and those that it has waited for; it is
what to compare on a busy machine. The bytecode of all libraries is written first, by a round that is not counted.

The last table is a whole search: from `vit-search run search_spaces/digits.yaml` to the first epoch in its ledger, with an empty MLflow.
Its processor time is that of the driver, of Ray's daemons and of the workers up to then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rounds import ratios, spread, surroundings, table

REPOSITORY = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("vit-search"))
TORCH = "python -c 'import torch'"
SEARCH = """
name: digits
data: {name: digits}
trials: 1
epochs: 1
stopping: {kind: none}
model: {patch_size: 4, dim: 16, depth: 1, heads: 2}
training: {lr: {float: [1e-3, 2e-3]}}
"""


@dataclass(frozen=True)
class Cost:
    """Of one process."""

    wall_s: float
    cpu_s: float


def commands() -> dict[str, tuple[list[str], int]]:
    """Words of each command, and the exit code that it must end with."""
    return {
        TORCH: ([sys.executable, "-c", "import torch"], 0),
        "--help": ([COMMAND, "--help"], 0),
        "status": ([COMMAND, "status", "digits-1"], 0),
        "config": ([COMMAND, "config", "digits@champion"], 0),
        "history": ([COMMAND, "history", "digits"], 0),
        "doctor": ([COMMAND, "doctor"], 0),
        "predict": ([COMMAND, "predict", "--model", "models:/digits@champion", "digit.png"], 0),
        "resume, refused": ([COMMAND, "resume", "changed"], 2),
        "extend, refused": ([COMMAND, "extend", "digits-1", "--trials", "0"], 2),
        "export safetensors": ([COMMAND, "export", "digits@champion", "--format", "safetensors", "--output", "out/safetensors"], 0),
        "export pt2": ([COMMAND, "export", "digits@champion", "--format", "pt2", "--output", "out/model.pt2"], 0),
        "export onnx": ([COMMAND, "export", "digits@champion", "--format", "onnx", "--output", "out/model.onnx"], 0),
    }


def surrounded(home: Path) -> dict[str, str]:
    """The environment of every command: no MLflow of the caller's, the usual bytecode."""
    without = ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI", "COLUMNS")
    return {key: value for key, value in os.environ.items() if key not in without} | {"VIT_SEARCH_CACHE": str(home / "cache")}


def measured(words: list[str], code: int, home: Path) -> Cost:
    """Run one command to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(words, cwd=home, env=surrounded(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    assert process.returncode == code, f"{' '.join(words)} ended with {process.returncode}, not {code}:\n{said}"
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def prepare(home: Path) -> None:
    """A search of one trial, a copy whose file was edited, the trial's model as digits@champion, and an image."""
    (home / "search.yaml").write_text(SEARCH)
    subprocess.run([COMMAND, "run", "search.yaml"], cwd=home, env=surrounded(home), check=True, capture_output=True)
    changed = shutil.copytree(home / "searches" / "digits-1", home / "searches" / "changed")
    (changed / "search.yaml").write_text(SEARCH.replace("epochs: 1", "epochs: 2"))
    subprocess.run([sys.executable, __file__, "--register", str(home)], cwd=home, env=surrounded(home), check=True, capture_output=True)


def register(home: Path) -> None:
    """What a promotion leaves: a version with its tags, and the alias."""
    from mlflow import MlflowClient
    from PIL import Image

    from vit_search.registry.champion import move_champion
    from vit_search.tracking import mlflow_client
    from vit_search.tracking.model_package import log_model
    from vit_search.vit import checkpoint

    client: MlflowClient = mlflow_client.client_for(None)
    folder = home / "searches" / "digits-1" / "trials" / "0000" / "checkpoint"
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    run = client.create_run(experiment.experiment_id).info.run_id
    client.set_terminated(run)
    uri = log_model(folder, run_id=run)
    client.create_registered_model("digits")
    tags = {"verdict": "passed", "weights_sha256": checkpoint.weights_sha256(folder)}
    client.create_model_version("digits", uri, run, tags=tags)
    move_champion(client, "digits", "1", action="promote", expected=None, by="benchmark")
    Image.new("L", (8, 8), 128).save(home / "digit.png")


def first_epoch(home: Path) -> Cost:
    """From `run` of the quickstart to the first epoch in the ledger; the search is then cancelled."""
    began = time.perf_counter()
    words = [COMMAND, "run", str(REPOSITORY / "search_spaces" / "digits.yaml")]
    process = subprocess.Popen(words, cwd=home, env=surrounded(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ledger = home / "searches" / "digits-1" / "ledger.jsonl"
    try:
        while not (ledger.exists() and '"event":"reported"' in ledger.read_text()):
            assert process.poll() is None, process.communicate()[0]
            assert time.perf_counter() - began < 600, "no epoch within ten minutes"
            time.sleep(0.05)
        wall, cpu = time.perf_counter() - began, _cpu_of_tree(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    return Cost(wall, cpu)


def _cpu_of_tree(pid: int) -> float:
    """Processor seconds of a process and all below it, those included that have ended and been waited for."""
    whole = 0.0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            whole += times.user + times.system + times.children_user + times.children_system
    return whole


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="commands whose name begins so; all by default")
    parser.add_argument("--register", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.register:
        register(told.register)
        return
    print(surroundings(torch.device("cpu"), "mlflow", "ray"), flush=True)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        prepare(home)
        chosen = {name: one for name, one in commands().items() if name == TORCH or not told.only or name.startswith(tuple(told.only))}
        costs: dict[str, list[Cost]] = {name: [] for name in chosen}
        for number in range(told.rounds + 1):
            for name, (words, code) in chosen.items():
                shutil.rmtree(home / "out", ignore_errors=True)
                cost = measured(words, code, home)
                if number:  # the first writes bytecode and warms the disk's cache
                    costs[name].append(cost)
    if told.rounds:
        print_commands(costs)
    walls = []
    for _ in range(told.searches):
        with tempfile.TemporaryDirectory() as place:
            walls.append(first_epoch(Path(place)))
    if walls:
        print(f"\nfirst epoch of the quickstart, {told.searches} searches\n")
        print(table(["wall, s", "processor, s"], [[spread([c.wall_s for c in walls], 1), spread([c.cpu_s for c in walls], 1)]]))


def print_commands(costs: dict[str, list[Cost]]) -> None:
    """One row for each command."""
    rows = []
    for name, own in costs.items():
        bare = costs[TORCH]
        wall = ratios([b.wall_s for b in bare], [c.wall_s for c in own])
        cpu = ratios([b.cpu_s for b in bare], [c.cpu_s for c in own])
        middle = [f"{statistics.median(values):.2f}" for values in ([c.wall_s for c in own], [c.cpu_s for c in own])]
        rows.append([name, *middle, spread(wall), spread(cpu)])
    print(table(["command", "wall, s", "processor, s", "wall, torch = 1", "processor, torch = 1"], rows), flush=True)


if __name__ == "__main__":
    main()
