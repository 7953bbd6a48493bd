"""Trains the best trials of a search again, from scratch and with new seeds, as the trials of a search of their own on Ray."""

from __future__ import annotations

from pathlib import Path

from vit_search.files import make_folder, write_whole
from vit_search.ledger import searches
from vit_search.ledger.file import is_held
from vit_search.promotion import finalists
from vit_search.promotion.finalists import FinalistPlan
from vit_search.search import kept_weights, launch
from vit_search.search import resume as resuming
from vit_search.search.launch import Options, SearchResult, Watch
from vit_search.search.search_facts import facts_of
from vit_search.tracking.recorder import Recorder
from vit_search.tracking.uris import resolve_uri


def retrain(
    plan: FinalistPlan, *, tracking_uri: str | None = None, watch: Watch | None = None, address: str | None = None
) -> SearchResult | None:
    """Run the trainings of a plan, or continue them after a crash. None if all are finished already.

    If the search has lost its pretrained weights, they are restored from their source: trainings start from them, and finished ones may
    need them, too, since their checkpoints leave frozen blocks out.

    Raises: SearchError if another process runs them, or the search's folder has been changed; SpecError if something is left to train and
        its pretrained weights are lost or have changed; DataError; TrackingError; NoTrialCompletedError.
    """
    _, facts = searches.read(plan.search)
    data = resuming.check_untouched(plan.search, *searches.read(plan.search))
    folder = plan.folder
    done = folder is not None and not plan.left and not is_held(folder / "ledger.jsonl")
    kept_weights.keep(plan.spec, kept_weights.folder_of(plan.search, facts), needed=not done)
    if done:
        return None
    recorder = Recorder.connect(resolve_uri(tracking_uri, plan.search, facts), plan.spec.name)
    if folder is None:
        folder = _new_folder(plan.search)
        write_whole(folder / finalists.PLANNED, plan.text)
        name = f"{plan.search.name}-promotion-{folder.name}"
        weights = facts.pretrained
        searches.write(folder, facts_of(plan.spec, folder, data, recorder, weights=weights, name=name, promotes=plan.search.name))
    spec, retraining_facts = searches.read(folder)
    return launch.drive(
        spec, folder, data, recorder, retraining_facts, options=Options(watch=watch, address=address), planned=plan.trainings
    )


def _new_folder(search: Path) -> Path:
    """Create the next free folder `promotions/N` in the search's folder."""
    make_folder(search / "promotions")
    number = 1
    while True:
        try:
            (search / "promotions" / str(number)).mkdir(mode=0o700)
            return search / "promotions" / str(number)
        except FileExistsError:
            number += 1
