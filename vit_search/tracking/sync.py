"""Send MLflow what it does not have yet of a search that no driver runs: `vit-search sync`."""

from __future__ import annotations

from pathlib import Path

from vit_search.ledger import searches
from vit_search.ledger.file import Ledger
from vit_search.ledger.trials import Progress
from vit_search.tracking.recorder import Recorder
from vit_search.tracking.uris import resolve_uri


def sync_search(folder: Path, tracking_uri: str | None = None) -> bool:
    """Send MLflow all that it has not got of a search that no driver runs. Doing it again changes nothing.

    Args:
        tracking_uri: in place of the one that the search was launched with; MLflow there gets the whole search.
    Returns: False where MLflow went away meanwhile.
    Raises: SearchError when there is no search, others can change it, or a driver runs it; TrackingError when MLflow does not answer.
    """
    spec, facts = searches.read(folder)
    searches.check_own(folder)
    recorder = Recorder.connect(resolve_uri(tracking_uri, folder, facts), spec.name)
    ledger = Ledger(folder / "ledger.jsonl")  # held meanwhile, so that no driver takes the search up
    try:
        hindsight, trials = searches.read_hindsight(folder), Progress.of(ledger.events, spec.epochs).trials.values()
        open_yet = hindsight is None or not all(trial.over for trial in trials)
        status = "KILLED" if open_yet else "FINISHED" if any(trial.outcome == "completed" for trial in trials) else "FAILED"
        recorder.open(spec, facts, folder, ledger.events, ledger.sync)
        return recorder.close(status, None if open_yet else hindsight)
    finally:
        ledger.close()
