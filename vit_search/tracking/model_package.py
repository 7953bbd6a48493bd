"""The model as MLflow serves it: pixels in, labels out, no pickle.

MLflow runs this very file as the model's code ("models from code"); the weights lie beside it as a checkpoint folder.
A prediction takes raw uint8 images (batch, height, width, channels) and gives a row per image: label, probability, and
the probability of every class.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from vit_search.vit import augment, checkpoint


class PackagedViT(PythonModel):
    """A checkpoint behind MLflow's pyfunc."""

    def load_context(self, context: Any) -> None:
        """Read the checkpoint once, verified against its sha256."""
        self.served = checkpoint.load_model(Path(context.artifacts["checkpoint"]))

    @torch.inference_mode()
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """(batch, height, width, channels) uint8 to one row per image: `label`, `probability`, `p_CLASS` for each class."""
        images = torch.from_numpy(np.ascontiguousarray(model_input)).permute(0, 3, 1, 2)
        normalisation = self.served.normalisation
        logits = self.served.model(augment.normalise(images, normalisation.mean, normalisation.std))
        chances = logits.softmax(-1).double().numpy()
        winners = chances.argmax(1)
        columns: dict[str, Any] = {
            "label": [self.served.classes[i] for i in winners],
            "probability": chances[np.arange(len(winners)), winners],
        }
        return pd.DataFrame(columns | {f"p_{name}": chances[:, i] for i, name in enumerate(self.served.classes)})


def log_model(folder: Path, *, run_id: str, end_status: str = "FINISHED") -> str:
    """Log a checkpoint as the model of a run, with signature and class names, without the optimiser's state.

    Args:
        folder: a checkpoint. run_id: of an ended run; it has `end_status` again afterwards.
    Returns: the model's URI, `models:/m-…`.
    """
    served = checkpoint.load_model(folder)
    height, width = served.config.model.image_size
    channels = served.config.model.in_channels
    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))])
    chances = [ColSpec(DataType.double, f"p_{name}") for name in served.classes]
    outputs = Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability"), *chances])
    metadata = {
        "classes": list(served.classes),
        "image_size": [height, width],
        "channels": channels,
        "data_hash": served.data_hash,
        "vit_search": version("vit_search"),
    }
    example = np.zeros((1, height, width, channels), np.uint8)
    with tempfile.TemporaryDirectory() as place, mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about type hints and the like; ours are errors
        slim = Path(place) / "checkpoint"
        checkpoint.copy_for_serving(folder, slim)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=__file__,
            artifacts={"checkpoint": str(slim)},
            signature=ModelSignature(inputs=inputs, outputs=outputs),
            input_example=example,
            code_paths=[str(Path(__file__).parents[1])],
            pip_requirements=[
                f"{name}=={version(name)}"
                for name in ("torch", "torchvision", "einops", "safetensors", "numpy", "pandas", "pillow", "pydantic", "pyyaml")
            ],
            metadata=metadata,
        )
    mlflow.MlflowClient().set_terminated(run_id, end_status)
    return str(info.model_uri)


if __name__ != "vit_search.tracking.model_package":  # MLflow runs the file under a name of its own
    set_model(PackagedViT())
