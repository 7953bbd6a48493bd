"""Work that goes wrong, in place of a trial's; run by test_faults.py in a process of its own, since it starts a Ray."""

import json
import os
import time
from pathlib import Path

from vit_search.search import launch  # before ray: it sets what ray reads when it is imported

# isort: split
import ray
from ray import tune

from vit_search.errors import VitSearchError
from vit_search.spec import search_file

FILE = """
name: faulty
data: {name: digits}
trials: 5
epochs: 2
stopping: {kind: none}
concurrency: 2
stall_minutes: 0.1
model: {patch_size: 2, dim: 32, depth: {int: [1, 4]}, heads: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}}
"""


def report(told, epoch, **other):
    tune.report(
        {
            "trial": told["trial"], "epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5,
            "val_top5_accuracy": 0.5, "lr": 0.1, "images_per_s": 1.0, "seconds": 0.1, "peak_memory_bytes": 1, "latency_ms": None,
        }
        | other
    )  # fmt: skip


def attempt(told):
    """Count the attempts of a trial in its folder."""
    folder = Path(told["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"attempt-{time.time_ns()}").touch()
    return len(list(folder.glob("attempt-*")))


def dies(told):
    """Trial 1 kills its process at each attempt."""
    attempt(told)
    report(told, 1)
    if told["trial"] == 1:
        os.kill(os.getpid(), 9)
    report(told, 2)


def hangs(told):
    """Trial 0 hangs the first time."""
    if attempt(told) == 1 and told["trial"] == 0:
        time.sleep(3600)
    report(told, 1)
    report(told, 2)


def raises(told):
    """Every trial fails in the same way."""
    attempt(told)
    tune.report({"trial": told["trial"], "failure": "failed", "reason": "ValueError: no such thing"})


def gets_small(told):
    """Ray's memory monitor ends trial 0 once; then it is told to halve its micro-batch."""
    if attempt(told) == 1 and told["trial"] == 0:
        raise ray.exceptions.OutOfMemoryError("the node is out of memory")
    (Path(told["folder"]) / "halvings").write_text(str(told["halvings"]))
    report(told, 1)
    report(told, 2)


def main():
    found = {}
    for work in (dies, hangs, raises, gets_small):
        spec = search_file.parse(FILE)
        output = Path(work.__name__)
        began = time.monotonic()
        try:
            launch.run(spec, output=output, tracking_uri="sqlite:///mlruns.db", work=work)
            said = ""
        except VitSearchError as error:
            said = str(error)
        seconds = time.monotonic() - began
        trials = launch.read_trials(output / "faulty-1" / "ledger.jsonl")
        found[work.__name__] = {
            "said": said,
            "seconds": seconds,
            "outcomes": [trial.outcome for trial in trials],
            "reasons": [trial.reason for trial in trials],
            "breakdowns": [trial.breakdowns for trial in trials],
            "attempts": [len(list((output / "faulty-1" / "trials" / f"{t.number:04d}").glob("attempt-*"))) for t in trials],
            "halvings": [int(p.read_text()) for p in sorted(output.glob("faulty-1/trials/*/halvings"))],
        }
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    main()
