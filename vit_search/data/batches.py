"""A split as training sees it: batches of whole numbers on the training device, from memory, or decoded as they are needed.

Images of 8 bits come as uint8, and images of 16 bits as int32, since torch computes little with uint16. Where the frozen parts of a model
run only once, batches are what they gave (FeatureSplit).
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
    """(n, channels, height, width), uint8 or uint16; on the training device, or in main memory where that has no room for them."""
    labels: Tensor
    """(n,), int64, on the training device."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty where nobody asks for them."""
    weights: Tensor | None = None
    """(n,), float32, on the training device: how much each image counts in the training loss. None: all the same."""

    cropped = False
    """Whether batches come randomly cropped already."""

    def __len__(self) -> int:
        """Images in the split."""
        return len(self.labels)

    def batches(self, parts: Iterable[Tensor], seed: int | None = None, crop_scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of each part, both on the training device; `seed` and `crop_scale` matter to streamed splits alone.

        Args:
            parts: indices of each batch, on the CPU.
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
        """The images in a type that every device selects from."""
        return self.images.view(torch.int16) if self.images.dtype == torch.uint16 else self.images


def widened(images: Tensor) -> Tensor:
    """Images as training computes with them: uint8 as it is; uint16, also where its bits are called int16, as int32."""
    return images if images.dtype == torch.uint8 else images.to(torch.int32) & 0xFFFF


class FeatureSplit:
    """What the frozen parts of a model make of the images of one split, from memory maps.

    Args:
        images: the split.
        of_view: gives the features of a version of the images: (n, dim) or (n, tokens, dim), float32, in main memory.
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
        """Features and labels of each part, both on the training device.

        Args:
            parts: indices of each batch, on the CPU.
            view: which version of the images.
        """
        device, features = self.labels.device, self._features(view)
        for part in parts:
            chosen = features.index_select(0, part.to(features.device))
            if features.device != device:
                chosen = chosen.pin_memory().to(device, non_blocking=True)
            yield chosen, self.labels[part.to(device)]

    def _features(self, view: int) -> Tensor:
        """On the training device where they take less than half of what is free there. Those of the version before make room."""
        if self._last is None or self._last[0] != view:
            self._last = None
            features, device = self._of_view(view), self.labels.device
            self._last = view, features.to(device if features.nbytes < free_bytes(device) / 2 else "cpu")
        return self._last[1]


class StreamedSplit:
    """Images of one split, decoded by worker processes while the batches before them train.

    A training image is drawn from (seed, its index, how often the epoch has shown it) alone, so neither the number of workers nor a
    resume changes it.

    Args:
        reader: of the source. names: (n,), of the images, as it takes them.
        labels: (n,), int64, on the training device.
        image_size: height and width.
        workers: processes; one less than the machine's cores by default.
        classes, weights: as above.
        bits: of a value of an image, 8 or 16.
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
            generator=torch.Generator(),  # an epoch begins with a draw, which must not come from the one that dropout draws from
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            pin_memory=labels.device.type == "cuda",
        )

    def __len__(self) -> int:
        """Images in the split."""
        return len(self.labels)

    def batches(self, parts: Iterable[Tensor], seed: int | None = None, crop_scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of each part, both on the training device.

        Args:
            parts: indices of each batch, on the CPU.
            seed: of the random crops; None for the centre of each image.
            crop_scale: least share of the area that a random crop keeps; 1 for the centre.
        Raises: DataError that names the file, where one cannot be decoded.
        """
        chosen = list(parts)
        shown: Counter[int] = Counter()
        self._order.batches = [[self._drawn(i, seed, crop_scale, shown) for i in part.tolist()] for part in chosen]
        device = self.labels.device
        for part, images in zip(chosen, self._loader, strict=True):
            if isinstance(images, DataError):
                raise DataError(*images.args)  # raised itself, it would hold this frame, and the frame it: no end for the workers
            yield images.to(device, non_blocking=True), self.labels[part.to(device)]

    @staticmethod
    def _drawn(index: int, seed: int | None, crop_scale: float, shown: Counter[int]) -> Drawn:
        """An image with the seed of its crop: another one each time that the epoch shows the image."""
        times, shown[index] = shown[index], shown[index] + 1
        return index, derive_seed(seed, "again", times) if times and seed is not None else seed, crop_scale


Drawn = tuple[int, int | None, float]
"""Index, seed and crop_scale of one image: what a worker is told."""


class _Order:
    """The batch sampler of an epoch, filled anew before each."""

    def __init__(self) -> None:
        self.batches: list[list[Drawn]] = []

    def __iter__(self) -> Iterator[list[Drawn]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _as_it_comes(batch: Any) -> Any:
    return batch


class _Images(Dataset[Tensor]):
    """Decodes images of a streamed set."""

    def __init__(self, reader: Reader, names: np.ndarray, image_size: tuple[int, int], bits: int = 8) -> None:
        from torchvision.transforms.v2 import RandomResizedCrop  # slow to import: for streamed splits alone, and before their workers start

        self.reader, self.names, self.image_size, self.bits = reader, names, image_size, bits
        self._crop = RandomResizedCrop

    def __getitems__(self, batch: list[Drawn]) -> Tensor | DataError:
        """A batch; or what is wrong with it, since what a worker raises arrives with a traceback for a message."""
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
    """A split, or several as one, on its way to a device: moved there whole where it takes less than half of what is free.

    On the CPU all processes of a machine share the pages of the cache's files, but for several as one. `decoders` is the number of
    processes that decode files; see StreamedSplit.
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
    """Weights whose mean is 1 over the images that are trained on, which are those above 0: the loss keeps its scale.

    Args:
        weights: (n,), float64, at least 0.
    Returns: (n,), float32; None if all are equal, which is a training without weights.
    """
    if (weights == weights.max()).all():
        return None
    scaled = weights / weights.max()  # a sum of large numbers would be infinite
    trained_on: np.ndarray = scaled / scaled[scaled > 0].mean()
    return trained_on.astype(np.float32)
