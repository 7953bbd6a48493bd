"""How much of a GPU a trial takes where the file says `gpus: auto`, before anything is learnt."""

from __future__ import annotations

import math

from vit_search.config import gpu_share
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import TrialConfig
from vit_search.planning.image_counts import Images


def share_of_gpu(spec: SearchSpec, config: TrialConfig, images: Images) -> float | None:
    """What a trial takes of a GPU where the file says auto, before anything is learnt; None where it says a number."""
    if spec.resources.gpus != "auto":
        return None
    need = gpu_share.Need(gpu_share.training_bytes(config.model, config.training), images_bytes(config, images))
    return gpu_share.share_of(need, gpu_bytes_of(spec)) or 1.0


def images_bytes(config: TrialConfig, images: Images) -> int:
    """The images that a search trains and validates on, a byte or two for each value of a pixel."""
    return (images.train + images.val) * config.model.in_channels * math.prod(config.model.image_size) * config.data.bits // 8


def gpu_bytes_of(spec: SearchSpec) -> int:
    """Memory of one GPU: the file's `gpu_memory`, or a usual GPU's where the file does not say."""
    return spec.resources.gpu_bytes or gpu_share.USUAL_MEMORY
