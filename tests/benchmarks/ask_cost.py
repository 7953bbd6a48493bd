"""What a proposal costs after many trials: at 10,000 it must be at most twice of what it is at 1,000.

    OMP_NUM_THREADS=1 python tests/benchmarks/ask_cost.py

The row of Optuna's GPSampler is what our own Gaussian process replaced: its process over the same history.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import optuna
from rounds import cpu_seconds, table

from vit_search.config import search_file
from vit_search.config.space import Space
from vit_search.config.trial import EpochResult
from vit_search.ledger.events import Ended, Event, Infeasible, Proposed, Reported
from vit_search.search.proposals.history import ENOUGH
from vit_search.search.proposals.proposals import ProposalOptions, Proposals

TEXT = """
name: t
data: {{name: digits}}
trials: 1000000
epochs: 30
model: {{dim: {{int: [16, 512], step: 16}}, heads: {heads}, depth: {{int: [1, 12]}}, dropout: {{float: [0, 0.5]}}}}
training: {{lr: {{float: [1e-5, 1e-2], log: true}}, weight_decay: {{float: [1e-3, 0.5], log: true}}, mixup: {{float: [0, 1]}}}}
"""
ALL_FEASIBLE = search_file.parse(TEXT.format(heads="{choice: [1, 2, 4, 8, 16]}")).space
HALF_FEASIBLE = search_file.parse(TEXT.format(heads="{choice: [2, 4, 6, 7, 8, 9, 12]}")).space
LEVELS = [3, 9, 27]


def history(space: Space, trials: int, running: int) -> list[Event]:
    """Events of a search by chance: a third of the trials reaches each next rung; the last `running` are open."""
    rng = random.Random(0)
    events: list[Event] = []
    number = 0
    while number < trials + running:
        params = space.draw(rng)
        if space.problem(params):
            events.append(Infeasible(params=params, reason="it cannot be built"))
            continue
        events.append(Proposed(trial=number, params=params))
        if number < trials:
            draw = rng.random()
            length = 3 if draw > 1 / 3 else 9 if draw > 1 / 9 else 27 if draw > 1 / 27 else 30
            events += [Reported(trial=number, result=_result(epoch, rng.random())) for epoch in sorted({*LEVELS, 30}) if epoch <= length]
            events.append(Ended(trial=number, outcome="completed" if length == 30 else "stopped"))
        number += 1
    return events


def proposals_of(space: Space, text: str, events: list[Event]) -> Proposals:
    """What has seen these events. `gp:joint` is a sampler and its model."""
    sampler, _, model = text.partition(":")
    options = ProposalOptions(
        metric="val_accuracy", mode="max", epochs=30, seed=0, sampler=sampler, levels=LEVELS, model=model or "rung"
    )  # fmt: skip
    proposals = Proposals(space, options)
    for event in events:
        proposals.apply(event)
    return proposals


def propose(proposals: Proposals, number: int) -> None:
    """The next proposal that can be built, and those that cannot on its way."""
    while (proposal := proposals.ask()) is not None:
        params, problem = proposal
        if problem is None:
            proposals.apply(Proposed(trial=number, params=params))
            return
        proposals.apply(Infeasible(params=params, reason=problem))


def seconds(space: Space, sampler: str, trials: int, running: int, asks: int) -> float:
    """Processor time of a proposal, those that cannot be built on its way included: the median."""
    proposals = proposals_of(space, sampler, history(space, trials, running))
    spent = []
    for number in range(trials + running, trials + running + asks + 1):
        began = cpu_seconds()
        propose(proposals, number)
        spent.append(cpu_seconds() - began)
        proposals.apply(Reported(trial=number, result=_result(3, random.Random(number).random())))
        proposals.apply(Ended(trial=number, outcome="stopped"))
    return statistics.median(spent[1:])  # the first makes what is kept


def seconds_of_optuna(space: Space, trials: int, asks: int) -> float:
    """Processor time of a proposal by Optuna's Gaussian process from the same history, as little of it as ours is shown."""
    proposals = proposals_of(space, "tpe", history(space, trials, 0))
    spent = []
    for i in range(asks + 1):
        study = proposals.view()
        study.sampler = optuna.samplers.GPSampler(seed=i, n_startup_trials=ENOUGH)
        began = cpu_seconds()
        space.suggest(study.ask())
        spent.append(cpu_seconds() - began)
    return statistics.median(spent[1:])


def _result(epoch: int, value: float) -> EpochResult:
    return EpochResult(
        epoch=epoch, train_loss=1.0, train_accuracy=0.5, val_loss=1.0, val_accuracy=value, val_top5_accuracy=None,
        lr=1e-3, images_per_s=1.0, seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", default="100,1000,10000")
    parser.add_argument("--asks", type=int, default=15)
    parser.add_argument("--only", default="", help="only histories whose name has this")
    args = parser.parse_args()
    counts = [int(word) for word in args.trials.split(",")]
    rows = []
    for name, space, sampler, running in (
        ("tpe", ALL_FEASIBLE, "tpe", 0),
        ("tpe, 16 running", ALL_FEASIBLE, "tpe", 16),
        ("tpe, half infeasible, 16 running", HALF_FEASIBLE, "tpe", 16),
        ("gp", ALL_FEASIBLE, "gp", 0),
        ("gp, half infeasible, 16 running", HALF_FEASIBLE, "gp", 16),
        ("gp, 64 running", ALL_FEASIBLE, "gp", 64),
        ("gp over learning curves, 64 running", ALL_FEASIBLE, "gp:joint", 64),
        ("cmaes", ALL_FEASIBLE, "cmaes", 0),
        ("random", ALL_FEASIBLE, "random", 0),
    ):
        if args.only not in name:
            continue
        if sampler == "cmaes" and max(counts) > 1000:
            known = [n for n in counts if n <= 1000]  # its history is asked for anew when it is replayed
        else:
            known = counts
        spent = [1000 * seconds(space, sampler, n, running, args.asks) for n in known]
        shown = [f"{value:.1f}" for value in spent] + ["not run"] * (len(counts) - len(spent))
        rows.append([name, *shown, f"{spent[-1] / spent[-2]:.2f}" if len(spent) == len(counts) > 1 else ""])
    if args.only in "Optuna's GPSampler":
        spent = [1000 * seconds_of_optuna(ALL_FEASIBLE, n, 5) for n in counts]
        rows.append(["Optuna's GPSampler", *(f"{value:.1f}" for value in spent), f"{spent[-1] / spent[-2]:.2f}" if len(spent) > 1 else ""])
    print(f"{time.strftime('%Y-%m-%d')}, milliseconds of processor time for one proposal after so many trials\n")
    print(table(["history", *(f"{n:,}" for n in counts), "last to the one before"], rows))


if __name__ == "__main__":
    main()
