"""The kinds of data sets: one file for each, and this table by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vit_search.config.data_config import DataConfig
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.tables import check_tables
from vit_search.data.listed import not_fetched
from vit_search.data.sources.class_checks import check_classes
from vit_search.data.sources.digits import Digits
from vit_search.data.sources.image_folder import open_folder
from vit_search.data.sources.label_map import MappedSource
from vit_search.data.sources.source import Source
from vit_search.data.sources.table import open_table
from vit_search.data.sources.torchvision_sets import TorchvisionSet
from vit_search.data.sources.webdataset import WebDataset
from vit_search.errors import DataError

Opener = Callable[[DataConfig, Path | None, bool], Source]
"""Opens a source. Arguments: the section `data` of a search file, the folder for downloaded sets, whether to download a missing set."""

SOURCES: dict[str, Opener] = {
    "digits": Digits,
    "mnist": TorchvisionSet,
    "fashion_mnist": TorchvisionSet,
    "cifar10": TorchvisionSet,
    "cifar100": TorchvisionSet,
    "image_folder": open_folder,
    "table": open_table,
    "webdataset": WebDataset,
}
"""Opener for each `data.name` of a search file. config/data_sets.py has what is known before a source is opened."""

check_tables("DATA_SETS of vit_search/config/data_sets.py", DATA_SETS, "SOURCES of vit_search/data/sources/__init__.py", SOURCES)


def open_source(config: DataConfig, downloads: Path | None = None, download: bool = False) -> Source:
    """Open the data set that a search file names. Only names and labels are read: nothing is decoded, and nothing behind a URL is fetched.

    Args:
        downloads: folder of downloaded sets. Only sets that need no `data.path` use it.
        download: whether to download a missing set.
    Raises: DataError if the set is unknown, missing, damaged or ambiguous.
    """
    if config.name not in SOURCES:
        raise DataError(f"data.name: unknown data set {config.name!r}; choose from {', '.join(SOURCES)}.")
    facts = DATA_SETS[config.name]
    if facts.path and config.path is None:
        raise DataError(f"data.path: {config.name} needs it; name {facts.path}.")
    with not_fetched(config, by_names=facts.by_names) as local:
        source = SOURCES[config.name](local, downloads, download)
    if config.label_map:
        source = MappedSource(source, config.label_map)
    if config.label_map or source.groups is not None:
        check_classes(source)
    return source
