"""The commands a person types; the only place that prints, parses arguments, or exits."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vit_search.errors import SearchError, VitSearchError

if TYPE_CHECKING:
    from vit_search.search.control import Control
    from vit_search.search.launch import SearchResult
    from vit_search.spec.search_file import SearchSpec
    from vit_search.tracking.ledger import Event, Ledger, Spent, Trial

os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # here and in all that we start: no pickle from a file
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

app = typer.Typer(
    help="Search for the best Vision Transformer for your images, browse the trials in MLflow, promote the best one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich's costs 0.25 s of imports
)
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)  # a pipe has no width of its own
err = Console(stderr=True, highlight=False)

INTERRUPTED = 130
"""Exit code of a search ended by Ctrl-C, as a shell gives it."""

OUTCOME_STYLE = {"completed": "green", "stopped": "yellow", "running": "cyan", "interrupted": "magenta", "failed": "red", "diverged": "red"}

Output = Annotated[Path, typer.Option(help="Folder of all searches.")]
Tracking = Annotated[
    str | None, typer.Option(help="MLflow server or database; by default MLFLOW_TRACKING_URI, else SQLite in ./mlruns.db.")
]
SearchName = Annotated[str | None, typer.Argument(help="A search by name or folder; the newest by default.", metavar="[SEARCH]")]


def main() -> None:
    """Run the command line; a user's mistake is one line and an exit code, never a traceback."""
    try:
        app()
    except VitSearchError as error:
        err.print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(INTERRUPTED)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A search file, e.g. search_spaces/digits.yaml.")],
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")] = False,
) -> None:
    """Start a search and see it through."""
    from vit_search.spec import search_file

    spec = search_file.load(file)
    share = spec.space.feasible_share()
    if 0 < share < 0.05:
        err.print(f"[yellow]note:[/] only {share:.1%} of random proposals can be built; tighten the choices of patch_size, dim and heads.")
    with err.status("preparing the data, MLflow and Ray …"):
        from vit_search.search import launch
    _finish(_watched(lambda watch: launch.run(spec, output=output, tracking_uri=tracking_uri, download=download, watch=watch)))


@app.command()
def resume(search: SearchName = None, output: Output = Path("searches"), tracking_uri: Tracking = None) -> None:
    """Take up a search that was interrupted."""
    from vit_search.tracking import searches

    folder = searches.find(output, search)
    with err.status("preparing MLflow and Ray …"):
        from vit_search.search import launch
    _finish(_watched(lambda watch: launch.resume(folder, tracking_uri=tracking_uri, watch=watch)))


@app.command()
def extend(
    search: SearchName = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, those that ran included.")] = None,
    hours: Annotated[float | None, typer.Option(help="Limit of wall time in all.")] = None,
    device_hours: Annotated[float | None, typer.Option(help="Limit of device time in all.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at the same time.")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
) -> None:
    """Go on with a finished search beyond its limits: the same sampler, rungs and MLflow run."""
    from vit_search.tracking import searches

    folder = searches.find(output, search)
    more = _given(trials=trials, hours=hours, device_hours=device_hours, concurrency=concurrency)
    if not more:
        raise SearchError("extend by what? Give --trials, --hours, --device-hours or --concurrency.")
    with err.status("preparing MLflow and Ray …"):
        from vit_search.search import launch
    _finish(_watched(lambda watch: launch.resume(folder, tracking_uri=tracking_uri, extend=more, watch=watch)))


@app.command()
def pause(search: SearchName = None, output: Output = Path("searches"), tracking_uri: Tracking = None) -> None:
    """Hold a running search: its trials stop after their epoch and free their devices."""
    _command(search, output, tracking_uri, "pause")


@app.command(name="continue")
def continue_(search: SearchName = None, output: Output = Path("searches"), tracking_uri: Tracking = None) -> None:
    """Go on with a search that was paused."""
    _command(search, output, tracking_uri, "continue")


@app.command()
def stop(
    search: Annotated[str | None, typer.Argument(help="A search, or one trial of it as SEARCH/TRIAL.", metavar="[SEARCH[/TRIAL]]")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
) -> None:
    """Start no more trials and let the running ones end; or stop one trial after its epoch."""
    name, slash, trial = (search or "").rpartition("/")
    if slash and trial.isdigit():
        _command(name or None, output, tracking_uri, "stop", trial=int(trial))
    else:
        _command(search, output, tracking_uri, "stop")


@app.command()
def cancel(search: SearchName = None, output: Output = Path("searches"), tracking_uri: Tracking = None) -> None:
    """End a running search now; `resume` goes on from the last checkpoints."""
    _command(search, output, tracking_uri, "cancel")


@app.command(name="set")
def set_(
    search: SearchName = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at the same time.")] = None,
    hours: Annotated[float | None, typer.Option(help="Limit of wall time in all.")] = None,
    device_hours: Annotated[float | None, typer.Option(help="Limit of device time in all.")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
) -> None:
    """Change the size of a running search."""
    _command(search, output, tracking_uri, "set", **_given(trials=trials, concurrency=concurrency, hours=hours, device_hours=device_hours))


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A YAML file of parameters, e.g. `{dim: 64, lr: 1e-3}`; the sampler chooses the others.")],
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
) -> None:
    """Have a running search try these parameters next."""
    from vit_search.spec import strict_yaml

    _command(search, output, tracking_uri, "add", **strict_yaml.load(file).values)


@app.command()
def status(
    search: SearchName = None,
    output: Output = Path("searches"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say how far a search is, what it has spent and what stopping has saved."""
    from vit_search.search.control import Settings
    from vit_search.tracking import ledger, searches

    folder = searches.find(output, search)
    spec, _ = searches.read(folder)
    events = ledger.read_events(folder / "ledger.jsonl")
    trials, spent = ledger.told(events, spec.epochs)
    settings, running = Settings.of(spec, events), ledger.held(folder / "ledger.jsonl")
    outcomes = [trial.outcome for trial in trials.values()]
    counts = {name: outcomes.count(name) for name in OUTCOME_STYLE if name in outcomes}
    winner = ledger.best(trials.values(), spec.metric, spec.mode)
    commands = [event for event in events if isinstance(event, ledger.Commanded)]
    if as_json:
        facts = {
            "search": folder.name,
            "running": running,
            "trials": settings.trials,
            "outcomes": counts,
            "best": _row(winner, spec.metric, 1) if winner else None,
            "spent": {key: value for key, value in vars(spent).items() if not key.startswith("_")},
            "commands": [vars(event) for event in commands],
        }
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return
    over = sum(trial.over for trial in trials.values())
    state = "running" if running else "finished" if over >= settings.trials else "not running"
    out.print(f"[bold]{folder.name}[/] is {state}: {over} of {settings.trials} trials over, {settings.concurrency} at a time")
    out.print("  " + ", ".join(f"[{OUTCOME_STYLE[name]}]{count} {name}[/]" for name, count in counts.items()))
    if winner:
        params = ", ".join(f"{key} {_number(value)}" for key, value in winner.params.items())
        out.print(f"  best {spec.metric} {winner.value(spec.metric):.4f}: trial {winner.number} ({params})")
    out.print(f"  {_spent(spent)}")
    for event in commands[-5:]:
        arguments = " ".join(f"{key}={value}" for key, value in event.arguments.items())
        out.print(_escaped(f"  {time.strftime('%H:%M', time.localtime(event.at))} {event.by}: {event.name} {arguments}: {event.answer}"))


@app.command()
def show(
    search: SearchName = None,
    output: Output = Path("searches"),
    as_json: Annotated[bool, typer.Option("--json", help="All trials as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="All trials as CSV.")] = False,
    top: Annotated[int, typer.Option(help="Rows of the table; 0 for all.")] = 10,
) -> None:
    """Print the leaderboard of a search, running or over."""
    from vit_search.tracking import ledger, searches

    folder = searches.find(output, search)
    spec, _ = searches.read(folder)
    trials = ledger.ranked(ledger.read_trials(folder / "ledger.jsonl"), spec.metric, spec.mode)
    if as_json:
        sys.stdout.write(json.dumps([_row(t, spec.metric, i) for i, t in enumerate(trials, 1)], indent=1) + "\n")
    elif as_csv:
        names = list(dict.fromkeys(name for i, t in enumerate(trials, 1) for name in _row(t, spec.metric, i)))
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(t, spec.metric, i) for i, t in enumerate(trials, 1))
    else:
        out.print(_leaderboard(folder.name, trials, spec, top))


@app.command()
def ui(
    tracking_uri: Tracking = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's pages on 127.0.0.1."""
    from vit_search.tracking import recorder

    uri = recorder.resolve_uri(tracking_uri)
    if uri.startswith("http"):
        out.print(f"MLflow already runs at {uri}")
        return
    recorder.client_for(uri)  # one clear line where it cannot be opened
    hosts = f"127.0.0.1:{port},localhost:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--allowed-hosts",
        hosts,
        "--workers",
        "1",
    ]
    out.print(f"MLflow: [bold]http://127.0.0.1:{port}[/]   (Ctrl-C ends it)")
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(sys.executable, command, environment)  # noqa: S606 -- the server takes this process's place, and its Ctrl-C


@app.command()
def promote(search: SearchName = None, output: Output = Path("searches"), tracking_uri: Tracking = None) -> None:
    """Test the best trial once, register it, and make it the champion."""
    from vit_search.tracking import ledger, searches

    folder = searches.find(output, search)
    spec, facts = searches.read(folder)
    winner = ledger.best(ledger.read_trials(folder / "ledger.jsonl"), spec.metric, spec.mode)
    if winner is None or winner.outcome != "completed":
        raise SearchError(f"{folder}: no trial has reached full length yet; let the search end or `vit-search resume {folder.name}`.")
    with err.status("evaluating once on the test split …"):
        from vit_search.production import promotion

        value = winner.value(spec.metric) or 0.0
        candidate = promotion.Candidate(
            search=folder.name,
            search_id=facts.search_id,
            trial=winner.number,
            checkpoint=ledger.trial_folder(folder, winner.number) / "checkpoint",
            name=spec.name,
            val_metric=spec.metric,
            val_value=value,
        )
        done = promotion.promote(candidate, tracking_uri=tracking_uri or facts.tracking_uri)
    said = "was registered before, so the test split was not read again" if done.again else f"reading {done.reading} of this test split"
    out.print(f"[bold]{done.name}[/] version {done.version} is now [bold green]champion[/]: trial {winner.number} of {folder.name}")
    out.print(f"test accuracy [bold]{done.test_accuracy:.4f}[/] on {done.test_images:,} images ({said}); {spec.metric} was {value:.4f}")
    out.print(f"\nNext:  vit-search predict --model models:/{done.name}@champion IMAGE…")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[str, typer.Option(help="models:/NAME@champion or models:/NAME/VERSION.")],
    tracking_uri: Tracking = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Classify image files with a registered model."""
    from rich.table import Table

    from vit_search.production import promotion

    predictions = promotion.predict(model, images, tracking_uri=tracking_uri)
    if as_json:
        sys.stdout.write(json.dumps([vars(p) for p in predictions], indent=1) + "\n")
        return
    table = Table("image", "label", "probability", box=None, header_style="dim")
    for p in predictions:
        table.add_row(_escaped(p.image), f"[bold]{_escaped(p.label)}[/]", f"{p.probability:.3f}")
    out.print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a search file, for editors."""
    from vit_search.spec import search_file

    sys.stdout.write(json.dumps(search_file.json_schema(), indent=2) + "\n")


def _given(**options: float | None) -> dict[str, float]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _command(search: str | None, output: Path, tracking_uri: str | None, name: str, **arguments: Any) -> None:
    """Have a running search do something: through its folder, or through MLflow where the folder is not here."""
    from vit_search.search import control
    from vit_search.tracking import searches

    try:
        folder = searches.find(output, search)
    except SearchError:
        if search is None or tracking_uri is None:
            raise
        from vit_search.tracking import recorder

        answer = recorder.command(tracking_uri, search, control.in_words(name, arguments), control.ANSWER_WITHIN_S + recorder.LOOK_EVERY_S)
    else:
        answer = control.ask(folder, name, arguments)
    out.print(_escaped(answer))


def _spent(spent: Spent) -> str:
    """What a search has cost, in words."""
    share = spent.stopped_seconds / spent.trial_seconds if spent.trial_seconds else 0.0
    return (
        f"{_time(spent.wall_seconds)} of wall time, {_time(spent.trial_seconds)} of training in {spent.epochs:,} epochs, "
        f"{share:.0%} of it in stopped trials; stopping saved {_time(spent.saved_seconds)}"
    )


def _watched(work: Callable[[Any], SearchResult]) -> SearchResult:
    """Run a search with its live picture on a terminal, or a line per ended trial elsewhere."""
    screen = _Screen()
    try:
        return work(screen.watch)
    finally:
        screen.close()


def _finish(result: SearchResult) -> None:
    """The leaderboard and the next commands to type."""
    name, spec, trials = result.folder.name, result.spec, result.trials
    out.print(_leaderboard(name, trials, spec, 10))
    ended = [t for t in trials if t.over]
    stopped = sum(t.outcome == "stopped" for t in ended)
    trained, full = sum(len(t.results) for t in trials), spec.epochs * max(len(trials), 1)
    share = stopped / max(len(ended), 1)
    out.print(f"{len(ended)} of {result.settings.trials} trials in {_time(result.seconds)}, {stopped} stopped early ({share:.0%})")
    if result.ended_by:
        out.print(f"ended by {_escaped(result.ended_by)}; go on with:  vit-search extend {name}", soft_wrap=True)
    out.print(f"{trained} epochs trained, {full - trained} saved against no stopping ({1 - trained / full:.0%})")
    out.print(_spent(result.spent))
    if result.interrupted:
        err.print(f"\n[yellow]Interrupted.[/] Nothing is lost; go on with:  [bold]vit-search resume {name}[/]", soft_wrap=True)
        sys.exit(INTERRUPTED)
    out.print("\nNext:  vit-search ui               browse the trials in MLflow")
    out.print(f"       vit-search show {name}", soft_wrap=True)
    out.print(f"       vit-search promote {name}", soft_wrap=True)


def _leaderboard(name: str, trials: list[Trial], spec: SearchSpec, top: int) -> Any:
    """The table with a column per parameter, or all parameters in one where the terminal is too narrow."""
    wide = _table(name, trials, spec, top, wide=True)
    whole = out.measure(wide, options=out.options.update(max_width=10_000)).maximum
    return wide if whole <= out.width else _table(name, trials, spec, top, wide=False)


def _table(name: str, trials: list[Trial], spec: SearchSpec, top: int, *, wide: bool) -> Any:
    from rich.table import Table

    shown = trials if top <= 0 else trials[:top]
    table = Table(title=f"{name}: {spec.metric}, {spec.mode}", title_justify="left", title_style="bold", box=None, header_style="dim")
    for column in ("#", "trial", spec.metric, "outcome", "epochs"):
        table.add_column(column, justify="left" if column == "outcome" else "right", no_wrap=True)
    searched = list(spec.space.searched)
    for column in searched if wide else ["parameters"]:
        table.add_column(column, justify="right" if wide else "left")
    for rank, trial in enumerate(shown, 1):
        value = trial.value(spec.metric)
        params = {column: _number(trial.params.get(column)) for column in searched}
        table.add_row(
            str(rank),
            str(trial.number),
            "–" if value is None else f"{value:.4f}",
            f"[{OUTCOME_STYLE[trial.outcome]}]{trial.outcome}[/]",
            str(len(trial.results)),
            *(params.values() if wide else [", ".join(f"{name} {text}" for name, text in params.items())]),
        )
    if len(shown) < len(trials):
        table.caption = f"{len(trials) - len(shown)} more: vit-search show {name} --top 0"
        table.caption_justify = "left"
    return table


def _row(trial: Trial, metric: str, rank: int) -> dict[str, Any]:
    facts = {"rank": rank, "trial": trial.number, "outcome": trial.outcome, "epochs": len(trial.results), metric: trial.value(metric)}
    return facts | trial.params | ({"reason": trial.reason} if trial.reason else {})


class _Screen:
    """Live progress of a search: running trials, the best so far, how many were stopped, time left."""

    def __init__(self) -> None:
        self._live: Any = None

    def watch(self, ledger: Ledger, spec: SearchSpec, control: Control) -> Callable[[Event], None]:
        """Begin; what comes back is told every event."""
        from vit_search.tracking.ledger import Commanded, Ended

        self._ledger, self._spec, self._control, self._began = ledger, spec, control, time.monotonic()
        self._epochs_before = self._epochs()
        if err.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._picture, console=err, refresh_per_second=4, transient=True)
            self._live.start()
            return lambda event: None

        def line(event: Event) -> None:
            if isinstance(event, Commanded):
                err.print(_escaped(f"{event.by}: {event.name}: {event.answer}"), soft_wrap=True)
            elif isinstance(event, Ended):
                trial = ledger.trials[event.trial]
                value = trial.value(spec.metric)
                said = f"trial {trial.number:3d} {trial.outcome:<11} after {len(trial.results):3d} epochs"
                err.print(
                    f"{said}  {spec.metric} {value:.4f}" if value is not None else f"{said}  {_escaped(trial.reason)}", soft_wrap=True
                )

        return line

    def close(self) -> None:
        """Take the picture away."""
        if self._live is not None:
            self._live.stop()

    def _epochs(self) -> int:
        return sum(len(t.results) for t in list(self._ledger.trials.values()))

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        from vit_search.tracking.ledger import best

        spec, trials, wanted = self._spec, list(self._ledger.trials.values()), self._control.settings.trials
        over = [t for t in trials if t.over]
        stopped = sum(t.outcome == "stopped" for t in over)
        spent = time.monotonic() - self._began
        head = Table.grid(padding=(0, 2))
        left = "…"
        trained = self._epochs() - self._epochs_before
        if over and trained:
            per_trial = sum(len(t.results) for t in over) / len(over)
            missing = per_trial * wanted - self._epochs()
            left = _time(max(0.0, missing) * spent / trained)
        head.add_row(f"[bold]{len(over)}[/] of {wanted} trials", f"{stopped} stopped early", f"{_time(spent)} spent", f"about {left} left")
        bar = Table.grid()
        bar.add_row(ProgressBar(total=wanted, completed=len(over), width=60))  # alone it would not end its line
        parts: list[Any] = [head, bar]
        state = "paused" if self._control.paused else "starting no more trials" if self._control.draining else self._control.ending
        if state:
            parts.append(f"[yellow]{_escaped(state)}[/]")
        winner = best(trials, spec.metric, spec.mode)
        if winner:
            params = ", ".join(f"{k} {_number(v)}" for k, v in winner.params.items())
            parts.append(f"best so far: [bold green]{winner.value(spec.metric):.4f}[/] {spec.metric}, trial {winner.number} ({params})")
        for trial in trials:
            if trial.outcome == "running":
                value = trial.value(spec.metric)
                row = Table.grid(padding=(0, 2))
                seen = "starting" if value is None else f"{spec.metric} {value:.4f}"
                row.add_row(
                    f"trial {trial.number:3d}",
                    ProgressBar(total=spec.epochs, completed=len(trial.results), width=30),
                    f"{len(trial.results)}/{spec.epochs}",
                    seen,
                )
                parts.append(row)
        return Group(*parts)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
