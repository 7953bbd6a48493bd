"""Finds problems in a valid search file (`vit-search lint`), by drawing random proposals. Nothing is trained.

The findings come from space_findings.py (parameters, constraints), tuning_findings.py (pretrained weights, which weights are trained),
class_findings.py (classes of different size), file_findings.py (image files) and run_findings.py (how trials are run).
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_search.config.cost import Cost
from vit_search.config.search_file import SearchSpec
from vit_search.config.space import Space
from vit_search.planning import class_findings, feature_findings, file_findings, run_findings, space_findings, tuning_findings
from vit_search.planning.lint_draws import MEMORY, LimitEffect, LintDraw, LintFinding, draw_with_reasons, key_of

COUNTED = 5_000
"""Maximum number of combinations that are all checked. With more, the number of valid ones is estimated from the draws."""


@dataclass(frozen=True)
class Spread:
    """The distribution of a number over the valid proposals."""

    least: float
    tenth: float
    median: float
    ninetieth: float
    most: float


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """The result of linting a search file."""

    name: str
    trials: int
    draws: int
    valid_share: float
    invalid: Mapping[str, int]
    """Draws that cannot be run, by the first reason, as `Space.problem` gives it."""
    combinations: int | None
    """Number of combinations of values; None if a range has no steps, or conditions make too many to count."""
    valid_combinations: int | None
    """Those that can be run: counted up to COUNTED combinations, otherwise estimated."""
    duplicates: float
    """Expected number of trials that repeat an earlier one, for random proposals."""
    spreads: Mapping[str, Spread]
    """For params, flops (forward, one image) and train_bytes."""
    limits: tuple[LimitEffect, ...]
    findings: tuple[LintFinding, ...]
    """Errors first, then warnings, then hints."""

    @property
    def failed(self) -> bool:
        """Whether nothing can run."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


def lint(spec: SearchSpec, draws: int = 2_000, further: Sequence[LintFinding] = ()) -> LintReport:
    """Find problems in a checked search file, with `draws` random proposals from a fixed seed.

    Args:
        further: findings that do not follow from the file alone, e.g. `beyond_this_machine`.
    """
    rng, space = random.Random(0), spec.space  # noqa: S311 -- a sample of the space, not a secret
    drawn = [draw_with_reasons(space, space.draw(rng)) for _ in range(draws)]
    valid = [draw for draw in drawn if not draw.reasons]
    share = len(valid) / draws
    invalid = dict(Counter(draw.reasons[0] for draw in drawn if draw.reasons).most_common())
    size = space.grid_size()
    usable = None if size is None else _usable(space, size, share)
    limits = tuple(_limit_effects(space, drawn))
    duplicates = _duplicates(spec, usable)
    findings: list[LintFinding] = list(further)
    if not valid:
        worst = next(iter(invalid))
        findings.append(
            LintFinding("error", key_of(worst), f"none of {draws:,} random proposals can be run, most since {worst}; widen it.")
        )
    else:
        findings += space_findings.few_can_run(share, invalid, draws)
        findings += space_findings.values_never_run(space, drawn)
        findings += space_findings.without_effect(spec, valid)
        findings += tuning_findings.frozen_at_random(spec, valid)
        findings += tuning_findings.doubled_learning_rate(spec, valid)
        findings += tuning_findings.layer_scale_of_weights(valid)
        findings += class_findings.adjusted_twice(spec, valid)
        findings += class_findings.different_losses(spec, valid)
        findings += class_findings.imbalance(spec, valid)
        findings += run_findings.warm_up(spec, valid)
        findings += run_findings.trials_at_once(spec, valid)
        findings += run_findings.whole_gpus(spec, valid)
        findings += feature_findings.frozen_parts_run_again(spec, valid)
    findings += space_findings.useless_conditions(space, drawn)
    findings += space_findings.loose_limits(limits, len(valid))
    findings += space_findings.repeated_trials(spec, usable, duplicates)
    findings += run_findings.stopping_rule(spec)
    findings += run_findings.few_images(spec)
    findings += run_findings.missing_classes(spec)
    findings += class_findings.few_of_a_class(spec)
    findings += file_findings.of_files(spec)
    findings += file_findings.of_copies(spec)
    findings += space_findings.linear_scales(space)
    order = ("error", "warning", "hint")
    return LintReport(
        name=spec.name,
        trials=spec.trials,
        draws=draws,
        valid_share=share,
        invalid=invalid,
        combinations=size,
        valid_combinations=usable,
        duplicates=duplicates,
        spreads=_spreads([draw.cost for draw in valid if draw.cost is not None]),
        limits=limits,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
    )


def _usable(space: Space, size: int, share: float) -> int:
    if size > COUNTED:
        return round(size * share)
    return sum(space.problem(params) is None for params in space.grid())


def _duplicates(spec: SearchSpec, usable: int | None) -> float:
    """Expected repeats among trials that are drawn uniformly from the valid combinations. A grid has none."""
    if not usable or spec.sampler == "grid":
        return 0.0
    fresh = -usable * math.expm1(spec.trials * math.log1p(-1 / usable)) if usable > 1 else 1.0
    return max(0.0, spec.trials - fresh)


def _spreads(costs: Sequence[Cost]) -> dict[str, Spread]:
    if not costs:
        return {}
    figures = {
        "params": [cost.params for cost in costs],
        "flops": [cost.forward_flops for cost in costs],
        "train_bytes": [cost.train_bytes for cost in costs],
    }
    return {name: _spread(sorted(values)) for name, values in figures.items()}


def _spread(ordered: Sequence[float]) -> Spread:
    last = len(ordered) - 1
    return Spread(*(ordered[round(last * share)] for share in (0, 0.1, 0.5, 0.9, 1)))


def _limit_effects(space: Space, drawn: Sequence[LintDraw]) -> Iterator[LimitEffect]:
    for limit in (*space.constraints, MEMORY):
        decided = [draw for draw in drawn if draw.cost is not None or limit in draw.reasons]
        free = [draw for draw in decided if not set(draw.reasons) - {limit}]
        excluded = sum(limit in draw.reasons for draw in decided) / max(1, len(decided))
        if excluded or limit != MEMORY:
            yield LimitEffect(limit, excluded, sum(limit in draw.reasons for draw in free) / max(1, len(free)))
