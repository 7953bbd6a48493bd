"""A checkpoint: a folder from which a model and its training can be rebuilt. It is written whole or not at all.

    checkpoint/
      config.json            trial config, normalisation, classes, history, sha256 of the two files below
      model.safetensors      weights and buffers of the served model: the average, if the training keeps one
      optimiser.safetensors  state of the optimizer, weights behind an average, and weights that LoRA merges; absent if the
                             model is only served

If a training leaves blocks of pretrained weights as they are, each epoch would write the same blocks again. Its checkpoint leaves them out:

      trained.safetensors    takes the place of model.safetensors: all weights but the frozen blocks, with LoRA's as they are trained
      config.json            also has `left_out`: the sha256 of the pretrained weights, and that of the blocks

The blocks are made again from the pretrained weights. They lie in the folder `weights` of the search, some levels above the checkpoint.

It contains no pickle. While a trial runs, the checkpoint before this one is kept as `checkpoint.old`. `save` writes a new folder and
renames it. If a checkpoint is damaged, the old one replaces it. Those who only read it, while its trial may go on, change nothing and get
one epoch: see `checkpoint_files.read_consistently`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_search.config.model_config import ModelConfig
from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.errors import CheckpointError, DamagedCheckpointError
from vit_search.vit import tuning
from vit_search.vit.checkpoint_files import (
    CONFIG,
    MODEL,
    OPTIMISER,
    TRAINED,
    LeftOut,
    copy_for_serving,
    drop_older,
    drop_unfinished,
    exists,
    is_whole,
    model_bytes,
    read,
    read_consistently,
    recover,
    sha256_of,
    signed,
    trial_config,
    weights_sha256,
)
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.model import ViT, shapes
from vit_search.vit.optimizers import state_of
from vit_search.vit.partial_checkpoint import model_with_blocks, trained_weights, training_with_blocks
from vit_search.vit.stored_weights import check_finite, check_stored
from vit_search.vit.training import Training, start

__all__ = [
    "CONFIG",
    "MODEL",
    "OPTIMISER",
    "TRAINED",
    "ServedModel",
    "copy_for_serving",
    "drop_older",
    "drop_unfinished",
    "exists",
    "load_model",
    "load_training",
    "model_bytes",
    "read_consistently",
    "save",
    "weights_sha256",
]

if TYPE_CHECKING:
    from vit_search.vit.pretrained import Pretrained

_log = logging.getLogger(__name__)

WEIGHT = "weight"
"""Key of a weight itself, among the keys of its optimizer state."""
AVERAGE = "average"
"""Key of a weight's average, if the served model has it only merged."""


@dataclass(frozen=True)
class ServedModel:
    """A model ready to classify images, with its normalisation and class names."""

    model: ViT
    config: TrialConfig
    normalisation: Normalisation
    classes: tuple[str, ...]
    data_hash: str
    trained_on: tuple[str, ...] = ("train",)
    """Splits that it was trained on."""


def save(
    folder: Path,
    training: Training,
    *,
    classes: tuple[str, ...],
    data_hash: str,
    trained_on: tuple[str, ...] = ("train",),
    check: Callable[[], None] = lambda: None,
    whole: bool = False,
) -> None:
    """Write a checkpoint, and keep the one before it. At every moment, `folder` or the `.old` beside it is complete.

    Args:
        check: called after all is written, but before it replaces anything. If it raises an error, the older checkpoint stays.
        whole: write frozen blocks, too, so that the folder needs no pretrained weights.

    Raises: OSError if the disk is full or cannot be written. The older checkpoint stays.
    """
    fresh, old = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.new"), folder.with_name(folder.name + ".old")
    recover(folder)
    try:
        _write(fresh, training, classes, data_hash, trained_on, None if whole else training.left_out)
        check()
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write(
    fresh: Path, training: Training, classes: tuple[str, ...], data_hash: str, trained_on: tuple[str, ...], left_out: LeftOut | None
) -> None:
    names = (MODEL if left_out is None else TRAINED, OPTIMISER)
    weights = training.outcome.state_dict() if left_out is None else trained_weights(training.model, training.average)
    fresh.mkdir(parents=True)
    _save({name: tensor.contiguous() for name, tensor in weights.items()}, fresh / names[0])
    _save(_optimiser_tensors(training, whole=left_out is None), fresh / OPTIMISER)
    document = {
        "config": training.config.to_dict(),
        "normalisation": {"mean": training.normalisation.mean.tolist(), "std": training.normalisation.std.tolist()},
        "classes": list(classes),
        "data_hash": data_hash,
        "trained_on": list(trained_on),
        "accumulation": training.accumulation,
        "scaler": training.scaler.state_dict(),
        "history": [dataclasses.asdict(result) for result in training.history],
        "sha256": {name: sha256_of(fresh / name) for name in names},
    }
    if left_out is not None:
        document["left_out"] = dataclasses.asdict(left_out)
    (fresh / CONFIG).write_text(signed(document))
    mode = (fresh / CONFIG).stat().st_mode & 0o777  # as the umask says; safetensors gives its files 0600
    for name in names:
        (fresh / name).chmod(mode)


def load_training(
    folder: Path,
    config: TrialConfig,
    device: torch.device | str = "cpu",
    pretrained: Pretrained | None = None,
) -> Training:
    """Rebuild a training as it was saved. If the checkpoint is damaged, the one before it takes its place, one epoch behind.

    Args:
        folder: a checkpoint that `save` has written, with its optimizer.
        config: what the caller will train. It must equal the saved configuration.
        pretrained: the weights that it started from, in case the checkpoint leaves frozen blocks out. If None, those above the folder.

    Raises: CheckpointError for another configuration or other pretrained weights; DamagedCheckpointError if both checkpoints are damaged.
    """
    recover(folder)
    try:
        return _load_training(folder, config, device, pretrained)
    except DamagedCheckpointError as error:
        old = folder.with_name(folder.name + ".old")
        if not old.exists():
            raise
        _log.warning("%s The one before it is taken.", error)
        training = _load_training(old, config, device, pretrained)
        shutil.rmtree(folder, ignore_errors=True)
        old.rename(folder)
        return training


def _load_training(folder: Path, config: TrialConfig, device: torch.device | str, pretrained: Pretrained | None) -> Training:
    document = read(folder)
    saved = trial_config(folder, document)
    if saved != config:
        raise CheckpointError(f"{folder}: {_difference(saved, config)}; it is left as it is.")
    if is_whole(document):
        check_stored(folder / MODEL, config.model)
        training = start(config, _normalisation(document, device), device)
        _load_weights(folder, training.model if training.average is None else training.average)
    else:
        training = training_with_blocks(folder, document, config, _normalisation(document, device), device, pretrained)
    try:
        _load_optimiser(training, load_file(folder / OPTIMISER, device=str(device)), whole=is_whole(document))
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedCheckpointError(f"{folder / OPTIMISER}: does not fit its config.json ({error}).") from None
    training.accumulation = document["accumulation"]
    if training.scaler.is_enabled():
        training.scaler.load_state_dict(document["scaler"])
    training.history.extend(EpochResult(**result) for result in document["history"])
    return training


def load_model(folder: Path, device: torch.device | str = "cpu") -> ServedModel:
    """Load the model of a checkpoint, in eval mode, to classify images. Its trial may replace the checkpoint meanwhile.

    Raises: CheckpointError if the folder is missing or damaged, or leaves blocks out and lies in no search that has them.
    """
    return read_consistently(folder, lambda current: _load_model(current, device))


def _load_model(folder: Path, device: torch.device | str) -> ServedModel:
    document = read(folder, needs=(MODEL,))
    config = trial_config(folder, document)
    if is_whole(document):
        check_stored(folder / MODEL, config.model)
        model = ViT(config.model)
        _load_weights(folder, model)
        check_finite(folder / MODEL, model.state_dict())
    else:
        model = model_with_blocks(folder, document, config)
    return ServedModel(
        model=model.to(device).eval(),
        config=config,
        normalisation=_normalisation(document, device),
        classes=tuple(document["classes"]),
        data_hash=document["data_hash"],
        trained_on=tuple(document["trained_on"]),
    )


def write_served(folder: Path, path: Path) -> None:
    """Write the model.safetensors that serves the model of a checkpoint, which leaves frozen blocks out.

    Raises: CheckpointError as `load_model`; OSError.
    """
    _save({name: tensor.contiguous() for name, tensor in load_model(folder).model.state_dict().items()}, path)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # raised for an OSError
        raise OSError(f"{path.parent}: cannot be written ({error})") from None


def served_bytes(config: ModelConfig) -> int:
    """The size of the model.safetensors of a model, in bytes: its header, and float32 numbers."""
    header, end = {}, 0
    for name, shape in sorted(shapes(config).items()):
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // 8) * 8 + end  # safetensors fills the header up to a multiple of 8 bytes


def _normalisation(document: dict[str, Any], device: torch.device | str) -> Normalisation:
    values = document["normalisation"]
    return Normalisation.of(tuple(values["mean"]), tuple(values["std"]), device)


def _load_weights(folder: Path, model: ViT) -> None:
    """Load weights into a model or a training's. The file lacks LoRA's own weights; `_load_optimiser` replaces those that are merged."""
    try:
        model.load_state_dict(load_file(folder / MODEL), strict=not tuning.has_lora(model))
    except (SafetensorError, RuntimeError) as error:
        raise DamagedCheckpointError(f"{folder / MODEL}: does not fit its config.json ({str(error).splitlines()[0]}).") from None


def _optimiser_tensors(training: Training, *, whole: bool) -> dict[str, Tensor]:
    tensors = {
        f"{name}/{key}": value
        for name, p in training.model.named_parameters()
        if p.requires_grad
        for key, value in state_of(training.optimiser, p).items()
        if value is not None
    }
    return tensors | _weights_beside(training, whole=whole)


def _weights_beside(training: Training, *, whole: bool) -> dict[str, Tensor]:
    """Weights of the training that the other file lacks: those behind an average, and those from which LoRA's merged ones are made."""
    merged = tuning.beside_served(training.model) if whole else {}
    tensors = {f"{name}/{WEIGHT}": weight for name, weight in merged.items()}
    if training.average is not None:
        tensors |= {f"{name}/{WEIGHT}": p.detach() for name, p in training.model.named_parameters() if p.requires_grad}
    if training.average is not None and whole:
        own = {name: p for name, p in tuning.beside_served(training.average).items() if not name.endswith(".weight")}
        tensors |= {f"{name}/{AVERAGE}": p for name, p in own.items()}
    return tensors


def _load_optimiser(training: Training, tensors: dict[str, Tensor], *, whole: bool) -> None:
    parameters = dict(training.model.named_parameters())
    averages = {} if training.average is None else dict(training.average.named_parameters())
    missing = _weights_beside(training, whole=whole).keys() - tensors.keys()
    if missing:
        raise ValueError(f"{min(missing)}: nothing")
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        if value.dtype != torch.float32 or (key != "step" and value.shape != parameters[name].shape):
            raise ValueError(f"{path}: {value.dtype} of {list(value.shape)}")
        if key == WEIGHT:
            parameters[name].data.copy_(value)
        elif key == AVERAGE:
            averages[name].data.copy_(value)
        else:
            if not parameters[name].requires_grad:
                raise ValueError(f"{path}: nothing of it is trained")
            state_of(training.optimiser, parameters[name])[key] = value


def _difference(saved: TrialConfig, current: TrialConfig) -> str:
    for part in ("data", "model", "training"):
        before, after = dataclasses.asdict(getattr(saved, part)), dataclasses.asdict(getattr(current, part))
        for name, value in before.items():
            if after[name] != value:
                return f"{part}.{name} was {value!r} when it was saved and is now {after[name]!r}"
    return f"seed was {saved.seed} when it was saved and is now {current.seed}"
