"""Trials that train nothing: they report a curve that follows from their parameters, so that what is left is the driver's work."""

import dataclasses
import hashlib
import logging
import math
import os
from pathlib import Path

import ray
from ray import tune

from vit_search.config.trial import EpochResult

SEARCH = """
name: simulated
data: {{name: digits}}
trials: {trials}
epochs: {epochs}
stopping: {{grace_epochs: 1, reduction_factor: 4, audit_share: 0}}
concurrency: 2
sampler: tpe
model: {{patch_size: {{choice: [1, 2, 4]}}, depth: {{int: [1, 4]}}, dim: {{int: [32, 96], step: 16}}, heads: {{choice: [1, 2, 4]}}}}
training: {{lr: {{float: [3e-4, 5e-3], log: true}}, weight_decay: {{float: [1e-3, 0.3], log: true}}}}
"""


def start_ray() -> None:
    """A quiet Ray on loopback whose workers find this module."""
    logging.disable(logging.WARNING)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1")


def curve(patch_size: int, depth: int, dim: int, lr: float, weight_decay: float, epoch: int) -> float:
    """A validation accuracy that better parameters raise, with a little noise of its own."""
    height = 0.99 - 0.02 * abs(math.log(lr / 1.5e-3)) - 0.01 * patch_size - 0.02 / depth - 0.5 / dim - 0.02 * abs(weight_decay - 0.05)
    noise = int.from_bytes(hashlib.sha256(f"{lr}/{dim}/{epoch}".encode()).digest()[:2], "big") / 2**16
    return height * (1 - math.exp(-0.4 * epoch)) + 0.004 * noise


def result(epoch: int, value: float) -> dict:
    """What a trial reports after an epoch."""
    told = EpochResult(
        epoch=epoch,
        train_loss=2 * (1 - value),
        train_accuracy=value,
        val_loss=2 * (1 - value),
        val_accuracy=value,
        val_top5_accuracy=value,
        lr=1e-3,
        images_per_s=1e4,
        seconds=0.01,
        peak_memory_bytes=2**28,
    )
    return dataclasses.asdict(told)


def our_trial(told: dict) -> None:
    """In place of search/trial.py's."""
    model, training = told["config"]["model"], told["config"]["training"]
    for epoch in range(1, training["epochs"] + 1):
        value = curve(model["patch_size"], model["depth"], model["dim"], training["lr"], training["weight_decay"], epoch)
        tune.report({"trial": told["trial"], **result(epoch, value)})


def stock_trial(config: dict) -> None:
    """As Ray's tutorials have it."""
    for epoch in range(1, config["epochs"] + 1):
        value = curve(config["patch_size"], config["depth"], config["dim"], config["lr"], config["weight_decay"], epoch)
        tune.report(result(epoch, value))
