"""Augment a batch of images on the device. Each image gets its own random changes, in a few kernels for the whole batch.

Random numbers come from a generator on the CPU, so a GPU sees the same augmentation as a CPU. A training calls `moved`, `normalise` and
`mixed`, in this order. What moves or colours pixels works on whole numbers: uint8, or int32 for images of 16 bits. What erases or mixes
works on normalised floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from vit_search.config.training_config import TrainingConfig


@dataclass(frozen=True)
class Targets:
    """The labels of a batch. After mixing, each image has two labels."""

    labels: Tensor
    """(batch,), int64."""
    others: Tensor | None = None
    """(batch,), int64, labels of the images mixed in; None without mixing."""
    share: Tensor | None = None
    """(batch,), share of `labels` in each image, in [0, 1]. The rest is `others`."""
    weights: Tensor | None = None
    """(batch,), how much each image counts in the loss; None: all the same."""
    other_weights: Tensor | None = None
    """(batch,), weights of the images mixed in."""

    def weighted(self, weights: Tensor) -> Targets:
        """Add a weight for each image. Where two images are mixed, each label keeps the weight of its own image."""
        return replace(self, weights=weights, other_weights=None if self.others is None else partners(weights))

    def split(self, count: int) -> list[Targets]:
        """Split into micro-batches of at most `count` images."""
        parts = {f.name: value.split(count) for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return [Targets(**dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True)]


def moved(images: Tensor, config: TrainingConfig, generator: Generator) -> Tensor:
    """Apply the augmentations that work on whole numbers: crop, shift, flip, and the automatic policy, in this order.

    Args:
        images: (batch, channels, height, width), uint8, or int32 for images of 16 bits.
        generator: on the CPU.
    Returns: the same shape and type.
    """
    if config.crop_scale < 1:
        images = resized_crop(images, config.crop_scale, generator)
    if config.shift:
        images = shift(images, config.shift, generator)
    if config.flip:
        images = flip(images, generator)
    if config.auto_augment == "trivial_augment":
        images = trivial_augment(images, generator)
    elif config.auto_augment == "rand_augment":
        images = rand_augment(images, config.rand_augment_ops, config.rand_augment_magnitude, generator)
    return images


def mixed(images: Tensor, labels: Tensor, config: TrainingConfig, generator: Generator) -> tuple[Tensor, Targets]:
    """Apply the augmentations that work on normalised floats: erasing, then mixup and cutmix.

    Args:
        images: (batch, channels, height, width), normalised.
        labels: (batch,).
    """
    if config.erasing:
        images = erase(images, config.erasing, generator)
    if config.mixup or config.cutmix:
        return mix(images, labels, config.mixup, config.cutmix, generator)
    return images, Targets(labels)


def shift(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Move each image by a random number of pixels, up to `pixels` each way. The empty border is black.

    This is the random crop of padded images in CIFAR recipes.

    Args:
        images: (batch, channels, height, width), of whole numbers.
        pixels: largest shift.
        generator: on the CPU; draws the shifts.
    """
    batch, channels, height, width = images.shape
    down, right = torch.randint(0, 2 * pixels + 1, (2, batch), generator=generator)
    padded = F.pad(images, (pixels, pixels, pixels, pixels)).contiguous()
    image, plane, row, _ = padded.stride()
    # A view of all windows in the padded batch that are as large as an image, by first pixel. Only those selected are copied,
    # which is 7 to 19 times as fast as an index for each pixel (128 images of 28x28 and 3x32x32, one thread).
    first = torch.arange(batch) * image + down * row + right
    windows = padded.as_strided(
        (batch * image - (channels - 1) * plane - (height - 1) * row - width + 1, *images.shape[1:]), (1, plane, row, 1)
    )
    return windows.index_select(0, first.to(images.device))


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    batch = len(images)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    chosen = torch.arange(batch) + batch * mirrored  # faster than torch.where, which takes bytes one by one
    return torch.cat([images, images.flip(-1)]).index_select(0, chosen.to(images.device))


def resized_crop(images: Tensor, least: float, generator: Generator) -> Tensor:
    """Cut a random box out of each image and resize it to the whole image (bilinear).

    A box has `least` to 1 of the area. Its aspect ratio is 3:4 to 4:3 of the image's own; large boxes vary less, because they must fit.

    Source: Szegedy et al. 2015, https://arxiv.org/abs/1409.4842; bounds as in torchvision's RandomResizedCrop.
    """
    area, shape, place_x, place_y = torch.rand(4, images.shape[0], generator=generator)
    area = least + (1 - least) * area
    widest = (-area.log()).clamp(max=math.log(4 / 3))  # logarithm of the ratio at which a box is as wide as the image
    ratio = torch.exp((2 * shape - 1) * widest)
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    zero = torch.zeros_like(area)
    x, y = (2 * place_x - 1) * (1 - width), (2 * place_y - 1) * (1 - height)  # centres, from -1 to 1
    theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    return warp(images, theta.to(images.device), "bilinear", "border")


def erase(images: Tensor, chance: float, generator: Generator) -> Tensor:
    """In each image, with probability `chance`, overwrite a random box with 0, the mean. The box has 2 to 33 % of the area.

    Source: Zhong et al. 2020, https://arxiv.org/abs/1708.04896
    """
    batch, _, height, width = images.shape
    picked, area, shape, place_y, place_x = torch.rand(5, batch, generator=generator)
    area = 0.02 + 0.31 * area
    ratio = torch.exp(math.log(0.3) + math.log(3.3 / 0.3) * shape)
    inside = _boxes((area * ratio).sqrt() * height, (area / ratio).sqrt() * width, place_y, place_x, height, width)
    inside &= (picked < chance)[:, None, None]
    return images.masked_fill(inside[:, None].to(images.device), 0.0)


def partners(batch: Tensor) -> Tensor:
    """What `mix` blends into each image of a batch: the image before it."""
    return batch.roll(1, 0)


def mix(images: Tensor, labels: Tensor, mixup: float, cutmix: float, generator: Generator) -> tuple[Tensor, Targets]:
    """Blend each image with its neighbour in the batch, or paste a box of the neighbour into it.

    Args:
        images: (batch, channels, height, width), normalised. In random order, so that a neighbour is a random partner.
        labels: (batch,).
        mixup: parameter of the Beta distribution of an image's own share; 0 for no mixup.
        cutmix: the same for CutMix. If both are on, each image gets one of them at random.
    Source: Zhang et al. 2018, https://arxiv.org/abs/1710.09412; Yun et al. 2019, https://arxiv.org/abs/1905.04899
    """
    batch, _, height, width = images.shape
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    blend, paste = (torch.from_numpy(rng.beta(a, a, batch) if a else np.ones(batch)).float() for a in (mixup, cutmix))
    cut, place_y, place_x = torch.rand(3, batch, generator=generator)
    pasted = cut < 0.5 if mixup and cutmix else torch.full((batch,), bool(cutmix))
    side = (1 - paste).sqrt()
    inside = _boxes(side * height, side * width, place_y, place_x, height, width) & pasted[:, None, None]
    weight = torch.where(pasted, 1.0, blend)[:, None, None].masked_fill(inside, 0)  # of the image's own pixels, (batch, height, width)
    share = torch.where(pasted, weight.mean((1, 2)), blend).to(images.device)
    images = torch.lerp(partners(images), images, weight[:, None].to(images.device))
    return images, Targets(labels, partners(labels), share)


def _boxes(tall: Tensor, wide: Tensor, place_y: Tensor, place_x: Tensor, height: int, width: int) -> Tensor:
    """Masks of boxes that lie inside the image.

    Args:
        tall, wide: (batch,), sides in pixels; rounded, and limited to the image.
        place_y, place_x: (batch,), in [0, 1), position among all those that fit.
    Returns: (batch, height, width), True inside.
    """
    tall, wide = tall.round().clamp(0, height), wide.round().clamp(0, width)
    top, left = (place_y * (height - tall + 1)).floor(), (place_x * (width - wide + 1)).floor()
    rows, cols = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    in_cols = (cols >= left[:, None]) & (cols < (left + wide)[:, None])
    return in_rows[:, :, None] & in_cols[:, None, :]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert whole numbers to floats with mean 0 and standard deviation 1, per channel.

    Args:
        images: (batch, channels, height, width), uint8 from 0 to 255, or uint16 or int32 from 0 to 65,535.
        mean: (channels,), of the training images on the scale 0 to 1.
        std: the same for the standard deviation.
    """
    scale = 1 / (largest_value(images) * std)
    return (images.float() * scale[:, None, None]).sub_((mean / std)[:, None, None])


def largest_value(images: Tensor) -> int:
    """The value of white: 255 for uint8; 65,535 for uint16, and for int32, which holds uint16 values during augmentation."""
    assert images.dtype in (torch.uint8, torch.uint16, torch.int32), f"{images.dtype} is no type of images"
    return 255 if images.dtype == torch.uint8 else 65_535


# Automatic policies: one operation per image out of fourteen, at a level from 0 to 30.

LEVELS = 30


def trivial_augment(images: Tensor, generator: Generator) -> Tensor:
    """Apply one random operation per image at a random level (TrivialAugment Wide, with translations limited to a small image's side).

    Source: Müller and Hutter 2021, https://arxiv.org/abs/2103.10158
    """
    side = min(32, *images.shape[-2:])
    return _policy(
        images, Reach(0.99, (side, side), 135.0, 0.99, 6), torch.randint(LEVELS + 1, (len(images),), generator=generator), generator
    )


def rand_augment(images: Tensor, count: int, magnitude: int, generator: Generator) -> Tensor:
    """Apply `count` random operations per image, one after another, all at level `magnitude` of 30.

    Source: Cubuk et al. 2020, https://arxiv.org/abs/1909.13719; ranges as in torchvision's RandAugment.
    """
    height, width = images.shape[-2:]
    reach = Reach(0.3, (150 / 331 * height, 150 / 331 * width), 30.0, 0.9, 4)
    for _ in range(count):
        images = _policy(images, reach, torch.full((len(images),), magnitude), generator)
    return images


@dataclass(frozen=True)
class Reach:
    """Strength of the operations at level 30."""

    shear: float
    translate: tuple[float, float]
    """Rows and columns, in pixels."""
    degrees: float
    factor: float
    """Brightness, colour, contrast and sharpness change by a factor from 1 - factor to 1 + factor."""
    bits: int
    """Bits of 8 that posterising removes."""


def _policy(images: Tensor, reach: Reach, levels: Tensor, generator: Generator) -> Tensor:
    operations = operations_for(images)
    chosen = torch.randint(len(operations), (len(images),), generator=generator)
    signs = torch.randint(2, (len(images),), generator=generator) * 2 - 1
    order = chosen.argsort(stable=True)  # images with the same operation side by side
    counts = chosen.bincount(minlength=len(operations)).tolist()
    ordered = images.index_select(0, order.to(images.device)), (levels[order] / LEVELS).to(images.device), signs[order].to(images.device)
    groups = zip(operations, *(part.split(counts) for part in ordered), strict=True)
    done = [operation(*group, reach) for operation, *group in groups if len(group[0])]
    return torch.cat(done).index_select(0, order.argsort().to(images.device))


def warp(images: Tensor, theta: Tensor, mode: str = "nearest", outside: str = "zeros") -> Tensor:
    """Resample images: `theta` (batch, 2, 3) maps positions in the result to positions in the source, both from -1 to 1."""
    x, y = (torch.linspace(1 / side - 1, 1 - 1 / side, side, device=images.device) for side in (images.shape[-1], images.shape[-2]))
    in_cols, in_rows = theta[:, :, :1] * x, theta[:, :, 1:2] * y + theta[:, :, 2:]
    grid = (in_cols[:, :, None, :] + in_rows[:, :, :, None]).permute(0, 2, 3, 1)  # F.affine_grid takes 7 times as long
    return F.grid_sample(images.float(), grid, mode=mode, padding_mode=outside, align_corners=False).round().to(images.dtype)


def _affine(images: Tensor, xx: Tensor, xy: Tensor, dx: Tensor, yx: Tensor, yy: Tensor, dy: Tensor) -> Tensor:
    """Resample with a map in pixels from the image's centre: source x = xx * x + xy * y + dx, y likewise."""
    height, width = images.shape[-2:]
    row_x = torch.stack([xx, xy * height / width, 2 * dx / width], 1)
    row_y = torch.stack([yx * width / height, yy, 2 * dy / height], 1)
    return warp(images, torch.stack([row_x, row_y], 1))


def _identity(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    return images


def _shear_x(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    slope, one, zero = reach.shear * strength * sign, torch.ones_like(strength), torch.zeros_like(strength)
    half = images.shape[-2] / 2  # sheared about the upper edge, as torchvision and PIL do
    return _affine(images, one, slope, slope * half, zero, one, zero)


def _shear_y(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    slope, one, zero = reach.shear * strength * sign, torch.ones_like(strength), torch.zeros_like(strength)
    half = images.shape[-1] / 2
    return _affine(images, one, zero, zero, slope, one, slope * half)


def _translate_x(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(images, one, zero, -(reach.translate[1] * strength).trunc() * sign, zero, one, zero)


def _translate_y(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(images, one, zero, zero, zero, one, -(reach.translate[0] * strength).trunc() * sign)


def _rotate(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    angle, zero = torch.deg2rad(reach.degrees * strength * sign), torch.zeros_like(strength)
    return _affine(images, angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero)


def _blend(images: Tensor, faded: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    back = (-reach.factor * strength * sign)[:, None, None, None]
    sharp = images.float()
    blended = sharp + (faded - sharp) * back  # in this form, a pixel that equals its faded value does not change
    return blended.clamp_(0, largest_value(images)).to(images.dtype)


def _torchvision() -> Any:
    """Imported only for automatic policies: it imports torch._dynamo, which takes 1.6 s, and predictions must not wait for that."""
    from torchvision.transforms.v2 import functional

    return functional


def _grey(images: Tensor) -> Tensor:
    grey: Tensor = _torchvision().rgb_to_grayscale(images) if images.shape[1] == 3 else images
    return grey


def _brightness(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    return _blend(images, torch.zeros_like(images, dtype=torch.float32), strength, sign, reach)


def _colour(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    return _blend(images, _grey(images).float(), strength, sign, reach)


def _contrast(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    return _blend(images, _grey(images).float().mean((1, 2, 3), keepdim=True), strength, sign, reach)


def _channel_contrast(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    return _blend(images, images.float().mean((2, 3), keepdim=True), strength, sign, reach)


def _sharpness(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    if min(images.shape[-2:]) <= 2:
        return images
    sharp = images.float()
    tall = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    box = tall[..., :-2] + tall[..., 1:-1] + tall[..., 2:]
    soft = sharp.clone()  # its border stays sharp
    soft[..., 1:-1, 1:-1] = ((box + 4 * sharp[..., 1:-1, 1:-1]) / 13).round()
    return _blend(images, soft, strength, sign, reach)


def _posterize(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    gone = (reach.bits * strength).round().to(torch.int64)[:, None, None, None]
    return ((images.to(torch.int64) >> gone) << gone).to(torch.uint8)


def _solarize(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    bright = images >= (255 - 255 * strength)[:, None, None, None]
    return images ^ (255 * bright.to(torch.uint8))  # 255 - image where it is bright


def _autocontrast(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    stretched: Tensor = _torchvision().autocontrast(images)
    return stretched


def _equalize(images: Tensor, strength: Tensor, sign: Tensor, reach: Reach) -> Tensor:
    levelled: Tensor = _torchvision().equalize(images)
    return levelled


OPERATIONS: tuple[Callable[[Tensor, Tensor, Tensor, Reach], Tensor], ...] = (
    _identity,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _colour,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
)
"""Operations: (images, strength in [0, 1], sign of 1 or -1, reach) to images. Each image has its own strength and sign."""

PLAIN_OPERATIONS = (
    _identity,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _channel_contrast,
    _sharpness,
)
"""Operations that work for any number of channels and any depth. Contrast changes around the mean of each channel."""


def operations_for(images: Tensor) -> tuple[Callable[[Tensor, Tensor, Tensor, Reach], Tensor], ...]:
    """OPERATIONS for grey and RGB images of 8 bits, PLAIN_OPERATIONS for others."""
    return OPERATIONS if images.dtype == torch.uint8 and images.shape[1] in (1, 3) else PLAIN_OPERATIONS
