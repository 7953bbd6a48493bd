"""The licence of pretrained weights, and the warnings of `lint` about it."""

from __future__ import annotations

import re
from pathlib import Path

from vit_search.config.backbone_settings import read_settings
from vit_search.config.safetensors_header import read_header
from vit_search.config.weight_sources import parse
from vit_search.errors import CheckpointError
from vit_search.text import one_line

CARD = "README.md"
"""A model card. Its first lines, between two lines `---`, state the licence."""

CARD_BYTES = 65_536

NOT_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?\s?commercial|research|academic.(use.)?only|apple-amlr", re.IGNORECASE)
"""Identifiers and names of licences that forbid commercial use: cc-by-nc-4.0, intel-research, apple-amlr, NonCommercial."""

UNKNOWN = ("other", "unknown")
"""Entries of a model card that state no licence."""

_FIELD = re.compile(r"^(license|license_name|licence): *['\"]?([^'\"#\n]+?)['\"]? *$", re.MULTILINE)


def licence_beside(path: Path) -> str | None:
    """The licence of a weights file, from its metadata, the config.json or the model card beside it; None if none states it."""
    try:
        metadata = read_header(path).metadata
    except CheckpointError:
        return None  # reported when the weights are read
    stated = metadata.get("license") or metadata.get("licence")
    if not stated:
        try:
            stated = read_settings(path.parent, metadata).licence
        except ValueError:
            stated = None
    return one_line(stated)[:200] if stated else _of_card(path.with_name(CARD))


def _of_card(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            text = file.read(CARD_BYTES).decode(errors="replace")
    except OSError:
        return None
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    fields = dict(_FIELD.findall(head[1])) if head else {}
    stated = fields.get("license") or fields.get("licence")
    if stated in (None, "other"):
        stated = fields.get("license_name") or stated
    return one_line(stated)[:200] if stated else None


def licence_warning(source: str, licence: str | None) -> str | None:
    """The warning of `lint` if no licence is stated, or it forbids commercial use. Weights from your own registry need none.

    Args:
        source: as in the search file.
        licence: as in Origin.
    """
    named = parse(source)
    if licence and NOT_COMMERCIAL.search(licence):
        return (
            f"{named.unpinned}: the licence of these weights is {licence}, which forbids commercial use; read it before you use the model."
        )
    if named.kind == "models" or (licence and licence.lower() not in UNKNOWN):
        return None
    return f"{named.unpinned}: nothing states the licence of these weights; ask their owner before you pass the model on."
