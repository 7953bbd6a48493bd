"""Compare the weights in a checkpoint's files with those that its model needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_search.config.model_config import ModelConfig
from vit_search.errors import DamagedCheckpointError
from vit_search.vit.model import shapes


def check_stored(path: Path, config: ModelConfig, *, whole: bool = True) -> None:
    """Compare names, shapes and types in a file's header with the model's, before memory of their size is allocated.

    Args:
        whole: whether the file has all weights. Otherwise only what is outside of the blocks is compared: the blocks cannot be larger than
            those of the pretrained weights.
    Raises: DamagedCheckpointError.
    """
    wanted = {name: (list(shape), "F32") for name, shape in shapes(config).items() if whole or not name.startswith("encoder.blocks.")}
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
            stored = {name: (list(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: no file of safetensors ({error}); use another checkpoint.") from None
    for name in sorted(wanted.keys() | (stored.keys() if whole else set())):
        if stored.get(name) != wanted.get(name):
            content, due = (" of ".join(map(str, one[name][::-1])) if name in one else "nothing" for one in (stored, wanted))
            raise DamagedCheckpointError(f"{path}: does not fit its config.json ({name}: {content}, and {due} belongs there).")


def check_same_names(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises: ValueError that names the first weight that is missing, is too many, or has another type or shape."""
    for name in sorted(wanted.keys() | found.keys()):
        due, content = (f"{one[name].dtype} of {list(one[name].shape)}" if name in one else "nothing" for one in (wanted, found))
        if due != content:
            raise ValueError(f"{name}: {content}, and {due} belongs there")


def check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises: DamagedCheckpointError that names a weight of a file that is not finite."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise DamagedCheckpointError(f"{path}: {name} holds numbers that are not finite; use another checkpoint.")
