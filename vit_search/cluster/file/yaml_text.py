"""Writes YAML that our own strict reader accepts, below a comment."""

from __future__ import annotations

from typing import Any

import yaml


class _Plain(yaml.SafeDumper):
    """Writes no anchors, because our own reader refuses them. Writes long texts line by line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _lines)


def yaml_text(about: list[str], documents: list[dict[str, Any]]) -> str:
    """The documents as YAML. The lines of `about` come first, as comments."""
    head = "".join(f"# {line}\n" for line in about)
    bodies = [yaml.dump(document, Dumper=_Plain, sort_keys=False, width=1000, allow_unicode=True) for document in documents]
    return head + "---\n".join(bodies) if len(bodies) > 1 else head + bodies[0]
