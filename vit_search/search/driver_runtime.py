"""The facts that only one driver needs, so they are not in the ledger: its ordered trials, its processes, trials that wait for a node."""

from __future__ import annotations

from dataclasses import dataclass, field

from vit_search.errors import VitSearchError

IN_A_ROW = 4
"""New trials per tick.

Tune handles no report while it asks for trials. Without this limit, 2,000 trials delayed the reports by three minutes.
"""


@dataclass
class Runtime:
    """The facts that end with this driver."""

    ordered: set[int] = field(default_factory=set)
    """Trials that were ordered and are not over: they run, are held, or wait for a place."""
    begun: set[int] = field(default_factory=set)
    """Ordered trials that have a process."""
    parked: set[int] = field(default_factory=set)
    """Ordered trials whose process is ending because the stopping rule holds the trial."""
    allowed: int = IN_A_ROW
    """New trials that are left until the next tick."""
    cancelled: bool = False
    trouble: VitSearchError | None = None
    """The error that ended the search."""
    silent_s: dict[int, float] = field(default_factory=dict)
    """Seconds without a report, for trials whose process was ended because of it."""
    avoided: dict[int, set[str]] = field(default_factory=dict)
    """Nodes on which a trial must not run again."""
    waiting_since: dict[int, float] = field(default_factory=dict)
    """Start of the wait, by the driver's clock, of trials that broke down and need another node."""
