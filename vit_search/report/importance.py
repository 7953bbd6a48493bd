"""Which parameters decide whether a trial is among the best, and how uncertain that is with few trials."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from vit_search.config.distributions import Choice, Distribution, IntRange, Value
from vit_search.config.space import Space
from vit_search.planning.next_search_file import GOOD_SHARE

FEWEST = 25
"""Minimum number of trials with a parameter. Its best fifth is then five. With four, chance alone gave a share of 58 %."""

MOST = 250
"""Maximum number of trials used, a random sample if there are more. More would not make the result more certain."""

RESAMPLES = 20
"""Number of resamples of the trials, with replacement."""


@dataclass(frozen=True)
class Importance:
    """One parameter's share of what distinguishes the best trials from the others."""

    parameter: str
    share: float
    """All shares together make 1. It is 0 if the parameter separates the trials no better than chance."""
    interval: tuple[float, float]
    """Range that contains 90 % of the resamples."""
    trials: int
    """Number of trials with the parameter: fewer than all if it has a condition."""


def importances(space: Space, standing: Sequence[Mapping[str, Value]], seed: int = 0) -> list[Importance]:
    """The importance of each parameter, highest first; empty if there are too few trials.

    The method is PED-ANOVA: how does the best fifth of the trials differ from all? The next search file is made from the same fifth.

    - It needs only the order of the trials. So stopped trials count, and values of different epochs are not compared.
    - It compares with what was tried, not with the whole space. So a sampler's preferences do not count as importance.
    - It looks at one parameter at a time. So a parameter with a condition is judged among the trials that have it. Joint effects of
      several parameters are not seen.
    - It takes milliseconds. The forests of fANOVA take seconds for each resample.

    Few trials differ by chance, the more so the fewer they are. So the result for shuffled ranks is subtracted.

    Args:
        space: of the search.
        standing: parameters of its trials, best first; diverged ones are among the last.
        seed: of the random draws.
    Source: S. Watanabe et al. 2023, https://arxiv.org/abs/2304.10255
    """
    rng = random.Random(seed)  # noqa: S311 -- draws trials, not secrets
    scored = [(params, float(-rank)) for rank, params in enumerate(standing)]
    if len(scored) > MOST:
        scored = rng.sample(scored, MOST)
    distributions = {name: _in_optunas_terms(parameter) for name, parameter in space.searched.items()}
    groups: dict[frozenset[int], list[str]] = {}
    for name in distributions:
        active = frozenset(i for i, (params, _) in enumerate(scored) if name in params)
        if len(active) >= FEWEST:
            groups.setdefault(active, []).append(name)
    parts = [([_frozen(*scored[i], distributions) for i in sorted(active)], names) for active, names in groups.items()]
    drawn = [[(rng.choices(trials, k=len(trials)), names) for trials, names in parts] for _ in range(RESAMPLES)]
    by_chance = _means([_raw(_shuffled(parts, rng)) for _ in range(RESAMPLES)])
    by_chance_drawn = _means([_raw(_shuffled(resample, rng)) for resample in drawn])
    whole = _shares(_raw(parts), by_chance)
    if not whole:
        return []
    again = [_shares(_raw(resample), by_chance_drawn) for resample in drawn]
    ranking = []
    for trials, names in parts:
        for name in names:
            spread = sorted(shares[name] for shares in again if shares)
            tail = len(spread) // 20
            low, high = (spread[tail], spread[-1 - tail]) if spread else (0.0, 1.0)
            ranking.append(Importance(name, whole[name], (min(low, whole[name]), max(high, whole[name])), len(trials)))
    return sorted(ranking, key=lambda one: -one.share)


Parts = Sequence[tuple[list[FrozenTrial], list[str]]]
"""Groups of trials, and the parameters that they have."""


def _raw(parts: Parts) -> dict[str, float]:
    """How much the best trials of each parameter differ from all, not normalized."""
    evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD_SHARE)
    raw: dict[str, float] = {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it prints that it made a study
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is experimental
        for trials, names in parts:
            study = optuna.create_study(direction="maximize")
            study.add_trials(trials)
            raw |= {name: float(value) for name, value in evaluator.evaluate(study, params=names).items()}
    optuna.logging.set_verbosity(before)
    return raw


def _shuffled(parts: Parts, rng: random.Random) -> Parts:
    """The same trials with shuffled ranks."""
    dealt = []
    for trials, names in parts:
        places = rng.sample([trial.value for trial in trials], len(trials))
        dealt.append(
            ([create_trial(params=t.params, distributions=t.distributions, value=v) for t, v in zip(trials, places, strict=True)], names)
        )
    return dealt


def _means(many: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(one[name] for one in many) for name in many[0]}


def _shares(raw: Mapping[str, float], by_chance: Mapping[str, float]) -> dict[str, float]:
    """Shares of what exceeds chance, with the sum 1; empty if nothing does."""
    over = {name: max(0.0, value - by_chance[name]) for name, value in raw.items()}
    total = sum(over.values())
    return {name: value / total for name, value in over.items()} if total > 0 else {}


def _frozen(params: Mapping[str, Value], value: float, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    ours = {name: v for name, v in params.items() if name in distributions}
    return create_trial(params=ours, distributions={name: distributions[name] for name in ours}, value=value)


def _in_optunas_terms(parameter: Distribution) -> BaseDistribution:
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.choice)
    if isinstance(parameter, IntRange):
        return IntDistribution(*parameter.range, step=parameter.step, log=parameter.log)
    return FloatDistribution(*parameter.range, step=parameter.step, log=parameter.log)
