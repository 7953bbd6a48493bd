"""Which training images an epoch shows, and in which order."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def epoch_order(labels: Tensor, weights: Tensor | None, generator: Generator, *, balanced: bool) -> Tensor:
    """The images that an epoch shows: indices in random order, on the CPU. Images of weight 0 are left out.

    Args:
        labels: (n,).
        weights: (n,); None if the images have no weights.
        generator: on the CPU.
        balanced: whether each class is shown equally often; see `balanced_order`.
    """
    if weights is None:
        return balanced_order(labels.cpu(), generator) if balanced else uniform_order(len(labels), generator)
    kept = weights.cpu().nonzero()[:, 0]
    return kept[balanced_order(labels.cpu()[kept], generator) if balanced else uniform_order(len(kept), generator)]


def uniform_order(count: int, generator: Generator) -> Tensor:
    """Each image once, in random order: (count,) indices, on the CPU."""
    return torch.randperm(count, generator=generator)


def balanced_order(labels: Tensor, generator: Generator) -> Tensor:
    """Equally many images of each class, up to a difference of one: (images,) indices in random order, on the CPU.

    The epoch keeps its length. Two images of one class differ by at most one in how often they are shown. So all images of a rare class are
    repeated, and each epoch draws a new part of a frequent class.

    Args:
        labels: (images,), on the CPU. Classes without images are left out.
        generator: on the CPU.
    """
    by_class = [part for part in labels.argsort(stable=True).split(torch.bincount(labels).tolist()) if len(part)]
    each, more = divmod(len(labels), len(by_class))
    one_more = torch.zeros(len(by_class), dtype=torch.bool)
    one_more[torch.randperm(len(by_class), generator=generator)[:more]] = True
    chosen = []
    for images, extra in zip(by_class, one_more.tolist(), strict=True):
        times, rest = divmod(each + extra, len(images))
        chosen += [images.repeat(times), images[torch.randperm(len(images), generator=generator)[:rest]]]
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=generator)]
