"""Named data sets as uint8 memory maps, split by seed, under a content hash.

A set is decoded once per machine into a cache folder of its own; every trial maps the same files. The test split lies in
files of its own, which a search never opens. An image folder that would fill the machine's memory is not decoded: its cache
folder holds the names of its files, and data/batches.py decodes them as they are needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_search.config.cost import memory_of_this_machine
from vit_search.config.strict_json import parse
from vit_search.config.trial import DATA_SETS, DataConfig, hashed
from vit_search.data import image_folder
from vit_search.data.image_folder import ImageFolder
from vit_search.errors import DataError, TooLargeError
from vit_search.files import locked, open_to_others
from vit_search.text import counted

SplitName = Literal["train", "val", "holdout", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "holdout", "test")
TRAINED_AND_VALIDATED_ON: dict[str, tuple[tuple[SplitName, ...], tuple[SplitName, ...]]] = {
    "train": (("train",), ("val",)),
    "train+val": (("train", "val"), ("holdout",)),
}
"""What a search file's `train_on` means."""
FORMAT = 2
"""Raised whenever the files of a cache folder, or how a split is drawn, change."""

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
NAMED_FORMATS = {".tga": ("TGA",)}
"""Formats that only the file's ending tells: their content begins like any other."""

DAMAGED_SHOWN = 20
"""Damaged images that one message names."""

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6
STRIP_PIXELS = 2**20
"""Pixels that are converted at once, so that no second copy of a large image is made on the way."""


@dataclass(frozen=True)
class DataSet:
    """A prepared set on this machine's disk."""

    folder: Path
    data_hash: str
    """sha256 of the source's content and of all that decides the split: the same hash, the same images in the same splits."""
    image_size: tuple[int, int]
    channels: int
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    """Images in each split."""
    mean: tuple[float, ...]
    """Per channel, of the training images alone, on the scale 0 to 1."""
    std: tuple[float, ...]
    test_duplicates: int
    """Test images that stand byte for byte in another split, too."""
    root: Path | None = None
    """Folder of the image files of a set that is streamed; None for a set whose pixels are in the cache."""
    summary: str = ""
    """Classes, images and skipped files, in one line."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each file of the splits, by its name."""


@dataclass(frozen=True)
class _Source:
    """A set before it is split; `test` is None where it has no test split of its own."""

    images: np.ndarray
    """uint8 (n, channels, height, width), or for a streamed set (n,) names of files."""
    labels: np.ndarray
    classes: tuple[str, ...]
    test: tuple[np.ndarray, np.ndarray] | None = None
    given: np.ndarray | None = None
    """(n,) split of each image, where an image folder says it: train, val or test."""


def default_cache() -> Path:
    """`$VIT_SEARCH_CACHE`, else `$XDG_CACHE_HOME/vit_search`, else `~/.cache/vit_search`.

    Raises: DataError where none of them says where.
    """
    own = os.environ.get("VIT_SEARCH_CACHE")
    try:
        return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_search"
    except RuntimeError:
        raise DataError("this account has no home folder for decoded images; set HOME, or name a folder with VIT_SEARCH_CACHE.") from None


def kept_speed(*, gpus: bool) -> Path:
    """Where the cache keeps this machine's speed, between a calibration and the plans and searches after it."""
    return default_cache() / f"speed-{'cuda' if gpus else 'cpu'}.json"


def prepare(config: DataConfig, *, cache: Path | None = None, download: bool = False, stream_above: int | None = None) -> DataSet:
    """Find a data set in the cache, or decode and split it into the cache.

    Two processes may do so at once: one decodes, and the other waits for it.

    Args:
        config: which set, and how it is split.
        cache: folder of decoded sets; `default_cache()` by default.
        download: whether torchvision may fetch what is missing.
        stream_above: bytes of pixels above which an image folder is streamed; a quarter of the machine's memory by default.
    Raises: DataError when images are missing, damaged or too few, or the cache cannot be written.
    """
    cache = cache or default_cache()
    root = _root(config, cache, download)
    listing = image_folder.scan(root) if root is not None and config.name == "image_folder" else None
    hashes = _hashes(config, root, listing)
    key = _key(config, hashes, listing)
    folder = cache / key[:32]
    _refuse_open(cache, folder)
    found = _open(folder, key, root)
    if found is not None:
        return _with_summary(found, listing)
    limit = memory_of_this_machine() // 4 if stream_above is None else stream_above
    try:
        if not cache.exists():
            cache.mkdir(parents=True, exist_ok=True)
            cache.chmod(0o755)  # whatever the umask is: see _refuse_open
        with locked(cache / f".{key[:32]}.lock"):
            found = _open(folder, key, root)
            if found is None:
                found = _make(config, folder, key, root, hashes, limit, listing)
    except OSError as error:
        raise DataError(
            f"{cache}: the data cache cannot be written ({error.strerror}); set VIT_SEARCH_CACHE to a folder that can."
        ) from None
    return _with_summary(found, listing)


def _refuse_open(*folders: Path) -> None:
    """Raises: DataError where other accounts could put other images or labels into the cache."""
    for folder in folders:
        with contextlib.suppress(OSError):  # missing; what cannot be looked at cannot be read either
            reason = open_to_others(folder)
            if reason:
                mend = "chown it and chmod go-w, or set VIT_SEARCH_CACHE to another"
                raise DataError(f"{folder}: images of this cache cannot be trusted: {reason}; {mend}.")


def _with_summary(data: DataSet, listing: ImageFolder | None) -> DataSet:
    text = image_folder.summary(data.classes, sum(data.counts.values()), {}, data.counts) if listing is None else listing.summary
    return dataclasses.replace(data, summary=text)


def _make(
    config: DataConfig,
    folder: Path,
    key: str,
    root: Path | None,
    hashes: Mapping[str, str],
    stream_above: int,
    listing: ImageFolder | None,
) -> DataSet:
    source = _decode(config, root, stream_above) if listing is None else _decode_folder(config, listing, stream_above)
    splits = _split(config, source)
    begun = f".new-{folder.name}-"
    for left in folder.parent.glob(f"{begun}*"):  # by a process that was killed, since we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=begun, dir=folder.parent))
    try:
        _write(fresh, config, key, root, hashes, source, splits)
        _put(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    made = _open(folder, key, root)
    assert made is not None
    return made


def read_split(data: DataSet, *splits: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one split, or of several one after another.

    Returns: uint8 (n, channels, height, width), one split mapped from disk (writing changes this process's copy alone), or for a
        streamed set (n,) names of files below `data.root`; and int64 (n,).
    Raises: DataError where a file is not what `prepare` wrote.
    """
    images = [np.load(_verified(data, f"{split}_images.npy"), mmap_mode="c", allow_pickle=False) for split in splits]
    labels = [np.load(_verified(data, f"{split}_labels.npy"), allow_pickle=False) for split in splits]
    return (images[0], labels[0]) if len(splits) == 1 else (np.concatenate(images), np.concatenate(labels))


_seen: set[tuple[Path, int, int, int]] = set()
"""Files of the cache that this process has held against their sha256: path, inode, time in ns, size."""


def _verified(data: DataSet, name: str) -> Path:
    """A file of a split; a gigabyte takes about a second, once per process."""
    path = data.folder / name
    found = path.stat()
    version = (path, found.st_ino, found.st_mtime_ns, found.st_size)
    if version not in _seen:
        if _sha256(path) != data.sha256[name]:
            raise DataError(f"{path}: not what was written there; remove {data.folder}, and it is made again.")
        _seen.add(version)
    return path


def read_image(file: Path | bytes, size: tuple[int, int] | None, channels: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one image file, upright, to bytes.

    Args:
        file: its path, or its content.
        size: height and width; the image is scaled until it covers them (bilinear, antialiased), and its centre cut out.
        channels: 1 (grey) or 3 (RGB); transparency is laid on black.
        max_pixels: width times height of the largest image that is decoded, at up to 8 bytes of memory a pixel.
    Returns: uint8 (channels, height, width).
    Raises: DataError that names the file and what is wrong with it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = "image" if isinstance(file, bytes) else str(file)
    try:
        raw = file if isinstance(file, bytes) else _bounded(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            named = () if isinstance(file, bytes) else NAMED_FORMATS.get(file.suffix.lower(), ())
            with Image.open(io.BytesIO(raw), formats=(*IMAGE_FORMATS, *named)) as opened:
                if opened.width * opened.height > max_pixels:
                    raise TooLargeError(f"{name}: {opened.width}x{opened.height} pixels; give an image of at most {max_pixels:,}.")
                image: Any = opened
                ImageOps.exif_transpose(image, in_place=True)
                if image.mode.startswith(("I", "F")):  # 16 bits and more a pixel
                    image = _to_bytes(image, opened.format == "PPM", name)
                if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
                    image = _in_strips(image, "RGB", _on_black)
                return _fitted(image, size, channels)
    except DataError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); name an image file.") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: no image that can be decoded (of no known format); replace or remove it.") from None
    except Exception as error:  # a decoder raises what damaged bytes lead it to: struct.error and TypeError for EXIF, say
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}: no image that can be decoded ({why}); replace or remove it.") from None


def _strips(image: Any) -> Iterator[tuple[int, Any]]:
    """The strips of rows of a PIL image: the first row of each, and a copy of the strip."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Any, mode: str, convert: Callable[[Any], Any]) -> Any:
    """A PIL image of another mode, each strip of rows as `convert` makes it."""
    from PIL import Image

    whole = Image.new(mode, image.size)
    for top, strip in _strips(image):
        whole.paste(convert(strip), (0, top))
    return whole


def _on_black(image: Any) -> Any:
    """A PIL image without its transparency."""
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def _to_bytes(image: Any, full_range: bool, name: str) -> Any:
    """A PIL image of 16 or 32 bits a pixel on the scale 0 to 255.

    16 bits are taken to run to 65,535, and so are 32-bit integers above 255. Fractions run to 1, or to 255 where one is above 1.
    Args:
        full_range: whether 32-bit integers run to 65,535 whatever they are, as Pillow makes them of a PPM file.
    Raises: DataError where the scale cannot be told.
    """
    from PIL import Image

    bounds = [(np.min(strip), np.max(strip)) for _, strip in _strips(image)]
    least, most = np.min(bounds), np.max(bounds)
    fraction = image.mode == "F"
    scale = 255.0 if fraction and most <= 1 else 1.0 if fraction or (image.mode == "I" and most <= 255 and not full_range) else 1 / 257
    if not (least >= 0 and round(most * scale, 4) <= 255):
        raise DataError(f"{name}: pixels from {least:g} to {most:g}, whose scale is unknown; save it with 8 or 16 bits a pixel.")

    def scaled(strip: Any) -> Any:
        pixels = np.asarray(strip).astype(np.float64)
        if fraction:
            pixels = np.round(pixels * scale, 4)  # 0.2 in 32 bits is a little more than 0.2
        elif scale < 1:
            pixels = pixels / 257
        return Image.fromarray(pixels.astype(np.uint8))

    return _in_strips(image, "L", scaled)


def read_images(files: Sequence[Path], size: tuple[int, int], channels: int, *, source: str) -> np.ndarray:
    """What `read_image` makes of each of many files.

    Args:
        source: what the files belong to, for the message.
    Returns: uint8 (n, channels, height, width).
    Raises: DataError that names all files that cannot be used, or the first DAMAGED_SHOWN and their count.
    """
    images = np.empty((len(files), channels, *size), np.uint8)
    damaged: list[str] = []
    for i, path in enumerate(files):
        try:
            images[i] = read_image(path, size, channels)
        except DataError as error:
            damaged.append(str(error))
    if len(damaged) == 1:
        raise DataError(damaged[0])
    if damaged:
        shown = "\n  ".join(damaged[:DAMAGED_SHOWN])
        more = f"\n  and {len(damaged) - DAMAGED_SHOWN} more" if len(damaged) > DAMAGED_SHOWN else ""
        raise DataError(f"{source}: {len(damaged)} images cannot be used:\n  {shown}{more}")
    return images


def fit_pixels(pixels: np.ndarray, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """What `read_image` makes of an image that is decoded already: the same numbers as of its file.

    Args:
        pixels: uint8 (height, width, 1) or (height, width, 3).
    Returns: uint8 (channels, height, width).
    """
    from PIL import Image

    return _fitted(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), size, channels)


def _fitted(image: Any, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """A PIL image, in grey or RGB, to bytes."""
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _bounded(file: Path) -> bytes:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise TooLargeError(f"{file}: {file.stat().st_size:,} bytes; give an image file of at most {MAX_FILE_BYTES:,}.")
    return file.read_bytes()


def _root(config: DataConfig, cache: Path, download: bool) -> Path | None:
    """Where the source lies; None for the embedded digits."""
    if config.name not in DATA_SETS:
        raise DataError(f"data.name: unknown data set {config.name!r}; choose from {', '.join(DATA_SETS)}.")
    if config.name == "digits":
        return None
    if config.path is None and config.name == "image_folder":
        raise DataError("data.path: image_folder needs it; name the folder of class folders.")
    root = Path(config.path).expanduser() if config.path else cache / "downloads"
    if config.name != "image_folder":
        _torchvision(config.name, root, download)  # fetches, or refuses where files are missing
    elif not root.is_dir():
        raise DataError(f"{root}: {'a file, no folder' if root.exists() else 'missing'}; data.path names a folder of class folders.")
    return root


def _torchvision(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    """torchvision's training and test set."""
    import torchvision.datasets as sets

    kept = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}.get(name)
    if download:
        mend = "the network was tried; put its files there by hand, in torchvision's layout"
    elif kept and any((root / kept).glob("*.gz")):
        mend = f"unpack them: gunzip -k {root / kept}/*.gz"
    else:
        mend = "name their folder as data.path, or add --download"
    kind: Any = {"mnist": sets.MNIST, "fashion_mnist": sets.FashionMNIST, "cifar10": sets.CIFAR10, "cifar100": sets.CIFAR100}[name]
    if kept:  # torchvision prefers `processed/*.pt`, which is in no hash
        kind = type(kind.__name__, (kind,), {"_check_legacy_exist": lambda self: False})
    try:
        return kind(str(root), train=True, download=download), kind(str(root), train=False, download=download)
    except RuntimeError:
        raise DataError(f"{root}: the files of {name} are not there, or damaged; {mend}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: {name} cannot be read ({str(error).splitlines()[0]}); {mend}.") from None


def _hashes(config: DataConfig, root: Path | None, listing: ImageFolder | None) -> dict[str, str]:
    """sha256 of every file of the source, by its name below the root."""
    if root is None:
        return {}
    files = _source_files(config.name, root) if listing is None else listing.files
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip((str(path.relative_to(root)) for path in files), threads.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give this account the right to read it, or remove it.") from None


def _key(config: DataConfig, hashes: Mapping[str, str], listing: ImageFolder | None) -> str:
    """The data hash: every byte of the source, every field of the config but its place, how it is read, and FORMAT."""
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    fields = {name: value for name, value in hashed(DataConfig, vars(config)).items() if name != "path"}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    if config.name == "digits":
        from importlib.metadata import version

        digest.update(f"sklearn digits {version('scikit-learn').split('.')[0]}".encode())
    for name, content in hashes.items():
        digest.update(os.fsencode(f"{name}\n{content}\n"))
    if listing is not None and listing.splits:  # version 0.1 took the folders of the splits for classes
        digest.update(b"own splits\n")
    if listing is not None and any(_is_deep(path) for path in listing.files):  # version 0.1 made black images of them
        digest.update(b"32 bits a pixel\n")
    return digest.hexdigest()


def _is_deep(path: Path) -> bool:
    """Whether an image has 32 bits a pixel in one channel; False where it cannot be read."""
    from PIL import Image

    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            return image.mode in ("I", "F")
    except Exception:
        return False  # decoding says what is wrong with it


def _source_files(name: str, root: Path) -> list[Path]:
    inside = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    folder = root / inside[name]
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in (".gz", ".html"))


def _decode(config: DataConfig, root: Path | None, stream_above: int) -> _Source:
    if root is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # 17 grey levels, 0 to 16
        return _Source(images, digits.target.astype(np.int64), tuple("0123456789"))
    train, test = _torchvision(config.name, root, download=False)
    (images, labels), own_test = (_arrays(train), _arrays(test))
    return _Source(images, labels, tuple(str(name) for name in train.classes), own_test)


def _arrays(source: Any) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(source.data)  # (n, 28, 28) for the MNIST family, (n, 32, 32, 3) for CIFAR
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, dtype=np.uint8), np.asarray(source.targets, dtype=np.int64)


def _decode_folder(config: DataConfig, listing: ImageFolder, stream_above: int) -> _Source:
    if config.image_size is None:
        raise DataError("data.image_size: image_folder needs it; give the side in pixels.")
    labels = np.array(listing.labels, np.int64)
    given = np.array(listing.splits) if listing.splits else None
    if len(labels) * config.channels * config.image_size**2 > stream_above:
        names = np.array([str(path.relative_to(listing.root)) for path in listing.files])
        return _Source(names, labels, listing.classes, given=given)
    images = read_images(listing.files, (config.image_size, config.image_size), config.channels, source=str(listing.root))
    return _Source(images, labels, listing.classes, given=given)


def _split(config: DataConfig, source: _Source) -> dict[SplitName, tuple[np.ndarray, np.ndarray]]:
    """Stratified splits. The test split depends on split_seed and test_fraction alone, the training images on what is left for them."""
    rest, left = np.arange(len(source.labels)), 1.0
    if source.given is not None:
        return _split_as_given(config, source, source.given)
    if source.test is None:
        rest, chosen = _carve(rest, source.labels, config.test_fraction, (config.split_seed, 1))
        test, left = (source.images[chosen], source.labels[chosen]), 1 - config.test_fraction
    else:
        test = source.test
    looked_at = config.val_fraction + config.holdout_fraction
    train, val = _carve(rest, source.labels, looked_at / left, (config.split_seed, 2))
    holdout = val[:0]
    if config.holdout_fraction:
        val, holdout = _carve(val, source.labels, config.holdout_fraction / looked_at, (config.split_seed, 4))
    train = _limited(config, source, train)
    chosen_for: dict[SplitName, np.ndarray] = {"train": train, "val": val, "holdout": holdout}
    return {name: (source.images[indices], source.labels[indices]) for name, indices in chosen_for.items()} | {"test": test}


def _split_as_given(config: DataConfig, source: _Source, given: np.ndarray) -> dict[SplitName, tuple[np.ndarray, np.ndarray]]:
    """The splits that an image folder has; those that it lacks are taken from its training images, class by class."""
    train, val, test = (np.flatnonzero(given == name) for name in ("train", "val", "test"))
    left, holdout = 1.0, train[:0]
    if not len(test):
        train, test = _carve(train, source.labels, config.test_fraction, (config.split_seed, 1))
        left -= config.test_fraction
    if not len(val):
        train, val = _carve(train, source.labels, config.val_fraction / left, (config.split_seed, 2))
        left -= config.val_fraction
    if config.holdout_fraction:
        train, holdout = _carve(train, source.labels, config.holdout_fraction / left, (config.split_seed, 4))
    train = _limited(config, source, train)
    chosen_for: dict[SplitName, np.ndarray] = {"train": train, "val": val, "holdout": holdout, "test": test}
    return {name: (source.images[indices], source.labels[indices]) for name, indices in chosen_for.items()}


def _limited(config: DataConfig, source: _Source, train: np.ndarray) -> np.ndarray:
    """At most train_limit of the training images."""
    if config.train_limit is None or config.train_limit >= len(train):
        return train
    if config.train_limit < len(source.classes):
        raise DataError(
            f"data.train_limit: {counted(config.train_limit, 'image')} for {len(source.classes)} classes; give at least one each."
        )
    return _carve(train, source.labels, config.train_limit / len(train), (config.split_seed, 3))[1]


def _carve(indices: np.ndarray, labels: np.ndarray, share: float, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Take a share of every class, at least one image and never all of them; both parts come back in their old order."""
    rng = np.random.default_rng(seed)
    taken: list[np.ndarray] = []
    exact_so_far = taken_so_far = 0.0
    for label in np.unique(labels[indices]):
        own = rng.permutation(indices[labels[indices] == label])
        exact_so_far += len(own) * share  # rounding is carried over, so that the whole has its share, too
        count = int(np.clip(math.floor(exact_so_far - taken_so_far + 0.5), 1, len(own) - 1))
        taken_so_far += count
        taken.append(own[:count])
    chosen = np.sort(np.concatenate(taken))
    return np.setdiff1d(indices, chosen), chosen


SAMPLE = 2000
"""Training images of a streamed set from which mean and deviation are taken."""


def _write(
    folder: Path,
    config: DataConfig,
    key: str,
    root: Path | None,
    hashes: Mapping[str, str],
    source: _Source,
    splits: dict[SplitName, tuple[np.ndarray, np.ndarray]],
) -> None:
    for name, (images, labels) in splits.items():
        np.save(folder / f"{name}_images.npy", images, allow_pickle=False)
        np.save(folder / f"{name}_labels.npy", labels, allow_pickle=False)
    train = splits["train"][0]
    streamed = train.dtype.kind == "U"
    if streamed:
        assert root is not None and config.image_size is not None
        chosen = np.random.default_rng(0).permutation(train)[:SAMPLE]
        files = [root / str(name) for name in chosen]
        train = read_images(files, (config.image_size, config.image_size), config.channels, source=str(root))
    levels = [np.bincount(train[:, c].ravel(), minlength=256) for c in range(train.shape[1])]  # exact, without a float copy
    scale = np.arange(256) / 255
    means = [float((level * scale).sum() / level.sum()) for level in levels]
    stds = [math.sqrt(float((level * (scale - mean) ** 2).sum() / level.sum())) for level, mean in zip(levels, means, strict=True)]

    def content(image: Any) -> str | bytes:
        return hashes[str(image)] if streamed else hashlib.sha256(image.tobytes()).digest()

    known = {content(image) for name in ("train", "val", "holdout") for image in splits[name][0]}
    document = {
        "data_hash": key,
        "image_size": list(train.shape[2:]),
        "channels": train.shape[1],
        "classes": list(source.classes),
        "counts": {name: len(labels) for name, (_, labels) in splits.items()},
        "mean": means,
        "std": stds,
        "test_duplicates": sum(content(image) in known for image in splits["test"][0]),
        "streamed": streamed,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.glob("*.npy"))},
        "sha256": {path.name: _sha256(path) for path in sorted(folder.glob("*.npy"))},
    }
    (folder / "data.json").write_text(json.dumps(document, indent=1))
    for path in folder.iterdir():
        path.chmod(0o644)


def _put(fresh: Path, folder: Path) -> None:
    """Rename a finished folder into place; what stood there was damaged."""
    fresh.chmod(0o755)
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        folder.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
    fresh.rename(folder)


def _open(folder: Path, key: str, root: Path | None) -> DataSet | None:
    """A cache folder, or None where it is missing, damaged or of another key."""
    try:
        document = parse((folder / "data.json").read_text())
        sound = document["data_hash"] == key and all((folder / n).stat().st_size == size for n, size in document["bytes"].items())
        return _described(folder, document, root) if sound else None
    except (OSError, ValueError, KeyError):
        return None


def _described(folder: Path, document: dict[str, Any], root: Path | None) -> DataSet:
    return DataSet(
        folder=folder,
        data_hash=document["data_hash"],
        image_size=tuple(document["image_size"]),
        channels=document["channels"],
        classes=tuple(document["classes"]),
        counts=document["counts"],
        mean=tuple(document["mean"]),
        std=tuple(document["std"]),
        test_duplicates=document["test_duplicates"],
        root=root.resolve() if root is not None and document["streamed"] else None,
        sha256=document["sha256"],
    )
