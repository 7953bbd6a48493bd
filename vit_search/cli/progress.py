"""Progress of a running search, and the summary at its end: live on a terminal, a line per event elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vit_search.cli.app import INTERRUPTED, NOT_RECORDED, err, out
from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_rounded_time, in_time
from vit_search.runtime.signals import ended_by, interrupting
from vit_search.text import counted, value_text

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.ledger.events import Broke, Event, Left
    from vit_search.ledger.searches import Hindsight
    from vit_search.ledger.trials import Spent, Trial
    from vit_search.search.driver import Driver
    from vit_search.search.launch import SearchResult

REPORT_EVERY_S = 60.0
"""Without a terminal, a search prints at least one line in this time."""

Result = TypeVar("Result")


NOTHING_STARTED = "interrupted; nothing was started."


def watched(work: Callable[[Screen], Result], *, before: str = NOTHING_STARTED, later: str = "") -> Result:
    """Run a search, and show its progress: live on a terminal, a line per ended trial elsewhere.

    Args:
        work: runs a search, with the screen's `watch`.
        before: text if a signal ends it before the search runs. A running search is ended by its driver at the first signal.
        later: text if a second signal cuts that end short. Default: the command that continues the search.
    """
    screen = Screen(before, later)
    try:
        with interrupting(), ended_by(screen.end):
            return work(screen)
    except KeyboardInterrupt:
        screen.end()
    finally:
        screen.close()


def finish(result: SearchResult) -> None:
    """Print the leaderboard and the next commands to type."""
    name, spec, trials, spent = result.folder.name, result.spec, result.trials, result.spent
    print_leaderboard(name, trials, spec, 10)
    ended = [t for t in trials if t.over]
    stopped = sum(t.outcome == "stopped" for t in ended)
    share = stopped / max(len(ended), 1)
    out.print(
        f"{len(ended)} of {counted(result.settings.trials, 'trial')} in {in_time(spent.wall_seconds)}, "
        f"{stopped} stopped early ({share:.0%})"
    )
    if result.ended_by.startswith("limits."):
        from vit_search.search.limits import option

        more = f"vit-search extend {name} {option(result.ended_by)} …"
        out.print(f"ended by {escaped(result.ended_by)}; go on with:  {more}", soft_wrap=True)
    out.print(f"{counted(spent.epochs, 'epoch')} trained, {spent.saved_epochs} saved against no stopping ({spent.saved_share:.0%})")
    out.print(_work(spent))
    for line in hindsight_lines(result.hindsight):
        out.print(escaped(line))
    if result.interrupted:
        err.print(interrupted_text(name), soft_wrap=True)
        sys.exit(INTERRUPTED)
    if not result.recorded:
        err.print(
            f"\n[yellow]MLflow has not got all of it.[/] Send the rest later:  [bold]vit-search sync {escaped(name)}[/]", soft_wrap=True
        )
        sys.exit(NOT_RECORDED)
    out.print("\nNext:  vit-search ui               browse the trials in MLflow")
    out.print(f"       vit-search show {escaped(name)}", soft_wrap=True)
    out.print(f"       vit-search promote {escaped(name)}", soft_wrap=True)


def interrupted_text(name: str) -> str:
    """The text after an interrupted search."""
    return f"\n[yellow]Interrupted.[/] Nothing is lost; go on with:  [bold]vit-search resume {escaped(name)}[/]"


def print_leaderboard(name: str, trials: list[Trial], spec: SearchSpec, top: int) -> None:
    """Print the best trials as a table; all trials if `top` is 0."""
    from vit_search.cli import leaderboard

    for line in leaderboard.lines(name, trials, spec, top=top, width=out.width):
        out.print(line, soft_wrap=True)


def spent_text(spent: Spent) -> str:
    """The cost of a search in words."""
    return f"{in_time(spent.wall_seconds)} of wall time, {_work(spent)}"


def _work(spent: Spent) -> str:
    """The cost without the wall time."""
    share = spent.stopped_seconds / spent.trial_seconds if spent.trial_seconds else 0.0
    return (
        f"{in_time(spent.trial_seconds)} of training in {counted(spent.epochs, 'epoch')}, "
        f"{share:.0%} of it in stopped trials; stopping saved {in_time(spent.saved_seconds)}"
    )


def hindsight_lines(hindsight: Hindsight) -> list[str]:
    """How right early stopping and the plan were, in words."""
    lines = []
    if hindsight.doomed:
        text = f"{counted(hindsight.doomed, 'audited trial')} would have been stopped"
        low, high = hindsight.interval
        lines.append(f"{text}, {hindsight.wrongly} of them wrongly (95 % interval of the share: {low:.0%} to {high:.0%})")
    if hindsight.plan:
        epochs, wall = hindsight.plan["epochs"], hindsight.plan["wall_seconds"]
        line = f"planned {counted(round(epochs['predicted']), 'epoch')}, trained {epochs['actual']:,}"
        if wall["predicted"]:
            line += f"; planned about {in_rounded_time(wall['predicted'])}, took {in_time(wall['actual'])} with Ray's and MLflow's own time"
            borrowed = (hindsight.plan.get("speed") or {}).get("borrowed")
            line += f" (planned by the speed of {borrowed})" if borrowed else ""
        lines.append(line)
    return lines


def score_text(spec: SearchSpec, value: float) -> str:
    """A trial's metric: `val_accuracy 0.9312`, or `val_accuracy 0.9312 on the holdout` if trials are measured there."""
    return f"{spec.metric} {value:.4f}{_of_holdout(spec)}"


def _of_holdout(spec: SearchSpec) -> str:
    """Trials that also learn from the validation images are measured on the holdout."""
    return " on the holdout" if spec.train_on == "train+val" and spec.metric.startswith("val_") else ""


def closing_text(left: Left, *, makes_report: bool) -> str:
    """What a search still does after its last trial, which can take minutes."""
    report = "looking at the best model's mistakes for the report, and " if left.state in ("finished", "stopped") and makes_report else ""
    return f"{report}sending the last records to MLflow"


class Screen:
    """Live progress of a search: running trials, the best so far, how many were stopped, time left.

    Args:
        before, later: see `watched`.
    """

    def __init__(self, before: str, later: str) -> None:
        self._live: Any = None
        self._said_before, self._said_later = before, later
        self._preparing = err.status("preparing the data, MLflow and Ray …")
        self._preparing.start()
        self._closed, self._last_line = threading.Event(), time.monotonic()
        self._folder: Path | None = None
        """Folder of the search, once it runs."""
        self._held: list[str] = []
        """Lines with markup that wait until the search begins, in a pipe."""
        self._images = ""
        """What was printed about its data."""
        self._closing = ""
        """What is still to be done after the last trial, in words."""

    def say(self, text: str) -> None:
        """Print a line before the search runs. In a pipe, it waits until the search begins, so that a refusal is one line there."""
        self._print_or_hold(escaped(text))

    def note(self, text: str) -> None:
        """Print a remark in the same way."""
        self._print_or_hold(f"[yellow]note:[/] {escaped(text)}")

    def _print_or_hold(self, marked_up: str) -> None:
        if err.is_terminal:
            err.print(marked_up, soft_wrap=True)
        else:
            self._held.append(marked_up)

    def data_are_ready(self, images: str) -> None:
        """Print what the data are. Ray starts next."""
        self._images = images
        if images:
            self.say(images)
        self._preparing.update("starting Ray and MLflow …")

    def watch(self, driver: Driver, spec: SearchSpec, folder: Path) -> Callable[[Event], None]:
        """Begin to show a search. The result is a function to call with every event."""
        from vit_search.ledger import searches
        from vit_search.ledger.events import Broke, Commanded, Ended, Left, Reported
        from vit_search.stopping.rungs import levels

        self._driver, self._spec, self._began = driver, spec, time.monotonic()
        facts = searches.read_facts(folder)
        self._folder = folder
        self._epochs_before = self._epochs()
        self._preparing.stop()
        for marked_up in self._held:
            err.print(marked_up, soft_wrap=True)
        err.print(escaped(f"{facts.search}: {folder}"), soft_wrap=True)
        if facts.images and not self._images:
            err.print(escaped(facts.images), soft_wrap=True)
        if err.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._picture, console=err, refresh_per_second=4, transient=True)
            self._live.start()

            def shown(event: Event) -> None:
                if isinstance(event, Broke):
                    self._say_breakdown(event)
                elif isinstance(event, Left):
                    self._closing = closing_text(event, makes_report=not facts.promotes)

            return shown

        how = spec.stopping
        rungs = levels(grace_epochs=how.grace_epochs, reduction_factor=how.reduction_factor, epochs=spec.epochs)
        threading.Thread(target=self._report_every_minute, name="progress", daemon=True).start()

        def line(event: Event) -> None:
            if isinstance(event, Commanded):
                err.print(escaped(f"{event.by}: {event.name}: {event.answer}"))
            elif isinstance(event, Broke):
                self._say_breakdown(event)
            elif isinstance(event, Reported) and event.result.epoch in rungs and event.result.epoch < spec.epochs:
                value = driver.trials[event.trial].value(spec.metric)
                score = "" if value is None else f"  {score_text(spec, value)}"
                err.print(f"trial {event.trial:3d} at epoch {event.result.epoch:3d} of {spec.epochs}{score}", soft_wrap=True)
            elif isinstance(event, Ended):
                trial = driver.trials[event.trial]
                value = trial.value(spec.metric)
                start = f"trial {trial.number:3d} {trial.outcome:<11} after {counted(len(trial.results), 'epoch'):>10}"
                err.print(f"{start}  {escaped(trial.reason) if value is None else score_text(spec, value)}", soft_wrap=True)
            elif isinstance(event, Left):
                self._closing = closing_text(event, makes_report=not facts.promotes)
                err.print(f"{self._closing} …")
            else:
                return
            self._last_line = time.monotonic()

        return line

    def _say_breakdown(self, event: Broke) -> None:
        what = "is tried again" if event.again else "broke down"
        err.print(escaped(f"trial {event.trial:3d} {what}: {event.reason}"))

    def _report_every_minute(self) -> None:
        """Print how far the search is whenever nothing else was printed for a minute."""
        while not self._closed.wait(max(1.0, self._last_line + REPORT_EVERY_S - time.monotonic())):
            if time.monotonic() - self._last_line >= REPORT_EVERY_S:
                trials = list(self._driver.trials.values())
                over = sum(trial.over for trial in trials)
                running = f"{sum(trial.outcome == 'running' for trial in trials)} running"
                now = self._closing or (running if self._driver.word == "running" else self._driver.word)
                spent = in_time(time.monotonic() - self._began)
                trained = counted(self._epochs(), "epoch")
                err.print(f"{over} of {counted(self._driver.settings.trials, 'trial')}, {now}, {trained}, {spent} spent")
                self._last_line = time.monotonic()

    def end(self) -> NoReturn:
        """End the program because of a signal, and say how to continue."""
        self.close()
        err.print(self._going_on(), soft_wrap=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # this may cut off Ray's own end: sys.exit would then give the exit code 1

    def _going_on(self) -> str:
        from vit_search.errors import SearchError
        from vit_search.ledger.events import Left
        from vit_search.ledger.file import read_events

        if self._folder is None or not self._folder.exists():
            return self._said_before
        if self._said_later:
            return self._said_later
        with contextlib.suppress(SearchError, OSError):
            last = read_events(self._folder / "ledger.jsonl")[-1]
            if isinstance(last, Left) and last.state == "finished":
                return (
                    "\n[yellow]Interrupted[/] at the end: MLflow has not got all of it. Send the rest:  "
                    f"[bold]vit-search sync {escaped(self._folder.name)}[/]"
                )
        return interrupted_text(self._folder.name)

    def close(self) -> None:
        """Remove the live picture."""
        self._closed.set()
        self._preparing.stop()
        if self._live is not None:
            self._live.stop()

    def _epochs(self) -> int:
        return sum(len(t.results) for t in list(self._driver.trials.values()))

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        from vit_search.ledger.trials import best_trial

        spec, trials, wanted = self._spec, list(self._driver.trials.values()), self._driver.settings.trials
        over = [t for t in trials if t.over]
        stopped = sum(t.outcome == "stopped" for t in over)
        spent = time.monotonic() - self._began
        head = Table.grid(padding=(0, 2))
        left = "…"
        trained = self._epochs() - self._epochs_before
        if over and trained:
            per_trial = sum(len(t.results) for t in over) / len(over)
            missing = per_trial * wanted - self._epochs()
            left = in_rounded_time(max(0.0, missing) * spent / trained)
        rest = self._closing or (f"about {left} left" if len(over) < wanted else "ending the processes of the trials")
        head.add_row(f"[bold]{len(over)}[/] of {counted(wanted, 'trial')}", f"{stopped} stopped early", f"{in_time(spent)} spent", rest)
        bar = Table.grid()
        bar.add_row(ProgressBar(total=wanted, completed=len(over), width=60))  # by itself, the bar would not end its line
        parts: list[Any] = [head, bar]
        if self._driver.word != "running":
            parts.append(f"[yellow]{escaped(self._driver.ending or self._driver.word)}[/]")
        winner = best_trial(trials, spec.metric, spec.mode)
        if winner:
            from vit_search.planning.space_findings import with_effect

            params = escaped(", ".join(f"{k} {value_text(v)}" for k, v in with_effect(spec.space, winner.params).items()))
            best = f"[bold green]{winner.value(spec.metric):.4f}[/] {spec.metric}{_of_holdout(spec)}"
            parts.append(f"best so far: {best}, trial {winner.number} ({params})")
        for trial in trials:
            if trial.outcome == "running" and not self._driver.holds(trial.number):
                value = trial.value(spec.metric)
                row = Table.grid(padding=(0, 2))
                newest = "starting" if value is None else score_text(spec, value)
                row.add_row(
                    f"trial {trial.number:3d}",
                    ProgressBar(total=spec.epochs, completed=len(trial.results), width=30),
                    f"{len(trial.results)}/{spec.epochs}",
                    newest,
                )
                parts.append(row)
        return Group(*parts)
