"""The formats that a model is exported in; apart from export.py, whose import of torch takes seconds."""

from __future__ import annotations

from vit_search.errors import PromotionError
from vit_search.text import nearest

FORMATS = {"safetensors": "", "pt2": ".pt2", "onnx": ".onnx"}
"""What can be written, and the ending of its name."""


def check_format(format: str) -> None:
    """Raises: PromotionError for another format, with the nearest one."""
    if format not in FORMATS:
        raise PromotionError(f"--format {format}: unknown; {nearest(format, tuple(FORMATS))}")
