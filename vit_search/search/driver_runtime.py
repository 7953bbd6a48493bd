"""What one driver knows and the next one need not: which trials it has ordered, which processes run, who waits for a node."""

from __future__ import annotations

from dataclasses import dataclass, field

from vit_search.errors import VitSearchError

IN_A_ROW = 4
"""Proposals after which Tune is to look for what trials report: 2,000 at once else kept it from that for three minutes."""


@dataclass
class Runtime:
    """What is true of this driver alone, and of no other that takes the search up."""

    ordered: set[int] = field(default_factory=set)
    """Trials that were ordered and are not over: they run, are held, or wait for a place."""
    begun: set[int] = field(default_factory=set)
    """Those of them that a process has taken up."""
    parked: set[int] = field(default_factory=set)
    """Those of them whose process is ending because the stopping rule holds the trial."""
    allowed: int = IN_A_ROW
    """Proposals until the next tick."""
    cancelled: bool = False
    trouble: VitSearchError | None = None
    """What ended the search against everybody's will."""
    silent_s: dict[int, float] = field(default_factory=dict)
    """Of trials whose process was ended because nothing was heard of it."""
    avoided: dict[int, set[str]] = field(default_factory=dict)
    """Nodes that a trial is kept off."""
    waiting_since: dict[int, float] = field(default_factory=dict)
    """Trials that broke down and wait for a node that they are not kept off."""
