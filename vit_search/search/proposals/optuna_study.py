"""The history of a search as an Optuna study, for Optuna's samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from vit_search.config.space import Space
from vit_search.search.proposals.history import Past, Shown


class StudyView:
    """Makes Optuna studies of what a sampler sees. A trial that has not changed is not created again.

    Args:
        distributions: the searched parameters in Optuna's terms.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self._distributions = distributions
        self._frozen: dict[int, tuple[tuple[TrialState, list[float] | None, bool], FrozenTrial]] = {}

    def of(self, view: Sequence[Shown], modes: Sequence[str], *, infeasible: bool = True) -> optuna.Study:
        """A study of History.view.

        Args:
            infeasible: whether to show infeasible proposals.
        """
        study = optuna.create_study(directions=[_direction(mode) for mode in modes])
        shown = [(past, state, values) for past, state, values in view if infeasible or state != TrialState.PRUNED]
        constrained = any(past.state == "infeasible" for past, _, _ in shown)
        for past, state, values in shown:
            study.add_trial(self._light(past, state, values, constrained))
        return study

    def _light(self, past: Past, state: TrialState, values: list[float] | None, constrained: bool) -> FrozenTrial:
        key = (state, values, constrained)
        kept = self._frozen.get(id(past))
        if kept is None or kept[0] != key:
            trial = _frozen(past, self._distributions, state, values, constrained=constrained)
            trial.__class__ = _LightTrial
            kept = self._frozen[id(past)] = (key, trial)
        return kept[1]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The searched parameters in Optuna's terms."""
    noted = _Distributions()
    for name, parameter in space.searched.items():
        parameter.ask(noted, name)
    return noted.distributions


def _frozen(
    past: Past,
    distributions: Mapping[str, BaseDistribution],
    state: TrialState,
    values: list[float] | None,
    intermediate: dict[int, float] | None = None,
    constrained: bool = True,
) -> FrozenTrial:
    return create_trial(
        state=state,
        values=values,
        params=dict(past.params),
        distributions={name: distributions[name] for name in past.params},
        intermediate_values=intermediate,
        system_attrs=dict(past.attributes),
        constraints={"buildable": 1.0 if past.state == "infeasible" else -1.0} if constrained else None,
    )


def _direction(mode: str) -> StudyDirection:
    return StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE


class _Distributions:
    """Records the distributions of a space instead of asking for values."""

    def __init__(self) -> None:
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any:
        self.distributions[name] = CategoricalDistribution(choices)

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int, log: bool) -> int:
        self.distributions[name] = IntDistribution(low, high, log=log, step=step)
        return low

    def suggest_float(self, name: str, low: float, high: float, /, *, step: float | None, log: bool) -> float:
        self.distributions[name] = FloatDistribution(low, high, log=log, step=step)
        return low


class _LightTrial(FrozenTrial):
    """A trial that Optuna's storage accepts without a deep copy, which costs more than everything else in a proposal."""

    def __deepcopy__(self, memo: Any) -> FrozenTrial:
        made = _LightTrial.__new__(_LightTrial)
        made.__dict__.update(self.__dict__)
        return made


class JointTPESampler(optuna.samplers.TPESampler):
    """TPE over a space that is the same in all trials. Optuna would compute the common space again from all trials at each proposal."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._joint = {name: distribution for name, distribution in sorted(distributions.items()) if not distribution.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters, if any trial is known."""
        return dict(self._joint) if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)) else {}
