"""A model in memory that is ready to answer: its files are verified, it has passed its smoke test, and it is warmed up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vit_search.errors import ServingError
from vit_search.registry import smoke
from vit_search.serving.state import Version
from vit_search.tracking import model_files
from vit_search.vit import augment, checkpoint


@dataclass(frozen=True)
class LoadedModel:
    """A model that has passed its smoke test on this device."""

    served: checkpoint.ServedModel
    version: str
    """For example `NAME/3`."""
    weights_sha256: str

    @property
    def image_bytes(self) -> int:
        """Bytes of one decoded image at the model's size."""
        shape = self.served.config.model
        return shape.in_channels * shape.image_size[0] * shape.image_size[1] * self.served.config.data.bits // 8

    def answer(self, chances: np.ndarray) -> bytes:
        """The JSON answer to a request. chances: float64 (images, classes)."""
        classes = self.served.classes
        rows = []
        for row, winner in zip(chances.tolist(), chances.argmax(1).tolist(), strict=True):
            rows.append(
                {
                    "label": classes[winner],
                    "probability": row[winner],
                    "probabilities": dict(zip(classes, row, strict=True)),
                    "version": self.version,
                    "weights_sha256": self.weights_sha256,
                }
            )
        return json.dumps({"predictions": rows}).encode()


def load(version: Version, *, device: str = "cpu", batch: int = 32) -> LoadedModel:
    """Load a version, check its files (sha256) and its golden logits, and warm it up for batches of up to `batch` images.

    Raises: CheckpointError; PromotionError if the files are not the registered ones; ServingError if the model's answers are wrong.
    """
    folder = Path(version.folder)
    try:
        model_files.check(folder, version.tags, version.name)
    except OSError as error:
        raise ServingError(f"{version.name}: its files cannot be read ({error.strerror})") from None
    served = checkpoint.load_model(folder, device)
    problem = smoke.problem(served, version.golden)
    if problem:
        raise ServingError(f"{version.name}: fails its smoke test: {problem}")
    loaded = LoadedModel(served, version.name, checkpoint.weights_sha256(folder))
    height, width = served.config.model.image_size
    size = 1
    while size <= batch:
        probabilities(loaded, np.zeros((size, served.config.model.in_channels, height, width), f"uint{served.config.data.bits}"))
        size *= 2
    return loaded


@torch.inference_mode()
def probabilities(loaded: LoadedModel, pixels: np.ndarray) -> np.ndarray:
    """Classify pixels, uint8 or uint16 (batch, channels, height, width). Returns probabilities, float64 (batch, classes)."""
    normalisation = loaded.served.normalisation
    images = augment.normalise(torch.from_numpy(pixels).to(normalisation.mean.device), normalisation.mean, normalisation.std)
    chances: np.ndarray = loaded.served.model(images).softmax(-1).double().cpu().numpy()
    return chances
