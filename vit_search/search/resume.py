"""Resume an interrupted search: check that nothing has changed, then continue from its ledger.

`launch.drive` rebuilds the state: the driver applies the stored events to its components (components.py) before it proposes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vit_search.config.search_file import SearchSpec
from vit_search.data.cache import DataSet, absent_classes, prepare
from vit_search.data.split import TRAINED_AND_VALIDATED_ON
from vit_search.errors import SearchError
from vit_search.ledger import searches
from vit_search.ledger.searches import SearchFacts
from vit_search.search import resume_checks
from vit_search.search.launch import Options, SearchResult, Watch, connect, drive
from vit_search.tracking.uris import resolve_uri


def resume(
    folder: Path,
    *,
    tracking_uri: str | None = None,
    extend: Mapping[str, float] | None = None,
    watch: Watch | None = None,
    address: str | None = None,
) -> SearchResult:
    """Continue a search where its ledger ends, with the same trials, rungs and MLflow runs.

    Args:
        extend: settings to change first, such as trials or hours; see `commands.Settings`.
        watch, address: see Options. The cluster need not be the one on which the search began.
    Raises: SearchError if the folder holds no search, another driver runs it, or its data has changed; SpecError for invalid settings.
    """
    spec, facts = resume_checks.check(folder, extend or {})
    data = check_untouched(folder, spec, facts)
    spec.check_data(data.classes, absent_classes(data, *TRAINED_AND_VALIDATED_ON[spec.train_on][1]))
    recorder = connect(resolve_uri(tracking_uri, folder, facts), spec.name)
    return drive(spec, folder, data, recorder, facts, options=Options(watch=watch, address=address), extend=extend)


def check_untouched(folder: Path, spec: SearchSpec, facts: SearchFacts) -> DataSet:
    """Load the data of a search, unchanged since the start.

    Raises: SearchError if other accounts can write into the search's folder, or the search file or the data has changed.
    """
    searches.check_own(folder)
    resume_checks.check_unchanged(folder / "search.yaml", facts.text)
    data = prepare(spec.data_config)
    if data.data_hash != facts.data_hash:
        raise SearchError(f"{folder}: the data set has changed since this search began; start a new search with `vit-search run`.")
    return data
