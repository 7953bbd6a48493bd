"""Judges one trial of a search with the gates that need no test image, for `vit-search gate`. It trains and registers nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vit_search.data.cache import prepare
from vit_search.ledger import searches
from vit_search.promotion import gates
from vit_search.promotion.candidate import candidate_of_trial, lineage_of
from vit_search.promotion.champion_model import champion_of, fetched_champion
from vit_search.promotion.evidence.duplicates import find_duplicates
from vit_search.promotion.gates import Gate
from vit_search.promotion.measurements import measure
from vit_search.promotion.policy import Policy
from vit_search.promotion.readings import readings_of
from vit_search.registry import smoke
from vit_search.tracking.mlflow_client import client_for

NEED_THE_TEST_SPLIT = (
    ("G3", "floors"),
    ("G4", "better than the champion"),
    ("G6", "classes"),
    ("G7", "calibration"),
    ("G12", "corruption"),
)


def examine(folder: Path, number: int, policy: Policy, name: str, *, tracking_uri: str | None = None) -> list[Gate]:
    """Judge one trial of a search.

    Args:
        folder: of the search. number: of a trial whose checkpoint was kept. name: of the registered model that it would replace.
    """
    client = client_for(tracking_uri, needs="read")
    spec, facts = searches.read(folder)
    candidate = candidate_of_trial(folder, number)
    data = prepare(spec.data_config)
    with fetched_champion(client, champion_of(client, name)) as champion:
        measured = measure(candidate, champion, policy)
    problem = smoke.problem(candidate.served)
    judged = [
        gates.integrity(measured.parities, policy, expected_sha256=candidate.weights_sha256, found_sha256=measured.weights_sha256),
        gates.lineage(lineage_of(candidate, facts), policy),
        gates.readings(readings_of(client, name, candidate.served.data_hash) + 1, policy),
        gates.cost(measured.costs, policy, measured.side_by_side),
        Gate("G9", "seeds", None, "one training shows no spread; `vit-search promote` trains with fresh seeds"),
        replace(gates.smoke(problem), said=problem or "it answers here as it should; `vit-search promote` asks it in a process of its own"),
        gates.leak(find_duplicates(spec.data_config, data), policy, recorded=False),
    ]
    waiting = "needs the test split, which `vit-search promote` alone reads"
    return [*judged, *(Gate(id, words, None, waiting) for id, words in NEED_THE_TEST_SPLIT)]
