"""Train one trial in a Ray worker: save and report each epoch, and continue from the checkpoint after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import shutil
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import tune

from vit_search.config.backbone import read_backbone
from vit_search.config.cost import in_units
from vit_search.config.data_urls import is_remote
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, StreamedSplit, load_split
from vit_search.data.cache import DataSet, prepare
from vit_search.data.progress import Advance, Unit, shown_by
from vit_search.data.split import TRAINED_AND_VALIDATED_ON, SplitName
from vit_search.errors import CheckpointError, DamagedCheckpointError, DataError, OutOfMemoryError, StorageError, VitSearchError
from vit_search.files import write_whole
from vit_search.runtime import machine
from vit_search.search import kept_weights
from vit_search.search.messages import Busy, Epoch, Failed, Outgrown, Report, TrialOrder, Waiting, encode
from vit_search.search.resource_usage import Meter
from vit_search.vit import checkpoint, evaluation, features, training
from vit_search.vit.pretrained import Pretrained, load
from vit_search.vit.shared_blocks import SharedBlocks

_log = logging.getLogger(__name__)

PAUSES_S = (1, 2, 4, 8, 15, 30)
"""Seconds between tries to write a checkpoint: a minute in all, in which a file server can start again."""

BUSY_EVERY_S = 20.0
"""Between reports of a trial that computes features, which it does outside of any report of an epoch."""

Result = TypeVar("Result")


class OvertakenError(RuntimeError):
    """Another process trains this trial now. This one must not write any more."""


def train_trial(config: dict[str, Any]) -> None:
    """The function that Ray Tune calls in a worker to train one trial.

    An epoch is saved before it is reported. A trial that starts again reports the epochs of its checkpoint again; the driver drops those
    that it knows. Errors of ours or of the user are reported, not raised: Tune's retries are for processes that die, and for a node on
    which the storage fails.

    Args:
        config: an encoded TrialOrder.

    Raises: StorageError.
    """
    guarded(_train, TrialOrder.decode(config))


def guarded(train: Callable[[TrialOrder], None], order: TrialOrder) -> None:
    """Train a trial, and report the error that ends it early."""
    failure = _failure(train, order)
    if failure is not None:  # the error is gone by now, and with it the memory that its frames held
        send(order, failure)


def send(order: TrialOrder, report: Report) -> None:
    """Report to the driver, through Tune."""
    tune.report(encode(order.trial, report))


def _failure(train: Callable[[TrialOrder], None], order: TrialOrder) -> Failed | Outgrown | None:
    try:
        train(order)
    except OvertakenError:
        pass  # the process that replaced it reports
    except StorageError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise StorageError(_ailing(order.folder, error)) from None
        return failure_report(order, error)  # raised by a library about a file's content
    except training.DivergedError as error:
        return Failed("diverged", str(error))
    except VitSearchError as error:
        if isinstance(error, OutOfMemoryError) and not order.halves:
            return Outgrown(str(error))
        return Failed("failed", str(error))
    except Exception as error:
        if isinstance(error, RuntimeError) and machine.out_of_memory(error) and not order.halves:
            return Outgrown(f"{type(error).__name__}: {error}".splitlines()[0])
        return failure_report(order, error)
    return None


def failure_report(order: TrialOrder, error: Exception) -> Failed:
    """The report of an unexpected error, which only a change of the code can fix. The traceback goes into error.txt."""
    folder = order.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "error.txt", traceback.format_exc().encode(errors="backslashreplace"))
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return Failed("failed", f"{reason} (see {folder / 'error.txt'})")


def _train(order: TrialOrder) -> None:
    torch.set_num_threads(order.threads)
    os.environ["OMP_NUM_THREADS"] = str(order.threads)  # for the processes that this one starts
    config, folder = TrialConfig.from_dict(order.config), order.folder / "checkpoint"
    _shared.make_room(config)
    machine.limit_memory(order.gpus)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained_on, validated_on = TRAINED_AND_VALIDATED_ON[order.train_on]
    node = ray.get_runtime_context().get_node_id()
    mark = retry_storage(order, lambda: claim_folder(folder.parent, node), PAUSES_S[:3])
    data = data_on_this_node(order, config)
    splits = (trained_on, validated_on)
    images = retry_storage(order, lambda: [_split(data, names, device, order.decoders) for names in splits], PAUSES_S[:3])
    pretrained = retry_storage(order, lambda: pretrained_for(order, config, data), PAUSES_S[:3])
    state = retry_storage(order, lambda: load_interrupted(folder, config, device, pretrained))
    if state is None:
        normalisation = evaluation.Normalisation.of(data.mean, data.std, device)
        state = retry_storage(order, lambda: training.start(config, normalisation, device, pretrained), PAUSES_S[:3])
    state.halves = order.halves
    state.accumulation = max(state.accumulation, config.training.accumulation * 2**order.halvings)
    for result in state.history:
        send(order, Epoch(result))
    latency = state.history[-1].latency_ms if state.history else None
    train, val = features.in_place_of_images(state, data, splits, images)
    with Meter() if order.usage else contextlib.nullcontext() as meter, shown_by(functools.partial(report_busy, order)):
        for result in training.fit(state, train, val):
            if not math.isfinite(result.train_loss):
                raise training.DivergedError(f"the training loss is {result.train_loss} in epoch {result.epoch}")
            if order.latency:
                latency = latency or training.latency_ms(state.outcome)
                result = dataclasses.replace(result, latency_ms=latency)
                state.history[-1] = result
            retry_storage(order, lambda: save_checkpoint(folder, state, data, trained_on, mark))
            send(order, Epoch(result, meter.read() if meter else {}))


@contextlib.contextmanager
def report_busy(order: TrialOrder, name: str, total: int | None, unit: Unit) -> Iterator[Advance]:
    """Tell the driver now and then how far a long step inside an epoch is: a trial that is silent for long is taken to hang."""
    done, reported = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, reported
        done += more
        if time.monotonic() - reported >= BUSY_EVERY_S:
            reported = time.monotonic()
            send(order, Busy(f"{name}: {done} of {total} {unit}"))

    yield advance


def data_on_this_node(order: TrialOrder, config: TrialConfig) -> DataSet:
    """The data that the driver has prepared.

    If this node does not see the driver's cache, files behind a URL are fetched and prepared here.

    Raises: DataError if that fails, or the files have changed since.
    """
    assert order.data is not None, "a trial that trains has data"
    if order.data.folder.exists() or not is_remote(config.data.path):
        return order.data
    data = prepare(config.data)
    if data.data_hash != order.data.data_hash:
        raise DataError(f"{config.data.path}: its files have changed since the search began; start a new search.")
    return data


def pretrained_for(order: TrialOrder, config: TrialConfig, data: DataSet) -> Pretrained | None:
    """The weights that a trial starts from, as kept in the search's folder; None for a random start.

    They are read when a model is made of them. This raises the same errors.

    Raises: SearchError if they are damaged there; OSError if this node does not see them, or the storage fails.
    """
    source, folder = config.model.pretrained, order.weights
    if not source:
        return None
    assert folder is not None, "the driver has kept them"
    try:
        backbone = read_backbone(kept_weights.seen(folder, source))
    except CheckpointError:
        kept_weights.checked(folder, source)  # says how to mend a damaged file
        raise
    return Pretrained(backbone, lambda: load(kept_weights.checked(folder, source))[1], data.classes, _shared)


def claim_folder(folder: Path, node: str) -> str:
    """Mark a trial's folder as this process's own, so that an earlier process of the trial sees that it was replaced.

    Returns: the mark, which also names the node.
    """
    _see(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark = f"{uuid.uuid4().hex} {node}"
    write_whole(folder / "owner", mark)
    checkpoint.drop_unfinished(folder / "checkpoint")
    return mark


def check_claim(folder: Path, mark: str) -> None:
    """Check that this process still owns the trial's folder.

    Raises: OvertakenError if another process has claimed it since `claim_folder`.
    """
    try:
        owner = (folder / "owner").read_text()
    except FileNotFoundError:  # the trial is over, or the storage is gone
        _see(folder)
        owner = ""
    if owner != mark:
        raise OvertakenError(f"{folder}: another process has taken this trial up")


def _see(folder: Path) -> None:
    """Check that this node sees the folder of the search. `folder` is that of a trial in it.

    Raises: FileNotFoundError.
    """
    search = folder.parents[1]
    if not (search / "search.json").is_file():
        raise FileNotFoundError(f"{search} is not seen on the node {socket.gethostname()}")


def load_interrupted(folder: Path, config: TrialConfig, device: str, pretrained: Pretrained | None = None) -> training.Training | None:
    """Load the training from its checkpoint. None if it must start again from its first epoch, which gives the same numbers."""
    try:
        state = checkpoint.load_training(folder, config, device, pretrained) if checkpoint.exists(folder) else None
    except DamagedCheckpointError as error:
        state = None
        _log.warning("%s The trial starts again from its first epoch.", error)
    _see(folder.parent)  # raises if no checkpoint was found because the storage is gone
    return state


def save_checkpoint(folder: Path, state: training.Training, data: DataSet, trained_on: tuple[SplitName, ...], mark: str) -> None:
    """Save a training as a checkpoint, unless another process has claimed the trial.

    Raises: OvertakenError.
    """

    def check() -> None:
        check_claim(folder.parent, mark)

    check()
    checkpoint.save(folder, state, classes=data.classes, data_hash=data.data_hash, trained_on=trained_on, check=check)


def retry_storage(order: TrialOrder, act: Callable[[], Result], pauses: tuple[int, ...] = PAUSES_S) -> Result:
    """Call `act`, which needs the storage, and try again after an OSError. Report each pause to the driver.

    Raises: StorageError if the last try fails.
    """
    for pause in pauses:
        try:
            return act()
        except OSError as error:
            send(order, Waiting(str(error)))
            time.sleep(pause)
    try:
        return act()
    except OSError as error:
        raise StorageError(_ailing(order.folder, error)) from None


def _ailing(folder: Path, error: OSError) -> str:
    """One line about a failure of the storage: what is wrong, and how to fix it."""
    search, node, free = folder.parents[1], socket.gethostname(), ""
    with contextlib.suppress(OSError):
        free = f", {in_units(shutil.disk_usage(search).free)} are free"
    mend = "make room or mend it"
    if isinstance(error, FileNotFoundError):
        free, mend = "", "have every node mount it at the same place"
    return f"{search}: the storage failed on the node {node} ({error}{free}); {mend}, then `vit-search resume {search.name}`."


def _split(data: DataSet, names: tuple[SplitName, ...], device: str, decoders: int | None) -> Split | StreamedSplit:
    """Load splits as one, on the device. A worker process reads them once and keeps them for its next trials."""
    key = (data.folder, names, device)
    if key not in _splits:
        _splits[key] = load_split(data, *names, device=device, decoders=decoders)
    return _splits[key]


_splits: dict[tuple[Path, tuple[SplitName, ...], str], Split | StreamedSplit] = {}

_shared = SharedBlocks()
"""Of the trials that this worker process trains one after another."""
