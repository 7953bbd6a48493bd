"""Checks the paths in a search file that runs on other machines."""

from __future__ import annotations

from pathlib import Path

from vit_search.config.data_urls import is_url
from vit_search.config.search_file import SearchSpec
from vit_search.config.weight_sources import parse
from vit_search.errors import SpecError


def check_paths(spec: SearchSpec, file: str) -> None:
    """Check that `data.path` and `model.pretrained` are not relative paths, which would mean files of this machine.

    Raises: SpecError.
    """
    path = spec.data_config.path
    if path is not None and not is_url(path) and not Path(path).is_absolute():
        raise SpecError(f"{file}: data.path: {str(path)!r} is a path of this machine; name the folder on the cluster in full.")
    for source in map(parse, spec.pretrained):
        if source.kind == "file" and not Path(source.place).is_absolute():
            mend = "name the file on the cluster in full, or give another source that every machine can read"
            raise SpecError(f"{file}: model.pretrained: {source.place!r} is a path of this machine; {mend}.")
