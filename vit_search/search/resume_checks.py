"""Checks before a resume that need only the search's folder.

They run before Ray, torch and MLflow are imported, so the user sees a mistake at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vit_search.config.search_file import SearchSpec
from vit_search.errors import SearchError
from vit_search.ledger import searches
from vit_search.ledger.events import Commanded, Event
from vit_search.ledger.file import check_free, read_events
from vit_search.ledger.searches import SearchFacts
from vit_search.ledger.trials import Progress
from vit_search.search.commands import Commands, Settings, check_settings
from vit_search.search.limits import SearchLimits, option


def check(folder: Path, extend: Mapping[str, float]) -> tuple[SearchSpec, SearchFacts]:
    """Read the search file and the facts of a search that can be resumed.

    Args:
        extend: settings to change first.
    Raises: SearchError if other accounts can change the folder, the search belongs to a promotion, an older version ranked it the wrong way
        round, its search file has changed, or a driver runs it; SpecError for invalid settings.
    """
    spec, facts = searches.read(folder)
    searches.check_own(folder)
    if facts.promotes:
        raise SearchError(f"{folder}: trainings of a promotion; go on with `vit-search promote {facts.promotes}`.")
    if facts.mode != spec.mode:  # version 0.1 used max if the file did not say
        raise SearchError(
            f"{folder}: an older version ranked {spec.metric} with mode {facts.mode}, the wrong way round; start a new search of the file."
        )
    check_unchanged(folder / "search.yaml", facts.text)
    if (folder / "ledger.jsonl").exists():  # otherwise it died before its first event
        check_free(folder / "ledger.jsonl")
        if extend:
            check_extension(spec, folder, read_events(folder / "ledger.jsonl"), extend)
    return spec, facts


def check_unchanged(path: Path, began: str) -> None:
    """Reject a search file that was edited after the search began with the text `began`: its trials so far would not fit."""
    was, now = began.rstrip().splitlines(), path.read_text(encoding="utf-8").rstrip().splitlines()  # an editor may add a last newline
    if now != was:
        pairs = itertools.zip_longest(was, now, fillvalue="")
        line, (old, new) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        raise SearchError(
            f"{path}:{line}: {old.strip()!r} has become {new.strip()!r} since this search began; put it back, "
            "or start a new search that has this one under learn_from."
        )


def check_extension(spec: SearchSpec, folder: Path, events: Sequence[Event], extend: Mapping[str, float]) -> None:
    """Reject invalid settings, and settings with which a limit would end the search at once.

    Raises: SpecError, SearchError.
    """
    progress, limits = _standing(spec, events)
    check_settings(extend, trial_count=len(progress.trials), metric=spec.metric)
    _, limits = _standing(spec, [*events, Commanded(name="set", arguments=dict(extend), answer="", by="")])
    if limits.ending:
        raise SearchError(f"{folder.name} would end at once by {limits.ending}; add {option(limits.ending)} with a new limit.")


def is_work_left(spec: SearchSpec, events: Sequence[Event]) -> bool:
    """Whether trials are left to run. It uses trials and limits only, not the whole state of the search."""
    progress, limits = _standing(spec, events)
    return not limits.ending and sum(trial.over for trial in progress.trials.values()) < limits.settings.trials


def _standing(spec: SearchSpec, events: Iterable[Event]) -> tuple[Progress, SearchLimits]:
    progress, commands = Progress(spec.epochs), Commands(Settings.of(spec), spec.metric)
    limits = SearchLimits(commands, progress, metric=spec.metric, mode=spec.mode, devices=spec.resources.devices)
    for event in events:
        for component in (progress, commands, limits):
            component.apply(event)
    return progress, limits
