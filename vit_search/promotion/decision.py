"""What a person asks of a promotion (`PromotionRequest`), and what was decided (`Decision`)."""

from __future__ import annotations

from dataclasses import dataclass

from vit_search.promotion import gates
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.gates import Gate
from vit_search.promotion.measurements import Measurements
from vit_search.promotion.readings import Reading


@dataclass(frozen=True)
class PromotionRequest:
    """What a person asks of a promotion, besides the policy."""

    name: str
    """The registered model's name."""
    by: str
    force: str = ""
    """A reason to promote even if gates refuse; empty: do not force."""
    approve_by: str = ""
    """The person who approves, if the policy requires one."""
    expect: str = ""
    """The version that the person believes to be the champion; empty: any."""


@dataclass(frozen=True)
class Decision:
    """The decision on a candidate, with its evidence."""

    verdict: str
    """`passed`, `refused` or `forced`."""
    gates: list[Gate]
    measured: Measurements
    reading: Reading | None
    """None if the test split was not read."""

    @property
    def answers(self) -> SplitAnswers | None:
        """The candidate's answers on the test images; None if they were not read."""
        return self.reading.answers if self.reading is not None else None


def decide(judged: list[Gate], measured: Measurements, reading: Reading | None, request: PromotionRequest) -> Decision:
    """The verdict that follows from the gates. With `request.force`, a refused candidate is `forced`."""
    verdict = "passed" if gates.verdict(judged) else "forced" if request.force else "refused"
    return Decision(verdict, judged, measured, reading)
