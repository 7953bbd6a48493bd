"""Retrained finalists as promotion/retrain.py leaves them, without Ray: real trainings of tiny models, their runs in MLflow."""

import dataclasses
import json

from helpers import synthetic
from vit_search.config import search_file
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare
from vit_search.ledger import searches
from vit_search.promotion.finalists import Finalist, Retrained
from vit_search.tracking.mlflow_client import client_for
from vit_search.vit import checkpoint, evaluation, training

FILE = """
name: tiny
data: %s
trials: 1
epochs: %d
stopping: {kind: none}
train_on: train+val
model: {patch_size: 4, dim: {int: [8, 64], step: 4}, depth: 1, heads: 2}
training: {lr: {float: [1e-5, 1e-2], log: true}, batch_size: 64}
"""


def trained(home, store, search, *, data="{name: digits}", epochs=12, seeds=1, metric="val_accuracy", **told):
    """One finalist of a search, trained with some seeds; its folder lies in home.

    Args:
        store: URI of MLflow, in which its runs are made.
    """
    spec = search_file.parse(FILE % (data, epochs) + (f"metric: {metric}\n" if metric != "val_accuracy" else ""))
    folder = home / search / "promotions" / "1"
    folder.mkdir(parents=True)
    prepared = prepare(spec.data_config)
    facts = dataclasses.replace(
        synthetic.begin(home, f"{search}-facts")[2], search=f"{search}-promotion-1", spec_name=spec.name, text=spec.text, promotes=search
    )
    searches.write(folder, dataclasses.replace(facts, environment={"python": "3", "machine": "here", "cpus": "2"}))
    client = client_for(store)
    known = client.get_experiment_by_name(spec.name)
    experiment = known.experiment_id if known else client.create_experiment(spec.name, artifact_location=(home / "artifacts").as_uri())
    tags = {"search_id": facts.search_id, "search": facts.search}
    parent = client.create_run(experiment, run_name=facts.search, tags=tags).info.run_id
    values, accuracies, places = [], [], []
    params = {"dim": 32, "lr": 3e-3} | told
    for number in range(seeds):
        config = TrialConfig(
            data=spec.data_config,
            model=ModelConfig(
                image_size=spec.image_size,
                in_channels=prepared.channels,
                num_classes=len(prepared.classes),
                patch_size=4,
                depth=1,
                heads=2,
                dim=params["dim"],
            ),
            training=TrainingConfig(epochs=epochs, batch_size=64, lr=params["lr"]),
            seed=(100 + number) * 1_000_003,
        )
        state = training.start(config, evaluation.Normalisation.of(prepared.mean, prepared.std))
        results = list(training.fit(state, load_split(prepared, "train", "val"), load_split(prepared, "holdout")))
        place = folder / "trials" / f"{number:04d}" / "checkpoint"
        checkpoint.save(place, state, classes=prepared.classes, data_hash=prepared.data_hash, trained_on=("train", "val"))
        values.append(results[-1].value(metric))
        accuracies.append(results[-1].val_accuracy)
        places.append(place)
        tags = {"mlflow.parentRunId": parent, "trial": str(number), "search": facts.search}
        client.set_terminated(client.create_run(experiment, run_name=f"trial {number}", tags=tags).info.run_id)
    client.set_terminated(parent)
    numbers = tuple(range(seeds))
    one = Finalist(7, params, 0.99, tuple(100 + n for n in numbers), tuple(values), tuple(places), numbers, tuple(accuracies))
    return Retrained(folder, search, facts.search, facts.search_id, spec, (one,), {})


def main():
    """Promote in a process of its own: arguments as JSON, so that a test may kill it."""
    import sys
    from pathlib import Path

    from vit_search.promotion import policy
    from vit_search.promotion.decision import PromotionRequest
    from vit_search.promotion.promote import promote

    told = json.loads(sys.argv[1])
    if told.get("die_at"):
        die(told["die_at"], told["before"])
    spec = search_file.parse(told["file"])
    one = told["finalist"]
    finalist = Finalist(one[0], one[1], one[2], tuple(one[3]), tuple(one[4]), tuple(map(Path, one[5])), tuple(one[6]), tuple(one[4]))
    retrained = Retrained(Path(told["folder"]), told["search"], told["run_name"], told["search_id"], spec, (finalist,), {})
    request = PromotionRequest("tiny", "somebody")
    done = promote(retrained, policy.parse(told["policy"]), request, tracking_uri=told["store"])
    print(json.dumps({"verdict": done.verdict, "version": done.version, "reading": done.reading}))


def as_arguments(retrained, policy_text, store, **more):
    """What `main` is told."""
    one = retrained.finalists[0]
    told = {
        "file": retrained.spec.text,
        "finalist": [one.trial, one.params, one.searched_value, one.seeds, one.values, [str(p) for p in one.checkpoints], one.numbers],
        "folder": str(retrained.folder),
        "search": retrained.search,
        "run_name": retrained.run_name,
        "search_id": retrained.search_id,
        "policy": policy_text,
        "store": store,
    }
    return json.dumps(told | more)


WRITES = (
    "create_registered_model",
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "delete_registered_model",
    "create_model_version",
    "set_model_version_tag",
    "update_model_version",
    "set_registered_model_alias",
    "log_dict",
    "log_text",
    "log_metric",
    "set_tag",
    "set_terminated",
    "create_logged_model",
    "log_batch",
)


def die(number, before):
    """Have this process killed at the number-th write to MLflow, before or after it."""
    import os
    import signal

    from mlflow import MlflowClient

    seen = 0

    def deadly(name):
        real = getattr(MlflowClient, name)

        def call(self, *args, **kwargs):
            nonlocal seen
            seen += 1
            mine = seen == number
            if mine and before:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(self, *args, **kwargs)
            finally:  # also where MLflow refuses it: the registered model is there already
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in WRITES:
        if hasattr(MlflowClient, name):
            setattr(MlflowClient, name, deadly(name))


if __name__ == "__main__":
    main()
