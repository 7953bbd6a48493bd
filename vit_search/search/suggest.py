"""Who proposes: Optuna's samplers and our own behind Tune's Searcher; proposals that cannot be built never run.

What is known is plain data, a list of `Past`. Two things are made of it: `truth`, each trial in its true state, for reports and
for whoever wants an Optuna study; and `History.view`, what the sampler is shown. A proposal follows from the view, the seed and
its own index alone: every ask gets a sampler seeded anew. So a searcher that was fed the events of a ledger goes on as the one
that wrote them would have.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import math
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from vit_search.errors import SpecError
from vit_search.search import gaussian
from vit_search.spec.asks import AtQuantiles, Drawn, Given
from vit_search.spec.config import METRICS
from vit_search.spec.space import Asks, Space, Value
from vit_search.tracking.ledger import Commanded, Ended, Event, Infeasible, Proposed, Reported

State = Literal["running", "completed", "stopped", "diverged", "failed", "infeasible"]

AHEAD = 4
"""Trials that a driver lets wait beyond the places that there are, or a quarter as many as run where that is more.

What waits was proposed knowing less than it could have; but processes, and an autoscaler's nodes, start for what waits alone, and a
trial that asks for more than has come free must not hold up those behind it.
"""

IN_A_ROW = 4
"""Proposals after which Tune is to look for what trials report: 2,000 at once else kept it from that for three minutes."""

ENOUGH = 10
"""Observations before a sampler takes over from chance (Optuna's own default), and trials that must have reached a rung before
it is shown what they reached there: tests/benchmarks/RESULTS.md."""

SHOWN = 150
"""Observations that a sampler is shown at most, so that the cost of a proposal stays flat."""

BEST_SHOWN = 75
"""The best ones among them; the others are the newest. TPE takes at most 25 for good."""

REDRAWS = 3
"""Further asks after one that repeats an earlier proposal; then chance decides, as often again; then the repeat is run."""

STUBBORN = 20
"""Proposals in a row that cannot be built before chance takes over until one can."""

DROPPED = 100
"""The same before a point to start with, or a hand-made one, is dropped whose open parameters cannot be filled in."""

GIVE_UP = 1000
"""The same before the search ends."""


class Goal(Protocol):
    """A further metric beside the first; spec's Objective."""

    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102


@dataclass
class Past:
    """One proposal and what became of it."""

    params: Mapping[str, Value]
    state: State = "running"
    values: dict[int, float] = field(default_factory=dict)
    """The first metric by epoch; finite ones."""
    others: dict[str, float] = field(default_factory=dict)
    """Further objectives as last reported, and what the model costs."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What a sampler (CMA-ES) wants to find again at this trial."""


def truth(pasts: Iterable[Past], space: Space, *, epochs: int, modes: Sequence[str], goals: Sequence[Goal] = ()) -> optuna.Study:
    """Every proposal in its true state (law 6).

    COMPLETE at full length alone, with its value or values; stopped ones PRUNED with every intermediate value; diverged and
    crashed ones FAIL; those that cannot be built PRUNED, with the constraint `buildable` violated; RUNNING while open.

    Args:
        pasts: what is known. space: what was asked for.
        epochs: length of a full training.
        modes: "min" or "max" of the first metric and of each of `goals`.
    """
    study = optuna.create_study(directions=[_direction(mode) for mode in modes])
    known = distributions(space)
    for past in pasts:
        values = _values(past, epochs, goals) if past.state == "completed" else None
        told = {"completed": TrialState.COMPLETE if values else TrialState.FAIL, "running": TrialState.RUNNING}
        state = told.get(past.state, TrialState.PRUNED if past.state in ("stopped", "infeasible") else TrialState.FAIL)
        study.add_trial(_frozen(past, known, state, values, dict(past.values)))
    return study


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The searched parameters in Optuna's terms."""
    noted = _Noted()
    for name, parameter in space.searched.items():
        parameter.ask(noted, name)
    return noted.found


def _values(past: Past, epoch: int, goals: Sequence[Goal]) -> list[float] | None:
    """The first metric at an epoch and the further ones; None where one is not known."""
    values = [past.values.get(epoch), *(past.others.get(goal.metric) for goal in goals)]
    return [value for value in values if value is not None] if None not in values else None


def _frozen(
    past: Past,
    known: Mapping[str, BaseDistribution],
    state: TrialState,
    values: list[float] | None,
    intermediate: dict[int, float] | None = None,
    constrained: bool = True,
) -> FrozenTrial:
    return create_trial(
        state=state,
        values=values,
        params=dict(past.params),
        distributions={name: known[name] for name in past.params},
        intermediate_values=intermediate,
        system_attrs=dict(past.attributes),
        constraints={"buildable": 1.0 if past.state == "infeasible" else -1.0} if constrained else None,
    )


def _direction(mode: str) -> StudyDirection:
    return StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE


def _key(params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(params.items()))


def scalar(values: Sequence[Sequence[float]], modes: Sequence[str], rng: random.Random) -> list[float]:
    """One score for each list of objective values, more is better: the first, or several weighed anew at each ask.

    Several: the augmented Chebyshev norm of the losses with random weights, each loss in shares of its range (ParEGO: Knowles
    2006, https://doi.org/10.1109/TEVC.2005.851274), so that asks in a row look for different compromises.
    """
    signs = [1.0 if mode == "max" else -1.0 for mode in modes]
    scores = [[sign * value for sign, value in zip(signs, one, strict=True)] for one in values]
    if len(modes) == 1:
        return [one[0] for one in scores]
    drawn = [rng.expovariate(1) for _ in modes]
    weights = [weight / sum(drawn) for weight in drawn]
    best, worst = [max(column) for column in zip(*scores, strict=True)], [min(column) for column in zip(*scores, strict=True)]

    def loss(one: Sequence[float]) -> float:
        parts = [w * (b - own) / ((b - least) or 1.0) for w, own, b, least in zip(weights, one, best, worst, strict=True)]
        return float(max(parts) + 0.05 * sum(parts))

    return [-loss(one) for one in scores]


class History:
    """All proposals, in the order of the asks, kept so that a view of 10,000 costs what one of 1,000 does.

    Args:
        levels: epochs at which trials are compared, ascending, the full length last.
        modes: "min" or "max" of the first metric and of each of `goals`.
    """

    def __init__(self, levels: Sequence[int], modes: Sequence[str], goals: Sequence[Goal] = ()) -> None:
        self.pasts: list[Past] = []
        self._levels, self._goals = levels, goals
        self._signs = [-1.0 if mode == "max" else 1.0 for mode in modes]
        self._reached: dict[int, list[int]] = {epoch: [] for epoch in levels}
        """Who has a value at a level and has not failed, ascending."""
        self._by_score: dict[int, list[tuple[float, int]]] = {epoch: [] for epoch in levels}
        """The same with signed values, best first."""
        self._of_state: dict[State, list[int]] = {"running": [], "diverged": [], "infeasible": []}

    def add(self, past: Past) -> int:
        """Take in a proposal. Returns: its place, by which it is known from here on."""
        place = len(self.pasts)
        self.pasts.append(Past(past.params, "running", {}, past.others, past.attributes))
        self._of_state["running"].append(place)
        for epoch, value in past.values.items():
            self.report(place, epoch, value)
        if past.state != "running":
            self.end(place, past.state)
        return place

    def report(self, place: int, epoch: int, value: float) -> None:
        """Take in a running trial's value; one for an epoch that has one already is dropped."""
        past = self.pasts[place]
        if past.state == "running" and epoch not in past.values:
            past.values[epoch] = value
            if epoch in self._reached:
                bisect.insort(self._reached[epoch], place)
                bisect.insort(self._by_score[epoch], (self._signs[0] * value, place))

    def end(self, place: int, state: State) -> None:
        """Take in how a running trial ended."""
        past = self.pasts[place]
        if past.state != "running":
            return
        past.state = state
        self._of_state["running"].remove(place)
        if state in self._of_state:
            bisect.insort(self._of_state[state], place)
        if state in ("diverged", "failed"):
            for epoch in past.values.keys() & self._reached.keys():
                self._reached[epoch].remove(place)
                self._by_score[epoch].remove((self._signs[0] * past.values[epoch], place))

    @property
    def level(self) -> int:
        """The epoch whose values are compared: the last level that at least ENOUGH trials have reached, or else the first."""
        return next((epoch for epoch in reversed(self._levels) if len(self._reached[epoch]) >= ENOUGH), self._levels[0])

    @property
    def observations(self) -> int:
        """Trials that have reached the level."""
        return len(self._reached[self.level])

    def view(self, most: int = SHOWN) -> list[tuple[Past, TrialState, list[float] | None]]:
        """What a sampler is shown, in the order of the asks: (trial, state, values).

        Trials that have reached the level are COMPLETE with their value there, running or not, and those that were stopped before
        it are left out: a value at few epochs says little about one at many. How firmly that is shown stands in
        tests/benchmarks/RESULTS.md, "Search quality". Running ones before it are RUNNING, so that the next
        proposal keeps its distance. Diverged ones have the worst value of those shown. What cannot be built is PRUNED and
        violates a constraint; it is shown once there are ENOUGH observations, which it must not replace. Of these two, the
        newest are shown, each at most a third as many as the observations, and of the running ones at most `most`. A crash says
        nothing and is left out.
        """
        epoch = self.level
        observed = {place: values for place in self._bounded(epoch, most) if (values := _values(self.pasts[place], epoch, self._goals))}
        found: dict[int, tuple[TrialState, list[float] | None]] = {
            place: (TrialState.COMPLETE, values) for place, values in observed.items()
        }
        third = math.ceil(len(observed) / 3)
        if observed:
            columns = zip(self._signs, zip(*observed.values(), strict=True), strict=True)
            worst = [sign * max(sign * value for value in column) for sign, column in columns]
            found |= dict.fromkeys(self._of_state["diverged"][-third:], (TrialState.COMPLETE, worst))
        if len(observed) >= ENOUGH:
            found |= dict.fromkeys(self._of_state["infeasible"][-third:], (TrialState.PRUNED, None))
        early = [place for place in self._of_state["running"] if epoch not in self.pasts[place].values]
        found |= dict.fromkeys(early[-most:], (TrialState.RUNNING, None))
        return [(self.pasts[place], *found[place]) for place in sorted(found)]

    def _bounded(self, epoch: int, most: int) -> Iterable[int]:
        """The best ones and the newest of the others."""
        reached = self._reached[epoch]
        if len(reached) <= most:
            return reached
        best = {place for _, place in self._by_score[epoch][: min(BEST_SHOWN, most // 2)]}
        newest = itertools.islice((place for place in reversed(reached) if place not in best), most - len(best))
        return [*best, *newest]


class _Noted:
    """Asks for nothing: notes which distributions a space has."""

    def __init__(self) -> None:
        self.found: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: list[Any], /) -> Any:
        self.found[name] = CategoricalDistribution(choices)

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int, log: bool) -> int:
        self.found[name] = IntDistribution(low, high, log=log, step=step)
        return low

    def suggest_float(self, name: str, low: float, high: float, /, *, step: float | None, log: bool) -> float:
        self.found[name] = FloatDistribution(low, high, log=log, step=step)
        return low


class _Light(FrozenTrial):
    """A trial that Optuna's storage takes without the deep copy, which costs more than all else in an ask."""

    def __deepcopy__(self, memo: Any) -> FrozenTrial:
        made = _Light.__new__(_Light)
        made.__dict__.update(self.__dict__)
        return made


class _Joint(optuna.samplers.TPESampler):
    """TPE over a space that is the same in all trials, which Optuna would find out anew from all of them at each ask."""

    def __init__(self, known: Mapping[str, BaseDistribution], **told: Any) -> None:
        super().__init__(**told)
        self._joint = {name: one for name, one in sorted(known.items()) if not one.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters, where any trial is known."""
        return dict(self._joint) if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)) else {}


class OptunaSearcher(Searcher):
    """Proposals for one search.

    Args:
        space: what to ask for.
        metric: a field of EpochResult. mode: "min" or "max".
        epochs: length of a full training; a trial that ends before it was stopped.
        trials: how many in all. May be changed while the search runs, as may the attributes below.
        seed: see above.
        sampler: "gp", "tpe", "cmaes", "random", "grid" (every point once), "qmc" (scrambled Sobol) or "auto", see `_current`.
        levels: the rungs, at which trials are compared; the full length is added.
        objectives: further metrics, each with its mode.
        first: points to propose before the sampler is asked; what one leaves out is asked of the sampler.
        earlier: (params, values by epoch, outcome) of trials of other searches, shown to the sampler where they fit the space.
        config: what Tune hands to the worker of a trial, from its number and its parameters.
        record: receives Proposed and Infeasible events as they happen.
        most: see SHOWN.

    Attributes that the driver may set at any time: `trials`; `concurrency`, trials open at a time, None for any number; `places`, says
    how many can run at the same time, and hardly more are open, see AHEAD; `allowed`, proposals until it is set anew, see IN_A_ROW;
    `paused`, nothing is proposed for now; `over`, nothing is any more.
    """

    def __init__(
        self,
        space: Space,
        *,
        metric: str,
        mode: str,
        epochs: int,
        trials: int,
        seed: int,
        sampler: str = "auto",
        levels: Sequence[int] = (),
        objectives: Sequence[Goal] = (),
        first: Sequence[Mapping[str, Value]] = (),
        earlier: Sequence[tuple[Mapping[str, Value], Mapping[int, float], str]] = (),
        config: Callable[[int, dict[str, Value]], dict[str, Any]] = lambda number, params: {"trial": number, **params},
        record: Callable[[Event], None] = lambda event: None,
        most: int = SHOWN,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.concurrency: int | None = None
        self.places: Callable[[], float] = lambda: math.inf
        self.allowed = math.inf
        self.trials, self.paused, self.over = trials, False, False
        self._space, self._epochs, self._seed, self._sampler = space, epochs, seed, sampler
        self._levels, self._goals, self._modes = [*levels, epochs], list(objectives), [mode, *(goal.mode for goal in objectives)]
        self._config, self._record = config, record
        self._most = most
        self._known = distributions(space)
        self._history = History(self._levels, self._modes, self._goals)
        self._places: list[int] = []
        """In the history, by the trial's number."""
        self._tried: set[tuple[tuple[str, Value], ...]] = set()
        self._queue = deque(dict(point) for point in first)
        self._grid: Iterator[dict[str, Value]] = space.grid() if sampler == "grid" else iter(())
        self._number_of: dict[str, int] = {}
        self._begun: set[int] = set()
        """Of those, the ones that a process has taken up."""
        self._given_up: set[int] = set()
        self._waiting: deque[int] = deque()
        self._exhausted = False
        self._refused = 0
        """Proposals in a row that cannot be built, up to now."""
        self._frozen: dict[int, tuple[tuple[TrialState, list[float] | None, bool], FrozenTrial]] = {}
        for one in earlier:
            past = self._fitting(*one)
            if past is not None:
                self._history.add(past)
        self._earlier = len(self._history.pasts)
        self._partial = any(len(past.params) < len(self._known) for past in self._history.pasts)
        """Whether trials of earlier searches lack some of our parameters."""

    def replay(self, events: Iterable[Event]) -> None:
        """Take in the events of a ledger; its unfinished trials will be the first that `suggest` gives."""
        for event in events:
            if isinstance(event, (Infeasible, Proposed)):
                attributes = self._attributes_again() if self._sampler == "cmaes" else {}
                self._take(event.params, event.trial if isinstance(event, Proposed) else None, attributes)
            elif isinstance(event, Reported):
                self._report(event.trial, event.result.epoch, vars(event.result))
            elif isinstance(event, Ended) and event.outcome != "interrupted":
                self._end(event.trial, event.outcome)
            elif isinstance(event, Commanded) and event.name == "add":
                self._queue.appendleft(dict(event.arguments))
        self._waiting = deque(number for number in range(len(self._places)) if self._past(number).state == "running")

    def add(self, params: Mapping[str, Value]) -> None:
        """Propose this point next; what it leaves out is asked of the sampler.

        Raises: SpecError for a point that cannot be run.
        """
        self._space.check_point(params, "add")
        self._queue.appendleft(dict(params))

    def fit_into(self, gpu_memory: int) -> None:
        """From here on, what is predicted to need more than one GPU of so many bytes is not run.

        Raises: SpecError where hardly anything is left.
        """
        self._space = dataclasses.replace(self._space, gpu_memory=gpu_memory)
        if self._space.feasible_share() == 0:
            problem = self._space.problem(self._space.draw(random.Random(0)))  # noqa: S311 -- a sample of the space, not a secret
            raise SpecError(f"none of 2000 random proposals can be run, the first because: {problem} Lower model.dim or batch_size.")

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """A configuration for Tune; None for not now; Searcher.FINISHED, which Tune does not take back, once nothing is open either."""
        done = None if self._number_of else Searcher.FINISHED
        if self.over:
            return done
        if self.paused or (self.concurrency is not None and len(self._number_of) >= self.concurrency):
            return None
        running = len(self._begun)
        if self.allowed < 1 or len(self._number_of) >= max(running, self.places()) + max(AHEAD, running // 4):
            return None
        if self._waiting:
            number = self._waiting.popleft()
        elif len(self._places) >= self.trials or (self._exhausted and not self._queue):
            return done
        else:
            number = len(self._places)
            if not self._propose(number):
                self._exhausted = True
                return done
        self._number_of[trial_id] = number
        self.allowed -= 1
        return self._config(number, dict(self._past(number).params))

    def begun(self, number: int) -> None:
        """A process has taken a trial up, which waits no more."""
        self._begun.add(number)

    def has_begun(self, number: int) -> bool:
        """Whether a process has taken up a trial that is open."""
        return number in self._begun

    def waits(self, number: int) -> bool:
        """Whether a trial was withdrawn, or not given since a resume."""
        return number in self._waiting

    def withdrawn(self, number: int) -> bool:
        """Whether a trial that still waits for a place is to start no more, or not for now: `suggest` gives it again."""
        return (self.over or self.paused) and not self.has_begun(number)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """An epoch's value, for the sampler's view of running trials."""
        if "epoch" in result:
            self._report(self._number_of[trial_id], result["epoch"], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """How a trial ended: at full length, before it, by NaN or by an error."""
        number = self._number_of.pop(trial_id)
        if not error and "epoch" not in (result or {}) and self.withdrawn(number):
            self._waiting.append(number)
            return
        self._begun.discard(number)
        failure = "failed" if error or number in self._given_up else (result or {}).get("failure")
        if result and "epoch" in result and not failure:
            self._report(number, result["epoch"], result)
        self._end(number, failure or ("completed" if self._epochs in self._past(number).values else "stopped"))

    def give_up(self, number: int) -> None:
        """A trial is not tried again after its process died; it counts as failed when it ends, whatever it had reported."""
        self._given_up.add(number)

    def truth(self) -> optuna.Study:
        """All proposals of this search in their true states."""
        return truth(self._history.pasts[self._earlier :], self._space, epochs=self._epochs, modes=self._modes, goals=self._goals)

    def view(self) -> optuna.Study:
        """What the sampler would be shown now."""
        study = optuna.create_study(directions=[_direction(mode) for mode in self._modes])
        shown = self._history.view(self._most)
        if self._sampler == "cmaes":
            shown = [one for one in shown if one[1] != TrialState.PRUNED]
        constrained = any(past.state == "infeasible" for past, _, _ in shown)
        for past, state, values in shown:
            study.add_trial(self._light(past, state, values, constrained))
        return study

    def __reduce__(self) -> Any:
        """Nothing of it is in Tune's snapshots: the ledger is what a search is rebuilt from."""
        return object, ()

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, likewise."""

    def _propose(self, number: int) -> bool:
        """Find and record what trial `number` is to be; False when there is nothing left that can be built."""
        while self._refused < GIVE_UP or self._queue:
            found = self._next()
            if found is None:
                return False
            params, attributes = found
            problem = self._space.problem(params)
            self._take(params, None if problem else number, attributes)
            self._record(Proposed(trial=number, params=params) if problem is None else Infeasible(params=params, reason=problem))
            if problem is None:
                return True
        return False

    def _next(self) -> tuple[dict[str, Value], dict[str, Any]] | None:
        """The next point: one of the queue, or a sampler's that is new where that can be had."""
        by_chance = self._refused >= STUBBORN
        if self._queue:
            return self._ask(0, self._queue[0], by_chance)
        if self._sampler == "grid":
            params = next((point for point in self._grid if _key(point) not in self._tried), None)
            return None if params is None else (params, {})
        redraws = 0 if self._current() == "gp" else REDRAWS  # its choice follows from the view, hardly from the seed
        first: tuple[dict[str, Value], dict[str, Any]] | None = None
        for draw in range(1 + redraws + REDRAWS):
            found = self._ask(draw, by_chance=by_chance or draw > redraws)
            if _key(found[0]) not in self._tried:
                return found
            first = first or found
        return first

    def _ask(self, draw: int, point: Mapping[str, Value] | None = None, by_chance: bool = False) -> tuple[dict[str, Value], dict[str, Any]]:
        """Parameters, and what the sampler wants to find again at this trial; `draw` counts asks for the same place in the history."""
        index = len(self._history.pasts) - self._earlier
        digest = hashlib.sha256((f"{self._seed}/{index}" + (f"/{draw}" if draw else "")).encode()).digest()
        seed, rng = int.from_bytes(digest[:4], "big"), random.Random(digest)  # noqa: S311 -- proposals are no secrets
        asks: Asks
        study: optuna.Study | None = None
        if by_chance or self._sampler in ("random", "grid"):
            asks = Drawn(rng)
        elif self._sampler == "qmc":
            asks = AtQuantiles(self._sobol(index)) if not draw else Drawn(rng)
        elif self._current() == "gp":
            found = self._most_promising(rng, point or {})
            if found is not None:
                return found, {}
            asks = Drawn(rng)
        elif self._sampler != "cmaes" and self._history.observations < ENOUGH:
            asks = Drawn(rng)  # as TPE would, but without the view
        else:
            study = self.view()
            study.sampler = self._optuna_sampler(seed)
            asks = study.ask()
        params = self._space.suggest(Given(point, asks) if point else asks)
        return params, dict(study.get_trials(deepcopy=False)[-1].system_attrs) if study and self._sampler == "cmaes" else {}

    def _most_promising(self, rng: random.Random, given: Mapping[str, Value]) -> dict[str, Value] | None:
        """What our Gaussian process proposes: new, and such that it can be built. None while it has too little to go by."""
        shown = self._history.view(self._most)
        seen = [(past.params, values) for past, state, values in shown if state == TrialState.COMPLETE and values]
        if len(seen) < ENOUGH or not self._space.searched:
            return None
        running = [past.params for past, state, _ in shown if state == TrialState.RUNNING]
        scores = scalar([values for _, values in seen], self._modes, rng)

        def suits(params: Mapping[str, Value]) -> bool:
            return _key(params) not in self._tried and self._space.problem(params) is None

        return gaussian.propose(self._space, [params for params, _ in seen], scores, running, rng, suits, given)

    def _attributes_again(self) -> dict[str, Any]:
        """What the sampler noted at the proposal that the ledger names next: its state is nowhere else."""
        found = self._next()
        return found[1] if found else {}

    def _current(self) -> str:
        """Who proposes next, where the file leaves that to us: the sampler with the least regret in tests/benchmarks/RESULTS.md.

        That is our Gaussian process while all observations can be shown to it; TPE beyond, and where that was not measured:
        with conditions, several objectives, or trials of other searches that lack some parameters.
        """
        if self._sampler != "auto":
            return self._sampler
        suits = not (self._space.conditional or self._goals or self._partial)
        return "gp" if suits and self._history.observations <= self._most else "tpe"

    def _optuna_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=ENOUGH)
        assert self._current() == "tpe", self._sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
            if self._space.conditional or self._partial:
                return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=ENOUGH, constant_liar=True)
            return _Joint(self._known, seed=seed, multivariate=True, n_startup_trials=ENOUGH, constant_liar=True)

    def _sobol(self, index: int) -> dict[str, float]:
        from scipy.stats import qmc  # type: ignore[import-untyped]  # slow to import, and seldom asked for

        engine = qmc.Sobol(max(1, len(self._known)), scramble=True, rng=self._seed)
        if index:
            engine.fast_forward(index)
        return dict(zip(self._known, map(float, engine.random(1)[0]), strict=False))

    def _take(self, params: Mapping[str, Value], number: int | None, attributes: dict[str, Any]) -> None:
        past = Past(dict(params), attributes=attributes)
        place = self._history.add(past)
        if number is None:
            self._history.end(place, "infeasible")
        else:
            assert number == len(self._places), "trials are numbered in the order of their proposals"
            self._places.append(place)
            self._history.pasts[place].others = self._costs(params)
        self._tried.add(_key(params))
        self._refused = 0 if number is not None else self._refused + 1
        point = next((point for point in list(self._queue) if all(params.get(name, value) == value for name, value in point.items())), None)
        if point is not None and (number is not None or params.keys() <= point.keys() or self._refused % DROPPED == 0):
            self._queue.remove(point)

    def _costs(self, params: Mapping[str, Value]) -> dict[str, float]:
        """What a model costs, as far as that is an objective."""
        if all(goal.metric in METRICS for goal in self._goals):
            return {}
        cost = self._space.cost(params)
        return {"params": float(cost.params), "flops": float(cost.forward_flops), "train_flops": float(cost.train_flops)}

    def _past(self, number: int) -> Past:
        return self._history.pasts[self._places[number]]

    def _report(self, number: int, epoch: int, result: Mapping[str, Any]) -> None:
        value, past = result.get(str(self.metric)), self._past(number)
        if value is not None and math.isfinite(value):
            further = {goal.metric: result.get(goal.metric) for goal in self._goals}
            if epoch not in past.values:
                past.others |= {name: float(v) for name, v in further.items() if v is not None and math.isfinite(v)}
            self._history.report(self._places[number], epoch, float(value))

    def _end(self, number: int, outcome: str) -> None:
        lost = outcome in ("completed", "stopped") and not self._past(number).values
        self._history.end(self._places[number], "failed" if lost else outcome)  # type: ignore[arg-type]

    def _light(self, past: Past, state: TrialState, values: list[float] | None, constrained: bool) -> FrozenTrial:
        key = (state, values, constrained)
        kept = self._frozen.get(id(past))
        if kept is None or kept[0] != key:
            made = _frozen(past, self._known, state, values, constrained=constrained)
            made.__class__ = _Light
            kept = self._frozen[id(past)] = (key, made)
        return kept[1]

    def _fitting(self, params: Mapping[str, Value], values: Mapping[int, float], outcome: str) -> Past | None:
        """An earlier search's trial as far as it fits: the parameters that both have, where all its values lie in our ranges."""
        ours = {name: value for name, value in params.items() if name in self._space.searched}
        if not ours or any(self._space.searched[name].fault(value) for name, value in ours.items()):
            return None
        state: State = "diverged" if outcome == "diverged" else "failed" if outcome == "failed" else "stopped"
        try:
            return Past(ours, state, dict(values), self._costs(ours))
        except SpecError:
            return None
