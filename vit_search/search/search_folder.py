"""The folder of a search: create it, remove it, delete old checkpoints."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_search.config.distributions import Value
from vit_search.config.search_file import NAME, SearchSpec
from vit_search.config.strict_json import build, parse
from vit_search.errors import SearchError
from vit_search.files import make_folder
from vit_search.ledger import searches
from vit_search.ledger.events import Outcome
from vit_search.ledger.file import read_trials
from vit_search.ledger.trials import Trial, numbers_to_keep
from vit_search.text import whole_number
from vit_search.vit import checkpoint_files

EARLIER = "earlier.json"


def check_output(output: Path) -> None:
    """Check that the folder of all searches can be written, before anything else is created."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(output, os.W_OK | os.X_OK) else "permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise SearchError(f"{output}: cannot be written ({reason}); name another folder with --output.")


def new_folder(output: Path, name: str) -> Path:
    """Create the next free folder `name-N`. Two launches at the same time get two folders."""
    taken = (whole_number(path.name.rpartition("-")[2]) for path in output.glob(f"{name}-*"))
    number = max((number for number in taken if number is not None), default=0) + 1
    while True:
        folder = output / f"{name}-{number}"
        try:
            folder.mkdir(mode=0o700)
            return folder
        except FileExistsError:
            number += 1


def named_folder(output: Path, name: str) -> Path:
    """Create the folder of a search with a given name. A folder that a killed launch left without a search is used again."""
    if not re.fullmatch(NAME, name):
        raise SearchError(
            f"--as {name!r}: no name of a folder; use letters, digits, '.', '_' and '-', at most 64, a letter or digit first."
        )
    folder = output / name
    make_folder(folder)
    searches.check_own(folder)
    if (folder / "search.json").exists():
        raise SearchError(f"{folder}: a search is here already; `vit-search resume {name}` goes on with it.")
    return folder


def has_trials(folder: Path) -> bool:
    """Whether a search has trials. True also if its ledger cannot be read, so that nothing is deleted then."""
    try:
        return (folder / "ledger.jsonl").exists() and bool(read_trials(folder / "ledger.jsonl"))
    except (SearchError, OSError):
        return True


def remove(folder: Path, before: Collection[Path]) -> None:
    """Delete a search that failed before its first trial.

    Args:
        before: files that were in the folder before the launch, for the driver on a cluster. They stay.
    """
    for path in set(folder.iterdir()) - set(before):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if not before:
        folder.rmdir()


def read_lessons(spec: SearchSpec, output: Path) -> list[tuple[dict[str, Value], dict[int, float], str]]:
    """Parameters, values by epoch and outcome of the trials of the earlier searches under `learn_from`."""
    lessons: list[tuple[dict[str, Value], dict[int, float], str]] = []
    for name in spec.learn_from:
        trials = read_trials(searches.find(output, name) / "ledger.jsonl")
        for trial in trials:
            values = {result.epoch: result.value(spec.metric) for result in trial.results}
            finite = {epoch: value for epoch, value in values.items() if value is not None and math.isfinite(value)}
            if trial.over and finite:
                lessons.append((trial.params, finite, trial.outcome))
    return lessons


def kept_lessons(folder: Path) -> list[tuple[dict[str, Value], dict[int, float], str]]:
    """The lessons as they were when this search began. A resume must propose the same, even if the earlier searches have changed since.

    Raises: SearchError if the file is damaged.
    """
    path = folder / EARLIER
    if not path.exists():
        return []
    try:
        rows = parse(path.read_bytes())
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
            raise ValueError("no list of trials")
        lessons = [build(_Lesson, {"params": params, "values": values, "outcome": outcome}) for params, values, outcome in rows]
        return [(lesson.params, {int(epoch): value for epoch, value in lesson.values.items()}, lesson.outcome) for lesson in lessons]
    except ValueError as error:
        raise SearchError(f"{path}: {error}; restore the file from a copy.") from None


@dataclass(frozen=True)
class _Lesson:
    """A trial of an earlier search in the file."""

    params: dict[str, Value]
    values: dict[str, float]
    """Value of the metric by epoch."""
    outcome: Outcome


def delete_old_checkpoints(folder: Path, trials: Mapping[int, Trial], spec: SearchSpec) -> None:
    """Delete the checkpoints of finished trials, except those of the best.

    `keep_checkpoints` of them stay. With several objectives, those on the Pareto front stay, too. Each unfinished trial has two more.
    """
    numbered = ((whole_number(checkpoint.parent.name), checkpoint) for checkpoint in (folder / "trials").glob("*/checkpoint"))
    folders = {number: checkpoint for number, checkpoint in numbered if number is not None}
    over = [trials[number] for number in folders if number in trials and trials[number].over]
    keep = numbers_to_keep(over, spec.metric, spec.mode, spec.keep_checkpoints) | searches.pareto(spec, over)
    for trial in over:
        checkpoint_files.drop_older(folders[trial.number])
        if trial.number not in keep:
            shutil.rmtree(folders[trial.number], ignore_errors=True)
            with contextlib.suppress(OSError):
                (folders[trial.number].parent / "owner").unlink()
                folders[trial.number].parent.rmdir()  # fails if there is an error.txt, which must stay
