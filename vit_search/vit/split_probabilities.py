"""The probabilities that a model gives the images of a split, within a limit of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vit_search.data.batches import Split, StreamedSplit
from vit_search.vit import augment
from vit_search.vit.checkpoint import ServedModel
from vit_search.vit.evaluation import EVALUATED_AT_ONCE


@dataclass(frozen=True, eq=False)
class SplitProbabilities:
    """What a model says of the images of a split, or of a random sample of them where the time ran out."""

    indices: npt.NDArray[np.int64]
    """(images,), of the images in the split, ascending."""
    labels: npt.NDArray[np.int64]
    """(images,)."""
    probabilities: npt.NDArray[np.float64]
    """(images, classes)."""
    whole: bool
    """Whether that is the whole split."""


@torch.inference_mode()
def split_probabilities(
    served: ServedModel, split: Split | StreamedSplit, seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> SplitProbabilities:
    """Classify a split in eval mode and in float32, as it is validated; in an order that a fixed seed draws, until the time is over.

    Args:
        served: on the split's device. seconds: after which no further batch is begun; the first is always classified.
    """
    end = clock() + seconds
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(split)))
    parts = order.split(EVALUATED_AT_ONCE)
    mean, std = served.normalisation.mean, served.normalisation.std
    chances, labels = [], []
    for images, part_labels in split.batches(parts):
        chances.append(served.model(augment.normalise(images, mean, std)).double().softmax(1).cpu())
        labels.append(part_labels.cpu())
        if clock() >= end:
            break
    done = torch.cat(labels)
    ascending = order[: len(done)].argsort()
    return SplitProbabilities(
        indices=order[: len(done)][ascending].numpy(),
        labels=done[ascending].numpy(),
        probabilities=torch.cat(chances)[ascending].numpy(),
        whole=len(done) == len(split),
    )


def pixels_of(split: Split | StreamedSplit, indices: list[int]) -> list[npt.NDArray[np.unsignedinteger]]:
    """The images of some indices of a split, uint8 or uint16 (channels, height, width) each, as a model sees them."""
    images: list[npt.NDArray[np.unsignedinteger]] = []
    for batch, _ in split.batches(torch.tensor(indices, dtype=torch.int64).split(EVALUATED_AT_ONCE) if indices else ()):
        pixels = batch.cpu().numpy()
        images += list(pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16))
    return images
