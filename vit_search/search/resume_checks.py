"""What a search's folder alone tells of whether it can be gone on with: looked at before Ray, torch and MLflow are imported."""

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
    """A search's file and facts, where nothing that its folder tells speaks against going on with it.

    Args:
        extend: settings that are to be changed first.
    Raises: SearchError when others can change it, it is a promotion's, an older version ranked it wrongly, its file has changed, or a
        driver has it; SpecError for settings that mean nothing.
    """
    spec, facts = searches.read(folder)
    searches.check_own(folder)
    if facts.promotes:
        raise SearchError(f"{folder}: trainings of a promotion; go on with `vit-search promote {facts.promotes}`.")
    if facts.mode != spec.mode:  # version 0.1 took max where a file did not say
        raise SearchError(
            f"{folder}: an older version ranked {spec.metric} with mode {facts.mode}, the wrong way round; start a new search of the file."
        )
    check_unchanged(folder / "search.yaml", facts.text)
    if (folder / "ledger.jsonl").exists():  # else it died before its first event
        check_free(folder / "ledger.jsonl")
        if extend:
            check_extension(spec, folder, read_events(folder / "ledger.jsonl"), extend)
    return spec, facts


def check_unchanged(path: Path, began: str) -> None:
    """Refuse a search file that was edited after its search began: the trials so far answer another question."""
    was, now = began.rstrip().splitlines(), path.read_text(encoding="utf-8").rstrip().splitlines()  # an editor adds a last newline
    if now != was:
        pairs = itertools.zip_longest(was, now, fillvalue="")
        line, (old, new) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        raise SearchError(
            f"{path}:{line}: {old.strip()!r} has become {new.strip()!r} since this search began; put it back, "
            "or start a new search that has this one under learn_from."
        )


def check_extension(spec: SearchSpec, folder: Path, events: Sequence[Event], extend: Mapping[str, float]) -> None:
    """Refuse settings that mean nothing, or that leave a limit which ends the search at once.

    Raises: SpecError, SearchError.
    """
    progress, limits = _standing(spec, events)
    check_settings(extend, trial_count=len(progress.trials), metric=spec.metric)
    _, limits = _standing(spec, [*events, Commanded(name="set", arguments=dict(extend), answer="", by="")])
    if limits.ending:
        raise SearchError(f"{folder.name} would end at once by {limits.ending}; add {option(limits.ending)} with a new limit.")


def is_work_left(spec: SearchSpec, events: Sequence[Event]) -> bool:
    """Whether trials are left to run, as far as it is seen without the search's whole state."""
    progress, limits = _standing(spec, events)
    return not limits.ending and sum(trial.over for trial in progress.trials.values()) < limits.settings.trials


def _standing(spec: SearchSpec, events: Iterable[Event]) -> tuple[Progress, SearchLimits]:
    progress, commands = Progress(spec.epochs), Commands(Settings.of(spec), spec.metric)
    limits = SearchLimits(commands, progress, metric=spec.metric, mode=spec.mode, devices=spec.resources.devices)
    for event in events:
        for component in (progress, commands, limits):
            component.apply(event)
    return progress, limits
