"""Smoke tests: does a model answer correctly? `problem` checks fixed images here, `in_fresh_process` checks requests in a new process.

promote runs both (gate G10). A server runs `problem` before it serves a version.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vit_search.config.strict_json import parse
from vit_search.runtime.pickles import REFUSED
from vit_search.text import counted
from vit_search.vit import augment
from vit_search.vit.checkpoint import ServedModel

TOLERANCE = 1e-4
"""The largest difference of float32 logits between batch sizes and between machines."""

IMAGES = 8

CLASSES_KEPT = 1000
"""Number of classes whose logits `golden` holds, because MLflow takes at most 100,000 characters in a tag."""


def golden(served: ServedModel) -> str:
    """The logits of fixed images as JSON: (8, the first 1,000 classes). A registered version has them in its tag `golden`."""
    golden_logits = logits_of(served, _images(served))[:, :CLASSES_KEPT]
    return json.dumps([[round(value, 5) for value in row] for row in golden_logits.tolist()])


def problem(served: ServedModel, expected: str = "") -> str:
    """What is wrong with a model's answers to the fixed images, in one line; empty if nothing is.

    Args:
        expected: `golden` of the model when it was registered; empty if unknown.
    """
    images = _images(served)
    together = logits_of(served, images)
    if together.shape != (IMAGES, len(served.classes)):
        return f"the logits are {tuple(together.shape)}, for {counted(len(served.classes), 'class')} and {counted(IMAGES, 'image')}"
    if not together.isfinite().all():
        return "the logits are not finite"
    sums = together.softmax(-1).sum(-1)
    if (sums - 1).abs().max() > TOLERANCE:
        return f"the probabilities of an image add to {sums[(sums - 1).abs().argmax()]:g}"
    alone = torch.cat([logits_of(served, images[i : i + 1]) for i in range(IMAGES)])
    if not _near(alone, together):
        return f"the logits of an image alone are {(alone - together).abs().max():.2g} from those in a batch of {IMAGES}"
    if not expected:
        return ""
    try:
        reference = torch.tensor(parse(expected), dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError):
        return f"the golden logits are no table of numbers: {expected[:40]!r}"
    together = together[:, :CLASSES_KEPT]
    if reference.shape != together.shape:
        return f"the golden logits are {tuple(reference.shape)}, the model's {tuple(together.shape)}"
    if not _near(together, reference):
        return f"the logits are {(together - reference).abs().max():.2g} from the golden ones"
    return ""


def in_fresh_process(model_uri: str, tracking_uri: str | None = None, *, timeout_s: float = 300) -> str:
    """Load a model with mlflow.pyfunc in a new Python process, from the code that was logged with it, and send it 200 requests.

    20 requests are malformed. The model must reject each with an error of the caller that names the row.

    Args:
        model_uri: `models:/NAME/3`, `models:/m-…` or another URI that MLflow can load.
    Returns: what went wrong, in one line; empty if nothing did.
    """
    from vit_search.tracking.uris import resolve_uri

    settings = {"MLFLOW_TRACKING_URI": resolve_uri(tracking_uri), "MLFLOW_DISABLE_TELEMETRY": "true"}  # not in argv: may hold a password
    settings |= {"PYTHONDONTWRITEBYTECODE": "1"}  # MLflow does not copy a local model, so Python would write into it
    environment = os.environ | REFUSED | settings
    script = Path(__file__).with_name("smoke_requests.py")
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(script), model_uri],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"a fresh process had not answered 200 requests after {timeout_s:g} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"a fresh process ended with {done.returncode} and said nothing"


def _images(served: ServedModel) -> Tensor:
    """Noise that is always the same: uint8 or uint16 (8, channels, height, width)."""
    shape = (IMAGES, served.config.model.in_channels, *served.config.model.image_size)
    bits = served.config.data.bits
    noise = hashlib.shake_256(b"vit_search golden").digest(int(np.prod(shape)) * bits // 8)
    return torch.from_numpy(np.frombuffer(noise, f"<u{bits // 8}").reshape(shape).astype(f"uint{bits}"))


@torch.inference_mode()
def logits_of(served: ServedModel, images: Tensor) -> Tensor:
    """Logits, float32 (batch, classes) on the CPU, computed on the model's device."""
    mean, std = served.normalisation.mean, served.normalisation.std
    logits: Tensor = served.model(augment.normalise(images.to(mean.device), mean, std))
    return logits.float().cpu()


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether the logits differ by at most TOLERANCE; large numbers relatively."""
    return torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)
