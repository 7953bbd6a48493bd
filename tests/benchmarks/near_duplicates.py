"""How well gate G13 finds near duplicates, and what that takes. The figures are in docs/results/near-duplicates.md.

    .venv/bin/python tests/benchmarks/near_duplicates.py accuracy --photos FOLDER --fashion FOLDER
    .venv/bin/python tests/benchmarks/near_duplicates.py hash --photos FOLDER
    .venv/bin/python tests/benchmarks/near_duplicates.py cost

Photos: any folder of photographs. Squares are cut from them, side by side, so that no two show the same. A fifth of the images is the test
split. Recall: other images are changed and put into the test split; a copy counts as found if its twin is named. False alarms: test images
that were not put there, and are reported all the same. `hash` does the same with ImageHash's phash (the extra `bench`).
"""

from __future__ import annotations

import argparse
import gzip
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from vit_search.data import near_duplicates
from vit_search.data.near_duplicates import find_near_duplicates

COPIES = 400
"""Of each kind."""

THRESHOLDS = (0.8, 0.9, 0.95, 0.98)


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert(image.mode)

    return change


def resized(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image) -> Image.Image:
    """5 % of each side cut away, at a place that the image's content draws."""
    left, top = np.random.default_rng(int(np.asarray(image).sum())).uniform(0, 0.05, 2) * image.width
    return image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + 0.95 * image.width, top + 0.95 * image.height))


CHANGES = {f"JPEG, quality {quality}": jpeg(quality) for quality in (30, 50, 75, 95)}
CHANGES |= {f"resized by {factor:g}": resized(factor) for factor in (0.5, 0.75, 1.5, 2)}
CHANGES |= {"5 % cropped": cropped, "mirrored": ImageOps.mirror}
CHANGES |= {"mirrored, cropped, halved, JPEG 50": lambda image: jpeg(50)(resized(0.5)(cropped(ImageOps.mirror(image))))}


def squares_of(folder: Path) -> list[Image.Image]:
    """Squares of 128 pixels, from each photo about 100."""
    squares = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            photo = Image.open(path).convert("RGB")
            side = max(128, min(photo.size) // 8)
            for top in range(0, photo.height - side + 1, side):
                for left in range(0, photo.width - side + 1, side):
                    squares.append(photo.crop((left, top, left + side, top + side)).resize((128, 128), Image.Resampling.BICUBIC))
    return squares


def fashion_of(folder: Path) -> list[Image.Image]:
    raw = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    return [Image.fromarray(image) for image in np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)]


def digits() -> list[Image.Image]:
    return [Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)) for image in load_digits().images]


def pixels(images: list[Image.Image], side: int) -> np.ndarray:
    """(n, channels, side, side), as the cache would hold them."""
    arrays = np.stack([np.asarray(one if one.size == (side, side) else ImageOps.fit(one, (side, side))) for one in images])
    return arrays[:, None] if arrays.ndim == 3 else np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))


def accuracy(name: str, images: list[Image.Image], side: int) -> None:
    """Recall of each change and the false alarms, at several thresholds."""
    rng = np.random.default_rng(0)
    images = [images[i] for i in rng.permutation(len(images))]
    count = min(len(images) // 5, 10_000)
    others = pixels(images[count:], side)
    near_duplicates.SIMILAR = min(THRESHOLDS)
    own = find_near_duplicates(pixels(images[:count], side), [others])
    alarms = [sum(one.similarity >= threshold for one in own.found) for threshold in THRESHOLDS]
    print(f"\n## {name}: {count:,} test images, {own.plain:,} of them plain, against {len(others):,} others\n")
    print(f"| change | {' | '.join(f'at {threshold:g}' for threshold in THRESHOLDS)} |\n|---|{'---:|' * len(THRESHOLDS)}")
    sources = rng.permutation(len(others))[: min(COPIES, len(others))]
    total, recalled = 0, np.zeros(len(THRESHOLDS))
    for change, apply in CHANGES.items():
        found = find_near_duplicates(pixels([apply(images[count + i]) for i in sources], side), [others])
        right = [[sources[one.test] == one.other and one.similarity >= threshold for one in found.found] for threshold in THRESHOLDS]
        hits = np.array([sum(row) for row in right])
        total, recalled = total + found.judged, recalled + hits
        print(f"| {change} | {' | '.join(f'{hit / found.judged:.3f}' for hit in hits)} |", flush=True)
    rates = np.array(alarms) / own.judged
    print(f"| **recall, all changes** | {' | '.join(f'{one:.3f}' for one in recalled / total)} |")
    print(f"| **false alarms** | {' | '.join(f'{one:.2%}' for one in rates)} |")
    for share in (0.01, 0.1):
        precision = share * recalled / total / (share * recalled / total + (1 - share) * rates + 1e-12)
        print(f"| **precision if {share:.0%} are copies** | {' | '.join(f'{one:.3f}' for one in precision)} |", flush=True)


def phash(name: str, images: list[Image.Image], side: int) -> None:
    """The same of ImageHash's phash, 64 bits, by the largest distance that is called a copy."""
    import imagehash

    def bits(some: list[Image.Image]) -> np.ndarray:
        hashes = [np.packbits(imagehash.phash(one.resize((side, side))).hash) for one in some]
        return np.stack(hashes).view(np.uint64)[:, 0]

    rng = np.random.default_rng(0)
    images = [images[i] for i in rng.permutation(len(images))]
    count = min(len(images) // 5, 2_000)
    others = bits(images[count:])
    detailed = near_duplicates._detail(near_duplicates.shrunk(pixels(images, side))) >= near_duplicates.PLAIN
    test = [one for one, judged in zip(images[:count], detailed[:count], strict=True) if judged]
    sources = rng.permutation(np.flatnonzero(detailed[count:]))[:COPIES]
    nearest = np.min([[np.bitwise_count(one ^ others).min() for one in bits(some)] for some in (test, list(map(ImageOps.mirror, test)))], 0)
    limits = (0, 4, 8, 12)
    print(f"\n## {name}, phash: {len(test):,} test images with detail\n\n| change | {' | '.join(f'≤ {limit} bits' for limit in limits)} |")
    print(f"|---|{'---:|' * len(limits)}")
    for change, apply in CHANGES.items():
        copies = [apply(images[count + i]) for i in sources]
        away = np.minimum(*(np.bitwise_count(bits(some) ^ others[sources]) for some in (copies, list(map(ImageOps.mirror, copies)))))
        print(f"| {change} | {' | '.join(f'{(away <= limit).mean():.3f}' for limit in limits)} |", flush=True)
    print(f"| **false alarms** | {' | '.join(f'{(nearest <= limit).mean():.2%}' for limit in limits)} |", flush=True)


def cost(count: int, side: int) -> None:
    """Processor time for squares of two photos that overlap, so that many look alike; 15 % of them are the test split."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [photo.transpose(2, 0, 1) for photo in load_sample_images().images]
    images = np.empty((count, 3, side, side), np.uint8)
    for i in range(count):
        photo = photos[i % 2]
        top, left = rng.integers(photo.shape[1] - side), rng.integers(photo.shape[2] - side)
        images[i] = photo[:, top : top + side, left : left + side]
    test = images[: count * 15 // 100]
    start = time.process_time()
    near_duplicates._hashes(images)
    hashed = time.process_time()
    found = find_near_duplicates(test, [images[len(test) :]])
    spent = time.process_time() - hashed
    print(f"| {side}x{side} | {count:,} | {hashed - start:.0f} | {spent:.0f} | {found.judged:,} | {len(found.found):,} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "hash", "cost"])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--fashion", type=Path, help="folder with train-images-idx3-ubyte.gz")
    parser.add_argument("--images", type=int, default=100_000)
    asked = parser.parse_args()
    if asked.what == "cost":
        print("| size | images | s for the hashes | s in all | test images judged | found |\n|---|---:|---:|---:|---:|---:|")
        for side in (32, 64):
            cost(asked.images, side)
        return
    judge = accuracy if asked.what == "accuracy" else phash
    if asked.photos:
        squares = squares_of(asked.photos)
        for side in (32, 64, 128):
            judge(f"photos, {side}x{side}", squares, side)
    if asked.fashion:
        judge("FashionMNIST, 28x28", fashion_of(asked.fashion), 28)
    judge("digits, 8x8", digits(), 8)


if __name__ == "__main__":
    main()
