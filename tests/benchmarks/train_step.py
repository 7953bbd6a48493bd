"""Images per second of one training step: forward, cross-entropy, backward and fused AdamW, ours against five peers.

    python tests/benchmarks/train_step.py [--device cuda] [--rounds 15] [--precision float32 bfloat16] [--compile]
                                          [--shapes digits …] [--only NAME …]

Every contender sees the same normalised images in memory and the same optimiser without clipping. `vit_search model` is our
model in the loop of all others; `vit_search` is our model in our own step (vit/training.py), as a search runs it. One table
per shape and precision: speed against the best peer that has a class token, and against the best peer of all (above 1 is
faster), medians of per-round ratios with quartiles. Mean pooling without a class token is our default.

Learned by profiling on two cores with AVX512 and AVX512_BF16 (2026-11-24; torch 2.15):
- Matrix products alone are 77 % of a float32 step at dim 192 and run at the ceiling; all model code can win is the rest.
  Tried in turns, and none kept: three projections in place of one fused, 0.98 to 0.99 of its speed; a backward of our own
  that saves the concatenation of three gradients, 0.98 to 1.00; plain softmax(q k) v, 0.97 to 1.00 at 16 to 64 tokens and
  0.88 at 4; both together, 0.96 to 0.98.
- Micro-batches whose activations stay in a core's cache gain 1.08 to 1.12 at dim 192, batch 64, but only by saving page
  faults: with the malloc settings of a search's workers (runtime/worker_env.py) they gain nothing, and were not kept.
- Huge pages for malloc (GLIBC_TUNABLES=glibc.malloc.hugetlb=1) take the page faults to 0 and the time by nothing.
- In bfloat16 torch's fused attention takes 2 to 10 times as long on a CPU as plain products, which is why ours takes those
  there: a step 1.3 to 1.45 times as fast. vit-pytorch's SimpleViT is a few percent ahead there: its residual stream is in
  bfloat16, too, where ours stays in float32.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from peers import contenders
from rounds import clock_of, in_turns, ratios, spread, surroundings, table
from torch import nn
from torch.nn import functional as F

from vit_search.config.cost import cost_of
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.vit.augment import Targets
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.training import start, train_step

SHAPES: dict[str, tuple[ModelConfig, int, int]] = {
    "digits": (ModelConfig(image_size=(8, 8), in_channels=3, num_classes=10, patch_size=2, dim=64, depth=4, heads=4, mlp_ratio=2), 64, 20),
    "cifar": (ModelConfig(image_size=(32, 32), in_channels=3, num_classes=10, patch_size=4, dim=192, depth=6, heads=3, mlp_ratio=2), 64, 1),
    "64/8": (ModelConfig(image_size=(64, 64), in_channels=3, num_classes=100, patch_size=8, dim=384, depth=6, heads=6), 32, 1),
    "ViT-S/16": (ModelConfig(image_size=(224, 224), in_channels=3, num_classes=1000, patch_size=16, dim=384, depth=12, heads=6), 8, 1),
}
"""Configuration, batch size, and steps per turn on a CPU."""
GPU_BATCH = {"digits": 512, "cifar": 512, "64/8": 512, "ViT-S/16": 256}


def as_trained(config: ModelConfig, batch: int, steps: int, device: torch.device, precision: str, fast: bool) -> Callable[[], None]:
    """What one turn of our own step does."""
    told = TrainingConfig(batch_size=batch, precision=precision, clip_norm=None, label_smoothing=0, compile=fast, beta2=0.999)
    plain = Normalisation.of((0.0,) * config.in_channels, (1.0,) * config.in_channels, device)
    state = start(TrialConfig(data=DataConfig(name="digits"), model=config, training=told, seed=0), plain, device)
    state.model.train()
    images = torch.randn(batch, config.in_channels, *config.image_size, device=device)
    labels = torch.randint(config.num_classes, (batch,), device=device)

    def turn() -> None:
        for step in range(steps):
            train_step(state, images, Targets(labels), 1e-4, step)

    return turn


def stepper(
    model: nn.Module, config: ModelConfig, batch: int, steps: int, device: torch.device, half: bool, fast: bool
) -> Callable[[], None]:
    """What one turn of a contender does."""
    model = model.to(device).train()
    forward = torch.compile(model) if fast else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, config.in_channels, *config.image_size, device=device)
    labels = torch.randint(config.num_classes, (batch,), device=device)

    def turn() -> None:
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = F.cross_entropy(forward(images), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    return turn


def matmul_ceiling(device: torch.device, half: bool) -> float:
    """FLOP/s of a square matrix product in this run, best of 20: what no training step can pass."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32) for _ in range(2))
    seconds = in_turns({"mm": lambda: torch.mm(a, b)}, 20, clock_of(device))["mm"]
    return 2 * size**3 / min(seconds)


def main() -> None:
    """Print the tables."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", default="cpu", type=torch.device)
    ask.add_argument("--rounds", default=15, type=int)
    ask.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    ask.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    ask.add_argument("--compile", action="store_true", help="compile every contender")
    ask.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help="contenders whose names begin so; a peer with a class token is one"
    )
    told = ask.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    print(surroundings(told.device, "timm", "torchvision", "vit-pytorch", "transformers"))
    for precision in told.precision:
        half = precision == "bfloat16"
        ceiling = matmul_ceiling(told.device, half)
        for shape in told.shapes:
            config, batch, steps = SHAPES[shape]
            if told.device.type == "cuda":
                batch, steps = GPU_BATCH[shape], 20
            turns, flops = {}, {}
            for pool in ("cls", "mean"):
                own = replace(config, pool=pool)
                turns[f"vit_search, {pool}"] = as_trained(own, batch, steps, told.device, precision, told.compile)
                for name, build in contenders(own).items():
                    torch.manual_seed(0)
                    name = name.replace("vit_search", "vit_search model")
                    turns[f"{name}, {pool}"] = stepper(build(), own, batch, steps, told.device, half, told.compile)
                flops |= {name: cost_of(own, batch).train_flops for name in turns if name.endswith(pool)}
            turns = {name: turn for name, turn in turns.items() if name.startswith(tuple(told.only))}
            seconds = in_turns(turns, told.rounds, clock_of(told.device))
            compiled = ", compiled" if told.compile else ""
            print(f"\n{shape}, batch {batch}, {precision}{compiled}; matrix products reach {ceiling / 1e9:,.0f} GFLOP/s")
            print(ranking(seconds, flops, batch * steps, ceiling))


def ranking(seconds: dict[str, list[float]], flops: dict[str, int], images: int, ceiling: float) -> str:
    """The table of one shape: the peers' best with a class token and their best of all are what ours is measured against."""
    peers = [name for name in seconds if not name.startswith("vit_search")]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    best_cls = min((name for name in peers if name.endswith("cls")), key=middle.__getitem__)
    best = min(peers, key=middle.__getitem__)
    rows = [
        [
            name,
            f"{images / middle[name]:,.0f}",
            spread(ratios(times, seconds[best_cls])),
            spread(ratios(times, seconds[best])),
            f"{flops[name] * images / middle[name] / ceiling:.0%}",
        ]
        for name, times in sorted(seconds.items(), key=lambda item: middle[item[0]])
    ]
    return table(["contender", "images/s", f"speed to {best_cls}", f"to {best}", "of the ceiling"], rows)


if __name__ == "__main__":
    main()
