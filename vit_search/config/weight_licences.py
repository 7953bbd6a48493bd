"""Under which licence pretrained weights are, and what `lint` says about it."""

from __future__ import annotations

import re
from pathlib import Path

from vit_search.config.backbone_settings import read_settings
from vit_search.config.safetensors_header import read_header
from vit_search.config.weight_sources import parse
from vit_search.errors import CheckpointError
from vit_search.text import one_line

CARD = "README.md"
"""A model card: its first lines, between two lines `---`, state the licence."""

CARD_BYTES = 65_536

NOT_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?\s?commercial|research|academic.(use.)?only|apple-amlr", re.IGNORECASE)
"""Licences that forbid commercial use, by identifiers and names: cc-by-nc-4.0, intel-research, apple-amlr, NonCommercial."""

UNKNOWN = ("other", "unknown")
"""What a model card may say, and what says nothing."""

_FIELD = re.compile(r"^(license|license_name|licence): *['\"]?([^'\"#\n]+?)['\"]? *$", re.MULTILINE)


def licence_beside(path: Path) -> str | None:
    """As the file's own metadata, the config.json or the model card beside it states it; None if none does."""
    try:
        metadata = read_header(path).metadata
    except CheckpointError:
        return None  # said where it is read as weights
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
    head = re.match(r"---\n(.*?)\n---", text.replace("\r\n", "\n"), re.DOTALL)
    fields = dict(_FIELD.findall(head[1])) if head else {}
    stated = fields.get("license") or fields.get("licence")
    if stated in (None, "other"):
        stated = fields.get("license_name") or stated
    return one_line(stated)[:200] if stated else None


def licence_warning(source: str, licence: str | None) -> str | None:
    """What `lint` warns of: no licence is stated, or it forbids commercial use. Weights that you trained yourself need none.

    Args:
        source: as in the search file. licence: as Origin has it.
    """
    named = parse(source)
    if licence and NOT_COMMERCIAL.search(licence):
        return (
            f"{named.unpinned}: the licence of these weights is {licence}, which forbids commercial use; read it before you use the model."
        )
    if named.kind == "models" or (licence and licence.lower() not in UNKNOWN):
        return None
    return f"{named.unpinned}: nothing states the licence of these weights; ask their owner before you pass the model on."
