"""Stopping rules: who is stopped early, by which rule. A new rule is a file here and a line in RULES."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vit_search.config.search_file import SearchSpec
from vit_search.config.space import Value
from vit_search.planning.rungs import boundaries
from vit_search.search.stopping.asha import Asha
from vit_search.search.stopping.hyperband import Hyperband
from vit_search.search.stopping.median import Median
from vit_search.search.stopping.none import NoStopping
from vit_search.search.stopping.rule import StoppingOptions, StoppingRule

RULES: dict[str, type[StoppingRule]] = {"asha": Asha, "hyperband": Hyperband, "median": Median, "none": NoStopping}
"""By `stopping.kind` of a search file."""


def rule_of(spec: SearchSpec) -> StoppingRule:
    """The rule that a search file asks for."""
    stopping = spec.stopping
    options = StoppingOptions(
        metric=spec.metric,
        mode=spec.mode,
        epochs=spec.epochs,
        grace_epochs=stopping.grace_epochs,
        reduction_factor=stopping.reduction_factor,
        audit_share=stopping.audit_share,
        boundaries=boundaries(spec.space, stopping.strata),
        seed=spec.seed,
    )
    return RULES[stopping.kind](options, train_flops_of(spec))


def train_flops_of(spec: SearchSpec) -> Callable[[Mapping[str, Value]], float]:
    """Predicted training FLOPs of a trial's parameters."""
    return lambda params: float(spec.space.cost(params).train_flops)
