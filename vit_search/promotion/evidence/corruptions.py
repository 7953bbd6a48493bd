"""Six corruptions of test images, as a camera, a network or a person may cause them. Each has one strength and is the same each time.

Five are from Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261), with strengths of their data set for small images
(CIFAR-10-C). Lengths grow with the image's side, starting from their 32 pixels. `translate` is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vit_search.promotion.policy import Corruption
from vit_search.seeds import derive_seed
from vit_search.vit.augment import largest_value

NOISE = 0.08
"""Standard deviation on the scale 0 to 1: severity 3 of 5 in CIFAR-10-C, 1 in ImageNet-C."""
BLUR = 0.7
"""Standard deviation in pixels, for a side of 32 pixels: severity 3 in CIFAR-10-C. At least 0.5 pixels."""
CONTRAST = 0.5
"""Factor for the distance to the image's mean: severity 2 in CIFAR-10-C."""
BRIGHTNESS = 0.2
"""Added on the scale 0 to 1: severity 4 in CIFAR-10-C, which adds it to the value in HSV."""
TRANSLATE = 1 / 16
"""Share of the side, at least one pixel, towards a corner that depends on the image's index. The edge is repeated."""
JPEG = 50
"""JPEG quality: severity 4 in CIFAR-10-C."""


def corrupted(images: Tensor, kind: Corruption, indices: Tensor) -> Tensor:
    """Corrupt a batch. The result for an image depends only on its pixels and its index.

    Args:
        images: (batch, channels, height, width), uint8, or int32 for 16-bit images, on any device. The kind must fit them; see `fits`.
        indices: (batch,), of the images in their split.
    Returns: the same shape, type and device.
    """
    if kind == "gaussian_noise":
        drawn = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(derive_seed(kind, int(i)))) for i in indices]
        return _whole(images.float() + largest_value(images) * NOISE * torch.stack(drawn).to(images.device), images)
    if kind == "blur":
        return _blurred(images, max(0.5, BLUR * max(images.shape[2:]) / 32))
    if kind == "contrast":
        mean = images.float().mean((2, 3), keepdim=True)
        return _whole(mean + CONTRAST * (images.float() - mean), images)
    if kind == "brightness":
        return _whole(images.float() + largest_value(images) * BRIGHTNESS, images)
    if kind == "translate":
        return _translated(images, max(1, round(TRANSLATE * max(images.shape[2:]))), indices)
    from torchvision.transforms.v2 import functional as vision  # slow to import, and needed only here

    files = [vision.jpeg(image, JPEG) for image in images.cpu()]
    return torch.stack(files).to(images.device)


def fits(kind: Corruption, channels: int, bits: int) -> bool:
    """Whether images can have a corruption. JPEG needs 8 bits, and 1 or 3 channels."""
    return kind != "jpeg" or (bits == 8 and channels in (1, 3))


def _whole(values: Tensor, images: Tensor) -> Tensor:
    """Round values to whole numbers, in the type and range of the images."""
    return values.round().clamp(0, largest_value(images)).to(images.dtype)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur up to three standard deviations, first rows, then columns. The edge is repeated."""
    channels, radius = images.shape[1], int(3 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(channels, 1, -1)
    values = F.pad(images.float(), (radius, radius, radius, radius), mode="replicate")
    values = F.conv2d(values, weights[..., None], groups=channels)
    return _whole(F.conv2d(values, weights[:, :, None], groups=channels), images)


def _translated(images: Tensor, by: int, indices: Tensor) -> Tensor:
    height, width = images.shape[2:]
    wide = F.pad(images.float(), (by, by, by, by), mode="replicate").to(images.dtype)
    corners = [wide[:, :, y : y + height, x : x + width] for y in (0, 2 * by) for x in (0, 2 * by)]
    return torch.stack(corners)[indices.to(images.device) % 4, torch.arange(len(images), device=images.device)]
