"""The files of a checkpoint folder, read and checked without torch: config.json, and the sha256 of the files beside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from vit_search.config.strict_json import LARGEST, Count, build, parse
from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.errors import CheckpointError, DamagedCheckpointError, SpecError
from vit_search.text import counted

MODEL, TRAINED, OPTIMISER, CONFIG = "model.safetensors", "trained.safetensors", "optimiser.safetensors", "config.json"

PRETRAINED = "weights"
"""Folder of a search with the weights that its trials start from: weights/SHA256/model.safetensors."""


@dataclass(frozen=True)
class LeftOut:
    """Blocks that a checkpoint leaves out, because training does not change them: where they come from, and what they must be."""

    backbone: str
    """The sha256 of the file of pretrained weights."""
    blocks: str
    """The sha256 of what is left out; see `tuning.frozen_blocks`."""


TRIES, PAUSE_S = 20, 0.1
"""How often `read_consistently` reads, and how long it waits in between. So a trial may replace its checkpoint for two seconds and more."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Normalisation:
    mean: list[Annotated[float, (-LARGEST, LARGEST)]]
    std: list[Annotated[float, (0, LARGEST)]]


@dataclass(frozen=True)
class _Document:
    """Content of config.json. `read` checks it against this class; `trial_config` checks the configuration inside."""

    config: dict[str, Any]
    normalisation: _Normalisation
    classes: list[str]
    data_hash: str
    trained_on: list[str]
    accumulation: Count
    scaler: dict[str, Any]
    history: list[EpochResult]
    sha256: dict[str, str]
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class Described:
    """What config.json says about a model, without the model. Pretrained weights whose blocks are left out are not needed."""

    config: TrialConfig
    classes: tuple[str, ...]
    data_hash: str
    trained_on: tuple[str, ...]
    """Splits that it was trained on."""
    history: tuple[dict[str, Any], ...]
    """Fields of EpochResult, by epoch."""
    file_sha256: str
    """Of the weights beside it: of model.safetensors, or of trained.safetensors if blocks are left out."""
    left_out: LeftOut | None
    """None if all weights are there."""

    @property
    def fingerprint(self) -> str:
        """Equal for models that are equal to the bit. It is the sha256 of model.safetensors, unless blocks are left out."""
        if self.left_out is None:
            return self.file_sha256
        return hashlib.sha256(f"{self.file_sha256} {self.left_out.backbone} {self.left_out.blocks}".encode()).hexdigest()


def read_consistently(folder: Path, read: Callable[[Path], Result]) -> Result:
    """Read a checkpoint that its trial may replace at any moment, so that everything is of the same epoch. Nothing is changed.

    Args:
        read: gets the folder to read. That is `folder`, or the `.old` beside it while `folder` is being replaced. If the checkpoint was
            replaced meanwhile, its result or its error is dropped, and it is called again.
    Raises: what `read` raises, but DamagedCheckpointError for a file that is missing; CheckpointError if it was replaced each time.
    """
    for _ in range(TRIES):
        current = next((path for path in (folder, _older(folder)) if (path / CONFIG).is_file()), folder)
        epoch = _epoch_in(current)
        try:
            result = read(current)
        except FileNotFoundError as error:
            if _epoch_in(current) == epoch:
                raise DamagedCheckpointError(
                    f"{error.filename or current}: missing. Name a checkpoint folder with all its files."
                ) from None
        except (CheckpointError, OSError):
            if _epoch_in(current) == epoch:
                raise
        else:
            if _epoch_in(current) == epoch:
                return result
        time.sleep(PAUSE_S)
    raise CheckpointError(f"{folder}: its trial replaces it faster than it can be read; try again when the trial is over.")


def _older(folder: Path) -> Path:
    """The checkpoint before this one."""
    folder = folder.resolve() if folder.name in ("", "..") else folder  # named as . or ..
    return folder.with_name(folder.name + ".old")


def _epoch_in(folder: Path) -> bytes:
    """What tells one epoch's checkpoint from another's: the text of config.json, which has the sha256 of all files; empty without one."""
    try:
        return (folder / CONFIG).read_bytes()
    except OSError:
        return b""


def describe(folder: Path) -> Described:
    """Read config.json, and check the sha256 of the weights beside it.

    Raises: CheckpointError if the folder is missing or damaged.
    """
    return read_consistently(folder, _describe)


def _describe(folder: Path) -> Described:
    document = read(folder, needs=(MODEL,))
    return Described(
        trial_config(folder, document),
        tuple(document["classes"]),
        document["data_hash"],
        tuple(document["trained_on"]),
        tuple(document["history"]),
        document["sha256"][MODEL if is_whole(document) else TRAINED],
        None if is_whole(document) else LeftOut(**document["left_out"]),
    )


def drop_older(folder: Path) -> None:
    """Delete the checkpoint before this one, once the trial is over."""
    recover(folder)
    shutil.rmtree(_older(folder), ignore_errors=True)
    drop_unfinished(folder)


def drop_unfinished(folder: Path) -> None:
    """Delete unfinished checkpoints of processes that died. A process that still writes one fails."""
    for left in folder.parent.glob(f"{folder.name}.*.new"):
        shutil.rmtree(left, ignore_errors=True)


def copy_for_serving(folder: Path, target: Path) -> None:
    """Copy what classifying needs: weights and config.json, without the optimizer's state."""
    target.mkdir(parents=True)
    try:
        read_consistently(folder, lambda current: _copy(current, target))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _copy(folder: Path, target: Path) -> None:
    document = read(folder, needs=(MODEL,))
    if is_whole(document):
        shutil.copyfile(folder / MODEL, target / MODEL)  # its mode follows the umask, like that of all exported files
    else:
        _put_together(folder, target / MODEL)
    left = {name: value for name, value in document.items() if name != "left_out"}
    (target / CONFIG).write_text(signed(left | {"sha256": {MODEL: sha256_of(target / MODEL)}}))


def weights_sha256(folder: Path) -> str:
    """The sha256 of the model.safetensors that is served. If two models have the same one, they are equal to the bit.

    Raises: CheckpointError as `load_model`, if the checkpoint leaves frozen blocks out.
    """
    return read_consistently(folder, _weights_sha256)


def _weights_sha256(folder: Path) -> str:
    if not (folder / TRAINED).is_file():  # else a model.safetensors beside it is somebody else's
        return sha256_of(folder / MODEL)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            _put_together(folder, Path(temporary) / MODEL)
            return sha256_of(Path(temporary) / MODEL)
    except OSError as error:
        raise CheckpointError(f"{folder}: its model is put together in a temporary file, which failed ({error}); make room.") from None


def model_bytes(folder: Path) -> int:
    """The size of the model.safetensors that is served, in bytes. Pretrained weights whose blocks are left out are not needed.

    Raises: CheckpointError if the folder is missing or damaged.
    """
    return read_consistently(folder, _model_bytes)


def _model_bytes(folder: Path) -> int:
    if not (folder / TRAINED).is_file():
        return (folder / MODEL).stat().st_size
    from vit_search.vit.checkpoint import served_bytes  # here, since it needs torch

    return served_bytes(trial_config(folder, read(folder, needs=())).model)


def _put_together(folder: Path, path: Path) -> None:
    """Write the model.safetensors that is served, with the mode that the umask says."""
    from vit_search.vit.checkpoint import write_served  # here, since it needs torch

    path.touch()
    mode = path.stat().st_mode & 0o777
    write_served(folder, path)
    path.chmod(mode)


def is_whole(document: dict[str, Any]) -> bool:
    """Whether a checkpoint holds all weights of its model, by its config.json."""
    return document.get("left_out") is None


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint, or an older one that can take its place."""
    return any((candidate / CONFIG).is_file() for candidate in (folder, _older(folder)))


def recover(folder: Path) -> None:
    """Finish a swap of folders that a crash has interrupted. Only for the process that writes the checkpoint: it would disturb another."""
    old = _older(folder)
    if not folder.exists() and old.exists():
        old.rename(folder)


def read(folder: Path, needs: tuple[str, ...] = (MODEL, OPTIMISER)) -> dict[str, Any]:
    """Read config.json. Check its own sha256 and those of the files in `needs`.

    Raises: DamagedCheckpointError.
    """
    try:
        document: dict[str, Any] = parse((folder / CONFIG).read_text(encoding="utf-8"))
        build(_Document, document)
        config_digest = document["sha256"].pop(CONFIG, None)
        if not is_whole(document):
            needs = tuple(TRAINED if name == MODEL else name for name in needs)
        digests = {name: sha256_of(folder / name) for name in needs}
        digests |= {CONFIG: _digest(document)} if config_digest else {}
        for name, digest in digests.items():
            if digest != (config_digest if name == CONFIG else document["sha256"][name]):
                raise DamagedCheckpointError(
                    f"{folder / name}: its sha256 is not the recorded one: the file is damaged. Use another checkpoint."
                )
    except FileNotFoundError as error:
        raise DamagedCheckpointError(
            f"{error.filename}: missing. Name a checkpoint folder with config.json and {' and '.join(needs)}."
        ) from None
    except (ValueError, KeyError, RecursionError) as error:
        raise DamagedCheckpointError(f"{folder / CONFIG}: damaged ({error}). Use another checkpoint.") from None
    return document


def trial_config(folder: Path, document: dict[str, Any]) -> TrialConfig:
    """The configuration in config.json, checked against its classes and its normalisation.

    Raises: CheckpointError if they do not fit, or this version does not know the configuration.
    """
    try:
        config = TrialConfig.from_dict(document["config"])
    except SpecError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    classes, channels = document["classes"], config.model.in_channels
    if len(classes) != config.model.num_classes or len(set(classes)) < len(classes):
        raise CheckpointError(
            f"{folder / CONFIG}: {counted(len(set(classes)), 'class name')}, and the head has {config.model.num_classes}; "
            "use another checkpoint."
        )
    for name, values in document["normalisation"].items():
        if len(values) != channels:
            raise CheckpointError(
                f"{folder / CONFIG}: normalisation.{name} has {counted(len(values), 'value')} for {counted(channels, 'channel')}; "
                "use another checkpoint."
            )
    return config


def signed(document: dict[str, Any]) -> str:
    """The text of config.json, with its own digest."""
    return json.dumps(document | {"sha256": document["sha256"] | {CONFIG: _digest(document)}}, indent=1)


def _digest(document: dict[str, Any]) -> str:
    """The sha256 of a document without the digest itself."""
    rest = document | {"sha256": {name: value for name, value in document["sha256"].items() if name != CONFIG}}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file. It also makes sure that the file is on the disk, not only in the cache."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest
