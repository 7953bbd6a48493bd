"""The stopping rules that a search file may name, with which trials each stops. vit_search/stopping holds their code."""

from __future__ import annotations

STOPPING_RULES: dict[str, str] = {
    "asha": "asynchronous successive halving",
    "pasha": "asynchronous successive halving with a last rung that is raised only as far as needed",
    "hyperband": "HyperBand",
    "median": "trials below the median of the others",
    "none": "no trial is stopped",
}
"""By `stopping.kind` of a search file."""
