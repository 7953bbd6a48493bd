"""The command line itself: its options, exit codes and errors, and what several files of commands share.

It knows no command. Each file of commands imports `app` and adds its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vit_search.cli import terminal
from vit_search.cli.data_progress import data_progress
from vit_search.cli.terminal import escaped
from vit_search.errors import DataError, LostClusterError, NoTrialCompletedError, SearchError, SpecError, VitSearchError
from vit_search.runtime.signals import ending_signals
from vit_search.runtime.start_up import collect_rarely

app = typer.Typer(
    help="Search for the best Vision Transformer for your images, browse the trials in MLflow, promote the best one.",
    no_args_is_help=True,
    cls=terminal.CommandGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich's costs 0.25 s of imports
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = terminal.console()
err = terminal.console(stderr=True)

FOUND = 1
"""Exit code of a command that looks for problems and has found some."""

NOT_PROMOTED = 3
"""Exit code of a promotion that a gate has refused."""

NOT_RECORDED = 5
"""Exit code of a search that has ended while MLflow did not answer."""

INTERRUPTED = 130
"""Exit code after Ctrl-C (a shell uses the same) or another signal that asks the command to end."""

EXIT_CODES = {
    0: "The command has done what you asked.",
    FOUND: "`doctor`, `history --verify` or `cluster head --status` has found a problem. After a traceback of Python: a bug of ours.",
    VitSearchError.exit_code: "A mistake that you can correct: in a file, an option, the data or the cluster. One line says what. "
    "`lint`, `check` and `cluster check` also exit with it if they find an error.",
    NOT_PROMOTED: "`promote` or `gate`: a gate refuses the candidate. The champion stays.",
    NoTrialCompletedError.exit_code: "The search has ended, and no trial was trained to its full length.",
    NOT_RECORDED: "The search has ended, but MLflow did not answer and lacks a part of the records. Send them with `vit-search sync`.",
    LostClusterError.exit_code: "The head of the Ray cluster was lost during the search. Start the cluster, then `vit-search resume`.",
    INTERRUPTED: "You pressed Ctrl-C, or the command got SIGTERM or lost its terminal. A search continues with `vit-search resume`.",
}
"""Meaning of each exit code. docs/reference/exit-codes.md is made from it."""

Output = Annotated[Path, typer.Option(help="Folder that holds all searches.")]
Tracking = Annotated[
    str | None,
    typer.Option(
        help="Address of MLflow, a server or a database. Default: MLFLOW_TRACKING_URI, then the search's own, then SQLite in ./mlruns.db."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Train on a Ray cluster, from one of its nodes: `auto` or HOST:6379. Default: this machine alone."),
]
Nice = Annotated[
    int | None,
    typer.Option(
        "--nice",
        help="Niceness of the trials: 0 gives them the same priority as other programs, 19 the lowest. Default: 15.",
        min=0,
        max=19,
    ),
]
PolicyFile = Annotated[
    Path | None, typer.Option(help="Policy file: what a candidate must show. Default: docs/reference/policy.md.", metavar="FILE")
]
ModelName = Annotated[str, typer.Argument(help="A registered model. By default it has the `name` of its search file.", metavar="NAME")]
SearchName = Annotated[str | None, typer.Argument(help="Name or folder of a search. Default: the newest.", metavar="SEARCH")]
SearchNamedThere = Annotated[
    str | None, typer.Argument(help="Name or folder of a search. Default: the newest; on a cluster, name one.", metavar="SEARCH")
]
Url = Annotated[str, typer.Option(help="Jobs API of the cluster, for example http://127.0.0.1:8265 through an ssh tunnel.", metavar="URL")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Accept a cluster that asks for no token.")]
There = Annotated[str | None, typer.Option(help="Jobs API of a cluster, for a search that was submitted there.", metavar="URL")]


def main() -> None:
    """Run the command line. A mistake of the user gives one line and an exit code, never a traceback."""
    collect_rarely()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # else a character that the locale lacks would end the command half-way
    try:
        with data_progress(err):
            app()
    except VitSearchError as error:
        err.print(f"[bold red]error:[/] {escaped(str(error))}", soft_wrap=True)
        if isinstance(error, LostClusterError):
            sys.stderr.flush()
            os._exit(error.exit_code)  # Ray's threads wait for its head, and sys.exit would wait for them
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(f"vit_search {version('vit_search')}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")] = False,
) -> None:
    """Options of the command line itself."""


@contextlib.contextmanager
def nothing_started() -> Iterator[None]:
    """In this block, a signal ends the process at once, with one line. In an import, it could else cause a traceback, or get lost."""

    def end(*_: object) -> None:
        clear = "\r\x1b[2K\x1b[?25h" if err.is_terminal else ""  # remove the spinner, and show the cursor that it has hidden
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(2, f"{clear}interrupted; nothing was started.\n".encode())
        os._exit(INTERRUPTED)

    before = {number: signal.signal(number, end) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """In this block, errors about images or weights begin with the search file and the line of the key, as other errors do."""
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


def print_note(text: str) -> None:
    """Print a remark to standard error. The text may come from others, so it is escaped."""
    err.print(f"[yellow]note:[/] {escaped(text)}", soft_wrap=True)


def as_text(words: str) -> str:
    """What a user wrote, also under a locale such as C, which has no letters beyond ASCII and passes each of their bytes alone."""
    return os.fsencode(words).decode("utf-8", "backslashreplace")


def set_niceness(nice: int | None, address: str | None = None) -> None:
    """Set the variable that Ray reads when it starts.

    Raises: SearchError for a cluster: its Ray has started already.
    """
    if nice is None:
        return
    if address is not None:
        raise SearchError("--nice is for trials on this machine; on a cluster, set RAY_worker_niceness where Ray is started.")
    os.environ["RAY_worker_niceness"] = str(nice)  # noqa: SIM112 -- Ray's spelling


def given_options(**options: float | None) -> dict[str, float]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def write_new(path: Path, text: str, option: str) -> None:
    """Write a file that the user has named with an option. A file that exists is never overwritten.

    Raises: SearchError.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SearchError(f"{path}: a file is there already; name another one after {option}.") from None
    except OSError as error:
        raise SearchError(f"{path}: cannot be written ({error.strerror}); name another file after {option}.") from None


def registry_uri(model: str, tracking_uri: str | None) -> str:
    """Address of the MLflow to ask for a model. An impossible name is refused here, before the slow imports of torch and MLflow."""
    from vit_search.registry import references
    from vit_search.tracking.uris import of_newest

    uri = of_newest(tracking_uri)
    references.check_known(uri, model)
    return uri


def registry_uri_unless_folder(model: str, tracking_uri: str | None) -> str | None:
    """The same for a model that may also be a folder from `train`; a folder needs no MLflow."""
    from vit_search.registry import references

    return registry_uri(model, tracking_uri) if references.folder_of(model) is None else tracking_uri
