"""Checkpoints that leave out frozen blocks of pretrained weights: make these blocks again, and put the rest on top.

checkpoint.py says which files such a checkpoint has. To load its model takes the memory of two: the model and the pretrained weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vit_search.config.backbone_fit import check
from vit_search.config.trial import TrialConfig
from vit_search.errors import CheckpointError, DamagedCheckpointError, LostWeightsError, SpecError, VitSearchError
from vit_search.vit import tuning
from vit_search.vit.checkpoint_files import CONFIG, MODEL, PRETRAINED, TRAINED, LeftOut, sha256_of
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.inherit import inherit_into
from vit_search.vit.model import ViT
from vit_search.vit.stored_weights import check_finite, check_same_names, check_stored
from vit_search.vit.training import Training, left_out, start

if TYPE_CHECKING:
    from vit_search.vit.pretrained import Pretrained


def trained_weights(model: ViT, average: ViT | None = None) -> dict[str, Tensor]:
    """The weights and buffers that `trained.safetensors` has: all but the frozen blocks; of the average, if there is one."""
    frozen = tuning.frozen_blocks(model)
    return {name: tensor for name, tensor in (model if average is None else average).state_dict().items() if name not in frozen}


def training_with_blocks(
    folder: Path,
    document: dict[str, Any],
    config: TrialConfig,
    normalisation: Normalisation,
    device: torch.device | str,
    pretrained: Pretrained | None = None,
) -> Training:
    """A training with the weights of such a checkpoint, without its optimizer's state.

    Args:
        document: its config.json. config, normalisation: what it says.
        pretrained: the weights that it started from. If None, those in the folder of the search.
    Raises: CheckpointError if the pretrained weights are missing or are others; DamagedCheckpointError.
    """
    pretrained = _start_of(folder, document, config, pretrained)
    training = start(config, normalisation, device, pretrained)
    training.normalisation = normalisation  # as it began, whatever is beside the weights now
    _check_blocks(folder, document, training.left_out)
    _load_trained(folder, trained_weights(training.model, training.average), device)
    return training


def model_with_blocks(folder: Path, document: dict[str, Any], config: TrialConfig) -> ViT:
    """The model that is served, of such a checkpoint.

    Raises: CheckpointError if the pretrained weights are missing or are others; DamagedCheckpointError.
    """
    pretrained = _start_of(folder, document, config)
    model = ViT(config.model)
    inherit_into(model, pretrained.read(), pretrained.backbone, pretrained.classes)
    del pretrained
    tuning.prepare(model, config.training, config.seed)
    _check_blocks(folder, document, left_out(model, config))
    check_finite(folder / TRAINED, _load_trained(folder, trained_weights(model), "cpu"))
    model = tuning.merge(model).requires_grad_(True)  # as a model is that was just made
    check_finite(folder / TRAINED, model.state_dict())  # sums may overflow
    return model


def _start_of(folder: Path, document: dict[str, Any], config: TrialConfig, pretrained: Pretrained | None = None) -> Pretrained:
    """The pretrained weights of a checkpoint. All sizes are checked, before memory of the model's size is allocated."""
    check_stored(folder / TRAINED, config.model, whole=False)
    if pretrained is None:
        pretrained = _pretrained_of(folder, config.model.pretrained, document["left_out"]["backbone"], document["classes"])
    try:
        check(pretrained.backbone, config.model)
    except SpecError as error:
        raise CheckpointError(f"{folder}: its pretrained weights do not fit ({error}); is their config.json beside them?") from None
    return pretrained


def _check_blocks(folder: Path, document: dict[str, Any], found: LeftOut | None) -> None:
    if found != LeftOut(**document["left_out"]):
        raise CheckpointError(
            f"{folder}: its frozen blocks came from other pretrained weights, or from another version of vit_search; use what trained it."
        )


def _load_trained(folder: Path, wanted: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Copy the weights of `trained.safetensors` into those of a model, and return them."""
    try:
        weights = load_file(folder / TRAINED, device=str(device))
        check_same_names(wanted, weights)
    except (SafetensorError, ValueError) as error:
        raise DamagedCheckpointError(f"{folder / TRAINED}: does not fit its config.json ({error}).") from None
    for name, tensor in wanted.items():
        tensor.copy_(weights[name])
    return weights


def _pretrained_of(folder: Path, source: str, sha256: str, classes: Sequence[str]) -> Pretrained:
    """The pretrained weights in the folder of the search; if they are lost there, those that the search file named."""
    from vit_search.vit.pretrained import read_pretrained, starting_point  # here, since a model that is served needs no other weights

    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise DamagedCheckpointError(f"{folder / CONFIG}: damaged (left_out.backbone is no sha256). Use another checkpoint.")
    unreadable = ""
    for above in folder.resolve().parents:
        path = above / PRETRAINED / sha256 / MODEL
        try:
            found = sha256_of(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unreadable = unreadable or f"{path}: cannot be read ({error.strerror}), and the checkpoint {folder} needs it."
            continue
        if found != sha256:
            raise CheckpointError(f"{path}: its sha256 is not the one in its folder's name: the file is damaged; copy it again.")
        return read_pretrained(path, classes)
    try:
        named = starting_point(source, classes, fetch=False)  # a copy in the cache will do, but a reader asks no server
    except VitSearchError:
        named = None
    if named is None:
        raise LostWeightsError(
            unreadable
            or f"{folder}: holds only what was trained, and the pretrained weights of its search are gone; put their {MODEL}, config.json "
            f"and preprocessor_config.json, if there is one, into {PRETRAINED}/{sha256} in the folder of the search."
        )
    return named
