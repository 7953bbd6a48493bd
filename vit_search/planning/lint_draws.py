"""What the linter draws and reports: a random proposal with all reasons why it cannot be run, and a finding about the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit_search.config.cost import Cost
from vit_search.config.model_config import model_problem
from vit_search.config.space import CALCULATED, Space
from vit_search.config.tuning import Tuning, tuning_problem

Severity = Literal["error", "warning", "hint"]

PATCH, HEADS, MEMORY = "patch_size does not divide the image", "heads does not divide dim", "does not fit into memory"
WIDTH = "the width of a head does not suit positions or qk_norm"
TUNING = "tuned_blocks or lora_rank is too large for the model"
"""Reasons why a proposal cannot be run. For a constraint, the reason is its text."""


@dataclass(frozen=True)
class LintFinding:
    """One problem in a search file."""

    severity: Severity
    """error: nothing can run; warning: certainly a mistake; hint: perhaps a mistake."""
    where: str
    """Path in the search file."""
    text: str
    """What was found, and how to fix it."""


@dataclass(frozen=True)
class LimitEffect:
    """What a limit excludes."""

    limit: str
    """The text of a constraint, or MEMORY."""
    excluded: float
    """Share of draws that it excludes, among those for which it could be checked."""
    alone: float
    """The same share among the draws that nothing else excludes."""


@dataclass(frozen=True)
class LintDraw:
    """A proposal, and all reasons why it cannot be run."""

    params: Mapping[str, Any]
    """The active parameters."""
    values: Mapping[str, Any]
    """All parameters."""
    reasons: tuple[str, ...]
    cost: Cost | None
    """None if the parameters make no valid ViT."""


def draw_with_reasons(space: Space, params: dict[str, Any]) -> LintDraw:
    """Complete a proposal, and list all reasons why it cannot be run."""
    values = space.complete(params)
    shape = (values["patch_size"], values["dim"], values["heads"], values["dim_head"])
    height, width = space.image_size
    reasons = [PATCH] if height % shape[0] or width % shape[0] else []
    if model_problem((1, 1), 1, *shape[1:]) is not None:
        reasons.append(HEADS)
    elif model_problem((1, 1), 1, *shape[1:], positions=values["positions"], qk_norm=values["qk_norm"]) is not None:
        reasons.append(WIDTH)
    if tuning_problem(Tuning.of(values), values["depth"], values["dim"]) is not None:
        reasons.append(TUNING)
    cost = None if reasons else space.cost(params)
    scope = {**values, "epochs": space.epochs, "image_height": height, "image_width": width}
    if cost is not None:
        figures = (cost.params, cost.forward_flops, cost.train_flops, cost.train_bytes, cost.tokens)
        scope |= dict(zip(CALCULATED, figures, strict=True))
        if space.too_large(values, cost) is not None:
            reasons.append(MEMORY)
    for text, rule in zip(space.constraints, space.rules, strict=True):
        if all(name in scope for name in rule.names) and not rule.holds(scope):
            reasons.append(text)
    return LintDraw(params, values, tuple(reasons), cost)


def key_of(reason: str) -> str:
    """The key in the search file to which a reason belongs."""
    keys = {PATCH: "model.patch_size", HEADS: "model.heads", WIDTH: "model.heads", TUNING: "training.tune", MEMORY: "model.dim"}
    return keys.get(reason, "constraints")
