"""The commands that show what searches have found, and take care of their records: list, show, report, compare, ui, sync, doctor."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vit_search.cli import terminal
from vit_search.cli.app import FOUND, NOT_RECORDED, Insecure, Output, SearchName, Tracking, Url, app, err, out, write_new
from vit_search.cli.progress import print_leaderboard
from vit_search.cli.remote import connect
from vit_search.cli.status import awaits_driver
from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_time
from vit_search.errors import SearchError, TrackingError
from vit_search.text import plain


@app.command(name="list")
def list_(address: Url, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, insecure: Insecure = False) -> None:
    """List the searches that were submitted to a cluster.

    It knows only those that were submitted since the cluster's Ray was started.
    """
    there = connect(address, insecure)
    from vit_search.cluster.jobs.launches import launches
    from vit_search.cluster.jobs.launches import states as states_of

    by_search = launches(there.client)
    with err.status("asking the head …"):
        states = states_of(there, [all_of[-1] for all_of in by_search.values()]) if by_search else {}
    if as_json:
        shown = [
            {"search": search, "state": states[search], "jobs": [asdict(job) for job in all_of]} for search, all_of in by_search.items()
        ]
        sys.stdout.write(json.dumps(shown, indent=1) + "\n")
        return
    rows = []
    for search, all_of in by_search.items():
        first, last = all_of[0], all_of[-1]
        took = in_time((last.ended or time.time()) - first.began)
        began = time.strftime("%m-%d %H:%M", time.localtime(first.began))
        rows.append([*map(escaped, (search, states[search], str(len(all_of)), began, took, first.user, last.version))])
    if not by_search:
        out.print(f"{escaped(there.address)}: no search was submitted since its Ray was started.")
        return
    for line in terminal.table(("search", "state", "jobs", "submitted", "took", "by", "vit_search"), rows, width=out.width):
        out.print(line, soft_wrap=True)


@app.command()
def show(
    search: SearchName = None,
    output: Output = Path("searches"),
    as_json: Annotated[bool, typer.Option("--json", help="Print all trials as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all trials as CSV.")] = False,
    top: Annotated[int, typer.Option(help="Number of rows of the table; 0 for all.", min=0)] = 10,
) -> None:
    """Print the leaderboard of a search, running or finished."""
    from vit_search.ledger import search_state, searches
    from vit_search.ledger.trial_tables import trial_row
    from vit_search.ledger.trials import ranked

    if as_json and as_csv:
        raise SearchError("--json and --csv: give one of them.")
    folder = searches.find(output, search)
    now = search_state.read(folder)
    spec = now.spec
    space, trials = spec.space, ranked(now.trials.values(), spec.metric, spec.mode)
    if as_json:
        sys.stdout.write(json.dumps([trial_row(t, spec.metric, space, i) for i, t in enumerate(trials, 1)], indent=1) + "\n")
    elif as_csv:
        names = list(dict.fromkeys(name for i, t in enumerate(trials, 1) for name in trial_row(t, spec.metric, space, i)))
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        for i, t in enumerate(trials, 1):
            row = trial_row(t, spec.metric, space, i)
            writer.writerow({name: plain(value) if isinstance(value, str) else value for name, value in row.items()})
    else:
        print_leaderboard(folder.name, trials, spec, top)


@app.command()
def report(
    search: SearchName = None,
    output: Output = Path("searches"),
    next_to: Annotated[
        Path | None, typer.Option("--next", help="Write a proposal for the next search file here, instead of the report.", metavar="FILE")
    ] = None,
) -> None:
    """Write a report on what a search has found.

    It writes report.html and report.md into the search's folder, also while the search runs, and prints report.md. After the search's end,
    it also lists the labels that may be wrong, in label_errors.csv, and counts the mistakes of the best model, in confusion.csv.
    """
    from vit_search.ledger import searches

    folder = searches.find(output, search)
    if next_to is not None:
        _write_next(folder, next_to)
        return
    with err.status("reading the ledger, and asking the best model of its validation images …"):
        from vit_search.report import report as reporting

        page, twin, *tables = reporting.write(folder, awaited=awaits_driver(folder), look=True)
    _print_markdown(twin)
    out.print(f"\nPage:  [bold]{escaped(str(page))}[/]", soft_wrap=True)
    for table in tables:
        out.print(
            f"{'Suspected labels' if table.name == reporting.TABLES[0] else 'Confusion matrix'}:  {escaped(str(table))}", soft_wrap=True
        )


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Name or folder of a search.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Name or folder of another search over the same data.", metavar="B")],
    output: Output = Path("searches"),
) -> None:
    """Compare two searches over the same data.

    It writes compare-A-B.html and compare-A-B.md beside their folders, and prints the second.
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
    """Write the next search file and print what is new in it. A file that exists is never overwritten."""
    from vit_search.report import digest

    made = digest.digest(folder).next
    write_new(path, made.text, "--next")
    for change in made.changes:
        out.print(escaped(f"{change.parameter}: {change.before} is now {change.after}: {change.why}"), soft_wrap=True)
    if made.note:
        out.print(escaped(f"no range is changed: {made.note}"), soft_wrap=True)
    out.print(f"\nNext:  vit-search lint {escaped(str(path))}", soft_wrap=True)
    out.print(f"       vit-search run {escaped(str(path))}", soft_wrap=True)


def _print_markdown(path: Path) -> None:
    """Print a Markdown file: rendered on a terminal, unchanged in a pipe."""
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
    open_: Annotated[bool, typer.Option("--open", help="Open the page in your browser.")] = False,
) -> None:
    """Serve MLflow's web pages on 127.0.0.1."""
    from vit_search.tracking import mlflow_client
    from vit_search.tracking.uris import ENVIRONMENT, of_newest

    uri = of_newest(tracking_uri)
    if uri.startswith("http"):
        out.print(f"MLflow already runs at {escaped(uri)}")
        return
    from vit_search.tracking import server_app

    named = tracking_uri or os.environ.get(ENVIRONMENT)
    client = mlflow_client.client_for(uri, needs="write" if named else "make")  # one clear line if it cannot be opened
    _check_port(port)
    page = server_app.address(client, port)
    hosts = f"127.0.0.1:{port},localhost:{port}"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--allowed-hosts", hosts, "--workers", "1", "--app-name", "vit-search"]
    out.print(f"MLflow: [bold]{page}[/]   (Ctrl-C ends it)", soft_wrap=True)
    if open_:
        subprocess.Popen([sys.executable, "-P", "-m", "vit_search.tracking.server_app", page])
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri} | server_app.SETTINGS | server_app.QUIET
    os.execve(sys.executable, command, environment)  # noqa: S606 -- the server replaces this process, and gets its Ctrl-C


def _check_port(port: int) -> None:
    """Raises: TrackingError if another program uses the port."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port that was just released counts as free
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(f"127.0.0.1:{port}: the port cannot be used ({error.strerror}); choose another with --port.") from None


@app.command()
def sync(search: SearchName = None, output: Output = Path("searches"), tracking_uri: Tracking = None) -> None:
    """Send MLflow the records of a search that it has missed.

    Use it if MLflow did not answer when the search ended. A search that still runs sends its records by itself.
    """
    from vit_search.ledger import searches

    folder = searches.find(output, search)
    with err.status("sending …"):
        from vit_search.tracking.sync import sync_search

        done = sync_search(folder, tracking_uri)
    if not done:
        sys.exit(NOT_RECORDED)
    out.print(f"MLflow has all of {escaped(folder.name)}.")


@app.command()
def doctor(
    tracking_uri: Tracking = None,
    close: Annotated[bool, typer.Option("--close", help="Set the status of these runs to KILLED.")] = False,
    stranger_hours: Annotated[
        float, typer.Option(help="Hours without news after which a run that vit_search did not make counts as dead.", min=0)
    ] = 24.0,
) -> None:
    """Find dead runs that MLflow shows as running.

    It also finds a Ray token that other accounts can read.
    """
    from rich.table import Table

    from vit_search.errors import ClusterError
    from vit_search.runtime import ray_token as token
    from vit_search.tracking import doctor as practice
    from vit_search.tracking import mlflow_client
    from vit_search.tracking.uris import of_newest

    if problem := token.problem():
        raise ClusterError(problem)
    uri = of_newest(tracking_uri)
    if tracking_uri is None and not mlflow_client.is_made(uri):
        out.print("No search was recorded here: there is no run to look at.")
        return
    client = mlflow_client.client_for(uri, needs="write" if close else "read")
    zombies = practice.zombies(client, stranger_hours=stranger_hours)
    if not zombies:
        out.print("No dead run was found.")
        return
    table = Table("experiment", "run", "id", "why it is dead", box=None, header_style="dim")
    table.columns[2].min_width = 32  # an id that is cut off is useless
    for zombie in zombies:
        table.add_row(*map(escaped, (zombie.experiment, zombie.name, zombie.run_id, zombie.reason)))
    out.print(table)
    if close:
        practice.close(client, zombies)
        out.print(f"closed {len(zombies)}")
    else:
        out.print("end them with:  vit-search doctor --close")
        sys.exit(FOUND)
