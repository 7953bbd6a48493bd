"""Batches of a split on the training device: from memory (Split), decoded when needed (StreamedSplit), or features (FeatureSplit).

Pixels are integers: uint8 for images of 8 bits, and int32 for images of 16 bits, because torch supports few operations on uint16.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_search.data.cache import DataSet, read_split, read_weights
from vit_search.data.pixels import checked_pixels
from vit_search.data.sources.source import Reader
from vit_search.data.split import SplitName
from vit_search.errors import DataError
from vit_search.runtime.machine import free_bytes
from vit_search.seeds import derive_seed


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, in memory."""

    images: Tensor
    """(n, channels, height, width), uint8 or uint16; on the training device, or in main memory if they do not fit there."""
    labels: Tensor
    """(n,), int64, on the training device."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty if they are not needed."""
    weights: Tensor | None = None
    """(n,), float32, on the training device: how much each image counts in the training loss. None: all count the same."""

    cropped = False
    """Whether `batches` crops images at random."""

    def __len__(self) -> int:
        """Images in the split."""
        return len(self.labels)

    def batches(self, parts: Iterable[Tensor], seed: int | None = None, crop_scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of each batch, both on the training device.

        Args:
            parts: indices of each batch, on the CPU.
            seed, crop_scale: not used here; see StreamedSplit.
        """
        device = self.labels.device
        for part in parts:
            if self.images.device == device:
                part = part.to(device, non_blocking=True)
                yield widened(self._stored.index_select(0, part)), self.labels[part]
            else:
                images = self._stored.index_select(0, part).pin_memory().to(device, non_blocking=True)
                yield widened(images), self.labels[part.to(device)]

    @property
    def _stored(self) -> Tensor:
        """The images in a type for which every device has index_select."""
        return self.images.view(torch.int16) if self.images.dtype == torch.uint16 else self.images


def widened(images: Tensor) -> Tensor:
    """Convert images to a type that training can use: uint16 (or its bits as int16) to int32. uint8 does not change."""
    return images if images.dtype == torch.uint8 else images.to(torch.int32) & 0xFFFF


class FeatureSplit:
    """Features of one split: the output of a model's frozen parts for its images.

    Args:
        images: the split.
        of_view: returns the features of one version of the images: (n, dim) or (n, tokens, dim), float32, in main memory or a memory map.
        views: number of versions.
    """

    def __init__(self, images: Split | StreamedSplit, of_view: Callable[[int], Tensor], views: int = 1) -> None:
        self.labels, self.classes, self.weights = images.labels, images.classes, images.weights
        self.views = views
        self._of_view = of_view
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Images in the split."""
        return len(self.labels)

    def batches(self, parts: Iterable[Tensor], view: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and labels of each batch, both on the training device.

        Args:
            parts: indices of each batch, on the CPU.
            view: number of the version, from 0.
        """
        device, features = self.labels.device, self._features(view)
        for part in parts:
            chosen = features.index_select(0, part.to(features.device))
            if features.device != device:
                chosen = chosen.pin_memory().to(device, non_blocking=True)
            yield chosen, self.labels[part.to(device)]

    def _features(self, view: int) -> Tensor:
        """The features of one version, on the training device if they take less than half of its free memory. Frees the last ones first."""
        if self._last is None or self._last[0] != view:
            self._last = None
            features, device = self._of_view(view), self.labels.device
            self._last = view, features.to(device if features.nbytes < free_bytes(device) / 2 else "cpu")
        return self._last[1]


class StreamedSplit:
    """Images of one split that worker processes decode in advance, while earlier batches are used.

    A random crop depends on (seed, index of the image, how often the epoch has shown it) alone. So it does not change with the number of
    workers or after a resume.

    Args:
        reader: of the source. names: (n,), names of the images, for the reader.
        labels: (n,), int64, on the training device.
        image_size: height and width in pixels.
        workers: number of processes. Default: one less than the cores that this process may use.
        classes, weights: as in Split.
        bits: of one value of an image, 8 or 16.
    """

    cropped = True

    def __init__(
        self,
        reader: Reader,
        names: np.ndarray,
        labels: Tensor,
        image_size: tuple[int, int],
        workers: int | None = None,
        classes: tuple[str, ...] = (),
        weights: Tensor | None = None,
        bits: int = 8,
    ) -> None:
        self.labels, self.classes, self.weights = labels, classes, weights
        self._images = _Images(reader, names, image_size, bits)
        self._order = _Order()
        workers = max(1, len(os.sched_getaffinity(0)) - 1) if workers is None else workers
        self._loader: DataLoader[Tensor] = DataLoader(
            self._images,
            batch_sampler=self._order,
            collate_fn=_as_it_comes,
            generator=torch.Generator(),  # each epoch draws a number, which must not come from the generator of dropout
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            pin_memory=labels.device.type == "cuda",
        )

    def __len__(self) -> int:
        """Images in the split."""
        return len(self.labels)

    def batches(self, parts: Iterable[Tensor], seed: int | None = None, crop_scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of each batch, both on the training device.

        Args:
            parts: indices of each batch, on the CPU.
            seed: of the random crops; None: the centre of each image.
            crop_scale: smallest share of the area that a random crop keeps; 1: the centre.
        Raises: DataError with the name of the file if an image cannot be decoded.
        """
        chosen = list(parts)
        shown: Counter[int] = Counter()
        self._order.batches = [[self._drawn(i, seed, crop_scale, shown) for i in part.tolist()] for part in chosen]
        device = self.labels.device
        for part, images in zip(chosen, self._loader, strict=True):
            if isinstance(images, DataError):
                raise DataError(*images.args)  # a copy: the error and this frame would refer to each other, so the workers would not end
            yield images.to(device, non_blocking=True), self.labels[part.to(device)]

    @staticmethod
    def _drawn(index: int, seed: int | None, crop_scale: float, shown: Counter[int]) -> Drawn:
        """An image with the seed of its crop, which differs each time that the epoch shows the image."""
        times, shown[index] = shown[index], shown[index] + 1
        return index, derive_seed(seed, "again", times) if times and seed is not None else seed, crop_scale


Drawn = tuple[int, int | None, float]
"""Index, seed and crop_scale of one image, for a worker."""


class _Order:
    """The batch sampler. It is filled before each epoch."""

    def __init__(self) -> None:
        self.batches: list[list[Drawn]] = []

    def __iter__(self) -> Iterator[list[Drawn]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _as_it_comes(batch: Any) -> Any:
    return batch


class _Images(Dataset[Tensor]):
    """The data set of the loader: it decodes images, in a worker."""

    def __init__(self, reader: Reader, names: np.ndarray, image_size: tuple[int, int], bits: int = 8) -> None:
        from torchvision.transforms.v2 import RandomResizedCrop  # slow: imported only for streamed splits, before their workers start

        self.reader, self.names, self.image_size, self.bits = reader, names, image_size, bits
        self._crop = RandomResizedCrop

    def __getitems__(self, batch: list[Drawn]) -> Tensor | DataError:
        """A batch, or its error. If a worker raised the error, its message would arrive as a traceback."""
        try:
            return torch.stack([self[drawn] for drawn in batch])
        except DataError as error:
            return error

    def __getitem__(self, drawn: Drawn) -> Tensor:
        index, seed, crop_scale = drawn
        name = str(self.names[index])
        if seed is None or crop_scale == 1:
            return self._read(name, self.image_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, index))
            crop = self._crop(self.image_size, scale=(crop_scale, 1), antialias=True)
            whole = self._read(name, None)
            cropped: Tensor = crop(whole) if self.bits == 8 else crop(whole.float()).round().clamp(0, 65_535).to(torch.int32)
        return cropped

    def _read(self, name: str, size: tuple[int, int] | None) -> Tensor:
        shape = (None, *(size or (None, None)))
        pixels = checked_pixels(lambda: self.reader(name, size), shape, f"image {name}", self.bits)
        return torch.from_numpy(pixels if self.bits == 8 else pixels.astype(np.int32))


def load_split(data: DataSet, *names: SplitName, device: torch.device | str = "cpu", decoders: int | None = None) -> Split | StreamedSplit:
    """Load one split, or several splits as one, for training on a device.

    Images go to the device if they take less than half of its free memory. On the CPU, the images of a single split are mapped from the
    cache, so all processes of a machine share the memory. Several splits are copied.

    Args:
        decoders: number of processes that decode images of a streamed set; see StreamedSplit.
    """
    device = torch.device(device)
    images, labels = read_split(data, *names)
    raw = read_weights(data, *names)
    weights = None if raw is None else training_weights(raw)
    on_device = None if weights is None else torch.from_numpy(weights).to(device)
    if data.reader is not None:
        labels_there = torch.from_numpy(labels).to(device)
        return StreamedSplit(data.reader, images, labels_there, data.image_size, decoders, data.classes, on_device, data.bits)
    fits = images.nbytes < free_bytes(device) / 2
    return Split(torch.from_numpy(images).to(device if fits else "cpu"), torch.from_numpy(labels).to(device), data.classes, on_device)


def training_weights(weights: np.ndarray) -> np.ndarray | None:
    """Scale weights so that their mean is 1 over the images with a weight above 0, which are trained on. So the loss keeps its scale.

    Args:
        weights: (n,), float64, at least 0.
    Returns: (n,), float32; None if all weights are equal, so that none are needed.
    """
    if (weights == weights.max()).all():
        return None
    scaled = weights / weights.max()  # the sum of large weights could be infinite
    trained_on: np.ndarray = scaled / scaled[scaled > 0].mean()
    return trained_on.astype(np.float32)
