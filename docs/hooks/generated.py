"""The parts of the reference that come from the code, by the names that pages use: `<!-- generated: NAME -->`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import command_reference
import schema_reference

ROOT = Path(__file__).parents[2]


FILE_KEYS = """
    options:
      members: [text, check]

Its attributes are the [keys of a search file](search-file.md)."""
"""Below a class that has so many attributes that they have a page of their own."""


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


def public_functions() -> str:
    """What `from vit_search import …` offers, for mkdocstrings."""
    import vit_search

    return "\n\n".join(f"::: vit_search.{name}" for name in sorted(vit_search.__all__, key=_order))


def public_classes() -> str:
    """The classes that those functions return, for mkdocstrings."""
    tree = ast.parse((ROOT / "vit_search" / "__init__.py").read_text(encoding="utf-8"))
    modules = {
        name.name: statement.module for statement in ast.walk(tree) if isinstance(statement, ast.ImportFrom) for name in statement.names
    }
    returned = [function.returns for function in tree.body if isinstance(function, ast.FunctionDef)]
    names = dict.fromkeys(one.id for one in returned if isinstance(one, ast.Name) and one.id in modules)
    return "\n\n".join(f"::: {modules[name]}.{name}{FILE_KEYS if name == 'SearchSpec' else ''}" for name in names)


def _order(name: str) -> tuple[bool, str]:
    """Functions on searches, in the order of their use, before those on models."""
    order = ["load_search", "run_search", "read_search", "load_classifier"]
    return name not in order, f"{order.index(name)}" if name in order else name


def changelog() -> str:
    """CHANGELOG.md without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2].strip()


GENERATORS: dict[str, Callable[[], str]] = {
    "changelog": changelog,
    "commands": command_reference.commands,
    "exit_codes": exit_codes,
    "metrics": metrics,
    "public_classes": public_classes,
    "public_functions": public_functions,
    "policy_file": schema_reference.policy_file,
    "search_file": schema_reference.search_file,
}
