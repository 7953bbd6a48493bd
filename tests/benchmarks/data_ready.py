"""How long a folder of 100,000 images of 32x32 pixels takes until a search can train on it, against the tools of the shell.

    python tests/benchmarks/data_ready.py [--images 100000] [--rounds 3]

Each round measures, one after the other:

    hashing    find FOLDER -type f | xargs sha256sum
    decoding   Pillow reads each file, converts it to RGB and copies it into one array, in a process for each core
    ready      prepare() with an empty cache: find, hash, decode, split, and write the cache
    again      prepare() with that cache: find and hash

Goal: ready <= 2 x hashing + decoding. The files are in the page cache for all of them.
"""

import argparse
import mmap
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare

CLASSES, SIDE = 10, 32


def make(folder, images):
    """PNG files of noise that is smooth enough to be packed to about 2.3 kB each."""
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(images):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / f"class{i % CLASSES}" / f"{i:06}.png", compress_level=1)


def shell_hashes(folder):
    subprocess.run(f"find {folder} -type f | xargs sha256sum > /dev/null", shell=True, check=True)


def decode(folder):
    paths = [entry.path for one in os.scandir(folder) for entry in os.scandir(one.path)]
    shape = (len(paths), SIDE, SIDE, 3)
    global pixels
    pixels = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
    cores = len(os.sched_getaffinity(0))
    parts = [[(i, paths[i]) for i in range(begin, min(begin + 500, len(paths)))] for begin in range(0, len(paths), 500)]
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        pool.map(decode_part, parts, chunksize=1)


def decode_part(part):
    for i, path in part:
        with Image.open(path) as image:
            pixels[i] = np.asarray(image.convert("RGB"))


def seconds(work, *arguments):
    """Wall time, and processor time of this process and those that it started and waited for."""
    began, before = time.perf_counter(), os.times()
    work(*arguments)
    wall, after = time.perf_counter() - began, os.times()
    return wall, sum(after[:4]) - sum(before[:4])


def measure(config, home, number):
    cache, folder = home / f"cache{number}", home / "set"
    return {
        "hashing": seconds(shell_hashes, folder),
        "decoding": seconds(decode, folder),
        "ready": seconds(lambda: prepare(config, cache=cache)),
        "again": seconds(lambda: prepare(config, cache=cache)),
    }


def report(rounds, images):
    for name in rounds[0]:
        wall, processor = (statistics.median(one[name][clock] for one in rounds) for clock in (0, 1))
        print(f"{name:9} median {wall:.2f} s wall, {processor:.2f} s processor")
    for clock, what in enumerate(("wall", "processor")):
        shares = [one["ready"][clock] / (2 * one["hashing"][clock] + one["decoding"][clock]) for one in rounds]
        low, high = min(shares), max(shares)
        print(f"{what}: ready / (2 x hashing + decoding): median {statistics.median(shares):.2f}, from {low:.2f} to {high:.2f}")
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{images:,} images, {cores} cores, load {load:.1f}, Python {sys.version.split()[0]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="profile one prepare() and print where the time goes")
    chosen = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="data_ready-"))
    try:
        make(home / "set", chosen.images)
        config = DataConfig(name="image_folder", path=str(home / "set"), image_size=SIDE)
        if chosen.profile:
            profile(config, home / "cache")
            return
        shell_hashes(home / "set")  # all files into the page cache
        rounds = []
        for number in range(chosen.rounds):
            rounds.append(measure(config, home, number))
            print("  ".join(f"{name} {wall:.2f} s ({cpu:.2f})" for name, (wall, cpu) in rounds[-1].items()), flush=True)
        report(rounds, chosen.images)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def profile(config, cache):
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    profiler.enable()
    prepare(config, cache=cache)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
