"""Work that goes wrong, in place of a trial's; run by test_trial_faults.py in a process of its own, since it starts a Ray."""

import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

from vit_search.search import launch  # before ray: it sets what ray reads when it is imported

# isort: split
import ray

from vit_search.config import search_file
from vit_search.config.trial import EpochResult
from vit_search.errors import VitSearchError
from vit_search.ledger.file import read_trials
from vit_search.search.messages import Epoch, Failed, TrialOrder
from vit_search.search.trial import send

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


def report(order, epoch, **other):
    values = {
        "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5, "val_top5_accuracy": 0.5, "lr": 0.1,
        "images_per_s": 1.0, "seconds": 0.1, "peak_memory_bytes": 1,
    }  # fmt: skip
    send(order, Epoch(EpochResult(epoch=epoch, **(values | other))))


def attempt(order):
    """Count the attempts of a trial in its folder."""
    folder = order.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"attempt-{time.time_ns()}").touch()
    return len(list(folder.glob("attempt-*")))


def dies(order):
    """Trial 1 kills its process at each attempt."""
    attempt(order)
    report(order, 1)
    if order.trial == 1:
        os.kill(os.getpid(), 9)
    report(order, 2)


def hangs(order):
    """Trial 0 hangs the first time."""
    if attempt(order) == 1 and order.trial == 0:
        time.sleep(3600)
    report(order, 1)
    report(order, 2)


def raises(order):
    """Every trial fails in the same way."""
    attempt(order)
    send(order, Failed("failed", "ValueError: no such thing"))


def gets_small(order):
    """Ray's memory monitor ends trial 0 once; then it is order to halve its micro-batch."""
    if attempt(order) == 1 and order.trial == 0:
        raise ray.exceptions.OutOfMemoryError("the node is out of memory")
    (order.folder / "halvings").write_text(str(order.halvings))
    report(order, 1)
    report(order, 2)


def until_others_are_over(order):
    """Wait until four of the five trials are over."""
    ledger = order.folder.parents[1] / "ledger.jsonl"
    while ledger.read_text().count('"event":"ended"') < 4:
        time.sleep(0.1)


MUCH, LITTLE = "6000000", "0000100"
"""Free memory in kB. Of one length, since the file is read at any moment."""


def set_memory(meminfo, kilobytes):
    text = meminfo.read_text()
    with meminfo.open("r+") as file:  # not another file: this one is mounted
        file.write(text.replace(MUCH, kilobytes).replace(LITTLE, kilobytes))


def free_memory_again(output):
    """Wait until a trial has lost its worker, and set the memory back."""
    ledger = output / "faulty-1" / "ledger.jsonl"
    while not ledger.exists() or '"event":"broke"' not in ledger.read_text():
        time.sleep(0.05)
    set_memory(Path("meminfo"), MUCH)


def lacks_memory(order):
    """Trial 0 waits until the others are over, and for Ray's memory monitor to kill it the first time.

    The test puts the file `meminfo` in the place of /proc/meminfo, since other tests take and free the machine's own memory.
    """
    if attempt(order) == 1 and order.trial == 0:
        until_others_are_over(order)
        set_memory(order.folder.parents[3] / "meminfo", LITTLE)
        time.sleep(3600)
    report(order, 1)
    report(order, 2)


def loses_idle_worker(order):
    """Trial 0 waits until the others are over, kills the worker that waits for its next trial, and then its own."""
    worker = order.folder.parent / "worker"
    if order.trial > 0:
        worker.write_text(str(os.getpid()))
    elif attempt(order) == 1:
        until_others_are_over(order)
        os.kill(int(worker.read_text()), 9)
        os.kill(os.getpid(), 9)
    report(order, 1)
    report(order, 2)


WORK = {work.__name__: work for work in (dies, hangs, raises, gets_small, lacks_memory, loses_idle_worker)}


def ordered(work, config):
    work(TrialOrder.decode(config))


def main(names):
    found = {}
    for work in map(WORK.__getitem__, names):
        spec = search_file.parse(FILE)
        output = Path(work.__name__)
        began = time.monotonic()
        if work is lacks_memory:
            threading.Thread(target=free_memory_again, args=[output], daemon=True).start()
        try:
            launch.run(spec, output=output, tracking_uri="sqlite:///mlruns.db", work=functools.partial(ordered, work))
            said = ""
        except VitSearchError as error:
            said = str(error)
        seconds = time.monotonic() - began
        trials = read_trials(output / "faulty-1" / "ledger.jsonl")
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
    ray.init(address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    main(sys.argv[1:])
