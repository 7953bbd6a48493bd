"""Features: what the frozen parts of a model make of the images. They are computed once, and read by every training with the same parts.

`frozen_output` is the first half of such a model and `after_frozen` the second, see vit/model.py. A training on features runs the second
alone. Where features are kept, see data/feature_cache.py; which trainings have them, see config/features.py.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_search.config import features as config_features
from vit_search.config.gpu_share import COMPUTED_AT_ONCE
from vit_search.config.training_config import TrainingConfig
from vit_search.data import feature_cache
from vit_search.data.batches import FeatureSplit, Split, StreamedSplit
from vit_search.data.cache import DataSet
from vit_search.data.cache_folder import cannot_be_written, make_cache, refuse_open_to_others
from vit_search.data.progress import step
from vit_search.errors import DataError
from vit_search.files import locked
from vit_search.runtime import machine
from vit_search.seeds import derive_seed
from vit_search.vit import augment, tuning
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.model import ViT
from vit_search.vit.training import AnySplit, Training

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever features are computed in another way."""


@dataclass(frozen=True)
class Source:
    """All that features are computed from, but the version of the images."""

    model: ViT
    images: Split | StreamedSplit
    normalisation: Normalisation
    training: TrainingConfig
    cache: Path
    about: dict[str, Any]
    """What decides their values, in plain JSON values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the features of one version."""
        return (len(self.images), *config_features.shape_of_image(self.model.config, self.training.tuning))

    def facts(self, view: int) -> dict[str, Any]:
        """The same as `about`, of one version."""
        return self.about | {"view": view, "augmentation": config_features.augmentation_of_view(self.training, view)}


def in_place_of_images(
    state: Training, data: DataSet, names: Sequence[Sequence[str]], images: Sequence[Split | StreamedSplit]
) -> list[AnySplit]:
    """What a training reads: the features of its images if they can be kept, otherwise the images.

    Nothing is computed yet: the first epoch that reads features computes them, or waits for another process that does.

    Args:
        data: the images of the splits lie in its cache.
        names: of the splits that are trained on as one, and of those that are validated on. images: of both.
    Raises: DataError if `feature_views` asks for versions that the disk has no room for.
    """
    model, training = state.config.model, state.config.training
    views = config_features.views_of(model, training)
    if not views:
        return list(images)
    cache = data.folder.parent
    about = {
        "format": FORMAT,
        "frozen_weights": frozen_sha256(state),
        "model": config_features.frozen_model(model, training.tuning),
        "data_hash": data.data_hash,
        "mean": state.normalisation.mean.tolist(),
        "std": state.normalisation.std.tolist(),
        "computed_by": _computed_by(state.device, training),
    }
    train, val = (
        Source(state.model, split, state.normalisation, training, cache, about | {"splits": list(parts)})
        for parts, split in zip(names, images, strict=True)
    )
    wanted = [*((train, view) for view in range(views)), (val, 0)]
    sizes = {feature_cache.folder_of(cache, source.facts(view)): 4 * int(np.prod(source.shape)) for source, view in wanted}
    problem = feature_cache.room_problem(cache, sizes)
    if problem and views > 1:
        raise DataError(f"{problem}; make room, set VIT_SEARCH_CACHE to a larger disk, or write training.feature_views: 1.")
    if problem:
        _log.warning("%s. So each epoch runs the whole model; to change that, set VIT_SEARCH_CACHE to a larger disk.", problem)
        return list(images)
    return [
        FeatureSplit(train.images, functools.partial(features_of, train), views),
        FeatureSplit(val.images, functools.partial(features_of, val)),
    ]


def features_of(source: Source, view: int) -> Tensor:
    """Features of a version of the images, in main memory. They are computed if they are not in the cache, or damaged there.

    Raises: DataError if the cache cannot be written, or other accounts can change it.
    """
    facts = source.facts(view)
    folder = feature_cache.folder_of(source.cache, facts)
    refuse_open_to_others(source.cache, folder.parent, folder)
    found = feature_cache.opened(folder, facts, source.shape)
    if found is None:
        try:
            make_cache(folder.parent)
            found = _made(source, view, folder, facts)
        except OSError as error:
            raise cannot_be_written(source.cache, error) from None
    return torch.from_numpy(found)


def _made(source: Source, view: int, folder: Path, facts: dict[str, Any]) -> np.ndarray:
    """The same, of features that were not there a moment ago. Of several processes, one computes them and the others wait."""
    with (
        step("running the frozen parts of the model", len(source.images), "images") as advance,
        locked(folder.parent / f".{folder.name}.lock", waiting=lambda: advance(0)),
    ):
        found = feature_cache.opened(folder, facts, source.shape)
        if found is None:

            def batches() -> Iterator[np.ndarray]:
                for features in computed(source, view):
                    yield features.cpu().numpy()
                    advance(len(features))

            feature_cache.put(folder, facts, source.shape, batches())
            found = feature_cache.opened(folder, facts, source.shape)
    assert found is not None, "it was just written"
    return found


def computed(source: Source, view: int) -> Iterator[Tensor]:
    """Features in batches, in float32 as in validation. The random changes of an image depend on the version and its place alone."""
    training, images, normalisation = source.training, source.images, source.normalisation
    parts = torch.arange(len(images)).split(COMPUTED_AT_ONCE)
    seed = derive_seed("view", view)
    generator = torch.Generator().manual_seed(seed)
    moves = config_features.moves_of(training, cropped=images.cropped) if view else None
    for raw, _ in images.batches(parts, seed, training.crop_scale) if view else images.batches(parts):
        changed = raw if moves is None else augment.moved(raw, moves, generator)
        yield _in_memory(source.model, augment.normalise(changed, normalisation.mean, normalisation.std))


def _in_memory(model: ViT, images: Tensor) -> Tensor:
    """Features of a batch; if memory runs out, of one half after the other."""
    size = len(images)
    while True:
        try:
            return torch.cat([model.frozen_output(part) for part in images.split(size)])
        except RuntimeError as error:
            if size == 1 or not machine.out_of_memory(error):
                raise
        size = (size + 1) // 2


def frozen_weights(model: ViT) -> dict[str, Tensor]:
    """The weights and tables of a model's frozen parts, by their names in its state_dict."""
    blocks = model.frozen_parts - 1

    def is_frozen(name: str) -> bool:
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) < blocks
        return not name.startswith("head.") and (not name.startswith("encoder.norm.") or blocks > model.config.depth)

    return {name: tensor for name, tensor in model.state_dict().items() if is_frozen(name)}


def frozen_sha256(state: Training) -> list[str]:
    """What tells a model's frozen parts from others: the sha256 of its frozen blocks, and that of all other frozen weights."""
    blocks = tuning.frozen_blocks(state.model)
    others = {name: tensor for name, tensor in frozen_weights(state.model).items() if name not in blocks}
    known = state.left_out.blocks if state.left_out else tuning.sha256_of(blocks)  # nothing has changed them since it started
    return [known, tuning.sha256_of(others)]


def _computed_by(device: torch.device, training: TrainingConfig) -> dict[str, Any]:
    """What decides the last bits of a sum."""
    common: dict[str, Any] = {"torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        return common | {"name": torch.cuda.get_device_name(device), "tf32": training.tf32}
    return common | {"name": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
