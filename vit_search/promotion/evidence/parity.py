"""Whether exported files answer as the trained model does: each is written, read again, and asked for the logits of fixed images."""

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
"""Writes a model's files into an empty folder, reads them again, and gives the model that they hold."""


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from the model that was trained."""

    format: str
    difference: float
    """Largest absolute difference of a logit, over fixed images in batches of 1 and of 8; infinite where the file cannot answer."""
    file_bytes: int
    problem: str = ""
    """Why the file cannot answer; empty where it can."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite difference is null."""
        return asdict(self) | {"difference": self.difference if math.isfinite(self.difference) else None}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Parity:
        """The inverse of `to_dict`."""
        return Parity(**{**values, "difference": math.inf if values["difference"] is None else values["difference"]})


def measure_parity(served: ServedModel, folder: Path, exporters: Mapping[str, Exporter]) -> list[Parity]:
    """Export a model and hold each file against the model in eager mode, in batches of 1 and of 8: a file may have one fixed batch.

    Args:
        folder: its checkpoint, of which safetensors is a copy; that format is always measured.
        exporters: of other formats, as `{"pt2": file_exporter("pt2")}`.
    """
    copied: Exporter = lambda _, target: _copy_and_read(folder, target)  # noqa: E731
    eager = export.eager(served)
    images = noise_images(served.config.model, served.config.data.bits, 8)
    expected = {1: np.concatenate([eager(images[i : i + 1]) for i in range(8)]), 8: eager(images)}
    return [_compare_file(name, exporter, served, images, expected) for name, exporter in {"safetensors": copied, **exporters}.items()]


def _compare_file(name: str, exporter: Exporter, served: ServedModel, images: Pixels, expected: Mapping[int, np.ndarray]) -> Parity:
    """One format's file against the expected logits, which are given by batch size."""
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
        except Exception as error:  # of whatever kind the exporter or the file's runtime raises
            return Parity(name, math.inf, size, f"{doing}: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}")


def _copy_and_read(folder: Path, target: Path) -> Reader:
    """A copy of a checkpoint's weights, verified and read again."""
    checkpoint.copy_for_serving(folder, target / "checkpoint")
    return export.eager(checkpoint.load_model(target / "checkpoint"))


def weights_sha256(served: ServedModel) -> str:
    """Of the weights in memory as model.safetensors holds them: equal to the file's, where they are the file's."""
    return hashlib.sha256(to_bytes({name: tensor.contiguous() for name, tensor in served.model.state_dict().items()})).hexdigest()


def file_exporter(format: str) -> Exporter:
    """An exporter that writes a model in a format of promotion/export.py and reads the file again."""

    def write_and_read(served: ServedModel, folder: Path) -> Reader:
        path = folder / f"model.{format}"
        export.write(served, path, format)
        return export.reader(path, format)

    return write_and_read
