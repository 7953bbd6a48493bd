"""Turns the result of `vit-search train` into a search of one trial, so the same gates judge it as any other candidate."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from vit_search.config import search_file
from vit_search.config.search_file import SearchSpec
from vit_search.config.trial import EpochResult
from vit_search.data import backbones
from vit_search.data.cache import prepare
from vit_search.errors import SearchError
from vit_search.ledger import searches
from vit_search.ledger.events import Ended, Launched, Proposed, Reported
from vit_search.ledger.file import Ledger
from vit_search.ledger.searches import trial_folder
from vit_search.search import launch
from vit_search.search.search_facts import facts_of
from vit_search.search.search_folder import check_output, new_folder
from vit_search.text import counted
from vit_search.vit.checkpoint_files import Described, describe
from vit_search.vit.train_once import FILE


def adopt(folder: Path, output: Path, *, tracking_uri: str | None = None) -> Path:
    """Make a search from a trained folder, or find the one that was made from it before.

    Args:
        folder: of the model, with the search file that it was trained from.
        output: folder of all searches.
    Returns: the search's folder. Its one trial has the model's epochs and its checkpoint.
    Raises: SearchError if the training is not finished, or if its search file or its data has changed since; CheckpointError.
    """
    described = describe(folder)
    spec = _file_of(folder, described)
    for marker in sorted(output.glob(f"{spec.name}-*/{ADOPTED}")):
        if marker.read_text(encoding="utf-8") == described.fingerprint and (marker.parent / "search.json").is_file():
            return marker.parent
    data = prepare(spec.data_config)
    if data.data_hash != described.data_hash:
        raise SearchError(f"{folder}: the data set has changed since this model was trained; train it again with `vit-search train`.")
    weights = backbones.records(backbones.find_all(spec))
    check_output(output)
    recorder = launch.connect(tracking_uri, spec.name)
    search = new_folder(output, spec.name)
    try:
        shutil.copytree(folder, trial_folder(search, 0) / "checkpoint")
        (search / ADOPTED).write_text(described.fingerprint, encoding="utf-8")
        _write_ledger(search, described)
        searches.write(search, facts_of(spec, search, data, recorder, weights=weights))  # last, because it makes the folder a search
    except OSError as error:
        shutil.rmtree(search, ignore_errors=True)
        raise SearchError(f"{search}: cannot be written ({error.strerror}); make room or name another folder with --output.") from None
    return search


def _write_ledger(search: Path, described: Described) -> None:
    ledger = Ledger(search / "ledger.jsonl")
    try:
        ledger.append(Launched(host=socket.gethostname(), pid=os.getpid()))
        ledger.append(Proposed(trial=0, params={}))
        for result in described.history:
            ledger.append(Reported(trial=0, result=EpochResult(**result)))
        ledger.append(Ended(trial=0, outcome="completed"))
    finally:
        ledger.close()


ADOPTED = "adopted"
"""File of such a search, with the sha256 of the model's weights."""


def _file_of(folder: Path, described: Described) -> SearchSpec:
    """Load the search file that a model was trained from, and check that it fits the model."""
    path, epochs = folder / FILE, described.config.training.epochs
    if len(described.history) < epochs:  # its file comes at the end
        raise SearchError(f"{folder}: trained for {len(described.history)} of {counted(epochs, 'epoch')}; go on with `vit-search train`.")
    if not path.is_file():
        raise SearchError(f"{folder}: no {FILE} beside the model, as `vit-search train` leaves it at its end; run that again.")
    spec = search_file.load(path)
    model = described.config.model
    if spec.trial_config({}, in_channels=model.in_channels, num_classes=model.num_classes, trial=0) != described.config:
        raise SearchError(f"{path}: not the file that this model was trained from; train it again with `vit-search train`.")
    return spec
