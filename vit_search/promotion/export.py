"""A registered model as files for other programs: safetensors, a torch.export archive, ONNX, each held against the model itself.

    safetensors  a folder with config.json and model.safetensors, which `checkpoint.load_model` reads, and export.json
    pt2          a torch.export archive, for `torch.export.load`; export.json lies in its extra files
    onnx         one file of opset 18; the facts of export.json are its metadata_props, as JSON where they are no text

The last two take `images` of the trained size, (batch, height, width, channels) for any batch, uint8, or uint16 for a model of images
of 16 bits. They give float32 logits (batch, classes): they resize nothing, they do normalise, and they need none of this package's code.
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
"""Of ONNX; torch's exporter writes its operators for this one, and onnxruntime has known it since 1.14 (February 2023)."""

TOLERANCE = 1e-4
"""Most by which a logit may differ from the model's own. Float32 graphs that add in another order differ by about 1e-6."""

BATCHES = (1, 8)
"""Images at once with which an export is held against the model; 1 is the size that a lost dynamic axis shows at."""

FACTS = "export.json"

LARGEST_ONNX = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold: protobuf ends at 2 GiB."""

Reader = Callable[[np.ndarray], np.ndarray]
"""uint8 or uint16 (batch, height, width, channels) of the trained size to float32 logits (batch, classes)."""

_written: set[str] = set()  # sha256 of the archives that this process has made: torch.export.load may run what others put into theirs


@dataclass(frozen=True)
class Exported:
    """A file or folder that agrees with its model."""

    path: Path
    name: str
    version: str
    """Empty for a model that was trained here; `name` is then its folder."""
    difference: float
    """Largest absolute difference of its logits from the model's own."""


def export(model: str, format: str, path: Path | None = None, *, tracking_uri: str | None = None) -> Exported:
    """Write a registered model as a file for other programs.

    Args:
        model: as references.py reads it.
        path: of the file, or of the folder that safetensors makes; by default NAME-VERSION with the format's ending, here.
    Raises: PromotionError when the model cannot be had, a file is there already, or the export disagrees with the model.
    """
    check_format(format)
    trained = references.folder_of(model)
    if trained is not None:
        path = path or Path(f"{trained.resolve().name}{FORMATS[format] or '-' + format}")
        _check_free(path)
        served = checkpoint.load_model(trained)
        difference = write(served, path, format, {"weights_sha256": checkpoint.weights_sha256(trained)}, folder=trained)
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
    """Write a model in a format, and hand it out only where it agrees with the model on seeded images in batches of 1 and 8.

    Args:
        served: on the CPU.
        path: where nothing is yet; written under another name, then renamed.
        facts: written with it beside what the model knows of itself, as `version`, `weights_sha256`.
        folder: the checkpoint that the model is of; safetensors is a copy of it, the other formats do not need it.
    Returns: the largest absolute difference of its logits from the model's own.
    Raises: PromotionError when it differs by more than TOLERANCE, when something is there already, when an extra is missing.
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
            if not difference <= TOLERANCE:  # nor is NaN
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
    """How an exported model is asked, on the CPU.

    An archive (pt2) is read only where this very process has written it: what `torch.export.load` finds in another may be code.

    Raises: PromotionError for such an archive, or where an extra is missing; CheckpointError for a damaged folder.
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
    """The model itself, asked in the same way."""
    model = model_package.RawPixels(served).eval()
    return lambda images: _numbers(model, images)


def disagreement(served: ServedModel, ask: Reader) -> float:
    """Largest absolute difference of logits from the model's own, over seeded images in batches of 1 and 8; NaN where one is.

    Logits of another shape, or a batch that is refused, count as infinitely far.
    """
    rng, model, farthest = np.random.default_rng(0), eager(served), 0.0
    height, width = served.config.model.image_size
    for batch in BATCHES:
        bits = served.config.data.bits
        images = rng.integers(0, 2**bits, (batch, height, width, served.config.model.in_channels), f"uint{bits}")
        expected = model(images)
        try:
            answer = ask(images)
        except Exception:  # each library has errors of its own; whichever it is, the file does not answer
            return float("inf")
        if answer.shape != expected.shape:
            return float("inf")
        farthest = float(np.maximum(farthest, np.abs(answer - expected).max()))  # NaN wins
    return farthest


def _sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
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
        warnings.simplefilter("ignore")  # of the exporter's own use of torch
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
    """A library of the extra `onnx`."""
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
