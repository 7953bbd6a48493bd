"""Compares exported files with the trained model. Each file is written, read again, and run on fixed images."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save as to_bytes

from vit_search.promotion import export
from vit_search.promotion.evidence.costs import Pixels, noise_images
from vit_search.promotion.export import Reader
from vit_search.vit import checkpoint
from vit_search.vit.checkpoint import ServedModel

Exporter = Callable[[ServedModel, Path], Reader]
"""A function that writes a model into an empty folder, reads it again, and returns the model in the files."""


@dataclass(frozen=True)
class Parity:
    """How much an exported file differs from the trained model."""

    format: str
    difference: float
    """Largest absolute difference of a logit, on fixed images in batches of 1 and of 8. Infinite if the file does not work."""
    file_bytes: int
    problem: str = ""
    """Why the file does not work; empty if it does."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. An infinite difference is null."""
        return asdict(self) | {"difference": self.difference if math.isfinite(self.difference) else None}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Parity:
        """The inverse of `to_dict`."""
        return Parity(**{**values, "difference": math.inf if values["difference"] is None else values["difference"]})


def measure_parity(served: ServedModel, folder: Path, exporters: Mapping[str, Exporter]) -> list[Parity]:
    """Export a model and compare each file with the model in eager mode.

    Batches of 1 and of 8 are used, because an export may be fixed to one batch size.

    Args:
        folder: of its checkpoint. safetensors, a copy of it, is always measured.
        exporters: of other formats, e.g. `{"pt2": file_exporter("pt2")}`.
    """
    copied: Exporter = lambda _, target: _copy_and_read(folder, target)  # noqa: E731
    eager = export.eager(served)
    images = noise_images(served.config.model, served.config.data.bits, 8)
    expected = {1: np.concatenate([eager(images[i : i + 1]) for i in range(8)]), 8: eager(images)}
    return [_compare_file(name, exporter, served, images, expected) for name, exporter in {"safetensors": copied, **exporters}.items()]


def _compare_file(name: str, exporter: Exporter, served: ServedModel, images: Pixels, expected: Mapping[int, np.ndarray]) -> Parity:
    """Compare one format's file with the expected logits, which are given by batch size."""
    with tempfile.TemporaryDirectory() as folder:
        size, doing = 0, "export"
        try:
            call = exporter(served, Path(folder))
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            worst = 0.0
            for batch, expected_logits in expected.items():
                doing = f"a batch of {batch}"
                logits_of_file = np.concatenate([call(images[i : i + batch]) for i in range(0, 8, batch)])
                if logits_of_file.shape != expected_logits.shape:
                    return Parity(name, math.inf, size, f"{doing}: logits of shape {logits_of_file.shape} for {expected_logits.shape}")
                difference = float(np.abs(logits_of_file.astype(np.float64) - expected_logits).max())
                worst = max(worst, difference if math.isfinite(difference) else math.inf)
            return Parity(name, worst, size)
        except Exception as error:  # any error of the exporter or of the library that runs the file
            return Parity(name, math.inf, size, f"{doing}: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}")


def _copy_and_read(folder: Path, target: Path) -> Reader:
    checkpoint.copy_for_serving(folder, target / "checkpoint")
    return export.eager(checkpoint.load_model(target / "checkpoint"))


def weights_sha256(served: ServedModel) -> str:
    """The sha256 of the weights in memory, as model.safetensors would hold them. It is the file's if they come from that file."""
    return hashlib.sha256(to_bytes({name: tensor.contiguous() for name, tensor in served.model.state_dict().items()})).hexdigest()


def file_exporter(format: str) -> Exporter:
    """An exporter that writes a model in a format of promotion/export.py and reads the file again."""

    def write_and_read(served: ServedModel, folder: Path) -> Reader:
        path = folder / f"model.{format}"
        export.write(served, path, format)
        return export.reader(path, format)

    return write_and_read
