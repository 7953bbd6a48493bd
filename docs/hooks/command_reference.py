"""Every command and option of the command line as Markdown, from the help texts in vit_search/cli."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any


def commands() -> str:
    """The commands, grouped as `vit-search --help` groups them."""
    from typer.main import get_command

    import vit_search.cli  # noqa: F401 -- each of its files adds its commands
    from vit_search.cli.app import app
    from vit_search.cli.terminal import SECTIONS

    root: Any = get_command(app)
    parts = []
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names.split():
            parts += _command(root.commands[name], ("vit-search", name))
    return "\n".join(parts)


def _command(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    """A command, and those under it."""
    title = " ".join(words)
    yield f"### `{title}` {{ #{'-'.join(words[1:])} }}\n"
    yield f"{_escaped(' '.join((command.help or '').split()))}\n"
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            if not inner.hidden:
                yield from _command(inner, (*words, name))
        return
    context = command.make_context(title, [], resilient_parsing=True)
    shown = [Parameter(one, context) for one in command.params if not getattr(one, "hidden", False)]
    arguments, options = ([one for one in shown if one.is_option == wanted] for wanted in (False, True))
    needed = [one.usage for one in options if one.required]
    usage = [title, *(one.usage for one in arguments), *needed, *(["[OPTIONS]"] if len(options) > len(needed) else [])]
    yield f"```text\n{' '.join(usage)}\n```\n"
    yield from (one.entry for one in [*arguments, *options])


class Parameter:
    """An argument or option of a command, from what typer prints of it."""

    def __init__(self, parameter: Any, context: Any) -> None:
        self.is_option: bool = parameter.opts[0].startswith("-")
        self.required: bool = parameter.required
        record, text = parameter.get_help_record(context) or (parameter.name, parameter.help or "")
        name, _, kind = record.partition(" <")
        self.name = name if self.is_option else name.upper().replace("...", "…")
        if kind and self.is_option:
            self.name += f" {TYPES.get(kind.removesuffix('>').removesuffix(' range'), kind.upper())}"
        found = re.fullmatch(r"(.*?)\s*\[([^\]]*)\]", text, re.DOTALL)
        self.text, facts = (found[1], found[2].split("; ")) if found else (text, [])
        self.facts = [_fact(fact) for fact in facts]

    @property
    def usage(self) -> str:
        """How it stands in the command's usage."""
        return self.name if self.required else f"[{self.name}]"

    @property
    def entry(self) -> str:
        """Name, bounds and default, and below them its meaning."""
        noted = f" — {', '.join(self.facts)}" if self.facts else ""
        return f"`{self.name}`{noted}\n:   {_escaped(self.text)}\n"


TYPES = {"path": "PATH", "str": "TEXT", "int": "INTEGER", "float": "NUMBER"}


def _fact(fact: str) -> str:
    """A default or bounds in words."""
    if fact.startswith("default: "):
        return f"default `{fact.removeprefix('default: ')}`"
    found = re.fullmatch(r"(\S+)<=x<=(\S+)", fact)
    if found:
        return f"{found[1]} to {found[2]}"
    return f"at least {fact.removeprefix('x>=')}" if fact.startswith("x>=") else fact


def _escaped(text: str) -> str:
    """A help text in which addresses, options and placeholders are code, so that Markdown leaves them alone."""
    return re.sub(r"(?<![`\w])(https?://[^\s,;]+|[A-Z]+/[A-Z]+|~/\S+|--[a-z-]+)(?<![.,;])", r"`\1`", text)
