"""Run our commands on the head of a Ray cluster, from a laptop, and print their output here."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vit_search.cli.app import err, out
from vit_search.cli.terminal import escaped
from vit_search.errors import SearchError
from vit_search.text import plain

if TYPE_CHECKING:
    from vit_search.cluster.jobs.connection import Cluster


def connect(address: str, insecure: bool) -> Cluster:
    """Connect to the Jobs API of a cluster, and print its warning, if any."""
    from vit_search.cluster.jobs import connection  # slow to import: a second

    there = connection.connect(address, insecure=insecure)
    if there.warning:
        err.print(f"[yellow]warning:[/] {escaped(there.warning)}", soft_wrap=True)
    return there


def remotely(
    address: str, words: Sequence[str], *, insecure: bool = False, follow: bool = False, files: Mapping[str, str] | None = None
) -> None:
    """Run one of our commands on a cluster's head, for the searches in its storage. Print its output, and exit with its exit code.

    Args:
        files: texts by file name. The command reads them there.
    """
    there = connect(address, insecure)
    from vit_search.cluster.jobs.head_command import on_head

    with writing(there.address) as write:
        code, answer = on_head(there, ["vit-search", *words], write=write if follow else None, files=files)
    if not follow:
        (sys.stdout if code == 0 else sys.stderr).write(plain(addressed(answer, there.address)))
    if code:
        sys.exit(code)


def status_there(address: str, search: str | None, *, as_json: bool, watch: bool, insecure: bool) -> None:
    """Print the progress of a search on a cluster; by default of the one that was submitted last."""
    there = connect(address, insecure)
    from vit_search.cluster.jobs import launches

    name = search or launches.newest(there)
    printed = False
    while name and launches.is_beginning(there, name):
        if not printed:
            print_unbegun(name, "starting", as_json)
        if not watch:
            return
        printed = True
        time.sleep(2)
    words = ["status", *([name] if name else []), *(["--json"] if as_json else []), *(["--watch"] if watch else [])]
    remotely(address, words, insecure=insecure, follow=watch)


def print_unbegun(search: str, state: str, as_json: bool) -> None:
    """Print the state of a search that was submitted to a cluster and has no trials yet."""
    from vit_search.ledger import search_state

    if as_json:
        sys.stdout.write(json.dumps({"search": search, "state": state, "running": False}, indent=1) + "\n")
    else:
        out.print(f"[bold]{escaped(search)}[/] is {state}: {search_state.WORDS[state]}.", soft_wrap=True)


def resume_there(address: str, search: str | None, insecure: bool) -> None:
    """Continue a search that was submitted to a cluster."""
    there = connect(address, insecure)
    from vit_search.cluster.jobs import submit

    job = submit.resume(there, _named(search))
    out.print(f"[bold]{escaped(search)}[/] goes on, as job {escaped(job)}.", soft_wrap=True)


def cancel_there(address: str, search: str | None, insecure: bool) -> None:
    """End a search on a cluster now."""
    there = connect(address, insecure)
    from vit_search.cluster.jobs import submit

    if not submit.cancel(there, _named(search)):
        raise SearchError(f"{search}: no job runs it now.")
    out.print(
        escaped(f"{search}: ending now; `vit-search resume {search} --address {there.address}` goes on from the last checkpoints."),
        soft_wrap=True,
    )


def _named(search: str | None) -> str:
    if search is None:
        raise SearchError("which search? `vit-search list --address URL` shows those of a cluster.")
    return search


def write_plain(text: str) -> None:
    """Write a text of others to standard output, at once. Control characters are written out."""
    sys.stdout.write(plain(text))
    sys.stdout.flush()


HINTED = re.compile(r"(vit-search (?:status|logs|resume|pause|continue|stop|cancel|set) )([\w./-]+)( --address [^\s`]+)?")
"""A command on a search in the head's output. From a laptop, it takes the same name and an address."""


def addressed(text: str, address: str) -> str:
    """The head's output, with the cluster's address added to the commands in it, so that they work on this machine."""

    def command(match: re.Match[str]) -> str:
        start, name, there = match.groups()
        search = name.rstrip(".")  # a full stop at the end belongs to the sentence
        return match[0] if there not in (None, " --address URL") else f"{start}{search} --address {address}{name[len(search) :]}"

    return HINTED.sub(command, text)


@contextlib.contextmanager
def writing(address: str) -> Iterator[Callable[[str], None]]:
    """A function that prints the head's output, which arrives in pieces, in whole lines."""
    held = ""

    def write(text: str) -> None:
        nonlocal held
        lines, newline, held = (held + text).rpartition("\n")
        if newline:
            write_plain(addressed(lines + newline, address))

    try:
        yield write
    finally:
        write_plain(addressed(held, address))
