"""The pretrained weights of a search file, for the commands; a registered version may be one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.data.backbones import FoundBackbone


def with_weights(spec: SearchSpec, *, download: bool = False, tracking_uri: str | None = None) -> SearchSpec:
    """The search file with its weights found, checked and pinned; see `backbones.pinned`.

    Raises: SpecError.
    """
    if not spec.pretrained:
        return spec
    from vit_search.data import backbones
    from vit_search.registry.weight_versions import Versions

    return backbones.pinned(spec, backbones.find_all(spec, download=download, registry=Versions(tracking_uri)))


def with_weights_here(spec: SearchSpec) -> tuple[SearchSpec, dict[str, FoundBackbone]]:
    """The same for those weights that are on this machine. A note names each that is not.

    Returns: the search file, and the weights found, by source as the file writes it.
    Raises: SpecError.
    """
    if not spec.pretrained:
        return spec, {}
    from vit_search.cli.app import print_note
    from vit_search.data import backbones
    from vit_search.registry.weight_versions import Versions

    pinned, found, missing = backbones.pinned_if_here(spec, registry=Versions())
    for line in missing:
        print_note(f"{line} `run` needs it.")
    return pinned, found
