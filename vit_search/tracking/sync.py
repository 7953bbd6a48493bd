"""Sends the missing records of a search to MLflow, while no driver runs it (`vit-search sync`)."""

from __future__ import annotations

from pathlib import Path

from vit_search.ledger import searches
from vit_search.ledger.file import Ledger
from vit_search.ledger.trials import Progress
from vit_search.tracking.recorder import Recorder
from vit_search.tracking.uris import resolve_uri


def sync_search(folder: Path, tracking_uri: str | None = None) -> bool:
    """Send MLflow everything that it does not have of a search. Repeating this changes nothing.

    Args:
        tracking_uri: another MLflow than the one that the search was launched with. It gets the whole search.
    Returns: False if MLflow stopped answering meanwhile.
    Raises: SearchError if there is no search, others can change it, or a driver runs it; TrackingError if MLflow does not answer.
    """
    spec, facts = searches.read(folder)
    searches.check_own(folder)
    recorder = Recorder.connect(resolve_uri(tracking_uri, folder, facts), spec.name)
    ledger = Ledger(folder / "ledger.jsonl")  # hold it, so that no driver starts meanwhile
    try:
        hindsight, trials = searches.read_hindsight(folder), Progress.of(ledger.events, spec.epochs).trials.values()
        open_yet = hindsight is None or not all(trial.over for trial in trials)
        status = "KILLED" if open_yet else "FINISHED" if any(trial.outcome == "completed" for trial in trials) else "FAILED"
        recorder.open(spec, facts, folder, ledger.events, ledger.sync)
        return recorder.close(status, None if open_yet else hindsight)
    finally:
        ledger.close()
