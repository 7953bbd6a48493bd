"""Reads `recorded.jsonl` in a search's folder: which runs the search has in MLflow, and how many of its events MLflow has."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_search.config.strict_json import Count, build, parse

RECORDED = "recorded.jsonl"


@dataclass(frozen=True)
class _Noted:
    """A line of RECORDED: the parent run and its store, or a trial's run, or the number of events that MLflow has."""

    store: str = ""
    experiment: str = ""
    parent: str = ""
    trial: Count = 0
    run: str = ""
    taken: Count = 0


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """The lines that drivers wrote into RECORDED, in order. Invalid lines (cut by a crash, or forged) are left out."""
    notes: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (folder / RECORDED).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                note = parse(line)
                build(_Noted, note)
                notes.append(note)
    return notes
