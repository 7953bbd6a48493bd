"""The small search that end-to-end tests walk through, and how it is killed."""

import json
import random
import signal
import subprocess
import time

from helpers.commands import COMMAND, vit_search
from helpers.servers import until

FILE = """
name: small
data: {name: digits, train_limit: 1000}
trials: 5
epochs: 4
stopping: {grace_epochs: 1, reduction_factor: 2}
seed: 3
concurrency: 1
keep_checkpoints: 2
system_metrics: true
model: {patch_size: {choice: [2, 4]}, dim: {int: [32, 64], step: 32}, depth: 2, heads: {choice: [1, 2]}, mlp_ratio: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64}
"""
POLICY = """
top: 2
seeds: 2
floors: {linear_probe: false}
cost_above_champion: null
seed_sd: null
allow_dirty: true
"""
"""The small models are worse than a linear probe; a busy clock and two seeds on 90 images decide nothing; the tree may be dirty."""


def rows(folder, search):
    """The leaderboard by trial number, without what a clock decides."""
    found = json.loads(vit_search(folder, "show", search, "--json").stdout)
    return {row["trial"]: {k: v for k, v in row.items() if k != "rank"} for row in found}


def killed_and_resumed(folder, search, kills, seed):
    """Run a search whose driver gets SIGKILL at random moments, and resume it each time; the number of lines at each death."""
    rng = random.Random(seed)
    ledger = folder / "searches" / search / "ledger.jsonl"
    lines = []
    for kill in range(kills):
        command = ["run", "small.yaml"] if kill == 0 else ["resume", search]
        began = len(ledger.read_bytes().splitlines()) if ledger.exists() else 0
        more = rng.randint(0, 3)
        with subprocess.Popen([COMMAND, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:

            def far_enough(driver=driver, least=began + 1 + more):
                return driver.poll() is not None or (ledger.exists() and len(ledger.read_bytes().splitlines()) >= least)

            until(far_enough)
            time.sleep(rng.choice([0, 0, 0.3 * rng.random(), rng.random()]))
            if driver.poll() is not None:
                break  # it came to its end first
            driver.send_signal(signal.SIGKILL)
        lines.append(len(ledger.read_bytes().splitlines()))
    return lines
