"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels that need no download."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.data.sources.source import Source


class Digits(Source):
    """The whole set. It has no test split of its own."""

    classes = tuple("0123456789")
    shape = (1, 8, 8)
    title = "digits"

    def __init__(self, config: DataConfig, downloads: Path | None, download: bool) -> None:
        """All sources take these arguments. This one needs none of them."""

    @cached_property
    def _loaded(self) -> Any:
        from sklearn.datasets import load_digits  # slow to import, and not needed if the cache has the set

        return load_digits()

    @cached_property
    def labels(self) -> np.ndarray:  # type: ignore[override]  # mypy does not know that it can be set
        """(n,) int64."""
        return np.asarray(self._loaded.target, np.int64)

    def fingerprint(self) -> bytes:
        """scikit-learn's major version, because the images have no files of their own."""
        return f"sklearn digits {version('scikit-learn').split('.')[0]}".encode()

    def read(self, index: int) -> np.ndarray:
        """uint8 (1, 8, 8)."""
        pixels: np.ndarray = np.round(self._loaded.images[index] * (255 / 16))  # 17 grey levels, 0 to 16
        return pixels.astype(np.uint8)[None]
