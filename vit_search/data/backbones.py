"""Find the pretrained weights that a search file names, check them without torch, and pin them in the file.

A pinned source has a revision, if there is one, and a sha256, so it always means the same weights. Keys that the file leaves out of its
section `model` get the values of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vit_search.config.backbone import Backbone, read_backbone, used_tensors
from vit_search.config.backbone_space import check_space
from vit_search.config.search_file import SearchSpec
from vit_search.config.weight_sources import KEY, parse
from vit_search.data.finite_weights import check_finite
from vit_search.data.weight_files import Registry, WeightFile, is_there, local_file
from vit_search.errors import OtherWeightsError, SpecError, VitSearchError
from vit_search.text import in_words


class NotHereError(SpecError):
    """The weights are not on this machine. The machine that trains may have them."""


@dataclass(frozen=True)
class FoundBackbone:
    """Pretrained weights on this machine."""

    file: WeightFile
    backbone: Backbone

    @property
    def record(self) -> dict[str, str]:
        """Where the weights come from, for records of the models trained from them; unknown parts are empty."""
        origin = self.file.origin
        licence = origin.licence or self.backbone.licence or ""
        source = parse(origin.source).at(origin.revision).unpinned  # an alias or a branch means others later
        return {"source": source, "revision": origin.revision, "sha256": self.file.sha256, "licence": licence}


def find(source: str, *, download: bool = False, fetch: bool = True, registry: Registry | None = None) -> FoundBackbone:
    """Find the weights of one source.

    Args:
        download, fetch, registry: see `local_file`.
    Raises: SpecError that begins with the key of the search file; its subclass NotHereError if another machine may have
        the weights.
    """
    named = parse(source)
    kind = SpecError if named.kind == "file" and is_there(named) else NotHereError
    try:
        file = local_file(source, download=download, fetch=fetch, registry=registry, key=KEY)
        kind = SpecError
        with file.naming_source():
            found = FoundBackbone(file, read_backbone(file.path))
            check_finite(file.path, used_tensors(file.path))
        return found
    except VitSearchError as error:
        text = str(error)
        kind = SpecError if isinstance(error, OtherWeightsError) else kind
        raise kind(text if text.startswith(f"{KEY}: ") else f"{KEY}: {text}") from None


def find_all(spec: SearchSpec, *, download: bool = False, registry: Registry | None = None) -> dict[str, FoundBackbone]:
    """Find all weights from which a model of a search may start, by source as the search file writes it.

    Raises: SpecError, see `find`.
    """
    return {source: find(source, download=download, registry=registry) for source in spec.pretrained}


def records(found: Mapping[str, FoundBackbone]) -> dict[str, dict[str, str]]:
    """Where weights come from, by pinned source."""
    return {one.file.pinned: one.record for one in found.values()}


def pinned(spec: SearchSpec, found: Mapping[str, FoundBackbone]) -> SearchSpec:
    """The search file with pinned sources, and with the weights' values for the keys that it leaves out of `model`.

    Raises: SpecError if the weights disagree on such a key, if the result is not a valid search, or if a model that can occur does not fit
        its weights.
    """
    if not found:
        return spec
    _check_distinct(found)
    pins = {source: one.file.pinned for source, one in found.items()}
    own = _own_values(spec, found)
    if own or any(source != pin for source, pin in pins.items()):
        spec = spec.with_backbone(pins, own)
    check_space(spec.space, {pins[source]: one.backbone for source, one in found.items()})
    return spec


def _check_distinct(found: Mapping[str, FoundBackbone]) -> None:
    """Refuse the same weights with different settings beside them: a search keeps weights by their sha256.

    Raises: SpecError.
    """
    first: dict[str, tuple[str, Backbone]] = {}
    for source, one in found.items():
        backbone = replace(one.backbone, licence=None)
        other, kept = first.setdefault(one.file.sha256, (source, backbone))
        if backbone != kept:
            names = in_words([parse(text).unpinned for text in (other, source)])
            raise SpecError(f"{KEY}: {names} are the same weights with a different config.json beside them; choose one of them.")


def _own_values(spec: SearchSpec, found: Mapping[str, FoundBackbone]) -> dict[str, Any]:
    """The weights' values for the keys that a search file leaves out of `model`.

    Raises: SpecError if the weights disagree.
    """
    left = [*spec.left_to_backbone]
    rotary = any(one.backbone.rope_base is not None for one in found.values())
    if rotary and "rope_base" not in spec.model.model_fields_set:
        left.append("rope_base")
    own = {}
    for key in left:
        values = {source: one.backbone.model_fields.get(key) for source, one in found.items()}
        if len(set(values.values())) > 1:
            each = in_words([f"{value} ({parse(source).unpinned})" for source, value in values.items()])
            raise SpecError(f"{KEY}: the weights have different values of model.{key}: {each}; write model.{key}.")
        own[key] = next(iter(values.values()))
    return own


def pinned_if_here(spec: SearchSpec, registry: Registry | None = None) -> tuple[SearchSpec, dict[str, FoundBackbone], list[str]]:
    """Do what `pinned` does, for those weights that are on this machine.

    Returns: the search file, the weights that were found, and a line for each source that was not.
    Raises: SpecError, see `find` and `pinned`; also if the file leaves out keys of `model`, and the weights that decide them are missing.
    """
    found, missing = {}, []
    for source in spec.pretrained:
        try:
            found[source] = find(source, registry=registry)
        except NotHereError as error:
            if spec.left_to_backbone:
                keys = in_words(spec.left_to_backbone)
                raise SpecError(
                    f"{error} Only these weights have the values of the keys that the section model leaves out: {keys}."
                ) from None
            missing.append(str(error))
    return pinned(spec, found), found, missing
