"""Proposes the next trial: first the points that people give, then those of a sampler. Infeasible proposals are never run."""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna

from vit_search.config import space_checks
from vit_search.config.distributions import Value
from vit_search.config.metrics import RANKING
from vit_search.config.space import Space
from vit_search.config.trial import EpochResult
from vit_search.config.tuning import WAYS
from vit_search.errors import SpecError
from vit_search.ledger.events import Commanded, Ended, Event, Infeasible, Proposed, Reported
from vit_search.search.proposals.history import SHOWN, Goal, History, Params, Past, State, params_key
from vit_search.search.proposals.optuna_study import StudyView, distributions
from vit_search.search.proposals.samplers import SAMPLERS, Proposal, Question, chosen, draw_at_random

REDRAWS = 3
"""How often a sampler is asked again after it repeats an earlier proposal. Then as many random draws are tried. Then the repeat is run."""

STUBBORN = 20
"""After this many infeasible proposals in a row, points are drawn at random until one is feasible."""

DROPPED = 100
"""After this many in a row, a point that a person gave is dropped, because nothing fits its open parameters."""

GIVE_UP = 1000
"""After this many in a row, the search ends."""

Lesson = tuple[Mapping[str, Value], Mapping[int, float], str]
"""A trial of an earlier search: parameters, values by epoch, outcome."""


@dataclass(frozen=True, kw_only=True)
class ProposalOptions:
    """The settings that proposals depend on, besides the events."""

    metric: str
    """A key of METRICS."""
    mode: str
    """"min" or "max"."""
    epochs: int
    """Length of a full training."""
    seed: int
    sampler: str = "auto"
    """A key of SAMPLERS; "grid" proposes every point once."""
    levels: Sequence[int] = ()
    """The rungs, at which trials are compared; the full length is added."""
    goals: Sequence[Goal] = ()
    """Further objectives, each a metric with its mode."""
    first: Sequence[Mapping[str, Value]] = ()
    """Points to propose before the sampler is asked. The sampler fills in what they leave out."""
    lessons: Sequence[Lesson] = ()
    """Trials of earlier searches. The sampler sees them as far as they fit the space."""
    shown: int = SHOWN
    model: str = "rung"
    """What the Gaussian process models; a key of MODELS."""
    start: str = "random"
    """How the sampler `gp` chooses the first points; a key of STARTS."""


def cheap_first(space: Space, given: Sequence[Mapping[str, Value]]) -> list[Params]:
    """Points to propose after the given ones: each way of tuning once, the cheapest first, so that a first good model is there early.

    Args:
        given: points that a person gave. If one of them names `tune`, nothing is added.
    """
    if "tune" not in space.searched or any("tune" in point for point in given):
        return []
    values = list(space.searched["tune"].values())
    return [{"tune": way} for way in WAYS if way in values]


class Proposals:
    """The proposals of one search and their results.

    Args:
        space: the space to propose from. options: settings.
    """

    def __init__(self, space: Space, options: ProposalOptions) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._options = space, options
        self._modes = [options.mode, *(goal.mode for goal in options.goals)]
        self._distributions = distributions(space)
        self._study = StudyView(self._distributions)
        self.history = History([*options.levels, options.epochs], self._modes, options.goals)
        self._indices: list[int] = []
        """Index in the history, by the trial's number."""
        self._tried: set[tuple[tuple[str, Value], ...]] = set()
        self._queue = deque(dict(point) for point in options.first)
        self._grid: Iterator[Params] = space.grid() if options.sampler == "grid" else iter(())
        self._infeasible_in_a_row = 0
        self._asked: Proposal | None = None
        """The proposal that was just made and that the next event will hold."""
        for lesson in options.lessons:
            past = self._fitting(*lesson)
            if past is not None:
                self.history.add(past)
        self._lessons = len(self.history.pasts)
        self._partial = any(len(past.params) < len(self._distributions) for past in self.history.pasts)

    def apply(self, event: Event) -> None:
        """Apply one event."""
        if isinstance(event, (Infeasible, Proposed)):
            self._apply_proposal(event)
        elif isinstance(event, Reported):
            self._apply_report(event.trial, event.result)
        elif isinstance(event, Ended) and event.outcome != "interrupted":
            past = self._past(event.trial)
            lost = event.outcome in ("completed", "stopped") and not past.values
            self.history.end(self._indices[event.trial], "failed" if lost else event.outcome)
        elif isinstance(event, Commanded) and event.name == "add":
            self._queue.appendleft(dict(event.arguments))

    def hold(self, trials: Iterable[int]) -> None:
        """Record which trials wait, without a process. `apply` comes first."""
        self.history.hold({self._indices[trial] for trial in trials})

    def ask(self) -> tuple[Params, str | None] | None:
        """The next proposal, and why it is infeasible, if it is. None if nothing is left to propose.

        It changes nothing; `apply` does, with the event.
        """
        if self._infeasible_in_a_row >= GIVE_UP and not self._queue:
            return None
        self._asked = self._next()
        return None if self._asked is None else (self._asked.params, self._space.problem(self._asked.params))

    def pinned(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """See `Space.pinned`."""
        return self._space.pinned(params)

    def check_point(self, params: Mapping[str, Value]) -> None:
        """Reject a point that a person gave and that cannot be run.

        Raises: SpecError.
        """
        space_checks.check_point(self._space, params, "add")

    def view(self) -> optuna.Study:
        """What Optuna's samplers would see now."""
        shown = self.history.view(self._options.shown)
        return self._study.of(shown, self._modes, infeasible=self._options.sampler != "cmaes")

    def sampler(self) -> str:
        """The name of the sampler that proposes next."""
        name = self._options.sampler
        return chosen(self._question({}, 0)) if name == "auto" else name

    def _next(self) -> Proposal | None:
        """The next point: from the queue, or from the sampler, and new if possible."""
        by_chance = self._infeasible_in_a_row >= STUBBORN
        if self._queue:
            return self._sample(self._queue[0], 0, by_chance)
        if self._options.sampler == "grid":
            point = next((point for point in self._grid if params_key(point) not in self._tried), None)
            return None if point is None else Proposal(point, {})
        redraws = 0 if self.sampler() == "gp" else REDRAWS  # it depends on the view, hardly on the seed, so a redraw would repeat it
        first: Proposal | None = None
        for draw in range(1 + redraws + REDRAWS):
            proposal = self._sample({}, draw, by_chance or draw > redraws)
            if params_key(proposal.params) not in self._tried:
                return proposal
            first = first or proposal
        return first

    def _sample(self, fixed: Mapping[str, Value], draw: int, by_chance: bool) -> Proposal:
        question = self._question(fixed, draw)
        return draw_at_random(question) if by_chance else SAMPLERS[self._options.sampler](question)

    def _question(self, fixed: Mapping[str, Value], draw: int) -> Question:
        index = len(self.history.pasts) - self._lessons
        digest = hashlib.sha256((f"{self._options.seed}/{index}" + (f"/{draw}" if draw else "")).encode()).digest()
        return Question(
            space=self._space,
            history=self.history,
            shown=self._options.shown,
            model=self._options.model,
            start=self._options.start,
            modes=self._modes,
            goals=self._options.goals,
            study=self._study,
            distributions=self._distributions,
            tried=self._tried,
            partial=self._partial,
            fixed=fixed,
            index=index,
            draw=draw,
            search_seed=self._options.seed,
            seed=int.from_bytes(digest[:4], "big"),
            rng=random.Random(digest),  # noqa: S311 -- proposals are no secrets
        )

    def _apply_proposal(self, event: Infeasible | Proposed) -> None:
        attributes: Mapping[str, object] = {}
        if self._options.sampler == "cmaes":  # CMA-ES keeps its state only in its trials
            proposal = self._asked or self._next()
            attributes = proposal.attributes if proposal else {}
        self._asked = None
        params, feasible = dict(event.params), isinstance(event, Proposed)
        index = self.history.add(Past(params, attributes=dict(attributes)))
        if isinstance(event, Proposed):
            assert event.trial == len(self._indices), "trials are numbered in the order of their proposals"
            self._indices.append(index)
            self.history.pasts[index].others = self._costs(params)
        else:
            self.history.end(index, "infeasible")
        self._tried.add(params_key(params))
        self._infeasible_in_a_row = 0 if feasible else self._infeasible_in_a_row + 1
        self._drop_from_queue(params, feasible)

    def _drop_from_queue(self, params: Params, feasible: bool) -> None:
        """Remove from the queue the point that became a proposal. An infeasible point stays if other values may be filled in."""
        point = next((point for point in self._queue if all(params.get(name, value) == value for name, value in point.items())), None)
        if point is not None and (feasible or params.keys() <= point.keys() or self._infeasible_in_a_row % DROPPED == 0):
            self._queue.remove(point)

    def _apply_report(self, trial: int, result: EpochResult) -> None:
        value, past = result.value(self._options.metric), self._past(trial)
        if value is None or not math.isfinite(value):
            return
        if result.epoch not in past.values:
            goals = {goal.metric: result.value(goal.metric) for goal in self._options.goals}
            past.others |= {name: float(v) for name, v in goals.items() if v is not None and math.isfinite(v)}
        self.history.report(self._indices[trial], result.epoch, float(value))

    def _past(self, trial: int) -> Past:
        return self.history.pasts[self._indices[trial]]

    def _costs(self, params: Mapping[str, Value]) -> dict[str, float]:
        """The model's cost, if an objective needs it."""
        if all(goal.metric in RANKING for goal in self._options.goals):
            return {}
        cost = self._space.cost(params)
        return {"params": float(cost.params), "flops": float(cost.forward_flops), "train_flops": float(cost.train_flops)}

    def _fitting(self, params: Mapping[str, Value], values: Mapping[int, float], outcome: str) -> Past | None:
        """A trial of an earlier search, reduced to the parameters that both searches have. None if a value is outside of our ranges."""
        ours = {name: value for name, value in params.items() if name in self._space.searched}
        if not ours or any(self._space.searched[name].fault(value) for name, value in ours.items()):
            return None
        state: State = "diverged" if outcome == "diverged" else "failed" if outcome == "failed" else "stopped"
        try:
            return Past(ours, state, dict(values), self._costs(ours))
        except SpecError:
            return None
