"""Explain pydantic's errors about a search file: one line with the key's path, what is wrong, and how to fix it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from vit_search.config import strict_yaml
from vit_search.config.knobs import field_types
from vit_search.config.model_config import ModelConfig
from vit_search.config.search_file_blocks import Limits, Objective, Resources, Stopping
from vit_search.config.sections import FORMS, DataSection, ModelSection, TrainingSection
from vit_search.config.training_config import TrainingConfig
from vit_search.config.validation_messages import expected, spelt
from vit_search.text import counted, nearest, one_of


def problem_in_words(error: dict[str, Any], document: strict_yaml.Document, spec: type[BaseModel]) -> tuple[tuple[str | int, ...], str]:
    """Convert a pydantic error to (path in the file, one line that says how to fix it).

    Args:
        spec: the pydantic model of a whole search file.
    """
    path: tuple[str | int, ...] = ()
    here: Any = document.values
    for i, step in enumerate(error["loc"]):  # between the file's keys, pydantic puts the tags of our forms
        if i == 2 and error["loc"][0] in ("model", "training") and step in FORMS and len(error["loc"]) > 3:
            continue
        exists = (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int) and step < len(here))
        if exists:
            path, here = (*path, step), here[step]
        elif step not in FORMS or step == error["loc"][-1]:
            path, here = (*path, step), None
    if path and path[-1] in FORMS and error["loc"][-1] == path[-1] and here is None and error["type"] != "missing":
        path = path[:-1]
    key, value, kind = ".".join(map(str, path)), error["input"], error["type"]
    if kind == "extra_forbidden":
        other = {"model": ("training", TrainingSection), "training": ("model", ModelSection)}.get(str(path[0]))
        if len(path) == 2 and other and path[1] in other[1].model_fields:
            return path, f"{key}: unknown key; it belongs under {other[0]}."
        known_keys = _known_keys(path[:-1], error["loc"], spec)
        if len(path) == 3 and path[0] in ("model", "training") and path[2] in (*FORMS, "step", "log"):
            return path, f"{key}: {path[2]} does not go with {error['loc'][2]}; drop it."
        return path, f"{key}: unknown key; {nearest(str(path[-1]), known_keys)}"
    if kind == "missing":
        return path[:-1], f"{key}: missing; add it."
    if kind == "union_tag_invalid":
        return path, f"{key}: {spelt(value)} is no value and no distribution; {_mend(path, error)}"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        if text.startswith("@"):
            _, name, text = text.split("@", 2)
            path = (*(path[:-1] if len(path) == 3 and path[-1] in FORMS else path), *name.split("."))
            key = ".".join(map(str, path))
        return path, f"{key}: {text}."
    if kind == "too_long":
        return path, f"{key}: {counted(error['ctx']['actual_length'], 'entry', 'entries')}; give at most {error['ctx']['max_length']:,}."
    if kind == "too_short":
        return path, f"{key}: the list is empty; give at least one value."
    if kind == "string_pattern_mismatch":
        return (
            path,
            f"{key}: {spelt(value)} will not do as a name; use letters, digits, '.', '_' and '-', at most 64, a letter or digit first.",
        )
    return path, f"{key}: {'has no value' if value is None else f'{spelt(value)} will not do'}; {_mend(path, error)}"


_SECTIONS: dict[str | int, type[BaseModel]] = {
    "data": DataSection,
    "model": ModelSection,
    "training": TrainingSection,
    "stopping": Stopping,
    "resources": Resources,
    "objectives": Objective,
    "limits": Limits,
}


def _known_keys(path: tuple[str | int, ...], loc: tuple[str | int, ...], spec: type[BaseModel]) -> list[str]:
    """The keys that are allowed under a path. `loc` is pydantic's own path, which also names the form of a distribution."""
    if len(path) >= 2 and path[0] in ("model", "training"):
        return [str(loc[2]), *([] if loc[2] == "choice" else ["step", "log"]), "when", "else"]
    return list((_SECTIONS.get(path[0], spec) if path else spec).model_fields)


_OR_AUTO = {("data", "channels"), ("resources", "cpus"), ("resources", "gpus")}
"""Keys that take a number or `auto`. pydantic's error names only one of the two."""

_LISTS = {
    "objectives": "write a list, as [{metric: params}].",
    "constraints": 'write a list of texts, as ["params <= 5e6"].',
    "start_with": "write a list of mappings, as [{lr: 1e-3}].",
    "learn_from": "write a list of names or folders, as [digits-1].",
}


def _mend(path: tuple[str | int, ...], error: Mapping[str, Any]) -> str:
    """How to fix a value that pydantic has rejected: what may be at this path."""
    if path == ("stopping",):
        return "write a mapping, as {kind: none} or {kind: asha, grace_epochs: 3}."
    if len(path) == 3 and path[-1] == "when":
        return "write a condition in quotes, as \"pool == 'cls'\"."
    if path and path[0] in _LISTS and (len(path) == 1 or isinstance(path[-1], int)):
        return _LISTS[str(path[0])]
    config = {"model": ModelConfig, "training": TrainingConfig}.get(str(path[0])) if path else None
    mend = expected(error)
    if path in _OR_AUTO and mend in ("give a number.", "give a whole number."):
        return f"{mend.removesuffix('.')}, or auto."
    if config is None or len(path) < 2 or path[-1] in ("step", "log") or mend.startswith(("give at", "give less", "give more", "did")):
        return mend
    if path[1] == "pretrained":
        return "write a source, as weights/model.safetensors, or {choice: [...]} of them."
    annotation = field_types(config)[str(path[1])]
    if get_origin(annotation) is Literal:
        return f"write {one_of(get_args(annotation))}, or {{choice: [...]}} of them."
    kind = str(annotation).removeprefix("<class '").removesuffix("'>").removesuffix(" | None")
    examples = {
        "int": "a whole number, as 64, {choice: [32, 64]} or {int: [32, 96], step: 16}",
        "float": "a number, as 1e-3, {choice: [1e-3, 2e-3]} or {float: [1e-4, 1e-2], log: true}",
        "bool": "true, false or {choice: [true, false]}",
    }
    return f"write {examples[kind]}." if kind in examples else f"write {kind} or {{choice: [...]}}."
