"""Train one configuration on this machine, without Ray and MLflow. An interrupted training continues from its folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import DataSet, absent_classes
from vit_search.data.split import TRAINED_AND_VALIDATED_ON
from vit_search.errors import CheckpointError, SearchError, SpecError
from vit_search.files import write_whole
from vit_search.vit import checkpoint, evaluation, features, training
from vit_search.vit.checkpoint_files import describe, read
from vit_search.vit.pretrained import starting_point

FILE = "search.yaml"
"""The search file of the training. It is written into the folder once the training is over."""

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec


def is_done(folder: Path, config: TrialConfig) -> bool:
    """Whether a folder holds exactly this training, finished. False if it is damaged; `train` then repairs it or reports it."""
    try:
        described = describe(folder)
    except CheckpointError:
        return False
    return described.config == config and len(described.history) >= config.training.epochs


def train(spec: SearchSpec, config: TrialConfig, data: DataSet, folder: Path) -> Iterator[EpochResult]:
    """Train one configuration to full length, as a trial of a search does, and save each epoch. The same file gives the same numbers.

    Args:
        spec: the splits, and the threads or GPUs. The number of torch's threads is set for the whole process.
        config: the configuration of its trial 0.
        data: what `prepare` returned.
        folder: for the checkpoint. If it holds one of the same training, that training continues, and its epochs are yielded first.
    Raises: SpecError if the file asks for a GPU and the machine has none; CheckpointError if the folder holds something else or cannot be
        written; SearchError if the loss is not finite; OutOfMemoryError.
    """
    trained_on, validated_on = TRAINED_AND_VALIDATED_ON[spec.train_on]
    if not all(data.counts[name] for name in validated_on):
        raise SpecError("train_on: no image is left for the holdout to validate on; raise data.holdout_fraction, or train on train.")
    spec.check_data(data.classes, absent_classes(data, *validated_on))
    gpus, cpus = spec.resources.gpus, spec.resources.cpus
    if spec.resources.on_gpu and not torch.cuda.is_available():
        raise SpecError(f"resources.gpus: {gpus if gpus == 'auto' else f'{gpus:g}'} asked for, and this machine has none; write 0.")
    device = "cuda" if spec.resources.on_gpu else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)) if cpus == "auto" else max(1, int(cpus)))
    state = _where_it_stood(folder, config, data, trained_on, device)
    yield from list(state.history)
    parts = [load_split(data, *names, device=device) for names in (trained_on, validated_on)]
    train, val = features.in_place_of_images(state, data, (trained_on, validated_on), parts)
    try:
        for result in training.fit(state, train, val):
            if not math.isfinite(result.train_loss):
                raise training.DivergedError(f"the training loss is {result.train_loss} in epoch {result.epoch}")
            whole = result.epoch == config.training.epochs  # the folder is what this training is for, and may be moved
            checkpoint.save(folder, state, classes=data.classes, data_hash=data.data_hash, trained_on=trained_on, whole=whole)
            yield result
    except training.DivergedError as error:
        raise SearchError(f"{folder}: {error}; lower training.lr.") from None
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error}); make room or name another folder with --output.") from None
    checkpoint.drop_older(folder)
    write_whole(folder / FILE, spec.text)


def _where_it_stood(folder: Path, config: TrialConfig, data: DataSet, trained_on: tuple[str, ...], device: str) -> training.Training:
    begins = not checkpoint.exists(folder)
    needed = begins or config.training.tune != "full"  # a checkpoint may leave frozen blocks out
    pretrained = starting_point(config.model.pretrained, data.classes) if needed else None
    if begins:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{folder}: holds something that is no checkpoint; name another folder with --output.")
        return training.start(config, evaluation.Normalisation.of(data.mean, data.std, device), device, pretrained)
    try:
        state = checkpoint.load_training(folder, config, device, pretrained)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_elsewhere(folder)}") from None
    before = read(folder)
    if (before["data_hash"], tuple(before["trained_on"])) != (data.data_hash, trained_on):
        raise CheckpointError(f"{folder}: trained on other images than the file asks for; it is left as it is. {_elsewhere(folder)}")
    return state


def _elsewhere(folder: Path) -> str:
    return f"Name another folder with --output, or remove {folder}."
