"""Reject a search space in which nothing can run, and a point to start with that no trial could propose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from vit_search.config.class_weights import WORDS
from vit_search.config.cost import cost_of, in_units
from vit_search.config.distributions import spelling
from vit_search.config.expressions import Expression
from vit_search.config.model_config import ModelConfig, model_problem
from vit_search.config.sections import PARAMETER_TYPES
from vit_search.config.space import Space, path_of
from vit_search.config.tuning import Tuning, tuning_problem
from vit_search.errors import SpecError
from vit_search.text import counted, nearest

_SIZES = ("patch_size", "dim", "depth", "mlp_ratio", "mlp_dim", "batch_size")
"""Parameters that decide how much memory a training needs."""


def check_space(space: Space) -> None:
    """Reject invalid expressions, and a space in which no model can be built or none fits into memory.

    Raises: SpecError that names the parameter at fault.
    """
    check_expressions(space)
    patches = space.possible_values("patch_size")
    height, width = space.image_size
    if not any(height % patch == 0 and width % patch == 0 for patch in patches):
        common = math.gcd(height, width)
        divisors = ", ".join(str(d) for d in range(1, common + 1) if common % d == 0)
        raise SpecError(
            f"model.patch_size: 0 of {counted(len(patches), 'value')} divide the image of {height}x{width} pixels; choose from {divisors}."
        )
    heads, dims = space.possible_values("heads"), space.possible_values("dim")
    if None in space.possible_values("dim_head") and not any(dim % head == 0 for head in heads for dim in dims):
        divisors = ", ".join(str(d) for d in range(1, min(dims[0], 64) + 1) if dims[0] % d == 0)
        raise SpecError(
            f"model.heads: 0 of {counted(len(heads) * len(dims), 'pair')} of heads and dim fit, since heads must divide dim; "
            f"for dim={dims[0]} choose from {divisors}."
        )
    _check_head_width(space)
    _check_tuning(space)
    _check_memory(space)


def check_expressions(space: Space) -> None:
    """Reject conditions and constraints that are not valid.

    Raises: SpecError that names the parameter at fault.
    """
    for name in space.order:
        if name in space.conditions:
            _check_kinds(space, f"{path_of(name)}.when", space.conditions[name])
    for i, rule in enumerate(space.rules):
        _check_kinds(space, f"constraints.{i}", rule)


def _check_head_width(space: Space) -> None:
    """Reject a space in which no width of a head suits positions and qk_norm."""
    problem = None
    for values in itertools.product(*(space.possible_values(name) for name in ("dim", "heads", "dim_head", "positions", "qk_norm"))):
        problem = model_problem((1, 1), 1, *values[:3], positions=values[3], qk_norm=values[4])
        if problem is None:
            return
    raise SpecError(f"model.{problem}")


def _check_tuning(space: Space) -> None:
    """Reject a space in which the largest model is too small for every way of tuning."""
    depth, dim = (max(space.possible_values(name)) for name in ("depth", "dim"))
    blocks, rank = (min(space.possible_values(name)) for name in ("tuned_blocks", "lora_rank"))
    problems = [tuning_problem(Tuning(tune, blocks, rank), depth, dim) for tune in space.possible_values("tune")]
    if all(problems):
        raise SpecError(f"training.{problems[0]}")


def check_point(space: Space, point: Mapping[str, Any], where: str) -> None:
    """Reject a point to start with that no trial could propose.

    The sampler adds later what the point leaves out. So a constraint is checked only if all values that it uses are known.

    Args:
        where: the point's path in the search file, for the message.
    Raises: SpecError.
    """
    if not point:
        raise SpecError(f"{where}: names no parameter; give at least one, or leave the point out.")
    for name, value in point.items():
        if name not in space.searched:
            if name in space.parameters:
                fixed = spelling(space.parameters[name])
                raise SpecError(f"{where}.{name}: the file fixes it at {fixed}; drop it, or give it a distribution.")
            at, fact = (f".{name}", "unknown parameter") if name.isidentifier() else ("", f"unknown parameter {spelling(name)}")
            raise SpecError(f"{where}{at}: {fact}; {nearest(name, list(space.searched)) if space.searched else 'none is searched.'}")
        fault = space.searched[name].fault(value)
        if fault:
            raise SpecError(f"{where}.{name}: {fault}.")
    values: dict[str, Any] = {name: p for name, p in space.parameters.items() if name not in space.searched}
    for name in space.order:
        condition = space.conditions.get(name)
        if condition is not None and not all(other in values for other in condition.names):
            continue
        why = condition.failure(values) if condition is not None else None
        if why is not None:
            if name in point:
                raise SpecError(f"{where}.{name}: is not searched here, since {why}; drop it.")
            values[name] = space.fallback(name)
        elif name in point:
            values[name] = point[name]
    problem = space.problem_so_far(values)
    if problem:
        raise SpecError(f"{where}: cannot be run: {problem.rstrip('.')}; change it or leave it out.")


def _check_kinds(space: Space, where: str, expression: Expression) -> None:
    """Reject a comparison with a text that the parameter never has, and a name used as true or false that has other values."""
    for name, text in expression.texts:
        kind = PARAMETER_TYPES.get(name)
        allowed = WORDS if name == "class_weights" else get_args(kind) if get_origin(kind) is Literal else ()
        if name == "pretrained":
            allowed = tuple(space.possible_values(name))
        if text not in allowed:
            mend = (
                nearest(text, [word or "''" for word in allowed])
                if allowed
                else f"compare it with {'true or false' if kind is bool else 'a number'}."
            )
            raise SpecError(f"{where}: {name} is never {spelling(text)}; {mend}")
    for name in expression.alone:
        if PARAMETER_TYPES.get(name) is not bool:
            raise SpecError(f"{where}: {name} stands alone, and is not true or false; compare it with something.")


def _check_memory(space: Space) -> None:
    """Reject a space whose smallest model does not fit into memory. Patches as large as the image give the fewest tokens."""
    plain: dict[str, Any] = {name: p for name, p in space.parameters.items() if name not in space.searched}
    for name, parameter in space.searched.items():
        ends = [*parameter.ends(), *([space.fallback(name)] if parameter.when is not None else [])]
        plain[name] = min(ends, key=lambda v: (v is not None, v)) if name in _SIZES else None
    plain["patch_size"] = max(
        p for p in space.possible_values("patch_size") if space.image_size[0] % p == 0 and space.image_size[1] % p == 0
    )
    parts = max(space.possible_values("accumulation"))
    model = {f.name: plain[f.name] for f in fields(ModelConfig) if f.name in _SIZES}
    model |= {"heads": 1, "dim_head": None, "pool": "mean"}  # the least that heads can cost
    shape: dict[str, Any] = {"image_size": space.image_size, "in_channels": space.in_channels, "num_classes": space.num_classes}
    smallest, batch = ModelConfig(**shape, **model), math.ceil(plain["batch_size"] / parts)
    ways = itertools.product(space.possible_values("optimizer"), space.possible_values("tune"))
    need = min(cost_of(smallest, batch, optimizer, Tuning(tune, lora_rank=1)).train_bytes for optimizer, tune in ways)
    if need > space.memory_limit:
        raise SpecError(
            f"model.dim: even the smallest model of this space takes about {in_units(need)} to train, "
            f"and a trial has {in_units(space.memory_limit)}; lower dim, depth or batch_size."
        )
