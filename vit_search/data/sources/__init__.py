"""Where labelled images come from: one file per kind of source, and this table of their names."""

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
"""Opens a source: the search file's `data` section, the folder for downloaded sets, and whether to download what is missing."""

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
"""By `data.name` of a search file. What is known of each before it is opened stands in config/data_sets.py."""

check_tables("DATA_SETS of vit_search/config/data_sets.py", DATA_SETS, "SOURCES of vit_search/data/sources/__init__.py", SOURCES)


def open_source(config: DataConfig, downloads: Path | None = None, download: bool = False) -> Source:
    """The images that a search file names; reads names and labels, decodes nothing, and fetches nothing behind a URL.

    Args:
        downloads: folder of the sets that are downloaded and have no `data.path`; needed by those alone.
        download: whether to download what is missing.
    Raises: DataError when the set is unknown, missing, damaged or cannot be read in one way only.
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
