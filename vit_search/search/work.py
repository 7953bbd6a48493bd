"""The function that Tune runs in a worker. The driver imports this module without torch; only a worker imports what trains."""

from __future__ import annotations

from typing import Any

from vit_search.errors import TableError
from vit_search.runtime.start_up import collect_rarely
from vit_search.search.messages import Failed, encode


def train_trial(config: dict[str, Any]) -> None:
    """Train a trial with `trial.train_trial`."""
    collect_rarely()
    try:
        from vit_search.search import trial
    except TableError as error:  # the driver does not import these tables, so each trial fails with this reason, which ends the search
        from ray import tune

        tune.report(encode(config["trial"], Failed("failed", str(error))))
        return
    trial.train_trial(config)
