"""What one Ray worker does with one trial: train epoch by epoch, save a checkpoint, report, and take up where it stood."""

from __future__ import annotations

import dataclasses
import math
import traceback
from pathlib import Path
from typing import Any, Literal

import torch
from ray import tune

from vit_search.errors import VitSearchError
from vit_search.spec.config import TrialConfig
from vit_search.vit import checkpoint, training
from vit_search.vit.data import DataSet
from vit_search.vit.splits import Split, StreamedSplit, load_split


def train_trial(told: dict[str, Any]) -> None:
    """Tune's function trainable.

    Args:
        told: `trial` (number), `config` (TrialConfig as a dict), `folder` (of this trial, on storage that every node
            sees), `data` (a prepared DataSet), `threads`.

    An epoch is saved before it is reported, and a trial that starts again reports what its checkpoint holds once more:
    the driver drops what it knows. An error of ours or of the user is reported, not raised: Tune's retries are for
    processes that die.
    """
    try:
        _train(told)
    except training.DivergedError as error:
        tune.report({"trial": told["trial"], "failure": "diverged", "reason": str(error)})
    except VitSearchError as error:
        tune.report({"trial": told["trial"], "failure": "failed", "reason": str(error)})
    except Exception as error:
        folder = Path(told["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        tune.report({"trial": told["trial"], "failure": "failed", "reason": f"{reason} (see {folder / 'error.txt'})"})


def _train(told: dict[str, Any]) -> None:
    torch.set_num_threads(told["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, folder, data = TrialConfig.from_dict(told["config"]), Path(told["folder"]) / "checkpoint", told["data"]
    train, val = _split(data, "train", device), _split(data, "val", device)
    if checkpoint.exists(folder):
        state = checkpoint.load_training(folder, config, device)
        for result in state.history:
            tune.report({"trial": told["trial"], **dataclasses.asdict(result)})
    else:
        state = training.start(config, training.Normalisation.of(data.mean, data.std, device), device)
    for result in training.fit(state, train, val):
        if not math.isfinite(result.train_loss):
            raise training.DivergedError(f"the training loss is {result.train_loss} in epoch {result.epoch}")
        checkpoint.save(folder, state, classes=data.classes, data_hash=data.data_hash)
        tune.report({"trial": told["trial"], **dataclasses.asdict(result)})


def _split(data: DataSet, split: Literal["train", "val"], device: str) -> Split | StreamedSplit:
    """A split on the device, read once per worker process: reused workers keep it from trial to trial."""
    key = (data.folder, split, device)
    if key not in _splits:
        _splits[key] = load_split(data, split, device)
    return _splits[key]


_splits: dict[tuple[Path, str, str], Split | StreamedSplit] = {}
