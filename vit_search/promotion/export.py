"""Writes a model as a file for other programs, and checks each file against the model itself.

| Format | What is written |
|---|---|
| safetensors | a folder with config.json and model.safetensors, which `checkpoint.load_model` reads, and export.json |
| pt2 | a torch.export archive, for `torch.export.load`; export.json is one of its extra files |
| onnx | one file of opset 18; the facts of export.json are its metadata_props, as JSON if they are not text |

pt2 and onnx take `images` of the trained size: (batch, height, width, channels) for any batch, uint8, or uint16 for a model of 16-bit
images. They return float32 logits (batch, classes). They normalise the images but do not resize them, and they need no code of this
package.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from vit_search.errors import PromotionError
from vit_search.promotion.formats import FORMATS, check_format
from vit_search.registry import references
from vit_search.registry.version_files import fetch_version
from vit_search.tracking import model_package
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.uris import of_newest
from vit_search.vit import checkpoint
from vit_search.vit.checkpoint import ServedModel

OPSET = 18
"""ONNX opset. torch's exporter writes its operators for this one, and onnxruntime has it since 1.14 (February 2023)."""

TOLERANCE = 1e-4
"""The largest allowed difference between a logit and the model's own. Float32 graphs that add in another order differ by about 1e-6."""

BATCHES = (1, 8)
"""Batch sizes with which an export is checked. A batch of 1 shows whether the dynamic axis was lost."""

FACTS = "export.json"

LARGEST_ONNX = 2**31 - 2**20
"""The most bytes of weights in one ONNX file, because protobuf allows 2 GiB."""

Reader = Callable[[np.ndarray], np.ndarray]
"""From uint8 or uint16 images (batch, height, width, channels) of the trained size to float32 logits (batch, classes)."""

_written: set[str] = set()  # sha256 of archives that this process has written: torch.export.load may run code that is in others


@dataclass(frozen=True)
class Exported:
    """An exported file or folder. It agrees with its model."""

    path: Path
    name: str
    version: str
    """Empty for a model that was trained here. `name` is then its folder."""
    difference: float
    """Largest absolute difference between its logits and the model's own."""


def export(model: str, format: str, path: Path | None = None, *, tracking_uri: str | None = None) -> Exported:
    """Write a model as a file for other programs.

    Args:
        model: a name or a folder; see references.py.
        path: of the file (of the folder, for safetensors); by default NAME-VERSION with the format's suffix, in the current folder.
    Raises: PromotionError if the model cannot be found or loaded, the path exists already, or the export disagrees with the model.
    """
    check_format(format)
    trained = references.folder_of(model)
    if trained is not None:
        path = path or Path(f"{trained.resolve().name}{FORMATS[format] or '-' + format}")
        _check_free(path)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "checkpoint"
            checkpoint.copy_for_serving(trained, folder)  # its trial may go on, and replace it
            served = checkpoint.load_model(folder)
            difference = write(served, path, format, {"weights_sha256": checkpoint.weights_sha256(folder)}, folder=folder)
        return Exported(path, str(trained), "", difference)
    client = client_for(of_newest(tracking_uri), needs="read")
    version = references.find_version(client, model)
    path = path or Path(f"{version.name}-{version.version}{FORMATS[format]}")
    _check_free(path)
    with tempfile.TemporaryDirectory() as temporary:
        served, folder = fetch_version(client, version, Path(temporary))
        facts = {"version": f"{version.name}/{version.version}", "weights_sha256": checkpoint.weights_sha256(folder)}
        difference = write(served, path, format, facts, folder=folder)
    return Exported(path, version.name, str(version.version), difference)


def write(
    served: ServedModel, path: Path, format: str, facts: Mapping[str, str] = MappingProxyType({}), *, folder: Path | None = None
) -> float:
    """Write a model in a format, and keep the file only if it agrees with the model.

    Both classify random images with a fixed seed, in batches of 1 and 8.

    Args:
        served: on the CPU.
        path: must not exist. The file is written under another name, then renamed.
        facts: written in addition to the model's own facts, for example `version`, `weights_sha256`.
        folder: the model's checkpoint; only safetensors, a copy of it, needs it.
    Returns: the largest absolute difference between its logits and the model's own.
    Raises: PromotionError if it differs by more than TOLERANCE, the path exists already, or a library is missing.
    """
    check_format(format)
    _check_free(path)
    all_facts = model_package.facts(served) | dict(facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            fresh = Path(temporary) / path.name
            if format == "safetensors":
                _write_safetensors(folder, fresh, all_facts)
            elif format == "pt2":
                _write_pt2(served, fresh, all_facts)
            else:
                _write_onnx(served, fresh, all_facts)
            difference = disagreement(served, reader(fresh, format))
            if not difference <= TOLERANCE:  # also true for NaN
                raise PromotionError(
                    f"{path}: the {format} export differs from the model by {difference:.1e} where {TOLERANCE:.0e} is allowed, "
                    "so it was not written; take another format, or report this model's configuration."
                )
            _check_free(path)
            fresh.rename(path)
    except OSError as error:
        raise PromotionError(f"{path}: cannot be written ({error.strerror or error}); name another place with --output.") from None
    return difference


def reader(path: Path, format: str) -> Reader:
    """A function that runs an exported model on the CPU.

    An archive (pt2) is read only if this process has written it, because `torch.export.load` may run code from other archives.

    Raises: PromotionError for another archive, or if a library of the extra is missing; CheckpointError for a damaged folder.
    """
    check_format(format)
    if format == "safetensors":
        return eager(checkpoint.load_model(path))
    if format == "pt2":
        if _sha256(path) not in _written:
            raise PromotionError(f"{path}: not written by this process, and an archive may hold code; export it again from the registry.")
        program = torch.export.load(path).module()
        return lambda images: _numbers(program, images)
    runtime = _extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])


def eager(served: ServedModel) -> Reader:
    """The same for the model itself, without an export."""
    model = model_package.RawPixels(served).eval()
    return lambda images: _numbers(model, images)


def disagreement(served: ServedModel, ask: Reader) -> float:
    """The largest absolute difference between the logits of `ask` and the model's own, on the images that `write` uses.

    NaN if a logit is NaN. Infinity if the logits have another shape, or if a batch fails.
    """
    rng, model, farthest = np.random.default_rng(0), eager(served), 0.0
    height, width = served.config.model.image_size
    for batch in BATCHES:
        bits = served.config.data.bits
        images = rng.integers(0, 2**bits, (batch, height, width, served.config.model.in_channels), f"uint{bits}")
        expected = model(images)
        try:
            answer = ask(images)
        except Exception:  # each library has its own errors; with any of them, the file does not work
            return float("inf")
        if answer.shape != expected.shape:
            return float("inf")
        farthest = float(np.maximum(farthest, np.abs(answer - expected).max()))  # np.maximum keeps NaN
    return farthest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_safetensors(folder: Path | None, path: Path, facts: dict[str, Any]) -> None:
    if folder is None:
        raise PromotionError(f"{path}: safetensors is a copy of the model's checkpoint; name that folder.")
    checkpoint.copy_for_serving(folder, path)
    (path / FACTS).write_text(json.dumps(facts, indent=1))


def _write_pt2(served: ServedModel, path: Path, facts: dict[str, Any]) -> None:
    torch.export.save(model_package.exported(served), path, extra_files={FACTS: json.dumps(facts)})
    _written.add(_sha256(path))


def _write_onnx(served: ServedModel, path: Path, facts: dict[str, Any]) -> None:
    size = sum(weight.nbytes for weight in served.model.state_dict().values())
    if size > LARGEST_ONNX:
        raise PromotionError(f"{path}: {size / 2**30:.1f} GiB of weights, and one ONNX file holds 2; export safetensors or pt2.")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _extra(name)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter's own use of torch
        program = torch.onnx.export(
            model_package.exported(served),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "batch"}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the dynamo exporter gives a program"
    program.model.metadata_props.update({key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()})
    program.save(path, external_data=False)


def _extra(name: str) -> Any:
    """Import a library of the extra `onnx`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise PromotionError(f"onnx needs the library {name}: pip install 'vit_search[onnx]'.") from None


@torch.inference_mode()
def _numbers(model: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(images)).numpy()


def _check_free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise PromotionError(f"{path}: is there already; name another place with --output.")
