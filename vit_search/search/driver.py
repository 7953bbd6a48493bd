"""The driver leads one search: it decides which trial starts, stops or moves. It does not use Ray, MLflow or the terminal.

The state of a search follows from its ledger. The driver first appends an event to the ledger. Then it applies the event to all components
(components.py), always in the same order. They change in no other way. A resume applies the stored events in the same way, so a search can
be killed at any moment and continues as if nothing had happened.

Facts that a resume does not need, such as which processes run, are in `Runtime`, which starts empty.

tune.py calls the driver for Ray Tune, control.py for people. Tests and benchmarks call it with simulated workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_search.config.distributions import Value
from vit_search.errors import ClusterError, SearchError, VitSearchError
from vit_search.ledger import search_state
from vit_search.ledger.events import Broke, Commanded, Ended, Event, Infeasible, Outcome, OutgrewShare, Proposed, Reported
from vit_search.ledger.trials import Progress, Trial
from vit_search.search.commands import Settings
from vit_search.search.components import Components
from vit_search.search.driver_runtime import IN_A_ROW, Runtime
from vit_search.search.interfaces import ClusterView, EventLog
from vit_search.search.messages import (
    Busy,
    Continue,
    Decision,
    Epoch,
    Failed,
    Finished,
    Hold,
    KillWorker,
    Move,
    Outgrown,
    Report,
    Stop,
    TrialOrder,
    Wait,
    Waiting,
)
from vit_search.search.recovery import Patience, cause_of, in_words, node_of, nodes_to_avoid

_log = logging.getLogger(__name__)

AHEAD = 4
"""Trials that may wait for a free place; or a quarter of the running ones, if that is more.

A trial that waits was proposed before the newest results were known, so few should wait. But some must: processes, and an autoscaler's
nodes, start only for trials that wait, and a trial that needs more than is free must not block those behind it.
"""

WAIT_S = 900.0
"""How long a trial waits for another node before the search ends, in seconds."""


class Driver:
    """Leads one search.

    Args:
        ledger: of the search. Its events are applied first.
        components: the state before the first event.
        orders: makes a trial's order from its number, its parameters and the state.
        cluster: the cluster that the search runs on.
        patience: how long a trial may be silent.
        train_flops: the FLOPs of training with these parameters. They predict the duration of a trial's first epoch.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        ledger: EventLog,
        components: Components,
        orders: Callable[[int, Mapping[str, Value], Components], TrialOrder],
        *,
        cluster: ClusterView,
        patience: Patience,
        train_flops: Callable[[Mapping[str, Value]], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._orders = ledger, orders
        self.state = components
        """The state of the search. Read it; never change it."""
        self._cluster, self._patience, self._train_flops, self._clock = cluster, patience, train_flops, clock
        self.runtime = Runtime()
        """Facts that only this driver needs. Read them; never change them."""
        self._lock = threading.RLock()
        """Commands come from other threads."""
        for event in ledger.events:
            components.apply(event)
        ledger.listeners.insert(0, components.apply)
        self._finish_decided_trials()

    # Queries

    @property
    def trials(self) -> Mapping[int, Trial]:
        """All trials, by number."""
        return self.state.progress.trials

    @property
    def progress(self) -> Progress:
        """The trials and their cost."""
        return self.state.progress

    @property
    def settings(self) -> Settings:
        """The settings as they are now, after the commands so far."""
        return self.state.commands.settings

    @property
    def paused(self) -> bool:
        """Whether the search is paused."""
        return self.state.commands.paused

    @property
    def draining(self) -> bool:
        """Whether no more trials may start, because a person asked for it."""
        return self.state.commands.draining

    @property
    def cancelled(self) -> bool:
        """Whether all trials must end now."""
        return self.runtime.cancelled

    @property
    def ending(self) -> str:
        """The limit that ends the search, in words; empty if none was reached."""
        return self.state.limits.ending

    @property
    def trouble(self) -> VitSearchError | None:
        """The error that ended the search."""
        return self.runtime.trouble

    @property
    def over(self) -> bool:
        """Whether no new trial may start any more."""
        return self._no_trial_goes_on or self.draining

    @property
    def _no_trial_goes_on(self) -> bool:
        return bool(self.ending or self.state.limits.common_failure or self.cancelled)

    @property
    def word(self) -> str:
        """The state of the search in one word; see search_state.py."""
        return search_state.of_driver(paused=self.paused, stopping=self.draining, ending=self.cancelled or bool(self.ending))

    @property
    def work_left(self) -> bool:
        """Whether trials are left to run."""
        return not self.over and sum(trial.over for trial in self.trials.values()) < self.settings.trials

    def audits(self) -> list[tuple[int, int | None]]:
        """See StoppingRule.audits."""
        return self.state.stopping.audits()

    def holds(self, trial: int) -> bool:
        """Whether the stopping rule makes a trial wait, without a process."""
        return self.state.stopping.holds(trial)

    def must_end(self, trial: int) -> bool:
        """Whether an ordered trial must end now: the search was cancelled, the trial is over, or it may not start any more."""
        return self.cancelled or self.trials[trial].over or self._withdrawn(trial)

    # Orders

    def propose(self) -> TrialOrder | Wait | Finished:
        """The next trial to start: an interrupted one, or a new one."""
        with self._lock:
            nothing: Wait | Finished = Wait() if self.runtime.ordered else Finished()
            if self._no_trial_goes_on:
                return nothing
            if self.paused or not self._room():
                return Wait()
            number = None
            if not self.draining:
                number = self._first_waiting()
                number = self._propose_new() if number is None else number
            if number is None and not self.runtime.ordered:
                number = self._finalist()
            if number is None:
                return nothing
            self.runtime.ordered.add(number)
            self.runtime.allowed -= 1
            return self._order(number)

    def _room(self) -> bool:
        ordered, running = len(self.runtime.ordered), len(self.runtime.begun)
        if self.runtime.allowed < 1 or ordered >= self.settings.concurrency:
            return False
        return ordered < max(running, self.state.sharing.slots(self._cluster.shapes)) + max(AHEAD, running // 4)

    def _first_waiting(self) -> int | None:
        ordered, rule = self.runtime.ordered, self.state.stopping
        waiting = (number for number in self.progress.unfinished if number not in ordered and not rule.holds(number))
        return min(waiting, key=lambda number: (rule.turn(number), number), default=None)

    def _propose_new(self) -> int | None:
        """The number of a new trial; None if there are enough, or if nothing feasible is left to propose."""
        number = len(self.trials)
        while number < self.settings.trials and (proposal := self.state.proposals.ask()) is not None:
            params, problem = proposal
            if problem is None:
                self._append(Proposed(trial=number, params=params))
                return number
            self._append(Infeasible(params=params, reason=problem))
        return None

    def _finalist(self) -> int | None:
        """When nothing else is left to train: the best trial that the stopping rule holds, which continues to full length.

        When it has reached full length, the other held trials end.
        """
        stopping = self.state.stopping
        held = [number for number in self.progress.unfinished if stopping.holds(number)]
        if stopping.leader in held:
            return stopping.leader
        for number in held:
            self._end(number, "stopped")
        return None

    def _order(self, trial: int) -> TrialOrder:
        return self._orders(trial, self.trials[trial].params, self.state)

    # Reports about trials

    def started(self, trial: int) -> None:
        """A process has started to run a trial."""
        with self._lock:
            self.runtime.begun.add(trial)
            self.runtime.waiting_since.pop(trial, None)
            self._patience.start(trial, self._train_flops(self.trials[trial].params), self._clock())

    def report(self, trial: int, report: Report) -> Decision:
        """Record a worker's report. Returns: what the trial does next."""
        with self._lock:
            if isinstance(report, Waiting):
                _log.warning("trial %d waits for its storage: %s", trial, report.reason)
                self._patience.hear(trial, self._clock(), None)
                return Continue()
            if isinstance(report, Busy):
                self._patience.hear(trial, self._clock(), None)
                return Continue()
            if isinstance(report, Failed):
                self._end(trial, report.outcome, report.reason)
                return Stop()
            if isinstance(report, Outgrown):
                return self._give_larger_share(trial, report.reason)
            return self._record_epoch(trial, report)

    def _record_epoch(self, trial: int, epoch: Epoch) -> Decision:
        """Record an epoch. A known epoch changes nothing: a trial that starts again reports its epochs again."""
        self._patience.hear(trial, self._clock(), epoch.result.seconds)
        is_new = epoch.result.epoch > len(self.trials[trial].results)
        if is_new:
            devices = self.state.sharing.reported_devices(trial)
            self._append(Reported(trial=trial, result=epoch.result, system=epoch.system, devices=devices))
        self._finish_decided_trials()
        if self.trials[trial].over:
            return Stop()
        if is_new and self.state.stopping.holds(trial):
            self.runtime.parked.add(trial)
            return Stop()
        if self.paused:
            self._patience.forget(trial)
            return Hold()
        return self._leave_node(trial)

    def _leave_node(self, trial: int) -> Decision:
        """Move a trial whose node is about to be removed. If no other node fits, it stays: then it loses at most one epoch."""
        order = self._order(trial)
        if not self._cluster.leaving or node_of(order.folder) not in self._cluster.leaving:
            return Continue()
        avoid = self._avoid(order, self._cluster.leaving)
        if not avoid:
            return Continue()
        self._patience.forget(trial)
        return Move(order, avoid)

    def _give_larger_share(self, trial: int, reason: str) -> Decision:
        sharing = self.state.sharing
        gpus = sharing.devices(trial).gpus
        assert gpus < 1, "a trial with a whole GPU makes its micro-batches smaller"
        _log.warning("trial %d outgrew %g of a GPU: %s", trial, gpus, reason)
        self._append(OutgrewShare(trial=trial, gpus=gpus, memory=sharing.allowed_bytes(trial), reason=reason))
        self._patience.forget(trial)
        order = self._order(trial)
        return Move(order, self._avoid(order))

    def broke(self, trial: int, error: str) -> Decision:
        """A trial's process died. Decide whether it starts again, perhaps on another node, or has failed.

        Args:
            error: Ray's message.
        """
        with self._lock:
            self._patience.forget(trial)
            if self.trials[trial].over:
                return Stop()
            cause, reason = cause_of(error), in_words(error)
            silent_s = self.runtime.silent_s.pop(trial, 0.0)
            if silent_s and cause != "node":
                cause, reason = "own", f"it hung: not heard of for {silent_s:.0f} s"
            again = self.state.recovery.tries_again(trial, cause)
            self._append(Broke(trial=trial, reason=reason, again=again, cause=cause))
            self._finish_decided_trials()
            if not again:
                if not self.trials[trial].over:
                    self.fail(SearchError(f"trial {trial}: {reason}"))
                return Stop()
            return self._retry(trial, avoid_node=bool(silent_s) or cause == "storage")

    def _retry(self, trial: int, *, avoid_node: bool) -> Move:
        order = self._order(trial)
        if avoid_node:
            self.runtime.avoided.setdefault(trial, set()).add(node_of(order.folder))
        avoid = self._avoid(order)
        if avoid:
            self.runtime.waiting_since[trial] = self._clock()
        return Move(order, avoid)

    def _avoid(self, order: TrialOrder, besides: Collection[str] = ()) -> frozenset[str]:
        avoided = self.runtime.avoided.get(order.trial, set()) | set(besides)
        return nodes_to_avoid({"CPU": order.cpus, "GPU": order.gpus}, avoided, self._cluster.nodes()) if avoided else frozenset()

    def released(self, trial: int) -> None:
        """A trial has no process any more, or never had one. If the trial is not over, it can be ordered again."""
        with self._lock:
            begun = trial in self.runtime.begun
            self._patience.forget(trial)
            self.runtime.ordered.discard(trial)
            self.runtime.begun.discard(trial)
            if trial in self.runtime.parked:
                self.runtime.parked.discard(trial)
            elif begun and not self.trials[trial].over and not self.cancelled:
                self._end(trial, "stopped", self.state.commands.stop_reason(trial) or self.ending)

    def _withdrawn(self, trial: int) -> bool:
        """Whether a trial that waits for a place must not start, now or ever."""
        goes_on = not self.draining or self.state.stopping.holds(trial)  # when draining, only the best held trial continues
        return (self._no_trial_goes_on or self.paused or not goes_on) and trial not in self.runtime.begun

    # Commands and time

    def command(self, name: str, arguments: dict[str, Any], by: str) -> tuple[bool, str]:
        """Carry out a person's command.

        Returns: whether it was carried out, and the answer in words.
        """
        with self._lock:
            running = [number for number in self.progress.unfinished if number in self.runtime.begun]
            try:
                if name == "add":
                    arguments = self.state.proposals.pinned(arguments)
                    self.state.proposals.check_point(arguments)
                answer = self.state.commands.answer(name, arguments, running, len(self.trials))
                self._append(Commanded(name=name, arguments=arguments, answer=answer, by=by))
            except VitSearchError as error:
                return False, str(error)
            self.runtime.cancelled = self.runtime.cancelled or name == "cancel"
            return True, answer

    def cancel(self) -> None:
        """End the search now, so that `resume` can continue it."""
        self.runtime.cancelled = True

    def fail(self, error: VitSearchError) -> None:
        """End the search now because of an error."""
        self.runtime.trouble = self.runtime.trouble or error
        self.cancel()

    def tick(self) -> list[KillWorker]:
        """Check what depends on time. Tune calls it at each of its steps.

        Returns: the processes to end because they were silent for too long. Call `broke` when they have ended.
        """
        with self._lock:
            now = self._clock()
            self.runtime.allowed = IN_A_ROW
            if self._cluster.lost is not None:
                self.fail(self._cluster.lost)
            self._end_vain_waits(now)
            silent = {trial: s for trial, s in self._patience.silent(now).items() if trial in self.runtime.begun}
            for trial, seconds in silent.items():
                _log.warning("trial %d has not reported for %.0f seconds; its process is ended.", trial, seconds)
                self.runtime.silent_s[trial] = seconds
                self._patience.forget(trial)
            return [KillWorker(trial) for trial in silent]

    def _end_vain_waits(self, now: float) -> None:
        """End the search if a trial has waited too long for a node that it may use. After a resume it may use any node."""
        for trial, since in self.runtime.waiting_since.items():
            if now - since > WAIT_S and not self._avoid(self._order(trial)):
                reason = (
                    f"no node has come for {WAIT_S / 60:.0f} minutes but those that it is kept off, since it hung or could not write there"
                )
                self.fail(ClusterError(f"trial {trial}: {reason}; mend or add a node, then resume the search."))

    def interrupt(self, *, ended: bool) -> bool:
        """Mark the unfinished trials as interrupted, so that a resume continues them. Called at the end of the driver.

        Args:
            ended: whether the search ended without an error.
        Returns: whether one of these trials had started.
        """
        with self._lock:
            begun = False
            for number in [number for number in self.progress.unfinished if self.trials[number].outcome == "running"]:
                if self.ending and not self.cancelled and self.state.stopping.holds(number):
                    self._end(number, "stopped", self.ending)
                    continue
                waits = ended and not self.cancelled and number not in self.runtime.ordered
                reason = "the search was stopped before it began" if waits else "the driver stopped"
                self._append(Ended(trial=number, outcome="interrupted", reason=reason))
                begun = begun or not waits
            return begun

    # Changes of state

    def _finish_decided_trials(self) -> None:
        for trial, (outcome, reason) in list(self.state.verdicts.due.items()):
            self._end(trial, outcome, reason)

    def _end(self, trial: int, outcome: Outcome, reason: str = "") -> None:
        if not self.trials[trial].over:
            self._append(Ended(trial=trial, outcome=outcome, reason=reason))

    def _append(self, event: Event) -> None:
        """Append an event. The state changes only here: the ledger stores the event, then calls the components and other listeners."""
        self._ledger.append(event)
