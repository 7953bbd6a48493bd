"""The search space: it draws proposals, adds the values that a proposal leaves out, and says why a proposal cannot be run.

A parameter whose condition does not hold is inactive: a proposal has no value for it. It gets the value of its `else`, or the config's
default. Conditions and constraints use this value, so every expression can always be evaluated.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any

from vit_search.config import expressions, features, gpu_share, tuning
from vit_search.config.cost import Cost, cost_of, in_units
from vit_search.config.distributions import Choice, Distribution, FloatRange, IntRange, Value, ValueSource, is_rounding_error
from vit_search.config.expressions import Expression
from vit_search.config.knobs import hashed
from vit_search.config.model_config import FROM_DATA, ModelConfig, model_problem
from vit_search.config.training_config import TrainingConfig
from vit_search.config.tuning import Tuning
from vit_search.config.weight_sources import parse
from vit_search.errors import SpecError

CALCULATED = ("params", "flops", "train_flops", "train_memory", "tokens")
"""What a constraint may use from the cost model: exact parameters, FLOPs to classify one image, FLOPs of its forward and backward pass,
bytes to train with one micro-batch, and tokens of the encoder."""

FROM_FILE = ("epochs", "image_height", "image_width")
"""What a constraint may use from the search file."""

_DEFAULTS = {f.name: f.default for config in (ModelConfig, TrainingConfig) for f in fields(config)}
_MODEL = tuple(f.name for f in fields(ModelConfig) if f.name not in FROM_DATA)
_COST = (*_MODEL, "batch_size", "accumulation", "optimizer", *tuning.FIELDS)
"""What `_cost` asks for."""
_MEMORY = ("batch_size", "accumulation", "optimizer", "precision", "ema_decay", "cuda_graphs", *tuning.FIELDS, *features.FIELDS)
"""What of the training decides how much memory it takes of a GPU."""


def path_of(name: str) -> str:
    """The path of a parameter in the search file: `model.dim` for dim."""
    return f"{'model' if name in _MODEL else 'training'}.{name}"


@dataclass(frozen=True)
class Space:
    """All parameters of a search by name, for images of a known size."""

    parameters: Mapping[str, Distribution | Value]
    image_size: tuple[int, int]
    in_channels: int
    num_classes: int
    memory_limit: int
    """Bytes that one trial may use. A proposal that is predicted to need more is never run."""
    constraints: tuple[str, ...] = ()
    """Expressions that must hold for a proposal to be run."""
    epochs: int = 1
    """Length of a full training."""
    gpu_memory: int = 0
    """Bytes of the GPU that a trial must fit into; replaces memory_limit. 0 if unknown."""

    @cached_property
    def searched(self) -> dict[str, Distribution]:
        """The parameters that have a distribution."""
        return {name: p for name, p in self.parameters.items() if isinstance(p, (Choice, IntRange, FloatRange))}

    @property
    def conditional(self) -> bool:
        """Whether a parameter is searched only under a condition."""
        return bool(self.conditions)

    def suggest(self, trial: ValueSource) -> dict[str, Value]:
        """Ask an Optuna trial for every active parameter, in the file's order, but after those that decide whether it is active.

        Returns: only the active parameters; `complete` adds the others.
        """
        return self._decided(lambda name, parameter: parameter.ask(trial, name))[0]

    def draw(self, rng: random.Random, given: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """Draw a random proposal. It has only the active parameters.

        Args:
            given: values that are not drawn.
        """
        given = given or {}
        return self._decided(lambda name, parameter: given[name] if name in given else parameter.draw(rng))[0]

    def complete(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """Add the fixed and the inactive parameters to a proposal."""
        values = self._decided(lambda name, parameter: params.get(name, parameter))[1]  # type: ignore[arg-type]
        return {name: values[name] for name in self.parameters} | {name: v for name, v in params.items() if name not in self.parameters}

    def pinned(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Add the sha256 that the search has pinned to a `pretrained` that lacks it."""
        given = params.get("pretrained")
        pins = {parse(source).unpinned: source for source in self.possible_values("pretrained") if source} if given else {}
        return {**params, "pretrained": pins[given]} if isinstance(given, str) and given in pins else dict(params)

    def trained(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """The searched parameters as a trial is trained with them: the proposal, and the values of inactive parameters."""
        values = self.complete(params)
        return {**{name: values[name] for name in self.searched}, **params}

    def misfit(self, params: Mapping[str, Value]) -> str:
        """Why no trial of this space can have these parameters, with the parameter's name first; empty if one can."""
        for name, value in params.items():
            if name not in self.searched:
                return f"{name!r:.60} is not searched"
            fault = self.searched[name].fault(value)
            if fault and not (isinstance(self.searched[name], FloatRange) and is_rounding_error(self.searched[name], value)):
                return f"{name}: {fault}"
        missing = [name for name, value in self.complete(params).items() if isinstance(value, (Choice, IntRange, FloatRange))]
        return f"{missing[0]} is missing" if missing else ""

    def problem(self, params: Mapping[str, Value]) -> str | None:
        """Why a proposal cannot be run, or None. A proposal that cannot be run is never trained."""
        return self.problem_so_far(self.complete(params))

    def cost(self, params: Mapping[str, Value]) -> Cost:
        """The cost of a proposal, trained with micro-batches of its own size.

        Raises: SpecError if it is not a valid ViT.
        """
        return self._cost(self.complete(params))

    def too_large(self, values: Mapping[str, Any], cost: Cost) -> str | None:
        """Why a training is predicted not to fit into memory, or None.

        Args:
            values: as `complete` returns them.
            cost: their cost.
        """
        if not self.gpu_memory:
            if cost.train_bytes <= self.memory_limit:
                return None
            return f"training would take about {in_units(cost.train_bytes)}, and a trial has {in_units(self.memory_limit)}."
        training = {name: values[name] for name in _MEMORY if name in values}  # a missing value counts as its default, which needs least
        need, room = (
            gpu_share.training_bytes(self._model(values), TrainingConfig(epochs=1, **training)),
            gpu_share.allowed(1.0, self.gpu_memory),
        )
        if need <= room:
            return None
        return f"training would take about {in_units(need)} of a GPU, and a whole one has {in_units(room)} beside its context."

    def feasible_share(self, draws: int = 2000) -> float:
        """Share of random proposals that can be run. The draws have a fixed seed."""
        rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
        return sum(self.problem(self.draw(rng)) is None for _ in range(draws)) / draws

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination of the active parameters, each once. Some may not be runnable, see `problem`.

        Raises: SpecError that names a float range without steps.
        """
        for name, parameter in self.searched.items():
            if parameter.size() is None:
                raise SpecError(f"{path_of(name)}: a grid cannot try every number of a range; give a step or a choice.")
        return (dict(active) for active, _ in self._combinations(self.order))

    def grid_size(self, most: int = 100_000) -> int | None:
        """Number of combinations that `grid` gives; None if a float range has no steps.

        Also None if the parameters that conditions use have more than `most` combinations, since these must be counted one by one.
        """
        sizes = {name: parameter.size() for name, parameter in self.searched.items()}
        deciding = {name for condition in self.conditions.values() for name in condition.names}
        total = 0
        for i, (_, values) in enumerate(self._combinations([name for name in self.order if name in deciding])):
            if i >= most:
                return None
            count = 1
            for name, size in sizes.items():
                if size is None:
                    return None
                count *= size if name not in deciding and self._is_active(name, values) else 1
            total += count
        return total

    @cached_property
    def space_hash(self) -> str:
        """SHA-256, in hex, of parameters, conditions, constraints, image size, channels and classes. Equal spaces have equal hashes."""
        parameters: dict[str, Any] = dict(self.parameters)
        for name, parameter in self.searched.items():
            parameters[name] = parameter.model_dump(by_alias=True, exclude={"when", "otherwise"})
            if name in self.conditions:
                parameters[name] |= {"when": self.conditions[name].spelling, "else": self.fallback(name)}
        space = {
            "parameters": hashed(ModelConfig, hashed(TrainingConfig, parameters)),
            "constraints": sorted({rule.spelling for rule in self.rules}),
            "image_size": self.image_size,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
        }
        return hashlib.sha256(json.dumps(space, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @cached_property
    def conditions(self) -> dict[str, Expression]:
        """Conditions by the name of the parameter that has one."""
        conditions: dict[str, Expression] = {}
        for name, parameter in self.searched.items():
            if parameter.when is None:
                continue
            try:
                conditions[name] = expressions.parse_condition(parameter.when, (*self.parameters, *CALCULATED, *FROM_FILE))
            except SpecError as error:
                raise SpecError(f"{path_of(name)}.when: {error}") from None
            for other in conditions[name].names:
                if other == name:
                    raise SpecError(f"{path_of(name)}.when: it asks for {name} itself; name other parameters.")
                if other not in self.parameters:
                    raise SpecError(
                        f"{path_of(name)}.when: {other} is no parameter, and conditions ask for parameters alone; use it in constraints."
                    )
        return conditions

    @cached_property
    def rules(self) -> tuple[Expression, ...]:
        """The constraints, parsed."""
        rules = []
        for i, text in enumerate(self.constraints):
            try:
                rules.append(expressions.parse_condition(text, (*self.parameters, *CALCULATED, *FROM_FILE)))
            except SpecError as error:
                raise SpecError(f"constraints.{i}: {error}") from None
        return tuple(rules)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The searched parameters in the file's order, but each after those that its condition uses."""
        order: dict[str, None] = {}

        def visit(name: str, waiting: tuple[str, ...]) -> None:
            if name in waiting:
                circle = " waits for ".join((*waiting[waiting.index(name) :], name))
                raise SpecError(f"{path_of(name)}.when: {circle}; drop one of these conditions.")
            for other in self.conditions[name].names if name in self.conditions else ():
                if other in self.searched and other not in order:
                    visit(other, (*waiting, name))
            order[name] = None

        for name in self.searched:
            if name not in order:
                visit(name, ())
        return tuple(order)

    def fallback(self, name: str) -> Any:
        """The value of a parameter while it is inactive."""
        parameter = self.searched[name]
        if "otherwise" not in parameter.model_fields_set:
            return _DEFAULTS.get(name)
        real = isinstance(parameter, FloatRange) or (isinstance(parameter, Choice) and any(isinstance(v, float) for v in parameter.choice))
        return float(parameter.otherwise) if real and type(parameter.otherwise) is int else parameter.otherwise

    def _is_active(self, name: str, values: Mapping[str, Any]) -> bool:
        condition = self.conditions.get(name)
        return condition is None or condition.holds(values)

    def _decided(self, pick: Callable[[str, Distribution], Value]) -> tuple[dict[str, Value], dict[str, Any]]:
        """Choose a value for each parameter with `pick`. Returns (the active ones, all)."""
        active: dict[str, Value] = {}
        values: dict[str, Any] = dict(self.parameters)
        for name in self.order:
            if self._is_active(name, values):
                values[name] = active[name] = pick(name, self.searched[name])
            else:
                values[name] = self.fallback(name)
        return active, values

    def _combinations(self, names: Sequence[str]) -> Iterator[tuple[dict[str, Value], dict[str, Any]]]:
        """Every combination of some parameters, in the order of `names`: (the active ones, the same with all fixed and inactive values).

        Both mappings are changed in place from one combination to the next.
        """
        active: dict[str, Value] = {}
        values: dict[str, Any] = dict(self.parameters)

        def below(i: int) -> Iterator[tuple[dict[str, Value], dict[str, Any]]]:
            if i == len(names):
                yield active, values
            elif self._is_active(names[i], values):
                for value in self.searched[names[i]].values():
                    values[names[i]] = active[names[i]] = value
                    yield from below(i + 1)
                del active[names[i]]
            else:
                values[names[i]] = self.fallback(names[i])
                yield from below(i + 1)

        return below(0)

    def problem_so_far(self, values: Mapping[str, Any]) -> str | None:
        """Why values cannot be run, as far as they are known, or None."""
        shape = [values.get(name, MISSING) for name in ("patch_size", "dim", "heads", "dim_head")]
        others = {name: values[name] for name in ("positions", "qk_norm") if name in values}
        problem = None if MISSING in shape else model_problem(self.image_size, *shape, **others)
        if problem is None and all(name in values for name in (*tuning.FIELDS, "depth", "dim")):
            problem = tuning.tuning_problem(Tuning.of(values), values["depth"], values["dim"])
        if problem is not None:
            return problem
        scope: dict[str, Any] = {**values, "epochs": self.epochs, "image_height": self.image_size[0], "image_width": self.image_size[1]}
        shown: dict[str, str] = {}
        if all(name in values for name in _COST):
            cost = self._cost(values)
            problem = self.too_large(values, cost)
            if problem is not None:
                return problem
            figures = (cost.params, cost.forward_flops, cost.train_flops, cost.train_bytes, cost.tokens)
            scope |= dict(zip(CALCULATED, figures, strict=True))
            shown["train_memory"] = in_units(cost.train_bytes)
        for rule in self.rules:
            if all(name in scope for name in rule.names):
                why = rule.failure(scope, shown)
                if why is not None:
                    return f"{why}."
        return None

    def _cost(self, values: Mapping[str, Any]) -> Cost:
        micro = math.ceil(values["batch_size"] / values["accumulation"])
        return cost_of(self._model(values), micro, values["optimizer"], Tuning.of(values))

    def _model(self, values: Mapping[str, Any]) -> ModelConfig:
        model = {name: values[name] for name in _MODEL if name in values}
        shape: dict[str, Any] = {"image_size": self.image_size, "in_channels": self.in_channels, "num_classes": self.num_classes}
        return ModelConfig(**shape, **model)

    def model(self, params: Mapping[str, Value]) -> ModelConfig:
        """The model of a proposal.

        Raises: SpecError if it is not a valid ViT.
        """
        return self._model(self.complete(params))

    def possible_values(self, name: str) -> list[Any]:
        """Every value that a parameter can take. It must not be a range of numbers without steps."""
        parameter = self.parameters[name]
        if not isinstance(parameter, (Choice, IntRange, FloatRange)):
            return [parameter]
        return [*parameter.values(), *([self.fallback(name)] if parameter.when is not None else [])]
