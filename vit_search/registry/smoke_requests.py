"""The script of smoke.in_fresh_process: load a model with mlflow.pyfunc and check its answers to 200 requests.

It imports nothing of this package, so the model uses the code that was logged with it. The exit code is 0, or 1 after one line about the
fault.
"""

from __future__ import annotations

import base64
import io
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from PIL import Image

REQUESTS, MALFORMED = 200, 20


def check(model_uri: str) -> str:
    """What is wrong with a model's answers; empty if nothing is."""
    model = mlflow.pyfunc.load_model(model_uri)
    facts = model.metadata.metadata or {}
    classes = facts.get("classes")
    if not classes:
        return f"{model_uri}: not a model of vit_search: its metadata names no classes"
    rng = np.random.default_rng(0)
    takes = Takes(facts["channels"], facts["bit_depth"]) if "bit_depth" in facts else Takes()
    bad = list(_malformed(rng, takes).items())
    spacing = REQUESTS // MALFORMED
    for number in range(REQUESTS):
        if number % spacing == spacing - 1:
            what, value = bad[number // spacing % len(bad)]
            problem = _refusal(model, _batch([_file(_pixels(rng, takes)), value]), row=1)
            if problem:
                return f"request {number}, malformed ({what}): {problem}"
        else:
            form, count = _good(rng, number, takes)
            problem = _wrong(model.predict(form), count, classes)
            if problem:
                return f"request {number}: {problem}"
    return ""


def _wrong(rows: pd.DataFrame, count: int, classes: list[str]) -> str:
    """What is wrong with the answer to a valid request."""
    columns = ["label", "probability", "version", *(f"p_{name}" for name in classes)]
    if list(rows.columns) != columns:
        return f"the columns are {list(rows.columns)}, not {columns}"
    if len(rows) != count:
        return f"{len(rows)} rows for {count} images"
    chances = rows.to_numpy()[:, 3:].astype(float)
    if not np.isfinite(chances).all() or np.abs(chances.sum(1) - 1).max() > 1e-4:
        return "the probabilities of a row do not add to 1"
    if list(rows["label"]) != [classes[i] for i in chances.argmax(1)] or (rows["probability"] != chances.max(1)).any():
        return "the label is not the most probable class"
    return ""


def _refusal(model: Any, form: Any, row: int) -> str:
    """What is wrong with the rejection of a malformed request."""
    try:
        model.predict(form)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            return f"refused as {error.error_code}, not as INVALID_PARAMETER_VALUE"
        return "" if f"row {row}:" in error.message else f"the refusal does not name row {row}: {error.message.splitlines()[0]}"
    except Exception as error:
        return f"{type(error).__name__}, not a refusal ({(str(error).splitlines() or [''])[0]})"
    return "answered, not refused"


def _good(rng: np.random.Generator, number: int, takes: Takes) -> tuple[Any, int]:
    """A valid request in one of the formats that a model accepts, and its number of images."""
    count = 1 + number % 3
    images = [_pixels(rng, takes) for _ in range(count)]
    if number % 4 == 0:
        return np.stack([images[0]] * count), count
    if number % 4 == 1:
        return pd.DataFrame({"image": [_file(image, "JPEG" if number % 8 == 1 and takes.converts else "PNG") for image in images]}), count
    if number % 4 == 2:
        return pd.DataFrame({"image": [base64.b64encode(_file(image)).decode() for image in images]}), count
    return _batch(images), count


def _malformed(rng: np.random.Generator, takes: Takes) -> dict[str, Any]:
    """Malformed values by name. The model must reject each."""
    if not takes.converts:
        return _malformed_exact(rng, takes)
    good = _file(_pixels(rng, takes, 40, 30, 3))
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + good[24:29]
    return {
        "no base64": "Grüße?",
        "a text file": b"hello, I am no image\n" * 9,
        "empty bytes": b"",
        "empty text": "",
        "a truncated PNG": good[: len(good) // 2],
        "two axes": np.zeros((8, 8), np.uint8),
        "four channels": np.zeros((8, 8, 4), np.uint8),
        "floats": np.full((8, 8, 1), 0.5),
        "too bright": np.full((8, 8, 1), 300),
        "a header of 900 million pixels": good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:],
    }


def _malformed_exact(rng: np.random.Generator, takes: Takes) -> dict[str, Any]:
    """The same for a model that does not convert images."""
    good, kind = _file(_pixels(rng, takes, 40, 30)), f"uint{takes.bits}"
    other = "uint8" if takes.bits == 16 else "uint16"
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': (30000, 30000, {takes.channels}), }}".ljust(117).encode() + b"\n"
    return {
        "no base64": "Grüße?",
        "a text file": b"hello, I am no image\n" * 9,
        "empty bytes": b"",
        "empty text": "",
        "a truncated NPY": good[: len(good) // 2],
        "two axes": np.zeros((8, 8), kind),
        "a channel more": np.zeros((8, 8, takes.channels + 1), kind),
        "floats": np.full((8, 8, takes.channels), 0.5),
        "too bright": np.full((8, 8, takes.channels), 2**takes.bits),
        "another depth": _file(np.zeros((8, 8, takes.channels), other)),
        "a header of 900 million pixels": b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header,
    }


@dataclass(frozen=True)
class Takes:
    """The images that a model accepts."""

    channels: int = 0
    """0: grey and RGB, which the model converts."""
    bits: int = 8

    @property
    def converts(self) -> bool:
        """Whether it accepts 1 and 3 channels and all bit depths."""
        return not self.channels


def _pixels(rng: np.random.Generator, takes: Takes, height: int = 0, width: int = 0, channels: int = 0) -> np.ndarray:
    height, width = height or int(rng.integers(1, 80)), width or int(rng.integers(1, 80))
    channels = channels or takes.channels or int(rng.choice([1, 3]))
    return rng.integers(0, 2**takes.bits, (height, width, channels), f"uint{takes.bits}")


def _file(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """An image file; an NPY file if Pillow cannot write the image."""
    raw = io.BytesIO()
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        np.save(raw, pixels)
        return raw.getvalue()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(raw, kind)
    return raw.getvalue()


def _batch(values: list[Any]) -> np.ndarray:
    """An array with one axis, of objects of any kind."""
    rows = np.empty(len(values), object)
    rows[:] = values
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(check(sys.argv[1]) or 0)
