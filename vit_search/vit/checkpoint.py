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
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as in_bytes
from torch import Tensor

from vit_search.config.backbone_fit import check
from vit_search.config.model_config import ModelConfig
from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.errors import CheckpointError, DamagedCheckpointError, LostWeightsError, SpecError, VitSearchError
from vit_search.vit import tuning
from vit_search.vit.checkpoint_files import (
    CONFIG,
    MODEL,
    OPTIMISER,
    PRETRAINED,
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
    weights = training.outcome.state_dict() if left_out is None else _but_frozen_blocks(training)
    fresh.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, fresh / names[0])
        save_file(_optimiser_tensors(training, whole=left_out is None), fresh / OPTIMISER)
    except SafetensorError as error:  # raised for an OSError
        raise OSError(f"{fresh}: cannot be written ({error})") from None
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
        _check_weights(folder, config.model)
        training = start(config, _normalisation(document, device), device)
        _load_weights(folder, training.model if training.average is None else training.average)
    else:
        training = _with_blocks(folder, document, config, device, pretrained)
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
        _check_weights(folder, config.model)
        model = ViT(config.model)
        _load_weights(folder, model)
    else:
        outcome = _with_blocks(folder, document, config, "cpu").outcome
        model = ViT(config.model)
        model.load_state_dict(outcome.state_dict())
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            file = folder / (MODEL if is_whole(document) else TRAINED)  # the blocks that it leaves out were looked at when they were read
            raise DamagedCheckpointError(f"{file}: {name} holds numbers that are not finite; use another checkpoint.")
    return ServedModel(
        model=model.to(device).eval(),
        config=config,
        normalisation=_normalisation(document, device),
        classes=tuple(document["classes"]),
        data_hash=document["data_hash"],
        trained_on=tuple(document["trained_on"]),
    )


def served_file(folder: Path) -> bytes:
    """The model.safetensors that serves the model of a checkpoint, which leaves frozen blocks out.

    Raises: CheckpointError as `load_model`.
    """
    return in_bytes({name: tensor.contiguous() for name, tensor in load_model(folder).model.state_dict().items()})


def served_bytes(config: ModelConfig) -> int:
    """The size of the model.safetensors of a model, in bytes: its header, and float32 numbers."""
    header, end = {}, 0
    for name, shape in sorted(shapes(config).items()):
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // 8) * 8 + end  # safetensors fills the header up to a multiple of 8 bytes


def _but_frozen_blocks(training: Training) -> dict[str, Tensor]:
    """The weights and buffers of a training that `trained.safetensors` has; of the average, if there is one."""
    frozen = tuning.frozen_blocks(training.model)
    weights = (training.model if training.average is None else training.average).state_dict()
    return {name: tensor for name, tensor in weights.items() if name not in frozen}


def _with_blocks(
    folder: Path, document: dict[str, Any], config: TrialConfig, device: torch.device | str, pretrained: Pretrained | None = None
) -> Training:
    """A training with the weights of a checkpoint that leaves frozen blocks out, without its optimizer's state.

    Raises: CheckpointError if the pretrained weights are missing or are others; DamagedCheckpointError.
    """
    left_out = LeftOut(**document["left_out"])
    _check_weights(folder, config.model, TRAINED)
    if pretrained is None:
        pretrained = _pretrained_of(folder, config.model.pretrained, left_out.backbone, document["classes"])
    try:
        check(pretrained.backbone, config.model)  # before memory of the model's size is allocated
        training = start(config, _normalisation(document, device), device, pretrained)
    except SpecError as error:
        raise CheckpointError(f"{folder}: its pretrained weights do not fit ({error}); is their config.json beside them?") from None
    training.normalisation = _normalisation(document, device)  # as it began, whatever is beside the weights now
    if training.left_out != left_out:
        raise CheckpointError(
            f"{folder}: its frozen blocks came from other pretrained weights, or from another version of vit_search; use what trained it."
        )
    try:
        weights = load_file(folder / TRAINED, device=str(device))
        _check_names(_but_frozen_blocks(training), weights)
    except (SafetensorError, ValueError) as error:
        raise DamagedCheckpointError(f"{folder / TRAINED}: does not fit its config.json ({error}).") from None
    for name, tensor in _but_frozen_blocks(training).items():
        tensor.copy_(weights[name])
    return training


def _check_names(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises: ValueError that names the first weight that is missing, is too many, or has another type or shape."""
    for name in sorted(wanted.keys() | found.keys()):
        due, content = (f"{one[name].dtype} of {list(one[name].shape)}" if name in one else "nothing" for one in (wanted, found))
        if due != content:
            raise ValueError(f"{name}: {content}, and {due} belongs there")


def _pretrained_of(folder: Path, source: str, sha256: str, classes: Sequence[str]) -> Pretrained:
    """The pretrained weights in the folder of the search; if they are lost there, those that the search file named."""
    from vit_search.vit.pretrained import read_pretrained, starting_point  # here, since a model that is served needs no other weights

    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise DamagedCheckpointError(f"{folder / CONFIG}: damaged (left_out.backbone is no sha256). Use another checkpoint.")
    for above in folder.resolve().parents:
        path = above / PRETRAINED / sha256 / MODEL
        try:
            found = path.is_file()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}), and the checkpoint {folder} needs it.") from None
        if found:
            if sha256_of(path) != sha256:
                raise CheckpointError(f"{path}: its sha256 is not the one in its folder's name: the file is damaged; copy it again.")
            return read_pretrained(path, classes)
    try:
        named = starting_point(source, classes, fetch=False)  # a copy in the cache will do, but a reader asks no server
    except VitSearchError:
        named = None
    if named is None:
        raise LostWeightsError(
            f"{folder}: holds only what was trained, and the pretrained weights of its search are gone; put their {MODEL}, config.json "
            f"and preprocessor_config.json, if there is one, into {PRETRAINED}/{sha256} in the folder of the search."
        )
    return named


def _normalisation(document: dict[str, Any], device: torch.device | str) -> Normalisation:
    values = document["normalisation"]
    return Normalisation.of(tuple(values["mean"]), tuple(values["std"]), device)


def _check_weights(folder: Path, config: ModelConfig, name: str = MODEL) -> None:
    """Compare names, shapes and types in the weights' header with the model's, before memory of their size is allocated.

    Args:
        name: of the file. In TRAINED, only what is outside of the blocks is compared: the rest cannot be larger than the backbone.
    Raises: DamagedCheckpointError.
    """
    path, whole = folder / name, name == MODEL
    wanted = {name: (list(shape), "F32") for name, shape in shapes(config).items() if whole or not name.startswith("encoder.blocks.")}
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
            stored = {name: (list(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: no file of safetensors ({error}); use another checkpoint.") from None
    for name in sorted(wanted.keys() | (stored.keys() if whole else set())):
        if stored.get(name) != wanted.get(name):
            content, due = (" of ".join(map(str, one[name][::-1])) if name in one else "nothing" for one in (stored, wanted))
            raise DamagedCheckpointError(f"{path}: does not fit its config.json ({name}: {content}, and {due} belongs there).")


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
