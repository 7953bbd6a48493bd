"""Names of a split's images, as a person finds them: the file below the folder, or the image's number in the source."""

from __future__ import annotations

from vit_search.config.data_config import DataConfig
from vit_search.data.cache import DataSet
from vit_search.data.cache_folder import default_cache
from vit_search.data.sources import open_source
from vit_search.data.split import SplitName, split_indices
from vit_search.errors import DataError
from vit_search.text import file_name


def image_names(config: DataConfig, data: DataSet, split: SplitName) -> list[str]:
    """The name of each image of a split, in the split's order.

    Args:
        config: the section `data`.
        data: what `prepare` has just returned for this config, so that the source is still the same.
    Returns: file names without line breaks. If the source has no names, the images' numbers in the source, from 0.
    Raises: DataError if the source has changed.
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
