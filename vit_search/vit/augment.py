"""Batched augmentation on the device: every image of a batch gets its own draw, in one gather."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def shift(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Move each image by its own whole number of pixels, up to `pixels` each way; what comes in is black.

    Args:
        images: (batch, channels, height, width), uint8.
        pixels: largest shift.
        generator: on the CPU; draws the shifts.
    """
    batch, channels, height, width = images.shape
    offsets = torch.randint(0, 2 * pixels + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    cols = offsets[1] + torch.arange(width, device=images.device)
    padded = F.pad(images, (pixels, pixels, pixels, pixels))
    samples = torch.arange(batch, device=images.device)[:, None, None, None]
    planes = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[samples, planes, rows[:, None, :, None], cols[:, None, None, :]]


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with chance 1/2."""
    mirrored = torch.rand(images.shape[0], generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes to floats of mean 0 and deviation 1.

    Args:
        images: (batch, channels, height, width), uint8.
        mean: (channels,), of the training images on the scale 0 to 1; std likewise.
    """
    scale = 1 / (255 * std)
    return images.float() * scale[:, None, None] - (mean / std)[:, None, None]
