"""A search whose trials share one GPU that Ray is only told of; test_gpu_placement.py runs it in a process of its own."""

import json
import time
from pathlib import Path

from vit_search.search import launch  # before ray: it sets what ray reads when it is imported

# isort: split
import ray
import torch

from helpers.faulty import report
from vit_search.config import gpu_share, search_file
from vit_search.config.trial import TrialConfig
from vit_search.errors import SearchError
from vit_search.search.messages import TrialOrder
from vit_search.search.trial import guarded

FILE = """
name: shared
data: {name: digits}
trials: 12
epochs: 2
stopping: {kind: none}
concurrency: 3
sampler: grid
resources: {cpus: auto, gpus: auto, gpu_memory: 16GiB}
model: {patch_size: 1, dim: 64, depth: 4, heads: 4}
training: {batch_size: {choice: [8192, 8191, 8190, 40000]}}
"""
"""Predicted: half of 16 GiB for each of three, and more than there is."""


def note(order, what, value):
    folder = order.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{what}-{time.time_ns()}").write_text(json.dumps(value))


def noted(folder, what):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{what}-*"))]


def others_at_work(order, wait_s):
    """Which trials have begun and not ended; for so long, at most, it is waited for one."""
    place = order.folder.parents[1] / "at work"
    place.mkdir(exist_ok=True)
    (place / str(order.trial)).touch()
    end = time.monotonic() + wait_s
    while not (found := sorted(int(path.name) for path in place.iterdir() if path.name != str(order.trial))) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def train(order):
    """Trials 0 and 1 meet; trial 2 wants a whole GPU once it has trained an epoch, whatever is predicted."""
    config, context = TrialConfig.from_dict(order.config), ray.get_runtime_context()
    peak, first = gpu_share.training_bytes(config.model, config.training), order.trial < 2
    note(
        order,
        "start",
        {
            "gpus": context.get_assigned_resources().get("GPU", 0),
            "which": context.get_accelerator_ids()["GPU"],
            "cores": context.get_assigned_resources().get("CPU", 0),
            "threads": order.threads,
            "halves": order.halves,
            "others": others_at_work(order, 600 if first else 0),
        },
    )
    report(order, 1, peak_memory_bytes=peak)
    if first:
        time.sleep(1)  # so that the other sees it, too
    elif order.gpus < 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    (order.folder.parents[1] / "at work" / str(order.trial)).unlink()
    report(order, 2, peak_memory_bytes=peak)


def work(config):
    guarded(train, TrialOrder.decode(config))


def main():
    unsaid = search_file.parse(FILE.replace(", gpu_memory: 16GiB", ""))
    try:
        launch.run(unsaid, output=Path("refused"), tracking_uri="sqlite:///mlruns.db", work=work)
        said = ""
    except SearchError as error:
        said = str(error)
    launch.run(search_file.parse(FILE), output=Path(), tracking_uri="sqlite:///mlruns.db", work=work)
    starts = [noted(Path("shared-1") / "trials" / f"{number:04d}", "start") for number in range(3)]
    Path("found.json").write_text(json.dumps({"said": said, "starts": starts}))


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    main()
