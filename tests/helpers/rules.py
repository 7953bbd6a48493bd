"""A stopping rule, and a short way to tell it what trials reach."""

from helpers.simulation import result
from vit_search.ledger.events import Ended, Proposed, Reported
from vit_search.stopping import RULES
from vit_search.stopping.rule import StoppingOptions


class Ruled:
    """A rule, and a short way to tell it what a trial has reached."""

    def __init__(self, kind="asha", mode="max", grace_epochs=1, reduction_factor=3, epochs=9, **more):
        options = StoppingOptions(
            metric="val_accuracy", mode=mode, epochs=epochs, grace_epochs=grace_epochs, reduction_factor=reduction_factor, **more
        )
        self.rule, self.proposed, self.over = RULES[kind](options, lambda params: params["flops"]), set(), set()

    def stops(self, trial, epoch, value, flops=0.0):
        """Whether a trial is to end after it has reported an epoch's value."""
        if trial not in self.proposed:
            self.rule.apply(Proposed(trial=trial, params={"flops": flops}))
            self.proposed.add(trial)
        self.rule.apply(Reported(trial=trial, result=result(epoch, value)))
        ending = set(self.rule.ending)
        for number in ending:
            self.rule.apply(Ended(trial=number, outcome="stopped"))
        self.over |= ending
        return trial in ending
