"""What Tune is given to run. The driver imports this and does without torch; a worker imports what trains."""

from __future__ import annotations

from typing import Any

from vit_search.runtime.start_up import collect_rarely


def train_trial(config: dict[str, Any]) -> None:
    """See trial.py, whose function of this name it is."""
    collect_rarely()
    from vit_search.search import trial

    trial.train_trial(config)
