"""The keys of a search file and of a policy file as Markdown, from their JSON Schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

DISTRIBUTIONS = ("Choice", "IntRange", "FloatRange")
"""What the names of the schemas of distributions begin with."""

CONDITION = ("when", "else")
"""Keys of every distribution."""

SECTIONS = {
    "data": "The images, and how they are split.",
    "model": "The Vision Transformer. Each key takes a fixed value or a [distribution](#distributions).",
    "training": "How each model is trained. Each key takes a fixed value or a [distribution](#distributions).",
    "stopping": "Which weak trials are stopped early. [Stopping](../explanation/stopping.md) explains the rules and the rungs.",
    "limits": "What ends the search before its last trial. The first limit that is reached ends it.",
    "resources": "What one trial gets of the machine. [Sharing GPUs](../guides/sharing-gpus.md) has examples.",
    "report": "What the report shows. [Find wrong labels and look at mistakes](../guides/mistakes.md) shows an example.",
    "objectives": "A list of up to three further metrics, each with these keys, for example `objectives: [{metric: params}]`.",
}
"""Sections of a search file in the order of the page, with what stands above the keys of each."""


def search_file() -> str:
    """All keys of a search file, section by section."""
    from vit_search.config import search_file as file

    schema = file.json_schema()
    properties, required = schema["properties"], schema["required"]
    plain = [key for key in properties if key not in SECTIONS]
    parts = ["## Top level\n", *(_entry(key, properties[key], schema, required=key in required) for key in plain)]
    for section, about in SECTIONS.items():
        shape = _resolved(properties[section].get("items", properties[section]), schema)
        parts.append(f"## `{section}` {{ #{section} }}\n\n{about}\n")
        parts += _section(section, shape, schema)
    parts.append("## Distributions\n\nA key of `model` or `training` takes one of these forms in place of a value.\n")
    for title, name, section, example in (
        ("A list of values", "Choice", "model", "patch_size: {choice: [2, 4]}"),
        ("A range of whole numbers", "IntRange", "model", "dim: {int: [32, 96], step: 16}"),
        ("A range of numbers", "FloatRange", "training", "lr: {float: [1e-4, 1e-2], log: true}"),
        ("A condition", "Choice", "model", 'layer_scale: {choice: [1e-5, 1e-4], when: "depth >= 4"}'),
    ):
        shape = next(value for key, value in schema["$defs"].items() if key.startswith(name))
        keys = {key: value for key, value in shape["properties"].items() if (key in CONDITION) == (title == "A condition")}
        about = "\nEach of the three forms also takes these keys.\n" if title == "A condition" else ""
        parts.append(f"### {title}\n{about}\n```yaml\n{section}:\n  {example}\n```\n")
        parts += [_entry(key, value, schema, required=key in shape["required"], anchor=False) for key, value in keys.items()]
    return "\n".join(parts)


def policy_file() -> str:
    """All keys of a promotion's policy file, section by section."""
    from vit_search.promotion import policy

    schema = policy.json_schema()
    parts = ["## Top level\n"]
    later = []
    for key, value in schema["properties"].items():
        shape = _resolved(value, schema)
        if "properties" in shape:
            later += [f"## `{key}` {{ #{key} }}\n\n{shape['description']}\n", *_section(key, shape, schema)]
        else:
            parts.append(_entry(key, value, schema))
    return "\n".join(parts + later)


def _section(name: str, shape: Schema, schema: Schema) -> Iterator[str]:
    """An entry for each key of a section, and of the sections in it."""
    for key, value in shape["properties"].items():
        path = f"{name}.{key}" if name else key
        inner = _resolved(value, schema)
        if "properties" in inner and not inner.get("title", "").startswith(DISTRIBUTIONS):
            yield f"`{path}`\n:   {_sentence(inner['description'])}\n"
            yield from _section(path, inner, schema)
        else:
            yield _entry(path, value, schema, required=key in shape.get("required", ()))


def _entry(path: str, value: Schema, schema: Schema, *, required: bool = False, anchor: bool = True) -> str:
    """One key: its name, which a link can name; its type, bounds and default; its meaning."""
    about = value.get("description", "")
    facts = [_type(value, schema)]
    if required:
        facts.append("**required**")
    elif path.rpartition(".")[2] == "mode" and "follows from the metric" in about:
        facts.append("default: that of the metric")
    elif "Default:" not in about.removesuffix(_default(value)):
        facts.append(f"default {_spelt(value['default'])}" if "default" in value else "")
    about = about.removesuffix(_default(value))
    named = f"`{path}`{{ #{path} }}" if anchor else f"`{path}`"
    return f"{named} — {', '.join(fact for fact in facts if fact)}\n:   {_sentence(about)}\n"


def _default(value: Schema) -> str:
    """What the schema adds to a description for editors."""
    if "default" not in value:
        return ""
    default = value["default"]
    return f" Default: {json.dumps(default) if default is None or isinstance(default, bool) else default}."


def _sentence(about: str) -> str:
    """A description on one line; where it names alternatives, `name: text; name: text`, they are a list."""
    about = re.sub(r"(?<!`)\b(null|auto): ", r"`\1`: ", " ".join(about.split()))
    first, dot, rest = about.partition(". ")
    parts = rest.removesuffix(".").split("; ")
    if dot and len(parts) > 2 and all(part.partition(": ")[0].isidentifier() and ": " in part for part in parts):
        items = "\n".join(f"    - `{name}`: {text}" for name, _, text in (part.partition(": ") for part in parts))
        return f"{first}:\n\n{items}"
    return about


def _resolved(value: Schema, schema: Schema) -> Schema:
    """What a reference names."""
    return schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value


def _type(value: Schema, schema: Schema) -> str:
    """Type and bounds in words."""
    if "$ref" in value:
        return _type(_resolved(value, schema), schema)
    for key in ("oneOf", "anyOf"):
        if key in value:
            forms = [form for form in value[key] if not _is_distribution(form)]
            return " or ".join(dict.fromkeys(_type(form, schema) for form in forms))
    if "enum" in value:
        return "one of " + ", ".join(_spelt(one) for one in value["enum"])
    if "const" in value:
        return _spelt(value["const"])
    kind = value.get("type")
    if kind == "array":
        return _list(value, schema)
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true` or `false`",
        "null": "`null`",
        "object": "mapping",
    }
    return names.get(kind, "any value") + _bounds(value)


def _is_distribution(form: Schema) -> bool:
    return form.get("$ref", "").rpartition("/")[2].startswith(DISTRIBUTIONS)


def _list(value: Schema, schema: Schema) -> str:
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])} numbers" if value["prefixItems"][0]["type"] == "number" else "list of 2 whole numbers"
    item = _type(value["items"], schema)
    plural = {"text": "texts", "mapping": "mappings"}.get(item, f"values, each {item}" if item != "any value" else "values")
    most = value.get("maxItems")
    return f"list of {f'at most {most:,} ' if most else ''}{plural}"


def _bounds(value: Schema) -> str:
    low, high = value.get("minimum"), value.get("maximum")
    above, below = value.get("exclusiveMinimum"), value.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" {low:,} to {high:,}"
    parts = [
        f"{word} {bound:,}"
        for word, bound in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if bound is not None
    ]
    return " " + " and ".join(parts) if parts else ""


def _spelt(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"
