"""Frozen blocks that the trainings of one process share, so that they are read, checked, built and moved to the device once.

A search over heads trains many models with the same frozen blocks. Where features are kept (vit/features.py), such a trial does not even
run the blocks. To read and build them takes longer than to train its head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_search.config.features import views_of
from vit_search.config.trial import TrialConfig
from vit_search.config.weight_sources import parse
from vit_search.vit import tuning
from vit_search.vit.inherit import inherit
from vit_search.vit.model import ViT, without_weights

if TYPE_CHECKING:
    from vit_search.vit.pretrained import Pretrained

Weights = dict[str, Tensor]
"""Of a model, by their names in its state_dict."""

NO_MATTER = ("dropout", "embedding_dropout", "attention_dropout", "projection_dropout", "mlp_dropout", "drop_path", "init", "pos_init_std")
"""Fields of ModelConfig that make no difference to the weights that a model starts from."""


@dataclass(frozen=True)
class _Start:
    """The weights that a training started from."""

    facts: dict[str, Any]
    """All that decides them."""
    weights: Weights
    sha256: str
    """Of its frozen blocks, see `tuning.frozen_blocks`."""


class SharedBlocks:
    """Keeps the frozen blocks of the last training on features for the next one. Nobody may change them in place."""

    def __init__(self) -> None:
        self._last: _Start | None = None

    def make_room(self, config: TrialConfig) -> None:
        """Forget the blocks, and so give their memory back, if a training that comes next cannot share any."""
        if not can_share(config):
            self._last = None

    def start(self, config: TrialConfig, pretrained: Pretrained, device: torch.device | str) -> tuple[Weights, str]:
        """The weights of a new model: frozen blocks that all trainings share, and copies of all others.

        Returns: the weights on their device, and the sha256 of the frozen blocks.
        """
        model, tuned = config.model, config.training.tuning
        shape = {name: value for name, value in vars(model).items() if name not in NO_MATTER}
        facts = shape | {"tuning": tuned, "backbone": pretrained.backbone, "classes": pretrained.classes, "device": str(device)}
        blocks = range(tuned.frozen_parts(model.depth) - 1)

        def is_shared(name: str) -> bool:
            return name.startswith("encoder.blocks.") and int(name.split(".")[2]) in blocks

        if self._last is None or self._last.facts != facts:
            self._last = None  # before other blocks need memory
            weights = started(config, pretrained, device)
            digest = tuning.sha256_of({name: tensor for name, tensor in weights.items() if is_shared(name)})
            self._last = _Start(facts, weights, digest)
        last = self._last
        return {name: tensor if is_shared(name) else tensor.clone() for name, tensor in last.weights.items()}, last.sha256


def can_share(config: TrialConfig) -> bool:
    """Whether a training has blocks that others can share: frozen ones, of weights that a sha256 pins."""
    source = config.model.pretrained
    return bool(source and parse(source).sha256 and views_of(config.model, config.training))


def started(config: TrialConfig, pretrained: Pretrained, device: torch.device | str) -> Weights:
    """The weights of a new model on its device.

    Raises: SpecError if the model does not fit the pretrained weights; what `Pretrained.read` raises.
    """
    weights = inherit(pretrained.read(), pretrained.backbone, config.model, pretrained.classes)
    return {name: tensor.to(device, torch.get_default_dtype()) for name, tensor in weights.items()}


def model_from(config: TrialConfig, pretrained: Pretrained, device: torch.device | str) -> tuple[ViT, str]:
    """A model that starts from pretrained weights, on its device.

    Returns: the model, and the sha256 of its frozen blocks if it shares them; otherwise an empty text.
    Raises: as `started`.
    """
    if pretrained.shared is not None and can_share(config):
        weights, digest = pretrained.shared.start(config, pretrained, device)
    else:
        weights, digest = started(config, pretrained, device), ""
    model = without_weights(config.model)
    model.load_state_dict(weights, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())), "see without_weights"
    return model, digest
