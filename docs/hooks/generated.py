"""The parts of the reference that come from the code, by the names that pages use: `<!-- generated: NAME -->`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import command_reference
import schema_reference

ROOT = Path(__file__).parents[2]


def metrics() -> str:
    """A list of the metrics: what a search can optimise, then what can only be an objective."""
    from vit_search.config.metrics import TABLE

    parts = []
    for title, ranks in (("For `metric` and `objectives`", True), ("For `objectives` only", False)):
        lines = [f"## {title}\n"]
        for metric in TABLE:
            if metric.ranks == ranks:
                facts = ["smaller is better" if metric.mode == "min" else "larger is better"]
                facts += ["0 to 1"] if metric.fraction else []
                facts += [f"at least {metric.least_classes} classes"] if metric.least_classes else []
                lines.append(f"`{metric.name}` — {', '.join(facts)}\n:   {metric.meaning}\n")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def exit_codes() -> str:
    """A table of the exit codes."""
    from vit_search.cli.app import EXIT_CODES

    rows = [f"| {code} | {meaning} |" for code, meaning in sorted(EXIT_CODES.items())]
    return "\n".join(["| Code | Meaning |", "| --- | --- |", *rows])


def changelog() -> str:
    """CHANGELOG.md without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2].strip()


GENERATORS: dict[str, Callable[[], str]] = {
    "changelog": changelog,
    "commands": command_reference.commands,
    "exit_codes": exit_codes,
    "metrics": metrics,
    "policy_file": schema_reference.policy_file,
    "search_file": schema_reference.search_file,
}
