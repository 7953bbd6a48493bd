"""The data sets that a search file may name, and what is known about each before an image is read.

To add a data set, add a line here, and a source in data/sources/ that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataSetFacts:
    """What is known about one data set. A fact that is None is known only once the source is open."""

    image_size: tuple[int, int] | None = None
    """Height and width; None if the search file gives it in `data.image_size`."""
    channels: int | None = None
    """None if the search file gives it in `data.channels`."""
    classes: int | None = None
    labelled: int | None = None
    """Labelled images, without its own test split."""
    test: int = 0
    """Images in its own test split, if `labelled` is known."""
    path: str = ""
    """What `data.path` must name, for an error message; empty if a search file need not give it."""
    keys: tuple[str, ...] = ()
    """Keys of the section `data` that this data set takes, but not all do; see KEYS_OF_SOME."""
    by_names: bool = False
    """Whether file names alone give classes, labels and splits. Files behind a URL can then be counted before they are fetched."""
    beside: tuple[str, ...] = ()
    """Endings of files that name other files in their folder. Behind a URL, all files of the folder then belong to the data set."""
    loader: str = ""
    """The function or class that loads it, as MLflow records it. Needed if a search file need not give a path."""


COLUMNS = ("image", "label", "split", "group", "weight")
"""Keys of the section `data` that name a column of a table."""

KEYS_OF_SOME = (*COLUMNS, "bit_depth")
"""Keys of the section `data` that only some data sets take: those that list them in `DataSetFacts.keys`."""

DATA_SETS: dict[str, DataSetFacts] = {
    "digits": DataSetFacts(image_size=(8, 8), channels=1, classes=10, labelled=1_797, loader="sklearn.datasets.load_digits"),
    "mnist": DataSetFacts(image_size=(28, 28), channels=1, classes=10, labelled=60_000, test=10_000, loader="torchvision.datasets.MNIST"),
    "fashion_mnist": DataSetFacts(
        image_size=(28, 28), channels=1, classes=10, labelled=60_000, test=10_000, loader="torchvision.datasets.FashionMNIST"
    ),
    "cifar10": DataSetFacts(
        image_size=(32, 32), channels=3, classes=10, labelled=50_000, test=10_000, loader="torchvision.datasets.CIFAR10"
    ),
    "cifar100": DataSetFacts(
        image_size=(32, 32), channels=3, classes=100, labelled=50_000, test=10_000, loader="torchvision.datasets.CIFAR100"
    ),
    "image_folder": DataSetFacts(path="the folder of class folders", keys=("group", "bit_depth"), by_names=True),
    "table": DataSetFacts(path="the CSV or Parquet file", keys=KEYS_OF_SOME, beside=(".csv",)),
    "webdataset": DataSetFacts(
        path="a folder of .tar shards, one .tar file, or several as shards-{000..009}.tar", keys=("label", "weight", "bit_depth")
    ),
}
"""Facts by `data.name` of a search file."""
