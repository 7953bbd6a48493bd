"""What a person asks of a promotion, and what was decided: the gates, and what they were judged on."""

from __future__ import annotations

from dataclasses import dataclass

from vit_search.promotion import gates
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.gates import Gate
from vit_search.promotion.measurements import Measurements
from vit_search.promotion.readings import Reading


@dataclass(frozen=True)
class PromotionRequest:
    """What a person asks of a promotion, beside the policy."""

    name: str
    """Of the registered model."""
    by: str
    force: str = ""
    """A reason to make it the champion whatever the gates say."""
    approve_by: str = ""
    """Who approves, where the policy asks for that."""
    expect: str = ""
    """The champion's version as the person knows it; any by default."""


@dataclass(frozen=True)
class Decision:
    """What was decided on a candidate."""

    verdict: str
    """`passed`, `refused` or `forced`."""
    gates: list[Gate]
    measured: Measurements
    reading: Reading | None
    """None where the test split was not read."""

    @property
    def answers(self) -> SplitAnswers | None:
        """The candidate's on the test images; None where they were not read."""
        return self.reading.answers if self.reading is not None else None


def decide(judged: list[Gate], measured: Measurements, reading: Reading | None, request: PromotionRequest) -> Decision:
    """The verdict that follows from the gates; a forced promotion passes over those that refuse."""
    verdict = "passed" if gates.verdict(judged) else "forced" if request.force else "refused"
    return Decision(verdict, judged, measured, reading)
