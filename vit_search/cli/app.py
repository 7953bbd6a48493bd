"""The commands a person types; the only place that prints, parses arguments, or exits."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vit_search.cli import cluster as cli_cluster
from vit_search.cli import terminal
from vit_search.cli.terminal import OUTCOME_STYLE, escaped
from vit_search.config.cost import in_rounded_time, in_time
from vit_search.errors import DataError, LostClusterError, PromotionError, SearchError, SpecError, TrackingError, VitSearchError
from vit_search.runtime.start_up import collect_rarely
from vit_search.runtime.user import user_name
from vit_search.text import counted, plain, value_text, whole_number

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.config.space import Space
    from vit_search.ledger.ledger import Broke, Event, Spent, Trial
    from vit_search.ledger.search_state import State
    from vit_search.ledger.searches import Hindsight
    from vit_search.planning.lint import Finding as LintFinding
    from vit_search.planning.lint import Report
    from vit_search.planning.plan import Plan, Speed
    from vit_search.promotion.finalists import Plan as FinalistPlan
    from vit_search.promotion.finalists import Retrained
    from vit_search.promotion.gates import Gate
    from vit_search.promotion.policy import Policy
    from vit_search.promotion.promotion import Promotion
    from vit_search.search.driver import Driver
    from vit_search.search.launch import SearchResult

app = typer.Typer(
    help="Search for the best Vision Transformer for your images, browse the trials in MLflow, promote the best one.",
    no_args_is_help=True,
    cls=terminal.Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich's costs 0.25 s of imports
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = terminal.console()
err = terminal.console(stderr=True)

INTERRUPTED = 130
"""Exit code of a search ended by Ctrl-C, as a shell gives it."""

REPORT_EVERY_S = 60.0
"""How long a search may print nothing where no terminal shows its progress."""

NOT_PROMOTED = 3
"""Exit code of a promotion that a gate has refused."""

NOT_RECORDED = 5
"""Exit code of a search that came to its end while MLflow was away."""

Result = TypeVar("Result")

Output = Annotated[Path, typer.Option(help="Folder of all searches.")]
Tracking = Annotated[
    str | None,
    typer.Option(help="MLflow server or database; by default MLFLOW_TRACKING_URI, else the search's own, else SQLite in ./mlruns.db."),
]
Address = Annotated[
    str | None,
    typer.Option(help="Of the Ray cluster that trains, from one of its nodes: `auto`, or HOST:6379; by default this machine alone."),
]
Nice = Annotated[
    int | None,
    typer.Option(
        "--nice",
        help="How far trials step back for other programs of this machine: 0 not at all, 19 most; 15 by default.",
        min=0,
        max=19,
    ),
]
PolicyFile = Annotated[Path | None, typer.Option(help="What a candidate must show; the defaults stand in README.md.", metavar="FILE")]
ModelName = Annotated[str, typer.Argument(help="A registered model, named after its search file's `name`.", metavar="NAME")]
SearchName = Annotated[str | None, typer.Argument(help="A search by name or folder; the newest by default.", metavar="SEARCH")]


def main() -> None:
    """Run the command line; a user's mistake is one line and an exit code, never a traceback."""
    collect_rarely()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no character that a locale lacks ends a command half-way
    try:
        app()
    except VitSearchError as error:
        err.print(f"[bold red]error:[/] {escaped(str(error))}", soft_wrap=True)
        if isinstance(error, LostClusterError):
            sys.stderr.flush()
            os._exit(error.exit_code)  # threads of Ray's wait for its head, and the interpreter for them
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(INTERRUPTED)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(f"vit_search {version('vit_search')}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")] = False,
) -> None:
    """Options of the command line itself."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A search file, e.g. search_spaces/digits.yaml.")],
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")] = False,
    address: Address = None,
    name: Annotated[str | None, typer.Option("--as", help="Name of the search's folder; by default the next free NAME-N.")] = None,
    nice: Nice = None,
) -> None:
    """Start a search and see it through."""
    from vit_search.config import search_file

    _set_niceness(nice, address)
    with _nothing_started():
        spec = search_file.load(file)
        share = spec.space.feasible_share()
    if 0 < share < 0.05:
        err.print(f"[yellow]note:[/] only {share:.1%} of random proposals can be built; tighten the choices of patch_size, dim and heads.")
    with err.status("preparing the data, MLflow and Ray …"), _nothing_started():  # the imports take a second or two
        from vit_search.search import launch
    options: dict[str, Any] = {"output": output, "tracking_uri": tracking_uri, "download": download, "address": address, "name": name}
    with _named(file):
        result = _watched(lambda watch: launch.run(spec, watch=watch, **options))
    _finish(result)


@contextlib.contextmanager
def _nothing_started() -> Iterator[None]:
    """Ctrl-C ends the process at once, with one line: in the middle of an import, it could leave a traceback, or be swallowed."""

    def end(*_: object) -> None:
        clear = "\r\x1b[2K\x1b[?25h" if err.is_terminal else ""  # the spinner, which has hidden the cursor
        os.write(2, f"{clear}interrupted; nothing was started.\n".encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """What is wrong with the images is told with the search file and the line that name them, as other mistakes are."""
    from vit_search.config import strict_yaml
    from vit_search.config.search_file import SearchSpec

    try:
        yield
    except (DataError, SpecError) as error:
        key = tuple(str(error).partition(":")[0].split("."))
        if key[0] in SearchSpec.model_fields:
            text = str(error)
        elif isinstance(error, DataError):
            key, text = ("data", "path"), f"data.path: {error}"
        else:
            raise
        raise type(error)(f"{file}:{strict_yaml.load(file).line(key)}: {text}") from None


def _set_niceness(nice: int | None, address: str | None) -> None:
    """Ray reads the variable when it starts.

    Raises: SearchError for a cluster, whose Ray has started.
    """
    if nice is None:
        return
    if address is not None:
        raise SearchError("--nice is for trials on this machine; on a cluster, set RAY_worker_niceness where Ray is started.")
    os.environ["RAY_worker_niceness"] = str(nice)  # noqa: SIM112 -- Ray's spelling


@app.command()
def lint(
    file: Annotated[Path, typer.Argument(help="A search file.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    output: Output = Path("searches"),
) -> None:
    """Find what is wrong or wasted in a search file.

    That is what can never run, repeats, or makes no difference. Trains nothing.
    """
    from vit_search.config import cost, search_file
    from vit_search.planning import lint as linting

    spec = search_file.load(file)
    with _named(file):
        beyond = linting.beyond_this_machine(spec, cost.cpus_of_this_machine(), cost.gpus_of_this_machine())
        report = linting.lint(spec, further=[*_missing_searches(spec, output), *beyond])
        _print_images(spec)
    if as_json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=1) + "\n")
    else:
        _print_report(report)
    if report.failed:
        sys.exit(2)


def _missing_searches(spec: SearchSpec, output: Path) -> Iterable[LintFinding]:
    """Searches to learn from that are not here; `run` refuses them."""
    from vit_search.ledger import searches
    from vit_search.planning.lint import Finding

    for i, name in enumerate(spec.learn_from):
        try:
            searches.find(output, name)
        except SearchError as error:
            yield Finding("warning", f"learn_from.{i}", f"{name}: {error} `run` needs it where the search will run.")


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="A search file.")],
    concurrency: Annotated[int | None, typer.Option(help="Trials at once; the file's by default.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure this machine first, some 15 seconds, and remember it.")] = False,
    flops_per_s: Annotated[float | None, typer.Option(help="State what a training step sustains instead, e.g. 5e10.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Tell what a search will cost: epochs, memory, disk and time.

    The time is that of this machine. Trains nothing.
    """
    from vit_search.config import search_file
    from vit_search.data.data_set import kept_speed
    from vit_search.planning import plan as planning

    spec = search_file.load(file)
    if concurrency is not None and not 1 <= concurrency <= 10_000:
        raise SearchError(f"--concurrency is {concurrency}; give 1 to 10,000 trials at once.")
    if calibrate and flops_per_s is not None:
        raise SearchError("--calibrate and --flops-per-s: a speed is measured or stated; drop one of the two.")
    kept = kept_speed(gpus=spec.resources.on_gpu)
    if calibrate:
        with err.status("measuring this machine …"), _named(file):
            from vit_search.vit import calibrate as calibration

            planning.save_speed(calibration.calibrate(spec, concurrency=concurrency), kept)
    speed = planning.load_speed(kept) if flops_per_s is None else planning.stated_speed(flops_per_s)
    with _named(file):
        made = planning.plan(spec, speed, concurrency=concurrency)
        _print_images(spec)
    if as_json:
        sys.stdout.write(json.dumps(made.to_dict(), indent=1) + "\n")
    else:
        _print_plan(made)


def _print_images(spec: SearchSpec) -> None:
    """What lies in an image folder, in one line, and whether its classes allow the metric."""

    path = Path(spec.data.path or "").expanduser()
    if spec.data.name == "image_folder" and path.is_dir():
        from vit_search.data import image_folder

        listing = image_folder.scan(path)
        err.print(escaped(listing.summary))
        spec.check_data(len(listing.classes))
    elif spec.data.path and not path.exists():
        err.print(escaped(f"note: {path} is not on this machine, so its images are not looked at; `run` needs them."))


SEVERITY_STYLE = {"error": "bold red", "warning": "yellow", "hint": "cyan"}


def _print_report(report: Report) -> None:
    from rich.table import Table

    from vit_search.config.cost import in_units

    out.print(f"[bold]{escaped(report.name)}[/]: {report.valid_share:.1%} of {report.draws:,} random proposals can be run")
    for reason, count in report.invalid.items():
        out.print(f"  {count / report.draws:6.1%}  {escaped(reason)}")
    if report.combinations is not None:
        out.print(
            f"{counted(report.combinations, 'combination')}, {report.valid_combinations or 0:,} of them can be run, "
            f"for {counted(report.trials, 'trial')}"
        )
    if report.spreads:
        table = Table(box=None, header_style="dim")
        for column in ("", "least", "10 %", "median", "90 %", "most"):
            table.add_column(column, justify="right" if column else "left")
        for name, label, shown in (
            ("params", "parameters", _count),
            ("flops", "FLOPs an image", _count),
            ("train_bytes", "memory", in_units),
        ):
            spread = report.spreads[name]
            values = (spread.least, spread.tenth, spread.median, spread.ninetieth, spread.most)
            table.add_row(label, *(shown(int(value)) for value in values))
        out.print(table)
    for limit in report.limits:
        out.print(f"[dim]limit[/]  {escaped(limit.limit)}: excludes {limit.excluded:.0%}, alone {limit.alone:.0%}")
    findings = Table.grid(padding=(0, 2, 0, 0))
    for finding in report.findings:
        findings.add_row(f"[{SEVERITY_STYLE[finding.severity]}]{finding.severity}[/]", escaped(f"{finding.where}: {finding.text}"))
    out.print(findings if report.findings else "[green]nothing odd[/]")


def _print_plan(plan: Plan) -> None:
    from rich.table import Table

    from vit_search.config.cost import in_units

    low, high = plan.trained_epochs_range
    epochs = f"about [bold]{_rounded(plan.trained_epochs)}[/] ({_rounded(low)} to {_rounded(high)})"
    if low == high:  # nothing is left to chance
        epochs = f"[bold]{plan.trained_epochs:,.0f}[/]"
    rows = [
        ("images", f"{plan.images.train:,} to train on, {plan.images.val:,} to validate on"),
        ("epochs", f"{epochs}, {plan.saved_share:.0%} less than without stopping"),
        ("trials", ", ".join(f"{rung.trials:,.{rung.trials < 20:d}f} reach epoch {rung.epoch}" for rung in plan.rungs)),
        ("models", f"{_count(plan.params[0])} parameters in the middle, at most {_count(plan.params[1])}"),
        ("work", f"{_count(plan.flops)} floating-point operations"),
        ("memory", f"{in_units(plan.train_bytes[0])} a trial, at most {in_units(plan.train_bytes[1])}, beside what torch itself takes"),
        *([("GPUs", _gpu_shares(plan))] if plan.shares else []),
        ("disk", f"checkpoints take at most {in_units(plan.disk_bytes)}"),
    ]
    if plan.speed and plan.wall_seconds_range and plan.epoch_seconds:
        soonest, latest = map(in_rounded_time, plan.wall_seconds_range)
        rows += [
            (
                "time",
                f"about [bold]{in_rounded_time(plan.wall_seconds or 0)}[/] ({soonest} to {latest}), Ray's and MLflow's own not counted",
            ),
            (
                "",
                f"{in_rounded_time(plan.trial_seconds or 0)} of all trials, {in_rounded_time(plan.device_seconds or 0)} of GPUs or cores",
            ),
            ("", f"an epoch {in_rounded_time(plan.epoch_seconds[0])} in the middle, at most {in_rounded_time(plan.epoch_seconds[1])}"),
            ("speed", _speed(plan.speed, plan)),
        ]
    else:
        rows.append(("time", "unknown: add --calibrate to measure this machine, or --flops-per-s to state its speed"))
    if plan.limit:
        rows.append(("limit", f"[yellow]{plan.limit}[/]"))
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in rows:
        table.add_row(f"[dim]{label}[/]", text)
    head = f"{counted(plan.trials, 'trial')} of up to {counted(plan.epochs, 'epoch')}, stopping {plan.stopping}, {plan.concurrency} at once"
    out.print(f"[bold]{escaped(plan.name)}[/]: {head}")
    out.print(table)


def _gpu_shares(plan: Plan) -> str:
    """How many trials share a GPU."""
    from vit_search.config.cost import in_units

    parts = [f"{share.trials:.0%} of the trials {1 / share.gpus:.0f} to a GPU" for share in plan.shares if share.gpus < 1]
    parts += [f"{share.trials:.0%} have one alone" for share in plan.shares if share.gpus >= 1]
    return f"{', '.join(parts)}, where it has {in_units(plan.gpu_bytes)}"


def _speed(speed: Speed, plan: Plan) -> str:
    """Where a plan's seconds come from, and what may be wrong with them."""
    from vit_search.planning.plan import BORROWED

    if not speed.measured:
        return f"{_count(speed.flops_per_s)} floating-point operations a second, as stated"
    said = f"{escaped(speed.device)}, measured {speed.measured} with {speed.processes} at once"
    odd = [f"for {plan.borrowed}: the times may be wrong by a factor of {BORROWED:g}"] * bool(plan.borrowed)
    odd += [f"not {plan.concurrency}"] * (speed.processes != min(plan.concurrency, speed.room))
    said += f" [yellow]{', '.join(odd)}; --calibrate measures anew[/]" if odd else ""
    return said + (f"; [yellow]it has room for {speed.room} at once[/]" if plan.concurrency > speed.room else "")


def _rounded(count: float) -> str:
    """An estimated number in two digits."""
    return f"{float(f'{count:.2g}'):,.0f}"


def _count(value: float) -> str:
    """A large number in three digits: 37.4 k, 1.2 M, 3.4 T."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else in_time(value)


@app.command()
def resume(
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster: `auto` or HOST:6379 from one of its nodes; or http://…, its Jobs API, from anywhere, "
            "to have it go on with a search that was submitted there. By default this machine alone."
        ),
    ] = None,
    insecure: cli_cluster.Insecure = False,
    nice: Nice = None,
) -> None:
    """Take up a search that was interrupted."""
    _set_niceness(nice, address)
    if address is not None and address.startswith(("http://", "https://")):
        cli_cluster.resume_there(address, search, insecure)
        return
    from vit_search.ledger import searches
    from vit_search.search import resumable

    folder = searches.find(output, search)
    resumable.check(folder, {})  # at once, and not after ten seconds of imports
    with err.status("preparing MLflow and Ray …"), _nothing_started():
        from vit_search.search import launch
    _finish(_watched(lambda watch: launch.resume(folder, tracking_uri=tracking_uri, watch=watch, address=address)))


@app.command()
def extend(
    search: SearchName = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, those that ran included.")] = None,
    hours: Annotated[float | None, typer.Option(help="Limit of wall time in all.")] = None,
    device_hours: Annotated[float | None, typer.Option(help="Limit of device time in all.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at the same time.")] = None,
    target: Annotated[float | None, typer.Option(help="The metric's value at which the search is done.")] = None,
    patience: Annotated[int | None, typer.Option(help="Trials in a row without a better metric.")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: Address = None,
    nice: Nice = None,
) -> None:
    """Go on with a finished search beyond its limits.

    It keeps its sampler, its rungs and its MLflow run.
    """
    from vit_search.ledger import searches
    from vit_search.search import resumable

    _set_niceness(nice, address)
    folder = searches.find(output, search)
    more = _given(trials=trials, hours=hours, device_hours=device_hours, concurrency=concurrency, target=target, patience=patience)
    if not more:
        raise SearchError("extend by what? Give --trials, --hours, --device-hours, --concurrency, --target or --patience.")
    resumable.check(folder, more)
    with err.status("preparing MLflow and Ray …"), _nothing_started():
        from vit_search.search import launch
    _finish(_watched(lambda watch: launch.resume(folder, tracking_uri=tracking_uri, extend=more, watch=watch, address=address)))


@app.command()
def pause(
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: cli_cluster.There = None,
    insecure: cli_cluster.Insecure = False,
) -> None:
    """Hold a running search after the epoch at hand.

    Its trials free their devices; `continue` goes on.
    """
    if address is not None:
        cli_cluster.remotely(address, ["pause", *_if_named(search)], insecure=insecure)
        return
    _command(search, output, tracking_uri, "pause")


@app.command(name="continue")
def continue_(
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: cli_cluster.There = None,
    insecure: cli_cluster.Insecure = False,
) -> None:
    """Go on with a search that was paused."""
    if address is not None:
        cli_cluster.remotely(address, ["continue", *_if_named(search)], insecure=insecure)
        return
    _command(search, output, tracking_uri, "continue")


@app.command()
def stop(
    search: Annotated[str | None, typer.Argument(help="A search, or one trial of it as SEARCH/TRIAL.", metavar="SEARCH[/TRIAL]")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: cli_cluster.There = None,
    insecure: cli_cluster.Insecure = False,
) -> None:
    """Start no more trials, or stop one trial.

    Running trials end by themselves. One trial, as SEARCH/TRIAL, stops after its epoch.
    """
    if address is not None:
        cli_cluster.remotely(address, ["stop", *_if_named(search)], insecure=insecure)
        return
    name, slash, trial = (search or "").rpartition("/")
    number = whole_number(trial) if slash else None
    if number is not None:
        _command(name or None, output, tracking_uri, "stop", {"trial": number})
    else:
        _command(search, output, tracking_uri, "stop")


@app.command()
def cancel(
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: cli_cluster.There = None,
    insecure: cli_cluster.Insecure = False,
) -> None:
    """End a running search now; `resume` can go on with it.

    It goes on from the last checkpoints.
    """
    if address is not None:
        cli_cluster.cancel_there(address, search, insecure)
        return
    _command(search, output, tracking_uri, "cancel")


@app.command(name="set")
def set_(
    search: SearchName = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at the same time.")] = None,
    hours: Annotated[float | None, typer.Option(help="Limit of wall time in all.")] = None,
    device_hours: Annotated[float | None, typer.Option(help="Limit of device time in all.")] = None,
    target: Annotated[float | None, typer.Option(help="The metric's value at which the search is done.")] = None,
    patience: Annotated[int | None, typer.Option(help="Trials in a row without a better metric.")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: cli_cluster.There = None,
    insecure: cli_cluster.Insecure = False,
) -> None:
    """Change the size of a running search."""
    given = _given(trials=trials, concurrency=concurrency, hours=hours, device_hours=device_hours, target=target, patience=patience)
    if address is not None:
        changes = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        cli_cluster.remotely(address, ["set", *_if_named(search), *changes], insecure=insecure)
        return
    _command(search, output, tracking_uri, "set", given)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A YAML file of parameters, e.g. `{dim: 64, lr: 1e-3}`; the sampler chooses the others.")],
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: cli_cluster.There = None,
    insecure: cli_cluster.Insecure = False,
) -> None:
    """Have a running search try these parameters next."""
    from vit_search.config import strict_yaml

    parameters = strict_yaml.load(file).values
    if address is not None:
        sent = {"parameters.yaml": file.read_text(encoding="utf-8")}
        cli_cluster.remotely(address, ["add", *sent, *_if_named(search)], insecure=insecure, files=sent)
        return
    _command(search, output, tracking_uri, "add", parameters)


@app.command()
def status(
    search: SearchName = None,
    output: Output = Path("searches"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with a line for each change, until it ends.")] = False,
    address: cli_cluster.There = None,
    insecure: cli_cluster.Insecure = False,
) -> None:
    """Say how far a search is, and what it has spent.

    Also what stopping has saved.
    """
    if address is not None:
        cli_cluster.status_there(address, search, as_json=as_json, watch=watch, insecure=insecure)
        return
    from vit_search.cluster import record
    from vit_search.ledger import searches

    if search is not None and record.submitted(output / search) and not (output / search / "ledger.jsonl").exists():
        cli_cluster.print_unbegun(search, record.state(output / search).word, as_json)
        if not watch:
            return
        while _starting(output / search):
            time.sleep(2)
        if not (output / search / "ledger.jsonl").exists():
            cli_cluster.print_unbegun(search, record.state(output / search).word, as_json)
            return
    folder = searches.find(output, search)
    _print_status(folder, as_json)
    if watch and _watch_status(folder):
        _print_status(folder, as_json)


def _watch_status(folder: Path) -> bool:
    """Whether there was anything to watch: a line for each change, until no driver runs the search and none is to come."""
    from vit_search.cluster import record
    from vit_search.ledger import ledger

    before = ""
    while ledger.held(folder / "ledger.jsonl") or _awaited(folder):
        now = record.snapshot(folder)
        spec, trials = now.spec, now.trials.values()
        running = sum(trial.outcome == "running" for trial in trials)
        said = "" if now.state.word == "running" else f"{now.state.word}: "
        said += f"{counted(sum(trial.over for trial in trials), 'trial')} over, {running} running"
        winner = ledger.best(trials, spec.metric, spec.mode)
        if winner:
            said += f", best {spec.metric} {winner.value(spec.metric):.4f} (trial {winner.number})"
        if said != before:
            out.print(escaped(f"{time.strftime('%H:%M:%S')}  {said}"), soft_wrap=True)
        before = said
        time.sleep(2)
    return bool(before)


def _starting(folder: Path) -> bool:
    """Whether a search was submitted to a cluster and has not begun, but will."""
    return not (folder / "ledger.jsonl").exists() and _awaited(folder)


def _awaited(folder: Path) -> bool:
    """Whether a cluster's keeper is to find a driver for this search."""
    from vit_search.cluster import record

    return record.submitted(folder) and not record.read(folder).asleep


def _print_status(folder: Path, as_json: bool) -> None:
    from vit_search.cluster import record
    from vit_search.ledger import ledger, searches
    from vit_search.search.commands import Settings

    now = record.snapshot(folder)
    spec, events, trials, spent, state = now.spec, now.events, now.trials, now.spent, now.state
    settings = Settings.of(spec, events)
    outcomes = [trial.outcome for trial in trials.values()]
    counts = {name: outcomes.count(name) for name in OUTCOME_STYLE if name in outcomes}
    winner = ledger.best(trials.values(), spec.metric, spec.mode)
    hindsight = searches.read_hindsight(folder)
    commands = [event for event in events if isinstance(event, ledger.Commanded)]
    if as_json:
        facts = {
            "search": folder.name,
            "state": state.word,
            "reason": state.reason,
            "running": state.word in ("running", "stopping"),
            "trials": settings.trials,
            "outcomes": counts,
            "breakdowns": [vars(event) for event in events if isinstance(event, ledger.Broke)],
            "best": _row(winner, spec.metric, spec.space, 1) if winner else None,
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
    for line in _breakdowns(trials.values()):
        out.print(f"  {escaped(line)}", soft_wrap=True)
    if winner:
        params = ", ".join(f"{key} {value_text(value)}" for key, value in spec.space.trained(winner.params).items())
        out.print(escaped(f"  best {spec.metric} {winner.value(spec.metric):.4f}: trial {winner.number} ({params})"))
    out.print(f"  {_spent(spent)}")
    for line in _hindsight(hindsight) if hindsight and not state.driven else []:
        out.print(f"  {escaped(line)}")
    for event in commands[-5:]:
        arguments = " ".join(f"{key}={value}" for key, value in event.arguments.items())
        out.print(
            escaped(
                f"  {time.strftime('%H:%M', time.localtime(event.at))} {event.by}: {f'{event.name} {arguments}'.strip()}: {event.answer}"
            )
        )


def _breakdowns(trials: Iterable[Trial]) -> list[str]:
    """Which trials broke down, how often, and why the last time."""
    broke = [trial for trial in trials if trial.breakdowns]
    lines = [f"{len(broke)} trials broke down, the last of them:"] if len(broke) > 3 else []
    for trial in broke[-3:]:
        times = "once" if len(trial.breakdowns) == 1 else f"{len(trial.breakdowns)} times, the last time"
        lines.append(f"trial {trial.number} broke down {times}: {trial.breakdowns[-1]}")
    return lines


def _what_next(folder: Path, state: State) -> list[str]:
    """Why a search stands as it does, and the command that goes on with it."""
    from vit_search.cluster import record

    lines = [state.reason] if state.reason else []
    there = " --address URL" if record.submitted(folder) else ""
    if state.resumable:
        lines.append(f"go on with:  vit-search resume {folder.name}{there}")
    elif state.word == "paused":
        lines.append(f"go on with:  vit-search continue {folder.name}")
    return lines


@app.command()
def show(
    search: SearchName = None,
    output: Output = Path("searches"),
    as_json: Annotated[bool, typer.Option("--json", help="All trials as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="All trials as CSV.")] = False,
    top: Annotated[int, typer.Option(help="Rows of the table; 0 for all.", min=0)] = 10,
) -> None:
    """Print the leaderboard of a search, running or over."""
    from vit_search.ledger import ledger, search_state, searches

    if as_json and as_csv:
        raise SearchError("--json and --csv: give one of them.")
    folder = searches.find(output, search)
    now = search_state.read(folder)
    spec = now.spec
    space, trials = spec.space, ledger.ranked(now.trials.values(), spec.metric, spec.mode)
    if as_json:
        sys.stdout.write(json.dumps([_row(t, spec.metric, space, i) for i, t in enumerate(trials, 1)], indent=1) + "\n")
    elif as_csv:
        names = list(dict.fromkeys(name for i, t in enumerate(trials, 1) for name in _row(t, spec.metric, space, i)))
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        for i, t in enumerate(trials, 1):
            row = _row(t, spec.metric, space, i)
            writer.writerow({name: plain(value) if isinstance(value, str) else value for name, value in row.items()})
    else:
        _print_leaderboard(folder.name, trials, spec, top)


@app.command()
def report(
    search: SearchName = None,
    output: Output = Path("searches"),
    next_to: Annotated[Path | None, typer.Option("--next", help="Write the next search file here, and no report.", metavar="FILE")] = None,
) -> None:
    """Write a page on what a search has found.

    It writes report.html and report.md into the search's folder, running or over, and prints the latter.
    """
    from vit_search.ledger import searches

    folder = searches.find(output, search)
    if next_to is not None:
        _write_next(folder, next_to)
        return
    with err.status("reading the ledger …"):
        from vit_search.report import report as reporting

        page, twin = reporting.write(folder, awaited=_awaited(folder))
    _print_markdown(twin)
    out.print(f"\nPage:  [bold]{escaped(str(page))}[/]", soft_wrap=True)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A search by name or folder.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another over the same data.", metavar="B")],
    output: Output = Path("searches"),
) -> None:
    """Set two searches over the same data side by side.

    It writes compare-A-B.html and .md beside their folders, and prints the latter.
    """
    from vit_search.ledger import searches

    folders = searches.find(output, first), searches.find(output, second)
    if folders[0].samefile(folders[1]):
        raise SearchError(f"{first} and {second} are one search; name another to compare it with.")
    with err.status("reading the ledgers …"):
        from vit_search.report import report as reporting

        page, twin = reporting.compare(*folders)
    _print_markdown(twin)
    out.print(f"\nPage:  [bold]{escaped(str(page))}[/]", soft_wrap=True)


def _write_next(folder: Path, path: Path) -> None:
    """The next search file, and what is new in it; never over a file that is there."""
    from vit_search.report import digest

    made = digest.digest(folder).next
    _write_new(path, made.text, "--next")
    for change in made.changes:
        out.print(escaped(f"{change.parameter}: {change.before} is now {change.after}: {change.why}"), soft_wrap=True)
    if made.note:
        out.print(escaped(f"no range is changed: {made.note}"), soft_wrap=True)
    out.print(f"\nNext:  vit-search lint {escaped(str(path))}", soft_wrap=True)
    out.print(f"       vit-search run {escaped(str(path))}", soft_wrap=True)


def _write_new(path: Path, text: str, option: str) -> None:
    """Write a file that the user has named after an option; never over one that is there."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SearchError(f"{path}: a file is there already; name another one after {option}.") from None
    except OSError as error:
        raise SearchError(f"{path}: cannot be written ({error.strerror}); name another file after {option}.") from None


def _print_markdown(path: Path) -> None:
    """Rendered on a terminal, as it stands in a pipe."""
    text = plain(path.read_text(encoding="utf-8"))
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.markdown import Markdown

    out.print(Markdown(text))


@app.command()
def ui(
    tracking_uri: Tracking = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve MLflow's pages on 127.0.0.1."""
    from vit_search.tracking import store
    from vit_search.tracking.uris import of_newest

    uri = of_newest(tracking_uri)
    if uri.startswith("http"):
        out.print(f"MLflow already runs at {escaped(uri)}")
        return
    from vit_search.tracking import server_app

    client = store.client_for(uri)  # one clear line where it cannot be opened
    _check_port(port)
    page = server_app.address(client, port)
    hosts = f"127.0.0.1:{port},localhost:{port}"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--allowed-hosts", hosts, "--workers", "1", "--app-name", "vit-search"]
    out.print(f"MLflow: [bold]{page}[/]   (Ctrl-C ends it)", soft_wrap=True)
    if open_:
        subprocess.Popen([sys.executable, "-P", "-m", "vit_search.tracking.server_app", page])
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri} | server_app.SETTINGS | server_app.QUIET
    os.execve(sys.executable, command, environment)  # noqa: S606 -- the server takes this process's place, and its Ctrl-C


def _check_port(port: int) -> None:
    """Raises: TrackingError where another program listens on the port."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself: a port just left is free
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(f"127.0.0.1:{port}: the port cannot be used ({error.strerror}); choose another with --port.") from None


@app.command()
def sync(search: SearchName = None, output: Output = Path("searches"), tracking_uri: Tracking = None) -> None:
    """Send MLflow what it has missed of a search.

    The search's driver must be gone: a running one sends by itself.
    """
    from vit_search.ledger import searches

    folder = searches.find(output, search)
    with err.status("sending …"):
        from vit_search.tracking import recorder

        done = recorder.sync(folder, tracking_uri)
    if not done:
        sys.exit(NOT_RECORDED)
    out.print(f"MLflow has all of {escaped(folder.name)}.")


@app.command()
def doctor(
    tracking_uri: Tracking = None,
    close: Annotated[bool, typer.Option("--close", help="End the runs that are found, as KILLED.")] = False,
    stranger_hours: Annotated[
        float, typer.Option(help="Silence after which a run that vit_search has not made counts as dead.", min=0)
    ] = 24.0,
) -> None:
    """Find runs that are dead but shown as running.

    Those are runs that MLflow shows as running although nobody works on them. It also finds a Ray token that others can read.
    """
    from rich.table import Table

    from vit_search.errors import ClusterError
    from vit_search.runtime import ray_token as token
    from vit_search.tracking import doctor as practice
    from vit_search.tracking import store
    from vit_search.tracking.uris import of_newest

    if problem := token.problem():
        raise ClusterError(problem)
    uri = of_newest(tracking_uri)
    if tracking_uri is None and not store.is_made(uri):
        out.print("No search was recorded here: there is no run to look at.")
        return
    client = store.client_for(uri, needs="write" if close else "read")
    found = practice.zombies(client, stranger_hours=stranger_hours)
    if not found:
        out.print("No run is open without somebody at work on it.")
        return
    table = Table("experiment", "run", "id", "why it is dead", box=None, header_style="dim")
    table.columns[2].min_width = 32  # an id that is cut names nothing
    for zombie in found:
        table.add_row(*map(escaped, (zombie.experiment, zombie.name, zombie.run_id, zombie.reason)))
    out.print(table)
    if close:
        practice.close(client, found)
        out.print(f"closed {len(found)}")
    else:
        out.print("end them with:  vit-search doctor --close")
        sys.exit(1)


@app.command()
def promote(
    search: Annotated[
        str | None, typer.Argument(help="A search by name or folder, or a folder that `train` made; the newest search by default.")
    ] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    top: Annotated[int | None, typer.Option(help="Trials to train anew; the policy's by default.", min=1, max=100)] = None,
    seeds: Annotated[int | None, typer.Option(help="Fresh seeds for each; the policy's by default.", min=1, max=100)] = None,
    name: Annotated[str | None, typer.Option(help="Registered model; the search file's name by default.")] = None,
    policy: PolicyFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen; train, read and register nothing.")] = False,
    expect_current: Annotated[str, typer.Option(help="Refuse unless this version is the champion, or `none`.")] = "",
    allow_dirty: Annotated[bool, typer.Option("--allow-dirty", help="Also from code with changes that are not committed.")] = False,
    approve_by: Annotated[str, typer.Option(help="Who approves, where the policy asks for that.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Make it the champion whatever the gates say.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
) -> None:
    """Make a search's best model the champion, if every gate agrees.

    It trains the best trials anew, judges the one that is chosen, tests it once, and moves the alias `champion`.
    """
    reason, approve_by = _as_text(reason), _as_text(approve_by)
    if force != bool(reason.strip()):
        raise SearchError("--force and --reason go together: say why the gates are to be passed over, e.g. --force --reason 'a fix'.")
    from vit_search.config import search_file
    from vit_search.ledger import ledger, searches
    from vit_search.promotion import finalists
    from vit_search.promotion.policy import load
    from vit_search.registry import references

    if name is not None:
        name = references.name_of(name)
        search_file.check_name(name, "--name")
    given = _given(top=top, seeds=seeds) | ({"allow_dirty": True} if allow_dirty else {})
    rules = load(policy).model_copy(update=given)
    folder = _trained(search, output, tracking_uri) or searches.find(output, search)
    spec, facts = searches.read(folder)
    planned = finalists.plan(folder, top=rules.top, seeds=rules.seeds, train_on=rules.retrain_on)
    from vit_search.tracking.uris import resolve_uri

    uri = resolve_uri(tracking_uri, folder, facts)
    if dry_run:
        _print_promotion_plan(planned, rules, name or spec.name, uri)
        return
    ledger.check_free(folder / "ledger.jsonl")  # a search that still runs may find a better one
    if planned.left:
        err.print(_trainings(planned))
        with err.status("preparing the data, MLflow and Ray …"), _nothing_started():
            from vit_search.promotion.retrain import retrain
        result = _watched(lambda watch: retrain(planned, tracking_uri=uri, watch=watch))
        if result is not None and result.interrupted:
            err.print(
                f"\n[yellow]Interrupted.[/] Nothing is lost; go on with:  [bold]vit-search promote {escaped(folder.name)}[/]",
                soft_wrap=True,
            )
            sys.exit(INTERRUPTED)
    retrained = finalists.read(planned)
    with err.status("loading torch and MLflow …") as status:
        from vit_search.promotion import promotion

        asked = promotion.Asked(name or spec.name, user_name(), reason.strip(), approve_by.strip(), expect_current.strip())
        done = promotion.promote(retrained, rules, asked, tracking_uri=uri, say=lambda text: status.update(f"{text} …"))
    _print_promotion(done, retrained)
    if done.verdict == "refused":
        sys.exit(NOT_PROMOTED)


def _trained(search: str | None, output: Path, tracking_uri: str | None) -> Path | None:
    """A search made of a folder that `train` has made; None where another is meant."""
    trained = Path(search or "")
    if search is None or not (trained / "config.json").is_file() or (output / search / "search.json").is_file():
        return None
    with err.status("preparing the data and MLflow …"):
        from vit_search.promotion import adopted

        folder = adopted.adopt(trained, output, tracking_uri=tracking_uri)
    err.print(escaped(f"{folder}: a search of one trial, which is {trained}"), soft_wrap=True)
    return folder


@app.command()
def gate(
    search: Annotated[str, typer.Argument(help="A search by name or folder.")],
    trial: Annotated[int, typer.Argument(help="Number of a trial whose checkpoint is kept.")],
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    name: Annotated[str | None, typer.Option(help="Registered model; the search file's name by default.")] = None,
    policy: PolicyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Hold one trial against the gates that need no test image.

    Exit code 3 where one refuses. Trains and registers nothing.
    """
    from vit_search.config import search_file
    from vit_search.ledger import searches
    from vit_search.promotion.policy import load
    from vit_search.registry import references

    if name is not None:
        name = references.name_of(name)
        search_file.check_name(name, "--name")
    rules, folder = load(policy), searches.find(output, search)
    spec, facts = searches.read(folder)
    with err.status("measuring …"):
        from vit_search.promotion import gates, promotion
        from vit_search.tracking.uris import resolve_uri

        uri = resolve_uri(tracking_uri, folder, facts)
        judged = promotion.examine(folder, trial, rules, name or spec.name, tracking_uri=uri)
    if as_json:
        sys.stdout.write(json.dumps([one.to_dict() for one in judged], indent=1) + "\n")
    else:
        _print_gates(judged)
    if not gates.verdict(judged):
        sys.exit(NOT_PROMOTED)


def _trainings(planned: FinalistPlan) -> str:
    """What is to be trained, in words."""
    spec, which = planned.spec, ", ".join(str(trial.number) for trial in planned.finalists)
    on = "training and validation images" if spec.train_on == "train+val" else "training images"
    seen = "holdout" if spec.train_on == "train+val" else "validation images"
    all_of_them = counted(spec.trials, "training")
    some = f"{planned.left} of {all_of_them} {'are' if planned.left > 1 else 'is'} left" if planned.left < spec.trials else all_of_them
    seeds = counted(len(planned.seeds), "fresh seed")
    trials, each = ("trials", " each") if len(planned.finalists) > 1 else ("trial", "")
    return f"{some}: {trials} {which} with {seeds}{each}, {counted(spec.epochs, 'epoch')} on {on}, seen on the {seen}"


def _print_promotion_plan(planned: FinalistPlan, rules: Policy, name: str, uri: str) -> None:
    """What a promotion would do."""
    from rich.table import Table

    from vit_search.promotion import gates, promotion
    from vit_search.tracking import store

    client = store.client_for(uri, needs="read")
    champion = promotion.champion_of(client, name)
    readings = promotion.readings_of(client, name, json.loads(planned.text)["data"])
    trained = [result for trial in planned.finalists for result in trial.results]
    epoch_s = sum(result.seconds for result in trained) / max(len(trained), 1)
    now = "there is none yet" if champion is None else f"version {champion.version}, {champion.tags.get('search', 'made elsewhere')}"
    rows = [
        ("trainings", _trainings(planned) if planned.left else "done already"),
        ("time", f"about {in_rounded_time(planned.left * planned.spec.epochs * epoch_s / planned.spec.concurrency)} of training"),
        ("champion", now),
        ("test split", gates.readings(readings + 1, rules).said),
        ("policy", f"{rules.digest[:12]}…, mode {rules.better.mode}"),
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in rows:
        table.add_row(f"[dim]{label}[/]", escaped(text))
    out.print(f"[bold]{escaped(name)}[/] from {escaped(planned.search.name)}: nothing is trained, read or registered by --dry-run")
    out.print(table)


def _print_promotion(done: Promotion, retrained: Retrained) -> None:
    from rich.table import Table

    finalist, metric = done.finalist, retrained.spec.metric
    table = Table("trial", f"{metric} in the search", "anew", "deviation", "", box=None, header_style="dim")
    for one in retrained.finalists:
        chosen = "[bold green]chosen[/]" if one.trial == finalist.trial else ""
        table.add_row(str(one.trial), f"{one.searched_value:.4f}", f"{one.mean:.4f}", f"{one.deviation:.4f}", chosen)
    for trial, reason in retrained.lost.items():
        table.add_row(str(trial), "", "", "", f"[red]{escaped(reason)}[/]")
    out.print(table)
    if done.verdict == "again":
        out.print(
            f"\n[bold]{escaped(done.name)}[/] version {done.version} is the [bold green]champion[/] already; "
            "the test split was not read again"
        )
        return
    out.print()
    _print_gates(done.gates)
    if done.seen is not None:
        low, high = done.seen.interval
        when = f"seen at reading {done.reading}, and not read again" if done.read_before else f"reading {done.reading} of this test split"
        out.print(
            f"\ntest accuracy [bold]{done.seen.accuracy:.4f}[/] on {counted(done.seen.images, 'image')} "
            f"(95 % interval {low:.4f} to {high:.4f}; {when})"
        )
    else:
        out.print("\nthe test split was not read")
    if done.verdict == "refused":
        stays = f"version {done.champion} stays champion" if done.champion else "there is no champion"
        out.print(f"[bold red]not promoted[/]: version {done.version} of {escaped(done.name)} is refused, and {stays}")
        return
    if done.verdict == "forced":
        out.print(f"[bold red]forced[/]: {escaped(done.tags['forced'])}", soft_wrap=True)
    before = f", in place of version {done.champion}" if done.champion else ""
    out.print(
        f"[bold]{escaped(done.name)}[/] version {done.version} is now [bold green]champion[/]{before}: trial {finalist.trial} trained anew"
    )
    out.print(f"\nNext:  vit-search predict --model {escaped(done.name)}@champion IMAGE…")
    out.print(f"       vit-search serve {escaped(done.name)}@champion")


def _print_gates(judged: list[Gate]) -> None:
    from rich.table import Table

    words = {True: "[green]passed[/]", False: "[bold red]refused[/]", None: "[dim]–[/]"}
    table = Table("gate", "", "seen", box=None, header_style="dim")
    for one in sorted(judged, key=lambda one: int(one.id[1:])):
        table.add_row(f"{one.id} {one.name}", words[one.passed], escaped(one.said))
    out.print(table)


def _registry(model: str, tracking_uri: str | None) -> str:
    """The MLflow to ask for a model. A name that it cannot have is refused before torch and MLflow are imported, which takes seconds."""
    from vit_search.registry import references
    from vit_search.tracking.uris import of_newest

    uri = of_newest(tracking_uri)
    references.check_known(uri, model)
    return uri


def _registry_or_folder(model: str, tracking_uri: str | None) -> str | None:
    """The same for a model that may be the folder that `train` made, which needs no MLflow."""
    from vit_search.registry import references

    return _registry(model, tracking_uri) if references.folder_of(model) is None else tracking_uri


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[str, typer.Option(help="NAME@champion, NAME/3, or a folder that `train` made.")],
    tracking_uri: Tracking = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Classify image files with a registered model."""
    from rich.table import Table

    from vit_search.serving import prediction

    for image in images:
        prediction.check_readable(image)  # before the seconds that torch and MLflow take to import
    predictions = prediction.predict(model, images, tracking_uri=_registry_or_folder(model, tracking_uri), say=_note)
    if as_json:
        sys.stdout.write(json.dumps([vars(p) for p in predictions], indent=1) + "\n")
        return
    table = Table("image", "label", "probability", box=None, header_style="dim")
    for p in predictions:
        table.add_row(escaped(p.image), f"[bold]{escaped(p.label)}[/]", f"{p.probability:.3f}")
    out.print(table)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="NAME@champion, which is followed, NAME/3, or a folder that `train` made.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs VIT_SEARCH_SERVE_TOKEN.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name by which requests call the server; again for more.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=256, help="Processes that classify; they share the port.")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="Classify on GPUs.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images classified at once.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Requests that a replica holds; one more is answered 503.")] = 256,
    max_mib: Annotated[float, typer.Option(min=0.001, max=1024, help="Largest request, MiB.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds from a request's headers to its answer.")] = 10,
    poll: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks at the registry.")] = 2,
    tracking_uri: Tracking = None,
) -> None:
    """Serve a registered model over HTTP, and follow its alias."""
    from vit_search.registry import references

    if references.folder_of(model) is None:
        references.parse(model)
    tracking_uri = _registry_or_folder(model, tracking_uri)
    from vit_search.serving import serving
    from vit_search.serving.endpoint import Limits

    limits = Limits(batch=batch, queue=queue, body_bytes=int(max_mib * 2**20), timeout_s=timeout)
    names = tuple(allow_host or ())
    settings = serving.Settings(host=host, port=port, allow_hosts=names, replicas=replicas, gpus=gpus, limits=limits, poll_s=poll)
    serving.serve(model, settings, tracking_uri=tracking_uri, say=lambda line: err.print(escaped(line), soft_wrap=True))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is ended by now; Python would take seconds to take torch, Ray and MLflow apart, object by object


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="NAME@champion, NAME/3, or a folder that `train` made.", metavar="MODEL")],
    format: Annotated[str, typer.Option("--format", help="safetensors, pt2 or onnx.")],
    output: Annotated[Path | None, typer.Option(help="File, or folder of safetensors; by default NAME-VERSION here.")] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Write a registered model as a file for other programs.

    The file is kept only if its logits agree with the model's own.
    """
    from vit_search.promotion.formats import check_format

    check_format(format)
    tracking_uri = _registry_or_folder(model, tracking_uri)
    with err.status("exporting …"):
        from vit_search.promotion import export as exporting

        done = exporting.export(model, format, output, tracking_uri=tracking_uri)
    out.print(
        f"[bold]{escaped(str(done.path))}[/]: {escaped(done.name)}{f' version {done.version}' if done.version else ''}", soft_wrap=True
    )
    batches = " and ".join(map(str, exporting.BATCHES))
    out.print(
        f"its logits differ from the model's own by at most {done.difference:.1e}, in batches of {batches} "
        f"({exporting.TOLERANCE:.0e} is allowed)",
        soft_wrap=True,
    )


@app.command()
def config(
    model: Annotated[str, typer.Argument(help="NAME@champion, NAME/3, or a folder that `train` made.", metavar="MODEL")],
    output: Annotated[Path | None, typer.Option(help="Write the file here; printed by default.", metavar="FILE")] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Print a registered model's configuration.

    It is a search file with fixed values, for `train`.
    """
    from vit_search.registry import configuration

    made = configuration.configuration(model, tracking_uri=_registry_or_folder(model, tracking_uri))
    if output is None:
        sys.stdout.write(plain(made.text))
    else:
        _write_new(output, made.text, "--output")
        out.print(f"Next:  vit-search train {escaped(str(output))}", soft_wrap=True)
    if not made.same:
        err.print(
            f"[yellow]note:[/] {escaped(model)} was not made by `promote`: no file can tell its seed, and train gives another model.",
            soft_wrap=True,
        )


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="A search file with a value for each parameter, as `vit-search config` prints it.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the checkpoint; trained/NAME by default.", metavar="FOLDER")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")] = False,
) -> None:
    """Train one fixed configuration here, without Ray and MLflow.

    A training that was interrupted goes on where it stood.
    """
    from vit_search.config import search_file
    from vit_search.data.data_set import prepare
    from vit_search.planning import fixed_file
    from vit_search.vit import checkpoint, train_once

    spec = search_file.load(file)
    fixed_file.check_fixed(spec, str(file))
    folder = output or Path("trained") / spec.name
    with err.status("preparing the data …"), _named(file):
        data = prepare(spec.data_config, download=download)
    config = spec.trial_config({}, in_channels=data.channels, num_classes=len(data.classes), trial=0)
    done = train_once.is_done(folder, config)
    if spec.data.name == "image_folder" and not done:
        err.print(escaped(data.summary), soft_wrap=True)
    for result in train_once.train(spec, config, data, folder):
        if done:
            continue
        value = result.value(spec.metric)
        shown = f"{spec.metric} {value:.4f}" if value is not None else ""
        took = _seconds(result.seconds)
        out.print(f"epoch {result.epoch:3d} of {spec.epochs}  {shown}  train_loss {result.train_loss:.4f}  {took}", soft_wrap=True)
    holds = "holds this model already, and nothing was trained" if done else "holds the model"
    out.print(f"[bold]{escaped(str(folder))}[/] {holds}; weights: sha256 {checkpoint.weights_sha256(folder)}", soft_wrap=True)


@app.command()
def rollback(
    name: ModelName,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    to: Annotated[str | None, typer.Option(help="A version that was champion before; the previous champion by default.")] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Make an earlier version the champion again.

    It is loaded first: one that does not load does not become the champion.
    """
    reason = _as_text(reason)
    if not reason.strip():
        raise PromotionError("--reason is empty; say why, e.g. --reason 'wrong on night photos'.")
    from vit_search.registry import references

    name = references.name_of(name)
    tracking_uri = _registry(name, tracking_uri)
    from vit_search.registry import registry
    from vit_search.tracking import store

    with err.status("loading the version …"):
        client = store.client_for(tracking_uri, needs="write")
        done = registry.rollback(
            client, name, to=to, reason=reason.strip(), by=user_name(), check=lambda version: registry.load_problem(client, version)
        )
    out.print(f"[bold]{escaped(name)}[/] version {done.version} is [bold green]champion[/] again, in place of version {done.came_from}")


@app.command()
def history(
    name: ModelName,
    verify: Annotated[
        bool, typer.Option("--verify", help="See whether it is whole and the aliases agree with it; exit code 1 if not.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    tracking_uri: Tracking = None,
) -> None:
    """Show who made which version the champion, when and why."""
    from rich.table import Table

    from vit_search.registry import references

    name = references.name_of(name)
    tracking_uri = _registry(name, tracking_uri)
    from vit_search.registry import registry
    from vit_search.tracking import store

    client = store.client_for(tracking_uri, needs="read")
    records = registry.history(client, name)
    problems = registry.verify(client, name) if verify else []
    notes: list[str] = []
    if verify:
        with err.status("verifying …") as shown_status:
            wrong, notes = registry.verify_files(client, name, say=lambda text: shown_status.update(f"{text} …"))
        problems += wrong
    if as_json:
        shown: Any = [json.loads(record.text()) for record in records]
        sys.stdout.write(json.dumps({"records": shown, "problems": problems, "notes": notes} if verify else shown, indent=1) + "\n")
    else:
        table = Table("when (UTC)", "who", "action", "version", "test accuracy", "reason", box=None, header_style="dim")
        for record in records:
            accuracy = _decimals(record.facts.get("test_accuracy", ""))
            versions = f"{record.came_from or '–'} → {record.version}"
            when = record.at[:19].replace("T", " ")
            table.add_row(*map(escaped, (when, f"{record.by} on {record.host}", record.action, versions, accuracy, record.reason)))
        out.print(table if records else f"{escaped(name)}: no version has been made the champion yet.")
        for note in notes:
            _note(f"{name}: {note}")
        for problem in problems:
            err.print(f"[bold red]error:[/] {escaped(f'{name}: {problem}')}", soft_wrap=True)
        if verify and not problems:
            files = "all files of its versions are those" if not notes else "the files of its versions, as far as covered, are those"
            out.print(f"The history is whole, the aliases of {escaped(name)} agree with it, and {files} that were registered.")
    if problems:
        sys.exit(1)


@app.command()
def repair(name: ModelName, tracking_uri: Tracking = None) -> None:
    """Finish or undo a promotion that was killed.

    Its lock is taken away.
    """
    from vit_search.registry import references

    name = references.name_of(name)
    tracking_uri = _registry(name, tracking_uri)
    from vit_search.registry import registry
    from vit_search.tracking import store

    out.print(escaped(registry.repair(store.client_for(tracking_uri, needs="write"), name)), soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a search file, for editors."""
    from vit_search.config import search_file

    sys.stdout.write(json.dumps(search_file.json_schema(), indent=2) + "\n")


cli_cluster.join(app)


def _as_text(words: str) -> str:
    """What a person wrote, also where the locale (as C) has no letters beyond ASCII and takes each of their bytes for one."""
    return os.fsencode(words).decode("utf-8", "backslashreplace")


def _if_named(search: str | None) -> list[str]:
    """A search as the argument of a command on a cluster's head, which takes the newest in its storage where none is named."""
    return [search] if search else []


def _note(text: str) -> None:
    err.print(f"[yellow]note:[/] {escaped(text)}", soft_wrap=True)


def _given(**options: float | None) -> dict[str, float]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _command(
    search: str | None, output: Path, tracking_uri: str | None, name: str, arguments: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Have a running search do something: through its folder, or through MLflow where the folder is not here."""
    from vit_search.ledger import searches
    from vit_search.search import control

    try:
        folder = searches.find(output, search)
    except SearchError:
        named = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if search is None or not named:
            raise
        from vit_search.tracking import recorder

        answer = recorder.command(named, search, control.in_words(name, dict(arguments)), control.ANSWER_WITHIN_S + recorder.LOOK_EVERY_S)
    else:
        ending = name in ("stop", "cancel") and not arguments and _awaited(folder)
        if ending:
            from vit_search.cluster import record

            record.change(folder, wanted="stopped")
        if ending and not record.driven(folder):
            answer = f"no driver runs it now, and none will be started; `vit-search resume {folder.name}` goes on with it."
        else:
            answer = control.ask(folder, name, arguments)
    out.print(escaped(answer))


def _spent(spent: Spent) -> str:
    """What a search has cost, in words."""
    return f"{in_time(spent.wall_seconds)} of wall time, {_work(spent)}"


def _work(spent: Spent) -> str:
    """The same without the wall time."""
    share = spent.stopped_seconds / spent.trial_seconds if spent.trial_seconds else 0.0
    return (
        f"{in_time(spent.trial_seconds)} of training in {counted(spent.epochs, 'epoch')}, "
        f"{share:.0%} of it in stopped trials; stopping saved {in_time(spent.saved_seconds)}"
    )


def _interrupted(name: str) -> str:
    return f"\n[yellow]Interrupted.[/] Nothing is lost; go on with:  [bold]vit-search resume {escaped(name)}[/]"


def _hindsight(hindsight: Hindsight) -> list[str]:
    """What a search showed of its stopping and its plan, in words."""
    lines = []
    if hindsight.doomed:
        told = f"{counted(hindsight.doomed, 'audited trial')} would have been stopped"
        low, high = hindsight.interval
        lines.append(f"{told}, {hindsight.wrongly} of them wrongly (95 % interval of the share: {low:.0%} to {high:.0%})")
    if hindsight.plan:
        epochs, wall = hindsight.plan["epochs"], hindsight.plan["wall_seconds"]
        line = f"planned {counted(round(epochs['predicted']), 'epoch')}, trained {epochs['actual']:,}"
        if wall["predicted"]:
            line += f"; planned about {in_rounded_time(wall['predicted'])}, took {in_time(wall['actual'])} with Ray's and MLflow's own time"
            borrowed = (hindsight.plan.get("speed") or {}).get("borrowed")
            line += f" (planned by the speed of {borrowed})" if borrowed else ""
        lines.append(line)
    return lines


def _watched(work: Callable[[Any], Result]) -> Result:
    """Run a search with its live picture on a terminal, or a line per ended trial elsewhere."""
    screen = _Screen()
    try:
        return work(screen.watch)
    except KeyboardInterrupt:  # a second Ctrl-C; the first one ends a search by itself
        screen.close()
        err.print(_interrupted(screen.search) if screen.search else "interrupted; nothing was started.", soft_wrap=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # Ray, whose own end this may have cut off, would make an exit code of 1 of it
    finally:
        screen.close()


def _finish(result: SearchResult) -> None:
    """The leaderboard and the next commands to type."""
    name, spec, trials, spent = result.folder.name, result.spec, result.trials, result.spent
    _print_leaderboard(name, trials, spec, 10)
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
    for line in _hindsight(result.hindsight):
        out.print(escaped(line))
    if result.interrupted:
        err.print(_interrupted(name), soft_wrap=True)
        sys.exit(INTERRUPTED)
    if not result.recorded:
        err.print(
            f"\n[yellow]MLflow has not got all of it.[/] Send the rest later:  [bold]vit-search sync {escaped(name)}[/]", soft_wrap=True
        )
        sys.exit(NOT_RECORDED)
    out.print("\nNext:  vit-search ui               browse the trials in MLflow")
    out.print(f"       vit-search show {escaped(name)}", soft_wrap=True)
    out.print(f"       vit-search promote {escaped(name)}", soft_wrap=True)


def _print_leaderboard(name: str, trials: list[Trial], spec: SearchSpec, top: int) -> None:
    from vit_search.cli import leaderboard

    for line in leaderboard.lines(name, trials, spec, top=top, width=out.width):
        out.print(line, soft_wrap=True)


def _row(trial: Trial, metric: str, space: Space, rank: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"rank": rank, "trial": trial.number, "outcome": trial.outcome, "epochs": len(trial.results)}
    facts[metric] = trial.value(metric)
    broke = {"breakdowns": len(trial.breakdowns)} if trial.breakdowns else {}
    return facts | space.trained(trial.params) | broke | ({"reason": trial.reason} if trial.reason else {})


class _Screen:
    """Live progress of a search: running trials, the best so far, how many were stopped, time left."""

    def __init__(self) -> None:
        self._live: Any = None
        self._preparing = err.status("preparing the data, MLflow and Ray …")
        self._preparing.start()
        self._closed, self._last_line = threading.Event(), time.monotonic()
        self.search = ""
        """Its name, once it runs."""

    def watch(self, driver: Driver, spec: SearchSpec, folder: Path) -> Callable[[Event], None]:
        """Begin; what comes back is told every event."""
        from vit_search.ledger import searches
        from vit_search.ledger.ledger import Broke, Commanded, Ended, Reported
        from vit_search.stopping.rungs import levels

        self._driver, self._spec, self._began = driver, spec, time.monotonic()
        facts = searches.read_facts(folder)
        self.search = facts.search
        self._epochs_before = self._epochs()
        self._preparing.stop()
        err.print(escaped(f"{self.search}: {folder}"), soft_wrap=True)
        if facts.images:
            err.print(escaped(facts.images))
        if err.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._picture, console=err, refresh_per_second=4, transient=True)
            self._live.start()
            return lambda event: self._say_breakdown(event) if isinstance(event, Broke) else None

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
                score = "" if value is None else f"  {spec.metric} {value:.4f}"
                err.print(f"trial {event.trial:3d} at epoch {event.result.epoch:3d} of {spec.epochs}{score}", soft_wrap=True)
            elif isinstance(event, Ended):
                trial = driver.trials[event.trial]
                value = trial.value(spec.metric)
                said = f"trial {trial.number:3d} {trial.outcome:<11} after {counted(len(trial.results), 'epoch'):>10}"
                err.print(f"{said}  {spec.metric} {value:.4f}" if value is not None else f"{said}  {escaped(trial.reason)}", soft_wrap=True)
            else:
                return
            self._last_line = time.monotonic()

        return line

    def _say_breakdown(self, event: Broke) -> None:
        what = "is tried again" if event.again else "broke down"
        err.print(escaped(f"trial {event.trial:3d} {what}: {event.reason}"))

    def _report_every_minute(self) -> None:
        """Where nothing else was printed for a minute, say how far the search is."""
        while not self._closed.wait(max(1.0, self._last_line + REPORT_EVERY_S - time.monotonic())):
            if time.monotonic() - self._last_line >= REPORT_EVERY_S:
                trials = list(self._driver.trials.values())
                over = sum(trial.over for trial in trials)
                running = f"{sum(trial.outcome == 'running' for trial in trials)} running"
                now = running if self._driver.word == "running" else self._driver.word
                spent = in_time(time.monotonic() - self._began)
                trained = counted(self._epochs(), "epoch")
                err.print(f"{over} of {counted(self._driver.settings.trials, 'trial')}, {now}, {trained}, {spent} spent")
                self._last_line = time.monotonic()

    def close(self) -> None:
        """Take the picture away."""
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

        from vit_search.ledger.ledger import best

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
        rest = f"about {left} left" if len(over) < wanted else "sending the last records to MLflow"
        head.add_row(f"[bold]{len(over)}[/] of {counted(wanted, 'trial')}", f"{stopped} stopped early", f"{in_time(spent)} spent", rest)
        bar = Table.grid()
        bar.add_row(ProgressBar(total=wanted, completed=len(over), width=60))  # alone it would not end its line
        parts: list[Any] = [head, bar]
        if self._driver.word != "running":
            parts.append(f"[yellow]{escaped(self._driver.ending or self._driver.word)}[/]")
        winner = best(trials, spec.metric, spec.mode)
        if winner:
            params = escaped(", ".join(f"{k} {value_text(v)}" for k, v in spec.space.trained(winner.params).items()))
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


def _decimals(text: str) -> str:
    """A number that was kept as text, to four places; what is no number as it is, and nothing as a dash."""
    try:
        return f"{float(text):.4f}"
    except ValueError:
        return text or "–"
