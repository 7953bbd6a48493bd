"""K trainings as one pack against the same K one after another: `fit_packed` against `fit`.

    python tests/benchmarks/packed.py [--device cuda] [--rounds 9] [--precision float32 bfloat16] [--steps N] [--shapes NAME …]

The images are random bytes; all members have one shape and a seed of their own, and validate on one batch, so that what is
timed are steps of `fit_packed` and of `fit`, input and optimiser included. A ratio above 1 is how many times as fast the
pack is; on a GPU a second column compares it with `fit` with cuda_graphs. On a CPU a search's workers have malloc keep what
it frees (search/launch.py); MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 before the command does too.

What profiles said, on a CPU with AVX512, one thread, at dim 32, depth 2, batch 16, K = 8:
- Alone a step takes 3.3 to 4 ms, packed 10 to 11 ms for all eight. Of these attention is 31 %, the layers' matrix products
  29 %, LayerNorm 8 %, other passes over tokens 8 %, GELU 5 %, autograd itself 4 %, AdamW with clipping 3 %; input adds 2 %,
  giving each member its state back 2 % of an epoch of 60 steps. The starting of kernels is gone, so more members add little.
- Attention by torch's fused kernel was 40 % more of it at 16 tokens than by two plain products; that is why `_attend` has both.
- Tried, and no faster: weights transposed to (in, out); attention with a hand-written backward that saves two copies; the
  bias added after the product; LayerNorm by hand or member by member. AdamW by torch's fused kernel, row by row, is 1.3 times
  as fast as the flat one on a CPU, 1 % of a step, and would be K kernels on a GPU.
- At dim 64, depth 4 and batch 64 a pack of 8 gains 1.1 with malloc keeping memory and loses 0.9 without: page faults.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rounds import clock_of, in_turns, ratios, spread, surroundings, table

from vit_search.spec.config import DataConfig, ModelConfig, TrainingConfig, TrialConfig
from vit_search.vit.packed import fit_packed
from vit_search.vit.splits import Split
from vit_search.vit.training import Normalisation, Training, fit, start


@dataclass(frozen=True)
class Shape:
    """What is trained, how many of it, and the length of an epoch."""

    model: ModelConfig
    batch: int
    members: int
    steps: int


def model(side: int, patch: int, dim: int, depth: int, channels: int = 1) -> ModelConfig:
    """With an MLP of twice the width and four heads, as shared/VIT.md has it."""
    return ModelConfig(
        image_size=(side, side), in_channels=channels, num_classes=10, patch_size=patch, dim=dim, depth=depth, heads=4, mlp_ratio=2
    )


CPU = {
    "8x8 p2 dim32 d2 B16 K8": Shape(model(8, 2, 32, 2), 16, 8, 60),
    "8x8 p2 dim32 d2 B16 K32": Shape(model(8, 2, 32, 2), 16, 32, 30),
    "8x8 p2 dim32 d2 B64 K8": Shape(model(8, 2, 32, 2), 64, 8, 20),
    "8x8 p2 dim64 d3 B32 K8": Shape(model(8, 2, 64, 3), 32, 8, 10),
    "8x8 p2 dim64 d4 B64 K8": Shape(model(8, 2, 64, 4), 64, 8, 5),
    "28x28 p7 dim64 d4 B64 K4": Shape(model(28, 7, 64, 4), 64, 4, 10),
}
CUDA = {name: replace(shape, steps=100) for name, shape in CPU.items()} | {
    "8x8 p2 dim64 d4 B64 K32": Shape(model(8, 2, 64, 4), 64, 32, 50),
    "8x8 p2 dim64 d4 B64 K128": Shape(model(8, 2, 64, 4), 64, 128, 50),
    "28x28 p7 dim64 d4 B64 K32": Shape(model(28, 7, 64, 4), 64, 32, 50),
    "28x28 p4 dim128 d6 B128 K16": Shape(model(28, 4, 128, 6), 128, 16, 50),
    "32x32x3 p4 dim192 d6 B128 K8": Shape(model(32, 4, 192, 6, channels=3), 128, 8, 50),
    "32x32x3 p4 dim192 d6 B128 K32": Shape(model(32, 4, 192, 6, channels=3), 128, 32, 25),
}


def random_split(shape: Shape, images: int, device: torch.device) -> Split:
    """Noise in the place of images: nothing here looks at what is learned."""
    generator = torch.Generator().manual_seed(images)
    pixels = (images, shape.model.in_channels, *shape.model.image_size)
    return Split(
        torch.randint(256, pixels, generator=generator, dtype=torch.uint8).to(device),
        torch.randint(shape.model.num_classes, (images,), generator=generator).to(device),
    )


def contenders(shape: Shape, precision: str, device: torch.device) -> dict[str, Callable[[], object]]:
    """What trains every member for one more epoch, each on trainings of its own."""
    train = random_split(shape, shape.batch * shape.steps, device)
    val = random_split(shape, shape.batch, device)
    normalisation = Normalisation.of((0.5,) * shape.model.in_channels, (0.3,) * shape.model.in_channels, device)
    config = TrialConfig(
        data=DataConfig(name="digits"),
        model=shape.model,
        training=TrainingConfig(epochs=100_000, warmup_fraction=0, batch_size=shape.batch, precision=precision),  # type: ignore[arg-type]
        seed=0,
    )

    def members(told: TrialConfig) -> list[Training]:
        return [start(replace(told, seed=seed), normalisation, device) for seed in range(shape.members)]

    def one_by_one(told: TrialConfig) -> Callable[[], object]:
        fits = [fit(member, train, val) for member in members(told)]
        return lambda: [next(epochs) for epochs in fits]

    packed = fit_packed(members(config), train, val)
    turns: dict[str, Callable[[], object]] = {"packed": lambda: next(packed), "one by one": one_by_one(config)}
    if device.type == "cuda":
        turns["graphs"] = one_by_one(replace(config, training=replace(config.training, cuda_graphs=True)))
    return turns


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", default="cpu", type=torch.device)
    ask.add_argument("--rounds", default=9, type=int)
    ask.add_argument("--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    ask.add_argument("--steps", type=int, help="length of an epoch, which each member's evaluation ends")
    ask.add_argument("--shapes", nargs="+", choices=list(CUDA), metavar="NAME", help="some of: " + ", ".join(CUDA))
    told = ask.parse_args()
    torch.set_num_threads(1)
    print(surroundings(told.device))
    shapes = CUDA if told.device.type == "cuda" else CPU
    head = ["shape", "precision", "one by one, ms per member's step", "packed", "packed is faster", *(["than graphs"] * (shapes is CUDA))]
    rows = []
    for name in told.shapes or shapes:
        for precision in told.precision:
            shape = shapes[name] if told.steps is None else replace(shapes[name], steps=told.steps)
            seconds = in_turns(contenders(shape, precision, told.device), told.rounds, clock_of(told.device))
            per_step = [f"{statistics.median(seconds[who]) / shape.members / shape.steps * 1e3:.3f}" for who in ("one by one", "packed")]
            against = [spread(ratios(seconds["packed"], seconds[who])) for who in seconds if who != "packed"]
            rows.append([name, precision, *per_step, *against])
            print(rows[-1], flush=True)
    print(table(head, rows))


if __name__ == "__main__":
    main()
