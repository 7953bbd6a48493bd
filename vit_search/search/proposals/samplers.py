"""Samplers: each makes one proposal from what is known. To add one, write a function and add a line to SAMPLERS.

A proposal depends only on the history, the seed and its own index; each proposal gets a fresh random generator. So a resumed search
proposes what the interrupted one would have proposed.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from vit_search.config import samplers
from vit_search.config.distributions import Value, ValueSource
from vit_search.config.space import Space
from vit_search.config.tables import check_tables
from vit_search.config.value_sources import AtQuantiles, AtRandom, FromPoint
from vit_search.search.proposals import curves, gaussian
from vit_search.search.proposals.history import ENOUGH, Goal, History, Params, params_key
from vit_search.search.proposals.optuna_study import JointTPESampler, StudyView


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything that one proposal depends on."""

    space: Space
    history: History
    shown: int
    model: str
    """What the Gaussian process models; a key of MODELS."""
    modes: Sequence[str]
    """"min" or "max" of the first metric and of each of `goals`."""
    goals: Sequence[Goal]
    study: StudyView
    distributions: Mapping[str, BaseDistribution]
    tried: Set[tuple[tuple[str, Value], ...]]
    """All proposals so far."""
    partial: bool
    """Whether trials of earlier searches that the sampler sees lack some of the parameters."""
    fixed: Mapping[str, Value]
    """Parameters that are already fixed. The sampler fills in the others."""
    index: int
    """The proposal's index, from 0."""
    draw: int
    """How often this proposal was asked for before, because the answers repeated earlier proposals."""
    search_seed: int
    seed: int
    rng: random.Random

    def suggest(self, asks: ValueSource) -> Params:
        """The parameters: those that are fixed, and the others from `asks`."""
        return self.space.suggest(FromPoint(self.fixed, asks) if self.fixed else asks)

    def suits(self, params: Mapping[str, Value]) -> bool:
        """Whether a point is new and feasible."""
        return params_key(params) not in self.tried and self.space.problem(params) is None


@dataclass(frozen=True)
class Proposal:
    """A sampler's answer."""

    params: Params
    attributes: Mapping[str, Any]
    """State that the sampler stores with this trial."""


Sampler = Callable[[Question], Proposal]


def draw_at_random(question: Question) -> Proposal:
    """Draw each parameter independently."""
    return Proposal(question.suggest(AtRandom(question.rng)), {})


def sobol(question: Question) -> Proposal:
    """The next point of a scrambled Sobol sequence, which covers the space evenly. If it is asked for again, it is random."""
    from scipy.stats import qmc  # type: ignore[import-untyped]  # slow to import, and rarely used

    if question.draw:
        return draw_at_random(question)
    engine = qmc.Sobol(max(1, len(question.distributions)), scramble=True, rng=question.search_seed)
    if question.index:
        engine.fast_forward(question.index)
    quantiles = dict(zip(question.distributions, map(float, engine.random(1)[0]), strict=False))
    return Proposal(question.suggest(AtQuantiles(quantiles)), {})


def gp(question: Question) -> Proposal:
    """The most promising new and feasible point by our Gaussian process. Random while there are fewer than ENOUGH observations."""
    return MODELS[question.model if len(question.modes) == 1 else "rung"](question)


def rung(question: Question) -> Proposal:
    """By a process over the values at one level, that of `History.view`."""
    view = question.history.view(question.shown)
    observed = [(past.params, values) for past, state, values in view if state == TrialState.COMPLETE and values]
    if len(observed) < ENOUGH or not question.space.searched:
        return draw_at_random(question)
    running = [past.params for past, state, _ in view if state == TrialState.RUNNING]
    scores = scalar([values for _, values in observed], question.modes, question.rng)
    points = [params for params, _ in observed]
    best = gaussian.propose(question.space, points, scores, running, question.rng, question.suits, question.fixed)
    return Proposal(best, {}) if best is not None else draw_at_random(question)


def joint(question: Question) -> Proposal:
    """By a process over the learning curves that `History.curves` shows. It proposes for the full length. One objective only."""
    trials = question.history.curves(question.shown)
    if sum(bool(trial.values) for trial in trials) < ENOUGH or not question.space.searched:
        return draw_at_random(question)
    seen = curves.Curves(trials, question.history.levels, question.modes[0])
    best = curves.propose(question.space, seen, question.rng, question.suits, question.fixed)
    return Proposal(best, {}) if best is not None else draw_at_random(question)


def tpe(question: Question) -> Proposal:
    """Optuna's tree-structured Parzen estimator. Random while there are fewer than ENOUGH observations."""
    if question.history.observations < ENOUGH:
        return draw_at_random(question)
    options: dict[str, Any] = {"seed": question.seed, "multivariate": True, "n_startup_trials": ENOUGH, "constant_liar": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
        if question.space.conditional or question.partial:
            sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(**options, group=True)
        else:
            sampler = JointTPESampler(question.distributions, **options)
    return _ask_optuna(question, sampler)


def cmaes(question: Question) -> Proposal:
    """Optuna's CMA-ES, which keeps its state in its trials' attributes."""
    return _ask_optuna(question, optuna.samplers.CmaEsSampler(seed=question.seed, n_startup_trials=ENOUGH), infeasible=False)


def auto(question: Question) -> Proposal:
    """The sampler that had the least regret in docs/results/search-quality.md, of those that suit the search."""
    return SAMPLERS[chosen(question)](question)


def chosen(question: Question) -> str:
    """The name of the sampler that `auto` uses.

    It is our Gaussian process while it can see all observations, and TPE beyond. It is also TPE where the Gaussian process was not
    measured: with conditions, several objectives, or trials of earlier searches that lack some parameters.
    """
    suits = not (question.space.conditional or question.goals or question.partial)
    return "gp" if suits and question.history.observations <= question.shown else "tpe"


SAMPLERS: dict[str, Sampler] = {
    "auto": auto,
    "gp": gp,
    "tpe": tpe,
    "cmaes": cmaes,
    "random": draw_at_random,
    "qmc": sobol,
    "grid": draw_at_random,  # fills in the open parameters of a person's point; Proposals itself goes through the grid
}
"""Sampler by the search file's key `sampler`."""

MODELS: dict[str, Sampler] = {"rung": rung, "joint": joint}
"""What the sampler `gp` models; `joint` is not offered in search files (docs/results/search-quality.md). Several objectives are always
modelled at the rung."""

check_tables(
    "SAMPLERS of vit_search/config/samplers.py", samplers.SAMPLERS, "SAMPLERS of vit_search/search/proposals/samplers.py", SAMPLERS
)


def _ask_optuna(question: Question, sampler: optuna.samplers.BaseSampler, infeasible: bool = True) -> Proposal:
    study = question.study.of(question.history.view(question.shown), question.modes, infeasible=infeasible)
    study.sampler = sampler
    params = question.suggest(study.ask())
    return Proposal(params, dict(study.get_trials(deepcopy=False)[-1].system_attrs))


def scalar(values: Sequence[Sequence[float]], modes: Sequence[str], rng: random.Random) -> list[float]:
    """One score for each list of objective values; more is better.

    Several objectives: the augmented Chebyshev norm of the losses, each as a share of its range, with new random weights at each call
    (ParEGO: Knowles 2006, https://doi.org/10.1109/TEVC.2005.851274). So proposals in a row look for different compromises.
    """
    signs = [1.0 if mode == "max" else -1.0 for mode in modes]
    scores = [[sign * value for sign, value in zip(signs, row, strict=True)] for row in values]
    if len(modes) == 1:
        return [row[0] for row in scores]
    drawn = [rng.expovariate(1) for _ in modes]
    weights = [weight / sum(drawn) for weight in drawn]
    best, worst = [max(column) for column in zip(*scores, strict=True)], [min(column) for column in zip(*scores, strict=True)]

    def loss(row: Sequence[float]) -> float:
        parts = [w * (b - value) / ((b - least) or 1.0) for w, value, b, least in zip(weights, row, best, worst, strict=True)]
        return float(max(parts) + 0.05 * sum(parts))

    return [-loss(row) for row in scores]
