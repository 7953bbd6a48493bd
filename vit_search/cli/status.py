"""The commands that show the progress and the events of a search: status, logs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_search.cli.app import Insecure, Output, SearchName, There, app, out
from vit_search.cli.progress import hindsight_lines, spent_text
from vit_search.cli.remote import connect, print_unbegun, remotely, status_there, write_plain, writing
from vit_search.cli.terminal import OUTCOME_STYLE, escaped
from vit_search.errors import SearchError
from vit_search.text import counted, one_line, value_text, whole_number

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.ledger.events import Commanded, Event
    from vit_search.ledger.search_state import SearchState
    from vit_search.ledger.trials import Trial


@app.command()
def status(
    search: SearchName = None,
    output: Output = Path("searches"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print a line for each change, until the search ends.")] = False,
    address: There = None,
    insecure: Insecure = False,
) -> None:
    """Show the progress and the cost of a search.

    It also shows what early stopping has saved.
    """
    if address is not None:
        status_there(address, search, as_json=as_json, watch=watch, insecure=insecure)
        return
    from vit_search.cluster import record
    from vit_search.ledger import searches

    if search is not None and record.submitted(output / search) and not (output / search / "ledger.jsonl").exists():
        print_unbegun(search, record.state(output / search).word, as_json)
        if not watch:
            return
        while _starting(output / search):
            time.sleep(2)
        if not (output / search / "ledger.jsonl").exists():
            print_unbegun(search, record.state(output / search).word, as_json)
            return
    folder = searches.find(output, search)
    _print_status(folder, as_json)
    if watch and _watch_status(folder):
        _print_status(folder, as_json)


def _watch_status(folder: Path) -> bool:
    """Print a line for each change, until no driver runs the search and none will come. Returns whether there was anything to watch."""
    from vit_search.cluster import record
    from vit_search.ledger.file import is_held
    from vit_search.ledger.trials import best_trial

    before = ""
    while is_held(folder / "ledger.jsonl") or awaits_driver(folder):
        now = record.snapshot(folder)
        spec, trials = now.spec, now.trials.values()
        running = sum(trial.outcome == "running" for trial in trials)
        text = "" if now.state.word == "running" else f"{now.state.word}: "
        text += f"{counted(sum(trial.over for trial in trials), 'trial')} over, {running} running"
        winner = best_trial(trials, spec.metric, spec.mode)
        if winner:
            text += f", best {spec.metric} {winner.value(spec.metric):.4f} (trial {winner.number})"
        if text != before:
            out.print(escaped(f"{time.strftime('%H:%M:%S')}  {text}"), soft_wrap=True)
        before = text
        time.sleep(2)
    return bool(before)


def _starting(folder: Path) -> bool:
    """Whether a search was submitted to a cluster and will begin, but has not begun yet."""
    return not (folder / "ledger.jsonl").exists() and awaits_driver(folder)


def awaits_driver(folder: Path) -> bool:
    """Whether a cluster's keeper will start a driver for this search."""
    from vit_search.cluster import record

    return record.submitted(folder) and not record.read(folder).asleep


def held_text(count: int, kind: str) -> str:
    """How many trials wait for the stopping rule, in words."""
    return f"{counted(count, 'trial')} of them {_waiting_text(kind, one=count == 1)}"


def _waiting_text(kind: str, *, one: bool) -> str:
    verb, them = ("waits", "it") if one else ("wait", "them")
    return f"{verb}, without a process, until stopping.kind {kind} lets {them} go on"


def _print_status(folder: Path, as_json: bool) -> None:
    from vit_search.cluster import record
    from vit_search.ledger import searches
    from vit_search.ledger.events import Broke, Commanded
    from vit_search.ledger.trial_tables import trial_row
    from vit_search.ledger.trials import best_trial
    from vit_search.search.commands import Settings
    from vit_search.stopping import held_trials

    now = record.snapshot(folder)
    spec, events, trials, spent, state = now.spec, now.events, now.trials, now.spent, now.state
    settings = Settings.of(spec, events)
    outcomes = [trial.outcome for trial in trials.values()]
    counts = {name: outcomes.count(name) for name in OUTCOME_STYLE if name in outcomes}
    winner = best_trial(trials.values(), spec.metric, spec.mode)
    hindsight = searches.read_hindsight(folder)
    commands = [event for event in events if isinstance(event, Commanded)]
    held = held_trials(spec, events) if state.driven else set()
    if as_json:
        facts = {
            "search": folder.name,
            "state": state.word,
            "reason": state.reason,
            "running": state.word in ("running", "stopping"),
            "trials": settings.trials,
            "outcomes": counts,
            "held": sorted(held),
            "breakdowns": [vars(event) for event in events if isinstance(event, Broke)],
            "best": trial_row(winner, spec.metric, spec.space, 1) if winner else None,
            "spent": {key: value for key, value in vars(spent).items() if not key.startswith("_")},
            "hindsight": vars(hindsight) if hindsight else None,
            "commands": [vars(event) for event in commands],
        }
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return
    over = sum(trial.over for trial in trials.values())
    out.print(
        f"[bold]{escaped(folder.name)}[/] is {state.word}: {over} of {counted(settings.trials, 'trial')} over, "
        f"{settings.concurrency} at a time"
    )
    for line in _what_next(folder, state):
        out.print(f"  {escaped(line)}", soft_wrap=True)
    out.print("  " + ", ".join(f"[{OUTCOME_STYLE[name]}]{count} {name}[/]" for name, count in counts.items()))
    if held:
        out.print(f"  {held_text(len(held), spec.stopping.kind)}")
    for line in _breakdowns(trials.values()):
        out.print(f"  {escaped(line)}", soft_wrap=True)
    if winner:
        from vit_search.planning.space_findings import with_effect

        params = ", ".join(f"{key} {value_text(value)}" for key, value in with_effect(spec.space, winner.params).items())
        out.print(escaped(f"  best {spec.metric} {winner.value(spec.metric):.4f}: trial {winner.number} ({params})"))
    out.print(f"  {spent_text(spent)}")
    for line in hindsight_lines(hindsight) if hindsight and not state.driven else []:
        out.print(f"  {escaped(line)}")
    for event in commands[-5:]:
        out.print(escaped(f"  {_command(event)}"))


def _command(event: Commanded) -> str:
    """A command that was sent to a search: when, by whom, and the answer."""
    arguments = "".join(f" {key}={value}" for key, value in event.arguments.items())
    return f"{time.strftime('%H:%M', time.localtime(event.at))} {event.by}: {event.name}{arguments}: {event.answer}"


def _breakdowns(trials: Iterable[Trial]) -> list[str]:
    """Which trials broke down, how often, and why the last time."""
    broke = [trial for trial in trials if trial.breakdowns]
    lines = [f"{len(broke)} trials broke down, the last of them:"] if len(broke) > 3 else []
    for trial in broke[-3:]:
        times = "once" if len(trial.breakdowns) == 1 else f"{len(trial.breakdowns)} times, the last time"
        lines.append(f"trial {trial.number} broke down {times}: {trial.breakdowns[-1]}")
    return lines


def _what_next(folder: Path, state: SearchState) -> list[str]:
    """The reason for a search's state, and the command that continues it."""
    from vit_search.cluster import record

    lines = [state.reason] if state.reason else []
    there = " --address URL" if record.submitted(folder) else ""
    if state.resumable:
        lines.append(f"go on with:  vit-search resume {folder.name}{there}")
    elif state.word == "paused":
        lines.append(f"go on with:  vit-search continue {folder.name}")
    return lines


@app.command()
def logs(
    search: Annotated[
        str | None,
        typer.Argument(help="A search, or one of its trials as SEARCH/TRIAL. Default: the newest search.", metavar="SEARCH[/TRIAL]"),
    ] = None,
    address: There = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Print new events too, until the search ends.")] = False,
    output: Annotated[Path, typer.Option(help="Folder that holds all searches; without --address.")] = Path("searches"),
    insecure: Insecure = False,
) -> None:
    """Print the events of a search or of one trial.

    For a search on a cluster, it prints the output of the driver, the process that runs the search.
    """
    name, trial = (None, None) if search is None else _trial(search)
    if address is None:
        _events(output, name, trial, follow)
    elif search is None or trial is None:
        there = connect(address, insecure)
        from vit_search.cluster.jobs import launches
        from vit_search.cluster.jobs.logs import logs as print_logs

        name = name or launches.newest(there)
        if name is None:
            raise SearchError(
                f"{there.address}: no search was submitted since its Ray was started; submit one with `vit-search submit FILE`."
            )
        with writing(there.address) as write:
            print_logs(there, name, write=write, follow=follow)
    else:
        remotely(address, ["logs", search, *(["--follow"] if follow else [])], insecure=insecure, follow=follow)


def _trial(search: str) -> tuple[str, int | None]:
    name, slash, trial = search.rpartition("/")
    number = whole_number(trial) if slash else None
    return (search, None) if number is None else (name, number)


def _events(output: Path, search: str | None, trial: int | None, follow: bool) -> None:
    """Print the events of a search or of one trial, a line each; then the error that the trial left."""
    from vit_search.ledger import searches
    from vit_search.ledger.events import Ended
    from vit_search.ledger.file import is_held, read_events
    from vit_search.ledger.searches import trial_folder

    folder = searches.find(output, search)
    path, spec = folder / "ledger.jsonl", searches.read(folder)[0]
    printed = 0
    while True:
        running = is_held(path)
        all_events = read_events(path)
        events = all_events if trial is None else _of_trial(all_events, trial)
        if trial is not None and not events:
            raise SearchError(f"{folder.name}: there is no trial {trial} yet; `vit-search show {folder.name}` lists its trials.")
        lines = event_lines(spec, all_events, events, named=trial is None)
        write_plain("".join(f"{line}\n" for line in lines[printed:]))
        printed = len(lines)
        ended = trial is not None and isinstance(events[-1], Ended) and events[-1].outcome != "interrupted"
        if not follow or ended or not running:
            break
        time.sleep(1)
    error = trial_folder(folder, trial) / "error.txt" if trial is not None else None
    if error is not None and error.is_file():
        write_plain(f"\n{error}:\n{error.read_text(encoding='utf-8', errors='replace')}")


def _of_trial(events: Sequence[Event], trial: int) -> list[Event]:
    """A trial's events, and the launches of drivers that continued it."""
    from vit_search.ledger.events import Ended, Launched

    of_trial: list[Event] = []
    goes_on = False
    for event in events:
        if getattr(event, "trial", None) == trial:
            of_trial.append(event)
            goes_on = not isinstance(event, Ended) or event.outcome == "interrupted"
        elif isinstance(event, Launched) and goes_on:
            of_trial.append(event)
    return of_trial


def event_lines(spec: SearchSpec, events: Sequence[Event], shown: Sequence[Event], *, named: bool) -> list[str]:
    """A line for each event in `shown`, and a line whenever the stopping rule makes one of their trials wait or lets it go on.

    Args:
        events: all events of the search.
        shown: some of them, in the same order.
        named: whether a line names its trial.
    """
    from vit_search.ledger.events import Reported
    from vit_search.stopping import with_held_trials

    def of(trial: int, text: str) -> str:
        return f"trial {trial}: {text}" if named else text

    epochs: dict[int, int] = {}
    kept, trials = set(map(id, shown)), {event.trial for event in shown if hasattr(event, "trial")}
    lines, before = [], set[int]()
    for event, held in with_held_trials(spec, events):
        said = [_in_words(event, spec.metric, named)] if id(event) in kept else []
        if isinstance(event, Reported):
            epochs[event.trial] = max(event.result.epoch, epochs.get(event.trial, 0))
        own = {getattr(event, "trial", None)}  # the line of an end, or of the next epoch, says enough
        said += [of(trial, _waiting_text(spec.stopping.kind, one=True)) for trial in sorted((held - before) & trials)]
        said += [of(trial, f"goes on from epoch {epochs[trial]}") for trial in sorted((before - held - own) & trials)]
        at = time.strftime("%m-%d %H:%M:%S", time.localtime(event.at))
        lines += [f"{at}  {one_line(text)}" for text in said]
        before = held
    return lines


def _in_words(event: Event, metric: str, named: bool) -> str:
    from vit_search.ledger.events import Broke, Ended, Infeasible, Launched, Left, OutgrewShare, Proposed, Reported

    trial = f"trial {event.trial}: " if named and hasattr(event, "trial") else ""
    if isinstance(event, Launched):
        return f"driver started: process {event.pid} on {event.host}"
    if isinstance(event, Proposed):
        return trial + "proposed: " + ", ".join(f"{name} {value_text(value)}" for name, value in event.params.items())
    if isinstance(event, Infeasible):
        return f"not run: {event.reason}"
    if isinstance(event, Reported):
        result = event.result
        value = result.value(metric)
        shown = "" if value is None or metric == "train_loss" else f", {metric} {value:.4f}"
        return f"{trial}epoch {result.epoch}: train_loss {result.train_loss:.4f}{shown}, {result.seconds:.2f} s"
    if isinstance(event, Ended):
        return trial + event.outcome + (f": {event.reason}" if event.reason else "")
    if isinstance(event, Broke):
        return f"{trial}broke down: {event.reason}" + ("; it is tried again from its last checkpoint" if event.again else "")
    if isinstance(event, OutgrewShare):
        return f"{trial}outgrew its {event.gpus:g} of a GPU, goes on with more: {event.reason}"
    if isinstance(event, Left):
        return f"driver ended: {event.state}" + (f", {event.reason}" if event.reason else "")
    return f"{event.by}: {event.name}: {event.answer}"
