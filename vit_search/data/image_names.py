"""What the images of a split are called in their source: a file's name below the folder, or the image's number."""

from __future__ import annotations

from vit_search.config.data_config import DataConfig
from vit_search.data.cache import DataSet
from vit_search.data.cache_folder import default_cache
from vit_search.data.sources import open_source
from vit_search.data.split import SplitName, split_indices
from vit_search.errors import DataError
from vit_search.text import file_name


def image_names(config: DataConfig, data: DataSet, split: SplitName) -> list[str]:
    """Of each image of a split, in the split's order.

    Args:
        config: of the data section. data: as `prepare` gave it for this config a moment ago, so that the source is the same.
    Returns: names of files, on one line each; where a source has no names, the images' numbers in the source, from 0.
    Raises: DataError where the source is not as it was.
    """
    source = open_source(config, default_cache() / "downloads")
    indices = split_indices(config, source)[split]
    if len(indices) != data.counts[split]:
        raise DataError(
            f"{source.title}: {len(indices)} images in {split}, and {data.counts[split]} a moment ago; leave the data as it is."
        )
    try:
        return [file_name(str(name)) for name in source.names[indices]]
    except DataError:  # it has no names
        return [str(index) for index in indices]
