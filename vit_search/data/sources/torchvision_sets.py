"""Data sets that torchvision downloads: MNIST, FashionMNIST, CIFAR-10 and CIFAR-100. Each has its own test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.data.file_hashes import fingerprint_of, sha256_by_name
from vit_search.data.sources.source import Source
from vit_search.errors import DataError


@dataclass(frozen=True)
class _Named:
    """Where torchvision keeps a set."""

    kind: str
    """Class in torchvision.datasets."""
    folder: str
    """Folder of the set's files, below torchvision's root."""
    unpacked: bool = False
    """Whether the files are there twice: packed and unpacked. Only the unpacked ones are read."""


SETS = {
    "mnist": _Named("MNIST", "MNIST/raw", unpacked=True),
    "fashion_mnist": _Named("FashionMNIST", "FashionMNIST/raw", unpacked=True),
    "cifar10": _Named("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _Named("CIFAR100", "cifar-100-python"),
}


class TorchvisionSet(Source):
    """Training images, then test images."""

    def __init__(self, config: DataConfig, downloads: Path | None, download: bool) -> None:
        """Raises: DataError if files are missing or damaged."""
        root = Path(config.path).expanduser() if config.path else downloads
        assert root is not None, "a set without data.path needs the folder of downloads"
        self._root, self._named = root, SETS[config.name]
        self.title = config.name
        train, test = _load(config.name, root, download)
        self.classes = tuple(str(name) for name in train.classes)
        self._train, self._test = _pixels(train), _pixels(test)
        self.labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in (train, test)])
        self.splits = np.array([""] * len(self._train) + ["test"] * len(self._test))
        _, channels, height, width = self._train.shape
        self.shape = (channels, height, width)

    def fingerprint(self) -> bytes:
        """Names and contents of the files that torchvision reads."""
        folder = self._root / self._named.folder
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in (".gz", ".html"))
        return fingerprint_of(sha256_by_name(self._root, files))

    def read(self, index: int) -> np.ndarray:
        """uint8 (channels, height, width)."""
        image: np.ndarray = self._train[index] if index < len(self._train) else self._test[index - len(self._train)]
        return image


def _load(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    """Load torchvision's training set and test set."""
    import torchvision.datasets as sets

    named = SETS[name]
    if download:
        mend = "the network was tried; put its files there by hand, in torchvision's layout"
    elif named.unpacked and any((root / named.folder).glob("*.gz")):
        mend = f"unpack them: gunzip -k {root / named.folder}/*.gz"
    else:
        mend = "name their folder as data.path, or add --download"
    kind: Any = getattr(sets, named.kind)
    if named.unpacked:  # else torchvision reads `processed/*.pt`, which the data hash does not cover
        kind = type(kind.__name__, (kind,), {"_check_legacy_exist": lambda self: False})
    try:
        return kind(str(root), train=True, download=download), kind(str(root), train=False, download=download)
    except RuntimeError:
        raise DataError(f"{root}: the files of {name} are not there, or damaged; {mend}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: {name} cannot be read ({str(error).splitlines()[0]}); {mend}.") from None


def _pixels(part: Any) -> np.ndarray:
    """uint8 (n, channels, height, width)."""
    images = np.asarray(part.data)  # (n, 28, 28) for the MNIST family, (n, 32, 32, 3) for CIFAR
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return images.astype(np.uint8, copy=False)
