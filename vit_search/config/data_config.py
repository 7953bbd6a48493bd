"""The data of a trial: which images, and how they are split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vit_search.config.data_sets import DATA_SETS
from vit_search.config.knobs import check_bounds, knob


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split."""

    name: str = knob(..., f"Data set: one of {', '.join(DATA_SETS)}.")
    path: str | None = knob(
        None,
        "Where the data set is: a path, or a URL (s3://, gs://, https://, http:// or file://). image_folder: a folder with one sub-folder "
        "of images for each class. table: a CSV or Parquet file, or a folder of Parquet files. webdataset: a folder of .tar shards, one "
        ".tar file, or several as shards-{000..009}.tar. mnist, fashion_mnist, cifar10, cifar100: the folder that torchvision calls root. "
        "digits needs none.",
    )
    image_size: int | None = knob(
        None,
        "Side length in pixels to which images of image_folder, table and webdataset are resized. Other data sets have a fixed size.",
        ge=1,
        le=1024,
    )
    channels: int | Literal["auto"] = knob(
        3,
        "Channels of the images of image_folder, table and webdataset: 1 (grey) or 3 (RGB). Other numbers, up to 16, are for TIFF and NPY "
        "files that have so many. auto: as many as the files have.",
        ge=1,
        le=16,
    )
    bit_depth: Literal[8, 16] | None = knob(
        None,
        "Bits of each value of an image. If you give it, each file must have exactly this depth and the number of channels of "
        "data.channels, and NPY files are read, too. Without it, all images are read as 8 bits, and converted to grey or RGB.",
        late=True,
    )
    image: str | None = knob(
        None,
        "Column of a table with the images: file names, relative to the table's folder, or the bytes of image files. Default: image.",
        late=True,
    )
    label: str | None = knob(
        None,
        "Column of a table with the class of each image; in shards of webdataset, the key of KEY.json that holds it. Default: label.",
        late=True,
    )
    split: str | None = knob(
        None,
        "Column of a table with the split of each image: train, val or test; if empty, the seed decides. Default: split, if it is there.",
        late=True,
    )
    group: str | None = knob(
        None,
        "What belongs together, for example all images of a patient: no group is divided between two splits. In a table, it is the column "
        "with the group; for image_folder, a regular expression that finds the group in a file's name. Default: group, if the table has "
        "such a column.",
        late=True,
    )
    weight: str | None = knob(
        None,
        "How much each training image counts in the loss: a number of at least 0 for each image. In a table, it is the column with the "
        "weights; in shards of webdataset, the key of KEY.json that holds it. Only ratios matter, because the weights are divided by their "
        "mean. Images of weight 0 are not trained on. Validation and test images always count the same. Default: all images count the "
        "same.",
        late=True,
    )
    label_map: Mapping[str, str | None] | None = knob(
        None,
        "Classes to merge, rename or drop: the old name and the new one, as `{kitten: cat, bird: null}`; `null` drops the class and its "
        "images. Classes that are not listed stay as they are. Default: all stay.",
        late=True,
    )
    val_fraction: float = knob(0.1, "Share of the labelled images that the search uses for validation.", gt=0, lt=0.9)
    holdout_fraction: float = knob(
        0.05,
        "Share of the labelled images that only promotion uses, to choose among the best trials. With 0, promotion uses the search's own "
        "validation images.",
        ge=0,
        lt=0.9,
    )
    test_fraction: float = knob(
        0.15,
        "Share of the labelled images that only promotion uses, for the final test. Not used if the data set has a test split of its own.",
        gt=0,
        lt=0.9,
    )
    split_seed: int = knob(0, "Seed of the stratified split. With another seed, it counts as another data set.", ge=0, le=2**31 - 1)
    train_limit: int | None = knob(None, "Number of images to train on, stratified by class. Default: all of them.", ge=2)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def exact(self) -> bool:
        """Whether images are read without conversion. A file with another bit depth or number of channels is then an error."""
        return self.bit_depth is not None or self.channels not in (1, 3)

    @property
    def bits(self) -> int:
        """Bits of each value of a decoded image: 8 or 16."""
        return self.bit_depth or 8

    @property
    def channel_count(self) -> int:
        """Channels of a decoded image. With `auto`, it is 3 until `prepare` has looked at the files."""
        return 3 if self.channels == "auto" else self.channels

    @property
    def labelled(self) -> int | None:
        """Labelled images, without the data set's own test split; None if only the open source knows it."""
        return None if self.label_map else DATA_SETS[self.name].labelled
