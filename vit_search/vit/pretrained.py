"""Load the weights of plain Vision Transformers from other libraries, under our names. The table of names is in config/weight_names.py.

What is stored in another way, but means the same, is converted: separate queries, keys and values, a gated MLP whose two halves are one
matrix, a convolution over patches, and a table of positions with rows for class token and registers, or for neither. A weight without a
counterpart here (for example `fc_norm`, a norm after the pooling) is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vit_search.config.backbone import Backbone, assembly_of, read_backbone
from vit_search.config.safetensors_header import read_header
from vit_search.config.weight_names import LAYOUTS, Assembly, assemble, our_name
from vit_search.errors import CheckpointError
from vit_search.text import file_name

if TYPE_CHECKING:
    from vit_search.vit.shared_blocks import SharedBlocks


@dataclass(frozen=True)
class Pretrained:
    """Weights that a training starts from. They are read only when a model is made of them."""

    backbone: Backbone
    read: Callable[[], Mapping[str, Tensor]]
    """Reads the weights, by our names. It raises what `load` does."""
    classes: tuple[str, ...]
    """Names of the new model's classes, in order."""
    shared: SharedBlocks | None = None
    """Blocks that earlier trainings of this process have made; None to make all anew."""


def starting_point(source: str, classes: Sequence[str], *, fetch: bool = True) -> Pretrained | None:
    """The weights that `model.pretrained` names; None if it names none.

    Args:
        fetch: whether a server may be asked for what is missing, see `local_file`.
    Raises: CheckpointError, DataError or SpecError in one line if they are not on this machine, or cannot be used.
    """
    from vit_search.data.weight_files import local_file  # here, since a served model needs no weights

    return read_pretrained(local_file(source, fetch=fetch).path, classes) if source else None


def read_pretrained(path: Path, classes: Sequence[str]) -> Pretrained:
    """The weights in a file, for a model with these classes.

    Raises: CheckpointError in one line if its header is damaged, or is not one of a Vision Transformer.
    """
    return Pretrained(read_backbone(path), lambda: load(path)[1], tuple(classes))


def load(path: Path) -> tuple[Backbone, dict[str, Tensor]]:
    """Read the facts and the weights of a `.safetensors` file, under our names. Half precision becomes float32.

    Raises: CheckpointError in one line if it is damaged, is not a Vision Transformer, or has weights that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    backbone = read_backbone(path)
    assembly, _ = assembly_of(read_header(path))
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file_name(str(path))}: cannot be read ({error}); copy or download it again.") from None
    try:
        return backbone, converted(state, assembly, backbone)
    except ValueError as error:
        raise CheckpointError(f"{file_name(str(path))}: {error}") from None


def converted(state: Mapping[str, Tensor], assembly: Assembly, backbone: Backbone) -> dict[str, Tensor]:
    """Convert a file's tensors to our weights, ready for `inherit`.

    Raises: ValueError that names a weight that is not finite.
    """
    for name in {source.name for sources in assembly.sources.values() for source in sources}:
        if not state[name].isfinite().all():
            raise ValueError(f"{name}: holds numbers that are not finite; use other weights.")
    ours = {name: tensor if tensor.dtype == torch.float64 else tensor.float() for name, tensor in put_together(state, assembly).items()}
    if backbone.registers == 0:
        ours.pop("registers", None)  # DINOv3 without registers has an empty tensor here
    if "positions" in ours and backbone.grid is not None:
        _align_positions(ours, backbone)
    return ours


def put_together(state: Mapping[str, Tensor], assembly: Assembly) -> dict[str, Tensor]:
    """Make each of our weights from its parts, see config/weight_names.py."""
    ours = {}
    for name, sources in assembly.sources.items():
        parts = []
        for source in sources:
            part = state[source.name]
            part = torch.zeros_like(part) if source.zeros else part
            parts.append(part if source.half is None else part.chunk(2)[source.half])
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        ours[name] = tensor.flatten(1) if name == "embed.weight" else tensor
    return ours


def _align_positions(ours: dict[str, Tensor], backbone: Backbone) -> None:
    """Give the table one row for the class token, if there is one, and none for registers. Their rows are added to the registers."""
    assert backbone.grid is not None
    table, patches = ours["positions"], backbone.grid[0] * backbone.grid[1]
    has_class_token = backbone.pool == "cls"
    extra = table.shape[1] - patches
    if extra == has_class_token + backbone.registers and backbone.registers:
        first, registers, grid = table.split([int(has_class_token), backbone.registers, patches], dim=1)
        ours["registers"] = ours["registers"] + registers
        ours["positions"] = torch.cat([first, grid], dim=1)
    elif extra == 0 and has_class_token:
        ours["positions"] = torch.cat([table.new_zeros(1, 1, table.shape[2]), table], dim=1)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of timm's `VisionTransformer` for `ViT.load_state_dict`.

    Raises: CheckpointError that names a weight without a counterpart in our model.
    """
    return _renamed(state, "timm")


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of torchvision's `VisionTransformer` for `ViT.load_state_dict`.

    Raises: CheckpointError that names a weight without a counterpart in our model.
    """
    return _renamed(state, "torchvision")


def _renamed(state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    strange = next((theirs for theirs in state if our_name(theirs, LAYOUTS[origin][1]) is None), None)
    if strange is not None:
        raise CheckpointError(f"{strange}: a part that our ViT does not have; load a plain Vision Transformer of {origin}.")
    try:
        return put_together(state, assemble({name: tuple(tensor.shape) for name, tensor in state.items()}))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
