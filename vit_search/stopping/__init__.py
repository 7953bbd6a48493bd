"""Stopping rules: which trials end early. A new rule is a file here and a line in RULES; see docs/extending.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vit_search.config.search_file import SearchSpec
from vit_search.config.stopping_rules import STOPPING_RULES
from vit_search.config.tables import check_tables
from vit_search.ledger.events import Event, Proposed
from vit_search.stopping.asha import Asha
from vit_search.stopping.freeze_thaw import FreezeThaw
from vit_search.stopping.hyperband import Hyperband
from vit_search.stopping.median import Median
from vit_search.stopping.none import NoStopping
from vit_search.stopping.pasha import Pasha
from vit_search.stopping.rule import StoppingOptions, StoppingRule, TrainFlops
from vit_search.stopping.rungs import boundaries

RULES: dict[str, type[StoppingRule]] = {
    "asha": Asha,
    "hyperband": Hyperband,
    "median": Median,
    "none": NoStopping,
    "pasha": Pasha,
    "freeze_thaw": FreezeThaw,
}
"""Stopping rule by the search file's key `stopping.kind`."""

check_tables("STOPPING_RULES of vit_search/config/stopping_rules.py", STOPPING_RULES, "RULES of vit_search/stopping/__init__.py", RULES)


def rule_of(spec: SearchSpec, *, parts: Sequence[float] | None = None, seed: int | None = None) -> StoppingRule:
    """The stopping rule of a search file.

    Args:
        parts: boundaries between the groups of trials, in training FLOPs; by default those of `boundaries`.
        seed: replaces the seed of the search file.
    """
    stopping = spec.stopping
    options = StoppingOptions(
        metric=spec.metric,
        mode=spec.mode,
        epochs=spec.epochs,
        grace_epochs=stopping.grace_epochs,
        reduction_factor=stopping.reduction_factor,
        audit_share=stopping.audit_share,
        most_paused=spec.keep_checkpoints,
        boundaries=boundaries(spec.space, stopping.strata) if parts is None else parts,
        seed=spec.seed if seed is None else seed,
    )
    return RULES[stopping.kind](options, train_flops_of(spec))


def rungs_of(spec: SearchSpec) -> list[int]:
    """The rungs of a search: epochs at which trials are compared, ascending. Empty if the rule stops nothing."""
    rule = rule_of(spec, parts=())
    return rule.levels if rule.stops else []


def most_held(spec: SearchSpec, trials: int) -> int:
    """The most trials that wait at once; see StoppingRule.most_held."""
    return rule_of(spec, parts=[0.0] * (spec.stopping.strata - 1)).most_held(trials)


def held_trials(spec: SearchSpec, events: Iterable[Event]) -> set[int]:
    """Trials that wait after these events, because the stopping rule holds them; see StoppingRule.holds."""
    return set[int]() if not (found := list(with_held_trials(spec, events))) else found[-1][1]


def with_held_trials(spec: SearchSpec, events: Iterable[Event]) -> Iterator[tuple[Event, set[int]]]:
    """Each event, and the trials that wait after it; see `held_trials`. A trial that must end waits until the event of its end."""
    rule = rule_of(spec)
    trials: set[int] = set()
    held: set[int] = set()
    for event in events:
        if rule.may_hold:
            rule.apply(event)
        if isinstance(event, Proposed):
            trials.add(event.trial)
        held = {trial for trial in trials if rule.holds(trial)} | (held & rule.ending)
        yield event, held


def train_flops_of(spec: SearchSpec) -> TrainFlops:
    """A function that predicts the training FLOPs of a trial from its parameters."""
    return lambda params: float(spec.space.cost(params).train_flops)
