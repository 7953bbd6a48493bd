"""FashionMNIST for the benchmarks, from the packed files beside the project."""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"


def fashion_mnist(folder: Path) -> Path:
    """A root for torchvision's FashionMNIST; packed files are unpacked into a temporary folder once.

    Args:
        folder: holds FashionMNIST/raw with the four files, packed (.gz) or not.
    """
    raw = folder / "FashionMNIST" / "raw"
    if (raw / "train-images-idx3-ubyte").is_file():
        return folder
    packed = sorted(raw.glob("*-ubyte.gz"))
    if len(packed) != 4:
        print(f"error: {raw}: FashionMNIST's four files are not there; name their folder with --data.", file=sys.stderr)
        raise SystemExit(2)
    root = Path(tempfile.gettempdir()) / f"vit_search-fashion-mnist-{os.getuid()}"
    unpacked = root / "FashionMNIST" / "raw"
    unpacked.mkdir(parents=True, exist_ok=True)
    for file in packed:
        target, fresh = unpacked / file.stem, unpacked / f"{file.stem}.{os.getpid()}"
        if not target.exists():
            fresh.write_bytes(gzip.decompress(file.read_bytes()))
            fresh.rename(target)
    return root
