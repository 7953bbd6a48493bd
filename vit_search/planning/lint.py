"""What is odd about a search file that is sound by the letter: found by drawing proposals, before anything is trained."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vit_search.config import shares
from vit_search.config.cost import Cost, in_units, memory_of_this_machine
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.distributions import FloatRange
from vit_search.config.search_file import SearchSpec
from vit_search.config.space import CALCULATED, Space, path_of
from vit_search.config.trial import model_problem
from vit_search.data.sources import open_source
from vit_search.data.sources.source import in_short
from vit_search.errors import DataError
from vit_search.planning.image_counts import images_of
from vit_search.stats import wilson
from vit_search.stopping import rule_of
from vit_search.text import counted

Severity = Literal["error", "warning", "hint"]

PATCH, HEADS, MEMORY = "patch_size does not divide the image", "heads does not divide dim", "does not fit into memory"
"""Kinds of proposals that cannot be run; a constraint's kind is its text."""

SEEN = 20
"""Draws of a value before its absence among those that can be run means anything."""

COUNTED = 5_000
"""Combinations up to which each is looked at; the valid ones of more are estimated from the draws."""


LEAST_IMAGES = 100
"""Validation images below which chance ranks the trials: 100 give an accuracy of 0.9 an interval that is 0.12 wide."""


@dataclass(frozen=True)
class LintFinding:
    """One oddity."""

    severity: Severity
    """error: nothing can run; warning: surely not what was meant; hint: perhaps not."""
    where: str
    """Path in the search file."""
    text: str
    """What was seen; the mend."""


@dataclass(frozen=True)
class Spread:
    """How a figure spreads over the proposals that can be run."""

    least: float
    tenth: float
    median: float
    ninetieth: float
    most: float


@dataclass(frozen=True)
class Binding:
    """What a limit excludes."""

    limit: str
    """A constraint's text, or MEMORY."""
    excluded: float
    """Share of all draws that it could be asked about."""
    alone: float
    """Share of the draws that nothing else excludes."""


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What the draws showed."""

    name: str
    trials: int
    draws: int
    valid_share: float
    invalid: Mapping[str, int]
    """Draws that cannot be run, by the first reason that `Space.problem` would give."""
    combinations: int | None
    """Of the parameters' values; None where a range has no steps, or conditions make too many to count."""
    valid_combinations: int | None
    """Those that can be run: counted up to COUNTED, beyond that estimated."""
    duplicates: float
    """Trials expected to repeat an earlier one, were proposals drawn at random."""
    spreads: Mapping[str, Spread]
    """params; flops (forward, one image); train_bytes."""
    limits: tuple[Binding, ...]
    findings: tuple[LintFinding, ...]
    """Errors first, then warnings, then hints."""

    @property
    def failed(self) -> bool:
        """Whether nothing can run."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LintDraw:
    """A proposal, and all that keeps it from being run."""

    params: Mapping[str, Any]
    """The active parameters."""
    values: Mapping[str, Any]
    """All of them."""
    reasons: tuple[str, ...]
    cost: Cost | None
    """None where it makes no ViT."""


def lint(spec: SearchSpec, draws: int = 2_000, further: Sequence[LintFinding] = ()) -> LintReport:
    """Look a checked search file over, from so many random proposals of a fixed seed.

    Args:
        further: findings that the file alone does not show, e.g. `beyond_this_machine`.
    """
    rng, space = random.Random(0), spec.space  # noqa: S311 -- a sample of the space, not a secret
    drawn = [_looked_at(space, space.draw(rng)) for _ in range(draws)]
    valid = [draw for draw in drawn if not draw.reasons]
    share = len(valid) / draws
    invalid = dict(Counter(draw.reasons[0] for draw in drawn if draw.reasons).most_common())
    size = space.grid_size()
    usable = None if size is None else _usable(space, size, share)
    limits = tuple(_bindings(space, drawn))
    duplicates = _duplicates(spec, usable)
    findings: list[LintFinding] = list(further)
    if not valid:
        worst = next(iter(invalid))
        findings.append(LintFinding("error", _home(worst), f"none of {draws:,} random proposals can be run, most since {worst}; widen it."))
    else:
        findings += _few(share, invalid, draws)
        findings += _never(space, drawn)
        findings += _idle(spec, valid)
        findings += _warm_up(spec, valid)
        findings += _together(spec, valid)
        findings += _whole_gpus(spec, valid)
    findings += _conditions(space, drawn)
    findings += _loose(limits, len(valid))
    findings += _repeats(spec, usable, duplicates)
    findings += _stopping(spec)
    findings += _few_images(spec)
    findings += _missing_classes(spec)
    findings += _scales(space)
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


def beyond_this_machine(spec: SearchSpec, cpus: int, gpus: int | None) -> Iterator[LintFinding]:
    """What one trial asks for and a machine lacks; a hint, since the search may run on a cluster that has it.

    Args:
        cpus, gpus: of the machine; None where its GPUs cannot be counted.
    """
    elsewhere, resources = "run it on a cluster that has {}, or", spec.resources
    if resources.cpus != "auto" and resources.cpus > cpus:
        fact = f"a trial takes {resources.cpus:g} CPUs, and this machine has {cpus}"
        yield LintFinding("hint", "resources.cpus", f"{fact}; {elsewhere.format('them')} lower it.")
    least = 1 if resources.gpus == "auto" else math.ceil(resources.gpus)
    if gpus is not None and least > gpus:
        takes = "GPUs" if resources.gpus == "auto" else f"{resources.gpus:g} GPU{'s' if resources.gpus > 1 else ''}"
        fact = f"a trial takes {takes}, and this machine has {gpus or 'none'}"
        mend = "lower it" if gpus else "write 0"
        yield LintFinding("hint", "resources.gpus", f"{fact}; {elsewhere.format('them' if least > 1 else 'one')} {mend}.")


def _looked_at(space: Space, params: dict[str, Any]) -> LintDraw:
    values = space.complete(params)
    shape = (values["patch_size"], values["dim"], values["heads"], values["dim_head"])
    height, width = space.image_size
    reasons = [PATCH] if height % shape[0] or width % shape[0] else []
    if model_problem((1, 1), 1, *shape[1:]) is not None:
        reasons.append(HEADS)
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


def _home(reason: str) -> str:
    """Where in the file a reason comes from."""
    return {PATCH: "model.patch_size", HEADS: "model.heads", MEMORY: "model.dim"}.get(reason, "constraints")


def _usable(space: Space, size: int, share: float) -> int:
    if size > COUNTED:
        return round(size * share)
    return sum(space.problem(params) is None for params in space.grid())


def _duplicates(spec: SearchSpec, usable: int | None) -> float:
    """Of trials drawn evenly from so many combinations; a grid repeats none."""
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


def _bindings(space: Space, drawn: Sequence[LintDraw]) -> Iterator[Binding]:
    for limit in (*space.constraints, MEMORY):
        decided = [draw for draw in drawn if draw.cost is not None or limit in draw.reasons]
        free = [draw for draw in decided if not set(draw.reasons) - {limit}]
        excluded = sum(limit in draw.reasons for draw in decided) / max(1, len(decided))
        if excluded or limit != MEMORY:
            yield Binding(limit, excluded, sum(limit in draw.reasons for draw in free) / max(1, len(free)))


def _few(share: float, invalid: Mapping[str, int], draws: int) -> Iterator[LintFinding]:
    if share < 0.05:
        worst = next(iter(invalid))
        fact = f"only {share:.1%} of random proposals can be run; {invalid[worst] / draws:.0%} cannot since: {worst}"
        yield LintFinding("warning", _home(worst), f"{fact}. Tighten the ranges that it asks about.")


def _never(space: Space, drawn: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Values that are in no proposal that can be run, and choices of one."""
    for name, parameter in space.searched.items():
        size = parameter.size()
        if size == 1 and parameter.when is None:
            yield LintFinding("hint", path_of(name), f"one value only; write the plain value {_spelt(parameter.values()[0])}.")
        if size is None or size < 2 or size > len(drawn):
            continue
        tried, run = (Counter(draw.params[name] for draw in part if name in draw.params) for part in (drawn, _valid(drawn)))
        lost = [value for value in parameter.values() if tried[value] >= SEEN and not run[value]]
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
    return f"{value:g}" if isinstance(value, float) else str(value)


_PARTS = ("embedding_dropout", "attention_dropout", "projection_dropout", "mlp_dropout")
_WITHOUT_EFFECT: dict[str, tuple[Callable[[Mapping[str, Any]], bool], str, str]] = {
    "mlp_ratio": (lambda v: v["mlp_dim"] is not None, "mlp_dim stands in its place", "mlp_dim == none"),
    "dropout": (lambda v: all(v[part] is not None for part in _PARTS), "the four parts each say otherwise", "mlp_dropout == none"),
    "drop_path": (lambda v: v["depth"] == 1, "it is 0 in the first block, and there is no other", "depth > 1"),
    "pos_init_std": (
        lambda v: v["positions"] != "learned" and v["pool"] != "cls",
        "neither positions nor a class token are learned",
        "positions == 'learned'",
    ),
    "momentum": (lambda v: v["optimizer"] == "adamw", "adamw has no momentum of its own", "optimizer != 'adamw'"),
    "beta2": (lambda v: v["optimizer"] == "sgd", "sgd has no second moment", "optimizer != 'sgd'"),
    "rand_augment_ops": (lambda v: v["auto_augment"] != "rand_augment", "there is no rand_augment", "auto_augment == 'rand_augment'"),
    "rand_augment_magnitude": (lambda v: v["auto_augment"] != "rand_augment", "there is no rand_augment", "auto_augment == 'rand_augment'"),
}
"""When a parameter makes no difference, in words, and the condition under which it does."""
_GPU_ONLY = ("tf32", "compile", "cuda_graphs")


def _idle(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Parameters that are searched and make no difference."""
    for name in spec.space.searched:
        if name in _GPU_ONLY and not spec.resources.on_gpu:
            yield LintFinding("warning", path_of(name), "it makes no difference without a GPU; write a plain value.")
        if name not in _WITHOUT_EFFECT:
            continue
        idle, why, condition = _WITHOUT_EFFECT[name]
        active = [draw for draw in valid if name in draw.params]
        share = sum(idle(draw.values) for draw in active) / max(1, len(active))
        if share == 1 and active:
            yield LintFinding("warning", path_of(name), f"it makes no difference, since {why}; write a plain value.")
        elif share > 0:
            fact = f"in {share:.0%} of the proposals it makes no difference, since {why}"
            yield LintFinding("hint", path_of(name), f'{fact}; add when: "{condition}".')


def _conditions(space: Space, drawn: Sequence[LintDraw]) -> Iterator[LintFinding]:
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


def _loose(limits: Sequence[Binding], valid: int) -> Iterator[LintFinding]:
    """Limits that exclude nothing, or nothing that no other excludes."""
    for i, bound in enumerate(limits):
        if bound.limit == MEMORY:
            continue
        where = f"constraints.{i}"
        if not bound.excluded:
            yield LintFinding("hint", where, f"{bound.limit} never binds: no proposal breaks it; tighten it or drop it.")
        elif not bound.alone and valid:
            yield LintFinding("hint", where, f"{bound.limit} excludes nothing that something else does not exclude, too; drop it.")


def _repeats(spec: SearchSpec, usable: int | None, duplicates: float) -> Iterator[LintFinding]:
    if usable is None or not usable:
        return
    if spec.trials > usable:
        end = "the grid ends there" if spec.sampler == "grid" else "the rest repeat"
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


def _stopping(spec: SearchSpec) -> Iterator[LintFinding]:
    stopping, rule = spec.stopping, rule_of(spec, parts=())
    if not rule.stops:
        return
    if stopping.grace_epochs >= spec.epochs:
        fact = f"the first look is at epoch {stopping.grace_epochs} of {spec.epochs}, so no trial is ever stopped"
        yield LintFinding("warning", "stopping.grace_epochs", f"{fact}; lower it.")
    elif len(rule.looks) == 1 and stopping.grace_epochs * stopping.reduction_factor >= spec.epochs:
        fact = f"one rung only, at epoch {stopping.grace_epochs} of {spec.epochs}"
        least = stopping.grace_epochs == 1, stopping.reduction_factor == 2
        mend = {
            (False, False): "lower it or reduction_factor", (True, False): "lower reduction_factor", (False, True): "lower it",
            (True, True): "train for more epochs",
        }[least]  # fmt: skip
        yield LintFinding("hint", "stopping.grace_epochs", f"{fact}; for a second one {mend}.")
    if spec.trials <= rule.startup:
        needs = f"{stopping.kind} needs {rule.startup} trials to hold the next against, and trials is {spec.trials}"
        yield LintFinding("warning", "stopping.kind", f"{needs}; write asha.")
    if stopping.strata > 1 and spec.trials < 2 * stopping.strata * stopping.reduction_factor:
        fact = f"about {counted(round(spec.trials / stopping.strata), 'trial')} in each of {stopping.strata} groups part hardly at all"
        yield LintFinding("hint", "stopping.strata", f"{fact}; ask for fewer groups or more trials.")


def _few_images(spec: SearchSpec) -> Iterator[LintFinding]:
    """Too few images to tell trials apart."""
    try:
        images = images_of(spec.data_config)
    except DataError:
        return  # the folder is elsewhere, e.g. on the cluster that will run the search
    on_holdout = spec.train_on == "train+val"
    count, split = (images.holdout, "holdout") if on_holdout else (images.val, "validation")
    if count < LEAST_IMAGES:
        low, high = wilson(0.9 * count, count)
        interval = f"a 95 % interval of {low:.2f} to {high:.2f}, {high - low:.2f} wide"
        fact = f"{counted(count, f'{split} image')}: an accuracy of 0.90 on them has {interval}"
        own_split = not on_holdout and not _is_counted(spec) and open_source(spec.data_config).counts["val"]
        key = "data.holdout_fraction" if on_holdout else "data.val_fraction"
        where, mend = ("data.path", "add images to them") if own_split else (key, "raise it, or add images")
        yield LintFinding("warning", where, f"{fact}; {mend}.")


def _is_counted(spec: SearchSpec) -> bool:
    """Whether the number of images is known before the data set is on this machine."""
    return DATA_SETS[spec.data.name].labelled is not None


def _missing_classes(spec: SearchSpec) -> Iterator[LintFinding]:
    """Classes of a set that its own val or test has no image of."""
    if _is_counted(spec):
        return
    try:
        source = open_source(spec.data_config)
    except DataError:
        return  # as in `_few_images`
    for split, names in source.missing.items():
        which = "they are" if len(names) > 1 else "it is"
        fact = f"{split} has no image of {in_short(names)}, so nothing tells how well {which} recognised"
        yield LintFinding("warning", "data.path", f"{fact}; add images, or remove {split} to have it split off train.")


def _warm_up(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    longest = spec.epochs * max(draw.values["warmup_fraction"] for draw in valid)
    if spec.stopping.stops and spec.stopping.grace_epochs < longest and spec.stopping.grace_epochs < spec.epochs:
        fact = f"trials are stopped from epoch {spec.stopping.grace_epochs} on, while the learning rate climbs up to epoch {longest:g}"
        yield LintFinding("warning", "stopping.grace_epochs", f"{fact}; raise it, or lower training.warmup_fraction.")


def _together(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """What trials at once and whole epochs come to."""
    if spec.concurrency > spec.trials:
        yield LintFinding("hint", "concurrency", f"{spec.concurrency:,} at once, but only {counted(spec.trials, 'trial')}; lower it.")
    most, have = max(draw.cost.train_bytes for draw in valid if draw.cost is not None), memory_of_this_machine()
    if not spec.resources.on_gpu and most * spec.concurrency > have >= most:
        fact = f"{spec.concurrency:,} of the largest trials take {in_units(most * spec.concurrency)}, and this machine has {in_units(have)}"
        yield LintFinding("hint", "concurrency", f"{fact}; lower it, or run it where there is more.")
    if _is_counted(spec):
        train = images_of(spec.data_config).train
        share = sum(draw.values["batch_size"] > train for draw in valid) / len(valid)
        if share:
            fact = f"in {share:.0%} of the proposals an epoch of {counted(train, 'image')} is less than one batch"
            yield LintFinding("warning", "training.batch_size", f"{fact}; lower it.")


def _whole_gpus(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """GPUs that have room for more trials than they are given."""
    auto = spec.resources.gpus == "auto"
    if not spec.resources.on_gpu or (not auto and (spec.resources.devices or 0) < 1):
        return
    space, memory = spec.space, spec.resources.gpu_bytes or shares.USUAL_MEMORY
    steps = []
    for draw in valid:
        config = spec.trial_config(dict(draw.params), in_channels=space.in_channels, num_classes=space.num_classes, trial=0)
        steps.append(shares.share_of(shares.Need(shares.training_bytes(config.model, config.training), 0), memory) or 1.0)
    places = int(1 / sorted(steps)[len(steps) // 2])
    fact = f"half of the proposals need at most 1/{places} of the memory of a GPU that has {in_units(memory)}"
    if places >= 4 and not auto:  # what fills half of the memory keeps a GPU busy, too
        yield LintFinding("hint", "resources.gpus", f"{fact}, and hold a whole one; write auto, and small ones train beside each other.")
    elif auto and spec.concurrency < places:
        yield LintFinding("hint", "concurrency", f"{spec.concurrency} at once, but {fact}; up to {places} for each GPU find a place.")


def _scales(space: Space) -> Iterator[LintFinding]:
    for name, parameter in space.searched.items():
        if not isinstance(parameter, FloatRange) or parameter.log or parameter.step is not None:
            continue
        low, high = parameter.range
        if low > 0 and high / low >= (10 if name == "lr" else 100):
            below = max(0.0, (high / 10 - low) / (high - low))
            fact = f"{low:g} to {high:g} spans {math.log10(high / low):.1f} decades, and {below:.0%} of it lies below {high / 10:g}"
            yield LintFinding("hint", path_of(name), f"{fact}; add log: true.")
