"""The stopping rules that a search file may name, with the trials that each stops. Their code is in vit_search/stopping."""

from __future__ import annotations

STOPPING_RULES: dict[str, str] = {
    "asha": "asynchronous successive halving",
    "pasha": "like asha, but the last rung is raised only as far as needed to rank the trials",
    "freeze_thaw": "like asha, but a weak trial pauses, and continues once it is among the best of its rung",
    "hyperband": "HyperBand",
    "median": "trials below the median of the others",
    "none": "no trial is stopped",
}
"""Description by `stopping.kind` of a search file."""
