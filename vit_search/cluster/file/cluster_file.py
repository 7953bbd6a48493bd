"""The cluster file, as the rules of `vit-search cluster check` and the renderers read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_search.config.strict_yaml import Document, NodePath


@dataclass(frozen=True)
class ClusterFile:
    """The cluster file, with the queries that the rules need."""

    path: Path
    document: Document

    def at(self, *path: str | int, default: Any = None) -> Any:
        """The value at a path. The default if there is none, or if a value on the way has no such key."""
        value = self.document.values
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return default
        return default if value is None else value

    def line(self, *path: str | int) -> int:
        """The line of a path, or of its nearest parent in the file."""
        return self.document.line(path)

    @cached_property
    def cloud(self) -> bool:
        """Whether the nodes are rented from AWS. Only then do they have types, disks and security groups."""
        return bool(self.at("provider", "type") == "aws")

    @cached_property
    def head(self) -> str:
        """The node type of the head."""
        return str(self.at("head_node_type", default=""))

    @cached_property
    def types(self) -> dict[str, Any]:
        """All node types."""
        types = self.at("available_node_types", default={})
        return {name: kind for name, kind in types.items() if isinstance(kind, dict)} if isinstance(types, dict) else {}

    @cached_property
    def workers(self) -> dict[str, Any]:
        """The node types of workers."""
        return {name: kind for name, kind in self.types.items() if name != self.head}

    def texts(self) -> Iterator[tuple[NodePath, str]]:
        """Every text in the file, with its path."""
        todo: list[tuple[NodePath, Any]] = [((), self.document.values)]
        while todo:
            path, value = todo.pop()
            if isinstance(value, str):
                yield path, value
            elif isinstance(value, dict):
                todo += [((*path, key), item) for key, item in value.items()]
            elif isinstance(value, list):
                todo += [((*path, index), item) for index, item in enumerate(value)]

    def commands(self, key: str) -> list[str]:
        """The commands under a key."""
        commands = self.at(key, default=[])
        return [str(command) for command in commands] if isinstance(commands, list) else []

    def starts(self, key: str) -> tuple[int, str]:
        """Line and text of the `ray start` command under a key. Without one, the text is empty."""
        for index, command in enumerate(self.commands(key)):
            if re.search(r"\bray start\b", command):
                return self.line(key, index), command
        return self.line(key), ""

    def environment(self, *, head: bool) -> dict[str, str]:
        """The environment variables of a node's `ray start`, from the container's options and from the command itself."""
        variables = {}
        for option in self.run_options(head=head):
            name, equals, value = option.removeprefix("-e ").strip().strip("\"'").partition("=")
            if option.startswith("-e ") and equals:
                variables[name] = value
        _, command = self.starts("head_start_ray_commands" if head else "worker_start_ray_commands")
        return variables | {
            name: value.strip("\"'") for name, value in re.findall(r"\b([A-Z][A-Za-z0-9_]*)=('[^']*'|\"[^\"]*\"|[^\s;]*)", command)
        }

    def run_options(self, *, head: bool) -> list[str]:
        """The options of a node's container."""
        keys = ("run_options", "head_run_options" if head else "worker_run_options")
        return [str(option) for key in keys for option in self.at("docker", key, default=[])]


Problems = Iterator[tuple[int, str]]
"""What a rule yields: the line, and what is wrong there and how to fix it."""
