"""Measures a candidate before the test split is read: its costs, its exported files and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_search.promotion.candidate import Candidate
from vit_search.promotion.evidence.costs import Costs, SideBySide, measure_costs, measure_side_by_side
from vit_search.promotion.evidence.parity import Exporter, Parity, file_exporter, measure_parity, weights_sha256
from vit_search.promotion.policy import Policy
from vit_search.vit.checkpoint import ServedModel


@dataclass(frozen=True)
class Measurements:
    """The measurements of a candidate, with the champion's for comparison if there is one."""

    costs: Costs
    side_by_side: SideBySide | None
    """Costs of both models; None if there is no champion."""
    parities: list[Parity]
    """One entry for each exported format."""
    weights_sha256: str
    """sha256 of the weights in memory when they were measured."""


def measure(candidate: Candidate, champion: tuple[ServedModel, Path] | None, policy: Policy) -> Measurements:
    """Measure a candidate.

    Args:
        champion: its model and its checkpoint; None if there is no champion.
    """
    side_by_side = measure_side_by_side(candidate.served, candidate.folder, *champion) if champion is not None else None
    costs = side_by_side.candidate if side_by_side is not None else measure_costs(candidate.served, candidate.folder)
    others: dict[str, Exporter] = {name: file_exporter(name) for name in policy.export.formats if name != "safetensors"}
    parities = measure_parity(candidate.served, candidate.folder, others)
    return Measurements(costs, side_by_side, parities, weights_sha256(candidate.served))
