"""The model as MLflow serves it: images in, labels out, no pickle.

MLflow runs this file as the model's code ("models from code"). The weights are beside it, in a checkpoint folder. A prediction takes
pixels or image files of any size, resizes them like the training images, and returns one row per image.

The input's signature is `image: Tensor('object', (-1,))`. A uint8 tensor (-1, -1, -1, -1) would say more about the pixels, but
MLflow 3.17 then casts each JSON body to uint8 and refuses text in a DataFrame. A column of strings refuses arrays with four axes, and
a type hint refuses `dataframe_split`. With one axis of objects, all of them reach `predict`, which checks them itself. A plain Python
list does not: give an array, or a Series or DataFrame with a column `image` and an index that contains 0, because MLflow looks at
that row.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
import yaml
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, set_model
from mlflow.models.model import ModelInfo
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from PIL import Image
from torch import Tensor, nn

from vit_search.config.trial import TrialConfig
from vit_search.data.request_images import pixels_of
from vit_search.errors import DataError
from vit_search.tracking import model_files
from vit_search.vit import augment, checkpoint
from vit_search.vit.evaluation import EVALUATED_AT_ONCE

IMAGE = "image"
"""Name of the input: the column of a DataFrame."""

CODE = (
    "__init__.py",
    "errors.py",
    "files.py",
    "seeds.py",
    "text.py",
    "config",
    "data",
    "vit",
    *(f"runtime/{name}.py" for name in ("__init__", "machine", "pickles", "torch_import")),
    *(f"tracking/{name}.py" for name in ("__init__", "model_files", "model_package")),
)
"""The parts of this package that a served model needs. None of them imports ray or optuna."""

REQUIREMENTS = ("torch", "torchvision", "einops", "safetensors", "numpy", "pandas", "pillow", "pyyaml")
EXACT_REQUIREMENTS = ("tifffile", "imagecodecs")
"""Further packages for models of 16-bit or many-channel images."""


class PackagedViT(PythonModel):
    """Makes a checkpoint usable through MLflow's pyfunc."""

    def load_context(self, context: Any) -> None:
        """Read the checkpoint once, and verify its sha256."""
        folder = Path(context.artifacts["checkpoint"])
        self.served = checkpoint.load_model(folder)
        self.version = _version(folder)

    @torch.inference_mode()
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify images.

        Args:
            model_input: one image per row. Either pixels, uint8 (batch, height, width, channels) with 1 channel (grey) or 3 (RGB). Or PNG,
                JPEG and other image files, as base64 text or bytes, in an array, a Series, or the column `image` of a DataFrame. If the
                model's metadata has a `bit_depth`, images must have this depth, uint8 or uint16, and the model's number of channels.
                Images of an object array may differ in size. All images are resized to the size of the training.
        Returns: `label`, `probability`, `version` (`NAME/3` if it comes from the registry, else `m-…`, else the weights' sha256), and
            `p_CLASS` for each class.
        Raises: MlflowException INVALID_PARAMETER_VALUE with the row, counted from 0, and the problem.
        """
        rows = _rows(model_input)
        config = self.served.config
        normalisation = self.served.normalisation
        parts = []
        for start in range(0, len(rows), EVALUATED_AT_ONCE):  # in parts as large as in validation, decoded when needed
            chosen = enumerate(rows[start : start + EVALUATED_AT_ONCE], start)
            images = torch.from_numpy(np.stack([_image(value, i, config) for i, value in chosen]))
            parts.append(self.served.model(augment.normalise(images, normalisation.mean, normalisation.std)).softmax(-1))
        chances = torch.cat(parts).double().numpy()
        winners = chances.argmax(1)
        columns: dict[str, Any] = {
            "label": [self.served.classes[i] for i in winners],
            "probability": chances[np.arange(len(winners)), winners],
            "version": self.version,
        }
        return pd.DataFrame(columns | {f"p_{name}": chances[:, i] for i, name in enumerate(self.served.classes)})


class RawPixels(nn.Module):
    """A model that takes raw pixels. This is what `pt2` contains."""

    mean: Tensor
    std: Tensor

    def __init__(self, served: checkpoint.ServedModel) -> None:
        super().__init__()
        self.model, self.bits = served.model, served.config.data.bits
        self.register_buffer("mean", served.normalisation.mean)
        self.register_buffer("std", served.normalisation.std)

    def forward(self, images: Tensor) -> Tensor:
        """Compute float32 logits (batch, classes) from uint8 or uint16 (batch, height, width, channels) of the trained size."""
        logits: Tensor = self.model(augment.normalise(images.permute(0, 3, 1, 2), self.mean, self.std))
        return logits


def log_model(folder: Path, *, run_id: str, name: str = "model", step: int = 0, end_status: str = "FINISHED", pt2: bool = False) -> str:
    """Log a checkpoint as the model of a run, with signature, example and class names, but without the optimizer's state.

    The tag `files_sha256` has the sha256 of each file; see model_files.py.

    Args:
        folder: a checkpoint.
        run_id: of an ended run. Afterwards it has `end_status` again.
        name: of the logged model.
        step: the epoch whose metrics MLflow shows with the model, which is the last one.
        pt2: also add `artifacts/model.pt2`, for `torch.export.load`. It maps uint8 or uint16 pixels of the trained size (batch, height,
            width, channels), for any batch, to float32 logits. It does not resize, and needs none of our code.
    Returns: the model's URI, `models:/m-…`.
    Raises: CheckpointError, and the run is as it was; PromotionError if MLflow returns another checkpoint than it was given.
    """
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings(), _no_bytecode():
        warnings.simplefilter("ignore")  # MLflow warns about type hints and the like; our own problems are errors
        slim = Path(temporary) / "checkpoint"
        checkpoint.copy_for_serving(folder, slim)
        served = checkpoint.load_model(slim)
        with mlflow.start_run(run_id=run_id):  # from here on, an error would leave it with another status
            info = _log(served, slim, Path(temporary), name, step, pt2=pt2)
    mlflow.MlflowClient().set_terminated(run_id, end_status)
    return str(info.model_uri)


def _log(served: checkpoint.ServedModel, slim: Path, temporary: Path, name: str, step: int, *, pt2: bool) -> ModelInfo:
    """Log the checkpoint `slim` as a model of the active run, and verify what MLflow has got."""
    is_exact = served.config.data.exact
    chances = [ColSpec(DataType.double, f"p_{name}") for name in served.classes]
    columns = [ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability"), ColSpec(DataType.string, "version")]
    artifacts = {"checkpoint": str(slim)}
    if pt2:
        torch.export.save(exported(served), temporary / "model.pt2")
        artifacts["pt2"] = str(temporary / "model.pt2")
    info: ModelInfo = mlflow.pyfunc.log_model(
        name=name,
        step=step,
        python_model=__file__,
        artifacts=artifacts,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(object), (-1,), IMAGE)]),
            outputs=Schema([*columns, *chances]),
        ),
        input_example=pd.DataFrame({IMAGE: [_black(served.config)]}),
        code_paths=[str(_copy_code(temporary / "code"))],
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS + EXACT_REQUIREMENTS * is_exact],
        metadata=facts(served),
    )
    with tempfile.TemporaryDirectory() as again:
        home = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=again))
        sent = {model_files.RECORD: json.dumps(model_files.digests(slim, model_files.CHECKPOINT))}
        model_files.check(home / model_files.CHECKPOINT, sent, str(info.model_uri))
        record_tag = {model_files.RECORD: model_files.record(home)}
    mlflow.MlflowClient().set_logged_model_tags(info.model_id, record_tag)
    return info


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Prevent compiled code in the model. MLflow imports its code before sending the files; no checksum covers what Python would add."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def link_to_parent(client: mlflow.MlflowClient, run_id: str, model_id: str) -> None:
    """Show a trial's logged model on the page of its search, too. Repeating this changes nothing."""
    parent = client.get_run(run_id).data.tags.get("mlflow.parentRunId")
    if parent is None:
        return
    outputs = client.get_run(parent).outputs
    if model_id not in [model.model_id for model in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(parent, [LoggedModelOutput(model_id, step=0)])


def facts(served: checkpoint.ServedModel) -> dict[str, Any]:
    """What a program needs to use a model's logits, as plain JSON values. mean and std are on the scale from 0 to 1."""
    return {
        "classes": list(served.classes),
        "image_size": list(served.config.model.image_size),
        "channels": served.config.model.in_channels,
        "mean": served.normalisation.mean.tolist(),
        "std": served.normalisation.std.tolist(),
        "data_hash": served.data_hash,
        "vit_search": version("vit_search"),
        **({"bit_depth": served.config.data.bits} if served.config.data.exact else {}),
    }


def exported(served: checkpoint.ServedModel) -> torch.export.ExportedProgram:
    """The model as a graph in eval mode, for any batch: from `images` (uint8 or uint16, as for `RawPixels`) to logits."""
    height, width = served.config.model.image_size
    example = torch.zeros(
        2, height, width, served.config.model.in_channels, dtype=torch.uint16 if served.config.data.bits == 16 else torch.uint8
    )
    with torch.no_grad():
        return torch.export.export(RawPixels(served).eval(), (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}})


def _rows(model_input: Any) -> np.ndarray:
    """The images of a request, one per index of the first axis."""
    images = model_input[IMAGE] if isinstance(model_input, (dict, pd.DataFrame)) else model_input
    rows = np.atleast_1d(np.asarray(images))
    if len(rows) == 0:
        raise MlflowException.invalid_parameter_value("no image: the batch is empty; give at least one.")
    if rows.dtype.kind not in "OSU" and rows.ndim != 4:
        raise MlflowException.invalid_parameter_value(
            f"an array of {rows.ndim} axes; give pixels as (batch, height, width, channels), one image as a batch of 1."
        )
    return rows


def _image(value: Any, row: int, config: TrialConfig) -> np.ndarray:
    """One image of a request: uint8 or uint16 (channels, height, width) of the trained size."""
    if isinstance(value, np.ndarray) and value.ndim == 0:  # how MLflow passes on {"instances": [{"image": "iVBOR…"}]}
        value = value.item()
    try:
        return pixels_of(value, config.model.image_size, config.model.in_channels, config.data.bit_depth)
    except DataError as error:
        raise MlflowException.invalid_parameter_value(f"row {row}: {str(error).removeprefix('image: ')}") from None


def _version(folder: Path) -> str:
    """The version in a prediction, from the files that MLflow stores around the checkpoint folder."""
    root = folder.parents[1]
    registered = root / "registered_model_meta"  # MLflow writes it when a model is loaded through the registry
    if registered.is_file():
        meta = yaml.safe_load(registered.read_text(encoding="utf-8"))
        return f"{meta['model_name']}/{meta['model_version']}"
    model_id = Model.load(str(root)).model_id if (root / "MLmodel").is_file() else None
    return str(model_id or json.loads((folder / checkpoint.CONFIG).read_text())["sha256"][checkpoint.MODEL])


def _copy_code(target: Path) -> Path:
    """Copy the parts of this package that a served model needs to `target`/vit_search."""
    source, inside = Path(__file__).parents[1], target / "vit_search"
    for name in CODE:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, inside / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / name, inside / name)
    return inside


def _black(config: TrialConfig) -> str:
    """A black image as base64: a PNG file, or an NPY file if depth and channels must be exact."""
    file, (height, width) = io.BytesIO(), config.model.image_size
    if config.data.exact:
        np.save(file, np.zeros((height, width, config.model.in_channels), f"uint{config.data.bits}"))
    else:
        Image.new("L", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


if __name__ != "vit_search.tracking.model_package":  # MLflow runs the file under another name
    set_model(PackagedViT())
