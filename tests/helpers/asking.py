"""Asks a search's proposals for trials, as the driver does."""

from helpers.simulation import result
from vit_search.config import search_file
from vit_search.ledger.events import Ended, Infeasible, Proposed, Reported
from vit_search.search.proposals.proposals import ProposalOptions, Proposals

HEAD = "name: t\ndata: {name: digits}\ntrials: 20\nepochs: 3\n"
SPEC = search_file.parse(
    HEAD
    + """
model: {dim: {choice: [16, 24]}, heads: {choice: [2, 3, 5]}, depth: {int: [1, 4]}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
"""
)
CONDITIONAL = search_file.parse(
    HEAD
    + """
model: {dim: {choice: [16, 32]}, heads: 2, depth: {int: [1, 4]}, dropout: {float: [0.1, 0.5], when: "depth >= 3"}}
"""
)


class Asking:
    """Asks for proposals and tells what came of them, as the driver does, and keeps the events."""

    def __init__(self, *, space=SPEC.space, mode="max", objectives=(), first=(), earlier=(), sampler="auto", **more):
        options = ProposalOptions(
            metric="val_accuracy", mode=mode, epochs=3, seed=5, sampler=sampler, levels=[1], goals=objectives, first=first, lessons=earlier,
            **more,
        )  # fmt: skip
        self.events, self.proposals, self.trials = [], Proposals(space, options), 0

    def take(self, event):
        self.events.append(event)
        self.proposals.apply(event)

    def suggest(self):
        """The next trial; None where there is none."""
        while (proposal := self.proposals.ask()) is not None:
            params, problem = proposal
            if problem is None:
                self.take(Proposed(trial=self.trials, params=params))
                self.trials += 1
                return {"trial": self.trials - 1, **params}
            self.take(Infeasible(params=params, reason=problem))
        return None

    def ran(self, trial, values, outcome=None, val_loss=1.0):
        """Let a trial report its values, one per epoch, and end."""
        for epoch, value in enumerate(values, 1):
            self.take(Reported(trial=trial, result=result(epoch, value, val_loss=val_loss)))
        self.take(Ended(trial=trial, outcome=outcome or ("completed" if len(values) == 3 else "stopped")))

    def run(self, count):
        """Trials one after another, whose values follow from their parameters."""
        for _ in range(count):
            suggested = self.suggest()
            digits = sum(map(ord, repr(sorted(suggested.items()))))
            self.ran(suggested["trial"], [0.5 + 0.001 * (digits % 97) + 0.01 * e for e in range(3 if digits % 3 == 0 else 1)])
