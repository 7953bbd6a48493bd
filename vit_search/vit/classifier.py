"""Classify images from Python with a trained model: image files, their bytes, or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vit_search.config.trial import TrialConfig
from vit_search.data.decode import fit_pixels, read_image, read_images
from vit_search.errors import DataError
from vit_search.vit import augment, checkpoint
from vit_search.vit.checkpoint import ServedModel
from vit_search.vit.evaluation import EVALUATED_AT_ONCE
from vit_search.vit.predictions import Prediction

Image = str | Path | bytes | np.ndarray
"""The path of a file, its content, or pixels: uint8 (height, width) or (height, width, 1 or 3). A model trained on another depth or
number of channels takes (height, width, channels), uint8 or uint16 as in training."""


class Classifier:
    """A trained model with all that it needs to classify an image: its classes, and how it reads images.

    Images may have any size. They are scaled and cropped as in training.
    """

    def __init__(self, served: ServedModel, name: str) -> None:
        self.served = served
        self.name = name
        """The model's name in messages."""

    @staticmethod
    def load(folder: Path, *, name: str | None = None, device: torch.device | str = "cpu") -> Classifier:
        """Load the model of a checkpoint.

        Raises: CheckpointError if the folder is missing or damaged.
        """
        return Classifier(checkpoint.load_model(folder, device), str(folder) if name is None else name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of `probabilities`."""
        return self.served.classes

    @property
    def config(self) -> TrialConfig:
        """The configuration of its data, model and training."""
        return self.served.config

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image]) -> np.ndarray:
        """The probability of each class for each image.

        Args:
            images: paths, bytes of files, or pixels. Kinds and sizes may be mixed.
        Returns: float64 (images, classes).
        Raises: DataError that names the images that cannot be used.
        """
        pixels = torch.from_numpy(self._pixels(images))
        mean, std = self.served.normalisation.mean, self.served.normalisation.std
        parts = [
            self.served.model(augment.normalise(part.to(mean.device), mean, std)).softmax(-1).double().cpu()
            for part in pixels.split(EVALUATED_AT_ONCE)
        ]
        return np.asarray(torch.cat(parts).numpy())

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """The most probable class of each image. Arguments and errors are those of `probabilities`."""
        names = [str(image) if isinstance(image, (str, Path)) else f"image {i}" for i, image in enumerate(images)]
        rows = self.probabilities(images)
        return [Prediction(name, self.classes[row.argmax()], float(row.max())) for name, row in zip(names, rows, strict=True)]

    def _pixels(self, images: Sequence[Image]) -> np.ndarray:
        """Pixels in the trained size, uint8 or uint16 (images, channels, height, width)."""
        if isinstance(images, (str, bytes, Path)) or not len(images):
            raise DataError(f"{self.name}: give a list of one image or more.")
        size, channels, bit_depth = self.config.model.image_size, self.config.model.in_channels, self.config.data.bit_depth
        paths = [Path(image) for image in images if isinstance(image, (str, Path))]
        if len(paths) == len(images):  # one message names all damaged files
            return read_images(paths, size, channels, bit_depth, source=self.name)
        return np.stack([_read(image, f"image {i}", size, channels, bit_depth) for i, image in enumerate(images)])


def _read(image: Image, name: str, size: tuple[int, int], channels: int, bit_depth: int | None) -> np.ndarray:
    """Pixels of one image, uint8 or uint16 (channels, height, width)."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image), size, channels, bit_depth, for_model=True)
    read = partial(read_image, image, for_model=True) if isinstance(image, bytes) else partial(fit_pixels, image)
    try:
        return read(size, channels, bit_depth)
    except DataError as error:
        raise DataError(f"{name}: {str(error).removeprefix('image: ')}") from None
