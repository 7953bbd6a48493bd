"""Lint findings about parameters and constraints, from random proposals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vit_search.config.distributions import FloatRange, Value
from vit_search.config.optimizers import used_by
from vit_search.config.search_file import SearchSpec
from vit_search.config.space import Space, path_of
from vit_search.planning.lint_draws import MEMORY, LimitEffect, LintDraw, LintFinding, key_of
from vit_search.text import counted

ENOUGH_DRAWS = 20
"""Minimum number of draws of a value. With fewer, it does not mean much that no valid proposal has it."""


def few_can_run(share: float, invalid: Mapping[str, int], draws: int) -> Iterator[LintFinding]:
    """A space in which few proposals can be run."""
    if share < 0.05:
        worst = next(iter(invalid))
        fact = f"only {share:.1%} of random proposals can be run; {invalid[worst] / draws:.0%} cannot since: {worst}"
        yield LintFinding("warning", key_of(worst), f"{fact}. Tighten the ranges that it asks about.")


def values_never_run(space: Space, drawn: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Values that no valid proposal has, and parameters with a single value."""
    for name, parameter in space.searched.items():
        size = parameter.size()
        if size == 1 and parameter.when is None:
            yield LintFinding("hint", path_of(name), f"one value only; write the plain value {_spelt(parameter.values()[0])}.")
        if size is None or size < 2 or size > len(drawn):
            continue
        tried, run = (Counter(draw.params[name] for draw in part if name in draw.params) for part in (drawn, _valid(drawn)))
        lost = [value for value in parameter.values() if tried[value] >= ENOUGH_DRAWS and not run[value]]
        for i, value in enumerate(lost[:3]):
            reasons = Counter(draw.reasons[0] for draw in drawn if draw.params.get(name) == value and draw.reasons)
            more = f", and {counted(len(lost) - 3, 'more value')}" if i == 2 and len(lost) > 3 else ""
            fact = f"{_spelt(value)} is in no proposal that can be run ({reasons.most_common(1)[0][0]}){more}"
            yield LintFinding("warning", path_of(name), f"{fact}; leave it out.")


def _valid(drawn: Sequence[LintDraw]) -> list[LintDraw]:
    return [draw for draw in drawn if not draw.reasons]


def _spelt(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


_PARTS = ("embedding_dropout", "attention_dropout", "projection_dropout", "mlp_dropout")
Idle = tuple[Callable[[Mapping[str, Any]], bool], str, str]
"""When a parameter has no effect: a test, the reason in words, and a condition under which it has one."""
_NO_LORA: Idle = (lambda v: v["tune"] != "lora", "tune is not lora", "tune == 'lora'")
_WITHOUT_EFFECT: dict[str, Idle] = {
    "mlp_ratio": (lambda v: v["mlp_dim"] is not None, "mlp_dim stands in its place", "mlp_dim == none"),
    "dropout": (lambda v: all(v[part] is not None for part in _PARTS), "the four parts each say otherwise", "mlp_dropout == none"),
    "drop_path": (lambda v: v["depth"] == 1, "it is 0 in the first block, and there is no other", "depth > 1"),
    "init": (lambda v: bool(v["pretrained"]), "the model starts from pretrained weights", "pretrained == ''"),
    "pos_init_std": (
        lambda v: bool(v["pretrained"]) or (v["positions"] != "learned" and v["pool"] != "cls" and not v["registers"]),
        "neither positions nor a class token or registers start at random",
        "positions == 'learned'",
    ),
    "rope_base": (lambda v: v["positions"] != "rope", "positions are not rope", "positions == 'rope'"),
    "rand_augment_ops": (lambda v: v["auto_augment"] != "rand_augment", "there is no rand_augment", "auto_augment == 'rand_augment'"),
    "rand_augment_magnitude": (lambda v: v["auto_augment"] != "rand_augment", "there is no rand_augment", "auto_augment == 'rand_augment'"),
    "focal_gamma": (lambda v: v["loss"] != "focal", "the loss is not focal", "loss == 'focal'"),
    "logit_tau": (lambda v: v["loss"] != "logit_adjusted", "the loss is not logit_adjusted", "loss == 'logit_adjusted'"),
    "feature_views": (
        lambda v: v["tune"] not in ("head", "last_blocks") or not v["pretrained"],
        "no output of frozen pretrained parts is kept",
        "tune == 'head'",
    ),
    "tuned_blocks": (lambda v: v["tune"] != "last_blocks", "tune is not last_blocks", "tune == 'last_blocks'"),
    "lora_rank": _NO_LORA,
    "lora_alpha": _NO_LORA,
    "lora_layers": _NO_LORA,
}
_OF_BLOCKS = ("layer_decay", "drop_path", "dropout", *_PARTS[1:])
_OF_THE_EMBEDDING = ("embedding_dropout",)
_OF_ANOTHER_KEY = (
    *("rand_augment_ops", "rand_augment_magnitude", "focal_gamma", "logit_tau", "rope_base"),
    *("tuned_blocks", "lora_rank", "lora_alpha", "lora_layers", "feature_views"),
)
"""Parameters that need one value of another key. If such a parameter has a plain value, the user probably expects that other value."""
_GPU_ONLY = ("tf32", "compile", "cuda_graphs")


def unused_keys(values: Mapping[str, Any]) -> list[str]:
    """Parameters of one model that have no effect because another key has another value, as `lora_rank` with `tune: full`.

    Args:
        values: of `model` and `training`, by their keys.
    """
    return [name for name in _OF_ANOTHER_KEY if _WITHOUT_EFFECT[name][0](values)]


def with_effect(space: Space, params: Mapping[str, Value]) -> dict[str, Any]:
    """The searched parameters as a trial is trained with them, without those that `unused_keys` names."""
    unused = unused_keys(space.complete(params))
    return {name: value for name, value in space.trained(params).items() if name not in unused}


def without_effect(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Parameters that are searched, or have a plain value, and have no effect."""
    for name in _OF_ANOTHER_KEY:
        idle, why, condition = _WITHOUT_EFFECT[name]
        section = spec.model if path_of(name).startswith("model.") else spec.training
        if name in section.model_fields_set and name not in spec.space.searched and all(idle(draw.values) for draw in valid):
            yield LintFinding("warning", path_of(name), f"it makes no difference, since {why}; {_dropped(name, condition)}.")
    for name in spec.space.searched:
        if name in _GPU_ONLY and not spec.resources.on_gpu:
            yield LintFinding("warning", path_of(name), "it makes no difference without a GPU; write a plain value.")
        effect = _of_frozen_parts(spec.space, name) or _WITHOUT_EFFECT.get(name) or _unused(spec.space, name)
        if effect is None:
            continue
        idle, why, condition = effect
        active = [draw for draw in valid if name in draw.params]
        share = sum(idle(draw.values) for draw in active) / max(1, len(active))
        if share == 1 and active:
            yield LintFinding("warning", path_of(name), f"it makes no difference, since {why}; {_dropped(name, condition)}.")
        elif share > 0:
            fact = f"in {share:.0%} of the proposals it makes no difference, since {why}"
            yield LintFinding("hint", path_of(name), f'{fact}; add when: "{condition}".')


def _dropped(name: str, condition: str) -> str:
    """How to fix a parameter that never has an effect."""
    if name not in _OF_ANOTHER_KEY:
        return "write a plain value"
    return "drop it, or write " + condition.replace(" ==", ":").replace("'", "")


def _of_frozen_parts(space: Space, name: str) -> Idle | None:
    """The same for a parameter of parts that some ways of tuning do not train."""
    ways = space.possible_values("tune")
    if name in _OF_BLOCKS and "head" in ways:
        return lambda values: values["tune"] == "head", "the head alone is trained", "tune != 'head'"
    if name in _OF_THE_EMBEDDING and set(ways) != {"full"}:
        return lambda values: values["tune"] != "full", "the embedding is not trained", "tune == 'full'"
    return None


def _unused(space: Space, name: str) -> Idle | None:
    """The `Idle` of a parameter that some of the search's optimizers do not use; else None."""
    users = used_by(name)
    if not users:
        return None
    idle = [optimizer for optimizer in space.possible_values("optimizer") if optimizer not in users]
    why = f"{' and '.join(idle)} {'does' if len(idle) == 1 else 'do'} not use it"
    return lambda values: values["optimizer"] in idle, why, " and ".join(f"optimizer != '{optimizer}'" for optimizer in idle)


def useless_conditions(space: Space, drawn: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Conditions that hold always or never."""
    for name, parameter in space.searched.items():
        if parameter.when is None:
            continue
        active = sum(name in draw.params for draw in drawn)
        if not active:
            yield LintFinding(
                "warning", f"{path_of(name)}.when", f"{parameter.when} never holds, so it is never searched; mend it or drop it."
            )
        elif active == len(drawn):
            yield LintFinding("hint", f"{path_of(name)}.when", f"{parameter.when} always holds; drop it.")


def loose_limits(limits: Sequence[LimitEffect], valid: int) -> Iterator[LintFinding]:
    """Limits that exclude nothing, or only what others exclude, too."""
    for i, bound in enumerate(limits):
        if bound.limit == MEMORY:
            continue
        where = f"constraints.{i}"
        if not bound.excluded:
            yield LintFinding("hint", where, f"{bound.limit} never binds: no proposal breaks it; tighten it or drop it.")
        elif not bound.alone and valid:
            yield LintFinding("hint", where, f"{bound.limit} excludes nothing that something else does not exclude, too; drop it.")


def repeated_trials(spec: SearchSpec, usable: int | None, duplicates: float) -> Iterator[LintFinding]:
    """More trials than different proposals, or fewer than a grid has."""
    if usable is None or not usable:
        return
    if spec.trials > usable:
        end = "the grid ends there" if spec.sampler == "grid" else "the rest repeat" if usable > 1 else "the rest repeat it"
        yield LintFinding(
            "warning",
            "trials",
            f"{counted(spec.trials, 'trial')}, but only {counted(usable, 'different proposal')} can be run: {end}; ask for fewer.",
        )
    elif spec.sampler == "grid" and spec.trials < usable:
        fact = f"{spec.trials / usable:.0%} of the grid's {usable:,} combinations are tried by {counted(spec.trials, 'trial')}"
        yield LintFinding("hint", "trials", f"{fact}; ask for all of them, or for another sampler.")
    elif duplicates >= 1 and duplicates >= 0.05 * spec.trials:
        of = f"{counted(spec.trials, 'trial')} repeat one of {counted(usable, 'combination')}"
        fact = f"about {duplicates:.0f} of {of}, or more as the sampler learns"
        yield LintFinding("hint", "trials", f"{fact}; add values or ask for fewer.")


def linear_scales(space: Space) -> Iterator[LintFinding]:
    """Wide ranges without a logarithmic scale."""
    for name, parameter in space.searched.items():
        if not isinstance(parameter, FloatRange) or parameter.log or parameter.step is not None:
            continue
        low, high = parameter.range
        if low > 0 and high / low >= (10 if name == "lr" else 100):
            middle = math.sqrt(low * high)  # on a logarithmic scale, half of the draws are below it
            below = (middle - low) / (high - low)
            fact = f"{low:g} to {high:g} spans {math.log10(high / low):.1f} decades, and {below:.0%} of it lies below {middle:.2g}"
            yield LintFinding("hint", path_of(name), f"{fact}; add log: true.")
