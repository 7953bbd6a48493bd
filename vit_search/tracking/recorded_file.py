"""The file `recorded.jsonl` of a search's folder: in which runs, and how far, MLflow has the search."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_search.config.strict_json import Count, build, parse

RECORDED = "recorded.jsonl"


@dataclass(frozen=True)
class _Noted:
    """A line of RECORDED: the parent's run and where it is, or a trial's run, or how many events MLflow has taken."""

    store: str = ""
    experiment: str = ""
    parent: str = ""
    trial: Count = 0
    run: str = ""
    taken: Count = 0


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """What drivers have noted of MLflow in a search's folder, in order; a line that a crash has cut, or somebody forged, is left out."""
    notes: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (folder / RECORDED).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                note = parse(line)
                build(_Noted, note)
                notes.append(note)
    return notes
