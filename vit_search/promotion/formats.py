"""The formats for exported models. They are not in export.py, because that imports torch, which takes seconds."""

from __future__ import annotations

from vit_search.errors import PromotionError
from vit_search.text import nearest

FORMATS = {"safetensors": "", "pt2": ".pt2", "onnx": ".onnx"}
"""Formats, each with the suffix of its file."""


def check_format(format: str) -> None:
    """Check that a format is known.

    Raises: PromotionError that names the nearest one.
    """
    if format not in FORMATS:
        raise PromotionError(f"--format {format}: unknown; {nearest(format, tuple(FORMATS))}")
