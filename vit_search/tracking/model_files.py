"""Checksums (sha256) of all files of a model in MLflow. They are stored as a tag when the model is logged, and verified when it is loaded.

    files_sha256  tag of a logged model, and of a version that is registered from it: JSON
                  {"MLmodel": "…", "artifacts/checkpoint/config.json": "…", "code/": "…", …}; all files below code/ have one checksum

Two things are not covered. MLflow writes `registered_model_meta` when it downloads a version. Python writes compiled files
(`__pycache__`) below code/ if `mlflow models serve` ran on the store itself; `compiled` finds them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from vit_search.config.strict_json import parse
from vit_search.errors import PromotionError
from vit_search.vit.checkpoint_files import sha256_of, weights_sha256

RECORD, WEIGHTS = "files_sha256", "weights_sha256"
"""Names of tags. vit_search 0.1 wrote only the second one."""

CHECKPOINT = "artifacts/checkpoint"
"""Our checkpoint folder inside a model in MLflow."""

CODE = "code/"
META = "registered_model_meta"
CACHE = "__pycache__"

ALL, WEIGHTS_ALONE, NOTHING = "every file", "the weights alone", "nothing"
"""What `check` could verify."""


def record(folder: Path) -> str:
    """The text of the tag, for a complete model."""
    return json.dumps(digests(folder), sort_keys=True)


def digests(folder: Path, inside: str = "") -> dict[str, str]:
    """The sha256 of each file, by its path in the model.

    Args:
        folder: of the model, or of a part of it.
        inside: path of that part in the model.
    Raises: OSError.
    """
    recorded: dict[str, str] = {}
    code: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = "/".join([*([inside] if inside else []), *path.relative_to(folder).parts])
        if path.is_symlink():
            recorded[name] = "a link"
        elif not path.is_file() or name == META or CACHE in path.parts:
            continue
        elif name.startswith(CODE):
            code.append(f"{sha256_of(path)}  {name}\n")
        else:
            recorded[name] = sha256_of(path)
    if code:
        recorded[CODE] = hashlib.sha256("".join(code).encode()).hexdigest()
    return recorded


def compiled(folder: Path) -> int:
    """Number of compiled Python files in a model. No checksum covers them."""
    return sum(path.is_file() for path in folder.rglob(f"{CACHE}/*"))


def check(folder: Path, tags: Mapping[str, str], whose: str, inside: str = CHECKPOINT) -> str:
    """Compare files that were downloaded from MLflow with the recorded checksums.

    Args:
        folder: of the checkpoint. If `inside` is empty: of the whole model, in which additional files are an error, too.
        tags: of the version or the logged model.
        whose: what the user calls the model, for the message.
    Returns: ALL, WEIGHTS_ALONE or NOTHING: what the tags cover.
    Raises: PromotionError with the name of the file; OSError.
    """
    if RECORD not in tags:
        weights = folder if inside else folder / CHECKPOINT
        if WEIGHTS not in tags:
            return NOTHING
        digest = weights_sha256(weights)
        if digest != tags[WEIGHTS]:
            raise PromotionError(f"{whose} holds other weights than were registered (sha256 {digest[:12]}…); take another.")
        return WEIGHTS_ALONE
    recorded = {name: digest for name, digest in read(tags[RECORD], whose).items() if name.startswith(inside)}
    files = digests(folder, inside)
    for name in sorted(recorded.keys() | (files.keys() if not inside else set())):
        if name not in recorded:
            raise PromotionError(f"{whose} holds {name}, which was not registered with it; take another.")
        if name not in files:
            raise PromotionError(f"{whose} has lost {name}, which was registered with it; take another.")
        if files[name] != recorded[name]:
            raise PromotionError(f"{whose} holds another {name} than was registered (sha256 {files[name][:12]}…); take another.")
    return ALL


def read(text: str, whose: str) -> dict[str, str]:
    """The checksums in a tag.

    Raises: PromotionError if it does not cover the checkpoint.
    """
    try:
        recorded = parse(text)
        if not all(isinstance(part, str) for pair in recorded.items() for part in pair):
            raise ValueError("a digest that is no text")
        missing = [name for name in ("config.json", "model.safetensors") if f"{CHECKPOINT}/{name}" not in recorded]
        if missing:
            raise ValueError(f"it does not name {' and '.join(missing)}")
    except (ValueError, AttributeError) as error:
        raise PromotionError(f"{whose}: the tag {RECORD} cannot be read ({error}); take another.") from None
    return dict(recorded)
