"""vit-search whose workers note each epoch that they begin, and may take longer over it: run on a real cluster by test_survival.py.

Environment of the driver: COUNTED, a file that gets a line for each epoch begun; SLOW_S, seconds of sleep in each epoch. While a file
of the name of COUNTED with `.held` exists, no epoch that was begun goes on.
"""

import dataclasses
import json
import os
import time
from pathlib import Path

from vit_search.search import launch, trial  # before ray: it sets what ray reads when it is imported

# isort: split
import ray

COUNTED, SLOW_S = "COUNTED", "SLOW_S"


def counted(told, place, slow_s):
    """A trial's work as it is, but that it notes each epoch that it begins, and sleeps in it."""
    real = trial.training.fit

    def fit(state, train, val):
        epochs = real(state, train, val)
        while len(state.history) < state.config.training.epochs:
            note = {
                "trial": told["trial"], "epoch": len(state.history) + 1, "pid": os.getpid(),
                "node": ray.get_runtime_context().get_node_id(), "at": time.time(),
            }  # fmt: skip
            with Path(place).open("a") as file:
                file.write(json.dumps(note) + "\n")
            time.sleep(slow_s)
            while Path(f"{place}.held").exists():
                time.sleep(0.1)
            yield next(epochs)

    trial.training.fit = fit
    try:
        trial.train_trial(told)
    finally:
        trial.training.fit = real


def main():
    from vit_search import cli

    place, slow_s, drive = os.environ[COUNTED], float(os.environ.get(SLOW_S, "0")), launch.drive

    def work(told):
        counted(told, place, slow_s)

    def driven(*arguments, options, **more):
        return drive(*arguments, options=dataclasses.replace(options, work=work), **more)

    launch.drive = driven
    cli.main()
