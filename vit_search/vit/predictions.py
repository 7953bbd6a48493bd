"""The prediction for one image. It imports no torch, so that a process can read predictions that another one made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """One image, classified."""

    image: str
    """The path of the file, or `image 3` (counted from 0) if the image was given as bytes or pixels."""
    label: str
    probability: float
