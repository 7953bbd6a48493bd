"""Compute a model's class probabilities for the images of a split, within a time limit."""

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
    """Class probabilities for a split, or for a random sample of it if the time was too short."""

    indices: npt.NDArray[np.int64]
    """(images,), their indices in the split, ascending."""
    labels: npt.NDArray[np.int64]
    """(images,)."""
    probabilities: npt.NDArray[np.float64]
    """(images, classes)."""
    whole: bool
    """Whether all images of the split are there."""


@torch.inference_mode()
def split_probabilities(
    served: ServedModel, split: Split | StreamedSplit, seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> SplitProbabilities:
    """Classify a split in eval mode and float32, as in validation, until the time is over. A fixed seed shuffles the images.

    Args:
        served: on the split's device.
        seconds: after this time, no batch is begun. The first is always classified.
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
    """Images of a split by their indices, as the model gets them: uint8 or uint16 (channels, height, width) each."""
    images: list[npt.NDArray[np.unsignedinteger]] = []
    for batch, _ in split.batches(torch.tensor(indices, dtype=torch.int64).split(EVALUATED_AT_ONCE) if indices else ()):
        pixels = batch.cpu().numpy()
        images += list(pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16))
    return images
