"""Estimates what part of a GPU a trial takes with `gpus: auto`, before anything has been measured."""

from __future__ import annotations

import math

from vit_search.config import features, gpu_share
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import TrialConfig
from vit_search.planning.image_counts import Images


def share_of_gpu(spec: SearchSpec, config: TrialConfig, images: Images) -> float | None:
    """What part of a GPU a trial takes; None if the search file gives a number."""
    if spec.resources.gpus != "auto":
        return None
    of_features = features.bytes_of_image(config.model, config.training) * (images.train + images.val)
    need = gpu_share.Need(gpu_share.training_bytes(config.model, config.training), images_bytes(config, images), of_features)
    return gpu_share.share_of(need, gpu_bytes_of(spec)) or 1.0


def images_bytes(config: TrialConfig, images: Images) -> int:
    """Bytes of the training and validation images, with one or two bytes for each value of a pixel."""
    return (images.train + images.val) * config.model.in_channels * math.prod(config.model.image_size) * config.data.bits // 8


def gpu_bytes_of(spec: SearchSpec) -> int:
    """Memory of one GPU: `gpu_memory` of the search file, or that of a usual GPU."""
    return spec.resources.gpu_bytes or gpu_share.USUAL_MEMORY
