"""Show the steps of a promotion. If a signal ends it, say what is kept, and what to type next."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vit_search.cli.app import INTERRUPTED, err
from vit_search.cli.terminal import escaped
from vit_search.runtime.signals import interrupting

LOADING = "loading torch and MLflow"


@contextlib.contextmanager
def promotion_steps(retraining: Path, search: str) -> Iterator[Callable[[str], None]]:
    """Show each step while it runs. Ctrl-C, SIGTERM and a lost terminal end the command with one line.

    Args:
        retraining: folder of the finalists' trainings. It also keeps the answers on the test split.
        search: its name.
    Yields: a function to call with the text of each step.
    """
    steps = [LOADING]
    before = _answers(retraining)
    try:
        with interrupting(), err.status(f"{LOADING} …") as status:

            def say(step: str) -> None:
                steps.append(step)
                status.update(f"{step} …")

            yield say
    except KeyboardInterrupt:
        from vit_search.promotion import promote

        read = promote.READING in steps
        if read and _answers(retraining) - before:
            stands = "The answers on the test split are kept: it is not read again."
        elif read:
            stands = "This reading of the test split may count already; the next call reads it again."
        else:
            stands = "The test split was not read."
        if promote.REGISTERING in steps:
            stands = "The champion may have moved already: the next call finishes or undoes the move."
        err.print(interrupted_promotion(search, stands), soft_wrap=True)
        sys.exit(INTERRUPTED)


def interrupted_promotion(search: str, stands: str) -> str:
    """The text after an interrupted promotion."""
    return f"\n[yellow]Interrupted.[/] {stands} Go on with the same options:  [bold]vit-search promote {escaped(search)}[/]"


def _answers(retraining: Path) -> set[tuple[str, int]]:
    """The files that keep answers on the test split, and their modification times."""
    return {(path.name, path.stat().st_mtime_ns) for path in (retraining / "readings").glob("*.json")}
