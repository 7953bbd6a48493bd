"""What one Ray worker does with one trial: train epoch by epoch, save a checkpoint, report, and take up where it stood."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import shutil
import socket
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import tune

from vit_search.errors import DamagedCheckpointError, OutOfMemoryError, StorageError, VitSearchError
from vit_search.search.usage import Meter
from vit_search.spec.config import TrialConfig
from vit_search.spec.cost import in_units
from vit_search.spec.files import write_whole
from vit_search.vit import checkpoint, machine, training
from vit_search.vit.data import TRAINED_AND_VALIDATED_ON, DataSet, SplitName
from vit_search.vit.splits import Split, StreamedSplit, load_split

_log = logging.getLogger(__name__)

PAUSES_S = (1, 2, 4, 8, 15, 30)
"""Between tries to write a checkpoint: a minute in all, which a server of files takes to start again."""

Given = TypeVar("Given")


class OvertakenError(RuntimeError):
    """Another process has taken this trial up; this one must not write any more."""


def train_trial(told: dict[str, Any]) -> None:
    """Tune's function trainable.

    Args:
        told: `trial` (number), `config` (TrialConfig as a dict), `folder` (of this trial, on storage that every node
            sees), `data` (a prepared DataSet), `train_on` (as in a search file), `halvings` (how often a lack of
            memory has killed it: each halves the micro-batch), `latency` (whether to measure the time to classify an image),
            `usage` (whether to tell what each epoch took of the machine), and what `Packing.told` adds: `resources` (that it
            holds), `threads`, `decoders` (processes that decode images), `halves` (whether a lack of memory halves the
            micro-batch; else it asks for a larger share of a GPU).

    An epoch is saved before it is reported, and a trial that starts again reports what its checkpoint holds once more:
    the driver drops what it knows. An error of ours or of the user is reported, not raised: Tune's retries are for
    processes that die, and for storage that fails this node.

    Raises: StorageError.
    """
    guarded(_train, told)


def guarded(train: Callable[[dict[str, Any]], None], told: dict[str, Any]) -> None:
    """Have a trial trained, and report what came in between."""
    failure = _failure(train, told)
    if failure is not None:  # what was raised is gone by now, and with it the memory that its frames held
        tune.report({"trial": told["trial"], **failure})


def _failure(train: Callable[[dict[str, Any]], None], told: dict[str, Any]) -> dict[str, Any] | None:
    try:
        train(told)
    except OvertakenError:
        pass  # whoever replaced it reports
    except StorageError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise StorageError(_ailing(Path(told["folder"]), error)) from None
        return _broken(told, error)  # of a library, about what it read
    except training.DivergedError as error:
        return {"failure": "diverged", "reason": str(error)}
    except VitSearchError as error:
        if isinstance(error, OutOfMemoryError) and not told["halves"]:
            return {"outgrown": True, "reason": str(error)}
        return {"failure": "failed", "reason": str(error)}
    except Exception as error:
        if isinstance(error, RuntimeError) and machine.out_of_memory(error) and not told["halves"]:
            return {"outgrown": True, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
        return _broken(told, error)
    return None


def _broken(told: dict[str, Any], error: Exception) -> dict[str, Any]:
    """What only a change of the code can mend."""
    folder = Path(told["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "error.txt", traceback.format_exc().encode(errors="backslashreplace"))
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"failure": "failed", "reason": f"{reason} (see {folder / 'error.txt'})"}


def _train(told: dict[str, Any]) -> None:
    torch.set_num_threads(told["threads"])
    os.environ["OMP_NUM_THREADS"] = str(told["threads"])  # of the processes that it starts
    machine.limit_memory(told["resources"]["GPU"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, folder, data = TrialConfig.from_dict(told["config"]), Path(told["folder"]) / "checkpoint", told["data"]
    trained_on, validated_on = TRAINED_AND_VALIDATED_ON[told["train_on"]]
    node = ray.get_runtime_context().get_node_id()
    mark = _patiently(told, lambda: _own(folder.parent, node), PAUSES_S[:3])
    splits = (trained_on, validated_on)
    train, val = _patiently(told, lambda: [_split(data, names, device, told["decoders"]) for names in splits], PAUSES_S[:3])
    state = _patiently(told, lambda: _where_it_stood(folder, config, device))
    if state is None:
        state = training.start(config, training.Normalisation.of(data.mean, data.std, device), device)
    state.halves = told["halves"]
    state.accumulation = max(state.accumulation, config.training.accumulation * 2 ** told["halvings"])
    for result in state.history:
        tune.report({"trial": told["trial"], **dataclasses.asdict(result)})
    latency = state.history[-1].latency_ms if state.history else None
    with Meter() if told["usage"] else contextlib.nullcontext() as meter:
        for result in training.fit(state, train, val):
            if not math.isfinite(result.train_loss):
                raise training.DivergedError(f"the training loss is {result.train_loss} in epoch {result.epoch}")
            if told["latency"]:
                latency = latency or training.latency_ms(state.outcome)
                result = dataclasses.replace(result, latency_ms=latency)
                state.history[-1] = result
            _patiently(told, lambda: _save(folder, state, data, trained_on, mark))
            tune.report({"trial": told["trial"], **dataclasses.asdict(result), **(meter.read() if meter else {})})


def _own(folder: Path, node: str) -> str:
    """Leave a mark by which a forgotten earlier process of this trial sees that it has been replaced; it names the node, too."""
    _see(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark = f"{uuid.uuid4().hex} {node}"
    write_whole(folder / "owner", mark)
    checkpoint.drop_unfinished(folder / "checkpoint")
    return mark


def _still_ours(folder: Path, mark: str) -> None:
    try:
        found = (folder / "owner").read_text()
    except FileNotFoundError:  # the trial is over, or the storage is gone
        _see(folder)
        found = ""
    if found != mark:
        raise OvertakenError(f"{folder}: another process has taken this trial up")


def _see(folder: Path) -> None:
    """Make sure that this node sees the search which the driver made, of which `folder` is a trial's.

    Raises: FileNotFoundError.
    """
    search = folder.parents[1]
    if not (search / "search.json").is_file():
        raise FileNotFoundError(f"{search} is not seen on the node {socket.gethostname()}")


def _where_it_stood(folder: Path, config: TrialConfig, device: str) -> training.Training | None:
    """The training as its checkpoint has it; None where it must begin anew, which gives the same numbers again."""
    try:
        state = checkpoint.load_training(folder, config, device) if checkpoint.exists(folder) else None
    except DamagedCheckpointError as error:
        state = None
        _log.warning("%s The trial begins anew.", error)
    _see(folder.parent)  # else nothing was found because the storage is gone
    return state


def _save(folder: Path, state: training.Training, data: DataSet, trained_on: tuple[SplitName, ...], mark: str) -> None:
    def check() -> None:
        _still_ours(folder.parent, mark)

    check()
    checkpoint.save(folder, state, classes=data.classes, data_hash=data.data_hash, trained_on=trained_on, check=check)


def _patiently(told: dict[str, Any], act: Callable[[], Given], pauses: tuple[int, ...] = PAUSES_S) -> Given:
    """Do what needs the storage, again and again where it fails, and tell the driver of each pause.

    Raises: StorageError when it fails to the end.
    """
    for pause in pauses:
        try:
            return act()
        except OSError as error:
            tune.report({"trial": told["trial"], "waiting": str(error)})
            time.sleep(pause)
    try:
        return act()
    except OSError as error:
        raise StorageError(_ailing(Path(told["folder"]), error)) from None


def _ailing(folder: Path, error: OSError) -> str:
    """What is wrong with the storage, in one line, and the mend."""
    search, node, free = folder.parents[1], socket.gethostname(), ""
    with contextlib.suppress(OSError):
        free = f", {in_units(shutil.disk_usage(search).free)} are free"
    mend = "make room or mend it"
    if isinstance(error, FileNotFoundError):
        free, mend = "", "have every node mount it at the same place"
    return f"{search}: the storage failed on the node {node} ({error}{free}); {mend}, then `vit-search resume {search.name}`."


def _split(data: DataSet, names: tuple[SplitName, ...], device: str, decoders: int | None) -> Split | StreamedSplit:
    """Splits as one on the device, read once per worker process: reused workers keep them from trial to trial."""
    key = (data.folder, names, device)
    if key not in _splits:
        _splits[key] = load_split(data, *names, device=device, decoders=decoders)
    return _splits[key]


_splits: dict[tuple[Path, tuple[SplitName, ...], str], Split | StreamedSplit] = {}
