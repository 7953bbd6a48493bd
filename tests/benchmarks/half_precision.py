"""From which size on bfloat16 pays: a training step in bfloat16 against float32, over widths, patches and batches.

    python tests/benchmarks/half_precision.py [--device cuda] [--rounds 9]

`work` is images x tokens x width squared, in millions; vit_search/runtime/machine.py draws its line on a CPU through this
table (HALF_PAYS): each of the casts that autocast adds costs the same few microseconds, however small the matrix.
"""

from __future__ import annotations

import argparse

import torch
from rounds import clock_of, in_turns, ratios, spread, surroundings, table
from train_step import as_trained

from vit_search.config.model_config import ModelConfig
from vit_search.runtime.machine import HALF_PAYS, native_bfloat16

CPU_SIZES = ((8, 4, 32), (8, 2, 32), (8, 2, 64), (28, 4, 32), (32, 4, 32))
GPU_SIZES = ((8, 2, 32), (8, 2, 256), (32, 4, 32), (32, 4, 128), (32, 2, 128))
"""Side, patch and batch."""


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", default="cpu", type=torch.device)
    ask.add_argument("--rounds", default=9, type=int)
    told = ask.parse_args()
    torch.set_num_threads(1)
    if told.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as `training.fit` has it
    print(surroundings(told.device))
    print(f"bfloat16 native: {native_bfloat16(told.device)}\n")
    rows = []
    cuda = told.device.type == "cuda"
    for side, patch_size, batch in GPU_SIZES if cuda else CPU_SIZES:
        for dim in (64, 128, 192, 384) if cuda else (32, 64, 96, 128, 192, 384):
            heads = dim // 32 if dim >= 128 else 4
            config = ModelConfig(
                image_size=(side, side), in_channels=1, num_classes=10, patch_size=patch_size, dim=dim, depth=3, heads=heads
            )
            work = batch * config.tokens * dim**2
            steps = 10 if cuda else max(1, 10_000_000 // work)
            turns = {name: as_trained(config, batch, steps, told.device, name, False) for name in ("float32", "bfloat16")}
            seconds = in_turns(turns, told.rounds, clock_of(told.device))
            pays = "bfloat16" if cuda or work >= HALF_PAYS else "float32"
            rows.append(
                [
                    f"{side}/{patch_size}",
                    str(batch),
                    str(dim),
                    f"{work / 1e6:.2f}",
                    spread(ratios(seconds["bfloat16"], seconds["float32"])),
                    pays,
                ]
            )
    rows.sort(key=lambda row: float(row[3]))
    print(table(["image/patch", "batch", "dim", "work", "speed of bfloat16", "auto"], rows))


if __name__ == "__main__":
    main()
