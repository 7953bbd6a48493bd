"""Where the time of a trial goes in a search over heads on local Ray: the steps in the worker, what lies between two trials, the driver.

    python tests/benchmarks/head_search.py                                     # a ViT of 2.7 million weights
    python tests/benchmarks/head_search.py --dim 384 --depth 12 --heads 6      # ViT-S
    python tests/benchmarks/head_search.py --apart                             # each trial reads and builds the backbone anew

One trial at a time, on one core. The backbone has random weights and the images are noise, since only the time counts. Reading, training
and records are real.

Milliseconds of processor time, since other programs come and go: of the thread that trains for the steps, of the whole process for what
lies between two trials. `first` is the trial that imports torch and computes the features, `later` the median of the others.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from vit_search.search import launch  # before torch: it sets what ray reads when it is imported

# isort: split
import torch
from frozen_features import backbone_of, search_of, write_images
from rounds import surroundings, table

from vit_search.config import search_file
from vit_search.data.cache import prepare
from vit_search.ledger.events import Ended, Event

SEARCH = """
name: heads
trials: {trials}
epochs: {epochs}
sampler: random
stopping: {{kind: none}}
concurrency: 1
resources: {{cpus: 1, gpus: 0}}
data: {{name: image_folder, path: {images}, image_size: {size}, val_fraction: 0.2, holdout_fraction: 0}}
model: {{pretrained: {weights}, pool: cls}}
training: {{tune: head, batch_size: 32, lr: {{float: [1e-4, 1e-2], log: true}}}}
"""


def measured(folder: str, apart: bool, order: dict[str, Any]) -> None:
    """In place of work.train_trial: train a trial, and write down what each step took. A step inside another one counts alone."""
    begun = time.process_time()
    from vit_search.search import trial
    from vit_search.vit import features, shared_blocks, training

    took: dict[str, float] = defaultdict(float)
    took["imports"] = time.process_time() - begun
    inner = [0.0]

    def timed(module: Any, name: str, label: str) -> None:
        plain = getattr(module, name)
        plain = getattr(plain, "__wrapped__", plain)  # that of the trial before

        @functools.wraps(plain)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            inner.append(0.0)
            try:
                return plain(*args, **kwargs)
            finally:
                seconds = time.thread_time() - start
                took[label] += seconds - inner.pop()
                inner[-1] += seconds

        setattr(module, name, wrapper)

    timed(trial, "claim_folder", "claim the folder")
    timed(trial, "pretrained_for", "header of the weights")
    timed(training, "start", "make the model")
    timed(features, "in_place_of_images", "name the features")
    timed(features, "features_of", "open the features")
    timed(training, "train_step", "steps")
    timed(training, "evaluate", "validation")
    timed(trial, "save_checkpoint", "checkpoints")
    timed(trial, "send", "reports")
    send = trial.send

    @functools.wraps(send)
    def send_last(*args: Any) -> None:
        """The last report does not return: Tune ends the thread in it. So what came before is written down first."""
        took["the rest"] = time.thread_time() - start - inner[0]
        record = {"pid": os.getpid(), "begun": begun, "ended": time.process_time(), "took": took}
        (Path(folder) / f"{order['trial']}.json").write_text(json.dumps(record))
        send(*args)

    send_last.__wrapped__ = send.__wrapped__  # type: ignore[attr-defined]
    trial.send = send_last
    if apart:
        shared_blocks.can_share = lambda config: False
    start = time.thread_time()
    trial.train_trial(order)


def run(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], float, float]:
    """Run the search. Returns: what the worker wrote of each trial, and driver and wall seconds of each trial but the first."""
    write_images(folder / "images", args.images, args.size)
    plain = search_of(folder / "images", "", args, "batch_size: 32")
    weights = backbone_of(plain, prepare(plain.data_config), folder / "backbone")
    fields = {name: getattr(args, name) for name in ("trials", "epochs", "size")}
    spec = search_file.parse(SEARCH.format(**fields, images=folder / "images", weights=weights))
    ends: list[tuple[float, float]] = []

    def watch(*_: Any) -> Any:
        def note(event: Event) -> None:
            if isinstance(event, Ended):
                ends.append((time.process_time(), time.perf_counter()))

        return note

    records, apart = str(folder), args.apart

    def work(order: dict[str, Any]) -> None:
        measured(records, apart, order)

    launch.run(spec, output=folder / "searches", tracking_uri=f"sqlite:///{folder / 'mlruns.db'}", work=work, watch=watch)
    driver, wall = ((last - first) / (len(ends) - 1) for first, last in zip(ends[0], ends[-1], strict=True))
    return [json.loads((folder / f"{trial}.json").read_text()) for trial in range(args.trials)], driver, wall


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apart", action="store_true", help="let no trial share the frozen blocks of the one before")
    for name, default in (
        ("trials", 8),
        ("images", 500),
        ("size", 64),
        ("patch", 8),
        ("dim", 192),
        ("depth", 6),
        ("heads", 3),
        ("epochs", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    args.device = "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VIT_SEARCH_CACHE"] = str(Path(temporary) / "cache")
        torch.set_num_threads(1)
        trials, driver, wall = run(args, Path(temporary))
    print(surroundings(torch.device("cpu"), "ray"))
    shape = f"dim {args.dim}, depth {args.depth}, {args.size} pixels in patches of {args.patch}"
    print(f"{shape}; {args.images} images, {args.trials} trials of {args.epochs} epochs, {len({one['pid'] for one in trials})} worker(s)\n")
    first, later = trials[0]["took"], [one["took"] for one in trials[1:]]
    pairs = [(before, after) for before, after in itertools.pairwise(trials) if before["pid"] == after["pid"]]
    between = [after["begun"] - before["ended"] for before, after in pairs]
    rows = [[label, 1000 * first.get(label, 0), 1000 * statistics.median(one.get(label, 0) for one in later)] for label in first]
    rows.append(["sum", *(sum(row[k] for row in rows) for k in (1, 2))])
    rows.append(["worker, between two trials", 1000 * trials[0]["begun"], 1000 * statistics.median(between)])
    rows.append(["driver", 0.0, 1000 * driver])
    print(table(["processor ms", "first", "later"], [[label, f"{a:.1f}", f"{b:.1f}"] for label, a, b in rows]))
    print(f"\nwall time of a later trial: {1000 * wall:.0f} ms")


if __name__ == "__main__":
    main()
