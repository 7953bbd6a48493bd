"""Checks a cluster file: first with Ray's own schema, then with our rules R1, R2, … for security, cost and data loss.

The rules are needed because the schema of Ray 2.60 accepts a misspelt instance type, a dashboard that is open to the whole world, and
a cluster without a token. A rule yields each problem with its line.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_search.cluster.file import machine_rules, security_rules, start_rules
from vit_search.cluster.file.cluster_file import ClusterFile, Problems
from vit_search.config import strict_yaml
from vit_search.config.strict_yaml import NodePath
from vit_search.config.validation_messages import spelt
from vit_search.errors import ClusterError
from vit_search.text import nearest

BLANK = re.compile(r"\b(?:ami|subnet|sg|vol|fs)-0{8,17}\b|\b203\.0\.113\.\d+\b")


@dataclass(frozen=True)
class ClusterFinding:
    """One problem in a cluster file."""

    line: int
    rule: str
    text: str
    """What is wrong, and how to fix it."""


@dataclass(frozen=True)
class ClusterReport:
    """The result of a check."""

    findings: list[ClusterFinding]
    blanks: list[ClusterFinding]
    """Places that still hold placeholders of the file that comes with vit_search."""


def check(path: Path) -> ClusterReport:
    """Check a file against all rules.

    Raises: SpecError if the file is not valid YAML, or is ambiguous.
    """
    file = ClusterFile(path, strict_yaml.load(path))
    findings = list(_schema(file))
    for number, rule in enumerate(_ALL, 1):
        findings += [ClusterFinding(line, f"R{number}", text) for line, text in rule(file)]
    blanks = {
        ClusterFinding(file.line(*at), "", f"{blank.group()} is a placeholder")
        for at, text in file.texts()
        for blank in BLANK.finditer(text)
    }
    return ClusterReport(sorted(set(findings), key=lambda f: (f.line, f.rule)), sorted(blanks, key=lambda f: (f.line, f.text)))


def ray_refuses(config: dict[str, Any]) -> tuple[NodePath, str] | None:
    """Where Ray's own check stops, and its message; None if the check passes. Only this function uses Ray's private check.

    Raises: ClusterError if this Ray has no such check.
    """
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError:
        raise ClusterError(
            f"Ray {metadata.version('ray')} has moved its check of cluster files; install the Ray of requirements.lock."
        ) from None
    printed = io.StringIO()
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # Ray raises errors of any kind
        return _in_words(error, printed.getvalue())
    return None


_KINDS = {
    "integer": "give a whole number.",
    "number": "give a number.",
    "string": "give a text.",
    "boolean": "give true or false.",
    "array": "give a list.",
    "object": "write `key: value` lines under it.",
}


def _in_words(error: Exception, printed: str) -> tuple[NodePath, str]:
    """Where Ray's check stops, and how to fix it. `error` may come from jsonschema, whose messages are for programmers."""
    where: NodePath = tuple(getattr(error, "absolute_path", ()))
    rule, limit, value = (getattr(error, name, None) for name in ("validator", "validator_value", "instance"))
    key, complaint = ".".join(map(str, where)) or "the file", "has no value" if value is None else f"{spelt(value)} will not do"
    if rule == "type" and limit in _KINDS:
        return where, f"{key}: {complaint}; {_KINDS[str(limit)]}"
    if rule in ("minimum", "maximum") and isinstance(limit, (int, float)):
        return where, f"{key}: {complaint}; give {'at least' if rule == 'minimum' else 'at most'} {limit:g}."
    if rule == "enum" and isinstance(limit, list):
        return where, f"{key}: {complaint}; choose from {', '.join(map(str, limit))}."
    if rule == "additionalProperties" and isinstance(value, dict):
        keys = list(getattr(error, "schema", {}).get("properties", {}))
        unknown = next(name for name in value if name not in keys)
        return (*where, unknown), f"{'.'.join(map(str, (*where, unknown)))}: unknown key; {nearest(str(unknown), keys)}"
    if isinstance(error, KeyError):
        return where, f"the key {error.args[0]} is missing; add it."
    text = str(getattr(error, "message", "") or error) or printed
    text = " ".join(text.split())[:300].rstrip(".") or type(error).__name__
    if isinstance(error, (TypeError, AttributeError)):  # Ray used a text as a list, or a list as a mapping
        text = f"a value has another form than it expects ({text})"
    return where, f"{text}; mend it as docs.ray.io's cluster YAML reference says."


def _schema(file: ClusterFile) -> Iterator[ClusterFinding]:
    if refused := ray_refuses(file.document.values):
        where, text = refused
        yield ClusterFinding(file.line(*where), "R0", f"Ray refuses it: {text}")


_ALL: tuple[Callable[[ClusterFile], Problems], ...] = (
    security_rules.token,  # R1
    security_rules.listening,
    start_rules.image,
    machine_rules.head_without_trials,
    start_rules.shared_storage,  # R5
    security_rules.secrets,
    machine_rules.idle,
    machine_rules.bounded,
    machine_rules.spot,
    security_rules.mounted_files,  # R10
    security_rules.ssh_key,
    security_rules.security_groups,
    security_rules.metadata_service,
    machine_rules.disk,
    machine_rules.instances,  # R15
    start_rules.start_commands,
    start_rules.cluster_name,
    start_rules.packages,
    security_rules.settings_of_nodes,
    security_rules.rights,  # R20
    machine_rules.stopped,
    start_rules.services,
    machine_rules.region,
)
RULES = len(_ALL)
"""Number of our rules (R1, R2, …). R0 is Ray's schema."""
