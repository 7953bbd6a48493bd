"""What a training takes of a GPU's memory, against what config/cost.py foretells (`train_bytes`).

    python tests/benchmarks/gpu_memory.py [--shapes 9] [--vit-s16] [--json FILE]

Proposals of search_spaces/cifar10.yaml from the least to the most work a step, as `vit-search plan --calibrate` draws them, each in
a process of its own: three steps, then a validation as a search has it. Needs pydantic and PyYAML besides what the others need.

- predicted: Cost.train_bytes of the micro-batch, in the precision that `auto` takes there.
- steps, validation: peaks of what the allocator gave out, less the images; `of predicted` is the ratio to `predicted`.
- held: the peak that the allocator reserved of the GPU. taken: what the GPU lacks in the end, all in all, by nvidia-smi; a process's
  context, printed below, is in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rounds import surroundings, table

from vit_search.config import search_file
from vit_search.config.cost import cost_of
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split
from vit_search.runtime import machine
from vit_search.vit import augment
from vit_search.vit.calibrate import proposals
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.training import start, train_step

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
MIB = 2**20
EVALUATED = 1024


@dataclass(frozen=True)
class Taken:
    """Bytes of one training."""

    name: str
    predicted: int
    context: int
    images: int
    steps: int
    validation: int
    held: int
    taken: int
    seconds_per_step: float


def used() -> int:
    """Bytes of the first GPU that are taken, by whomever."""
    said = subprocess.run(
        ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
    )
    return int(said.stdout) * MIB


def measured(config: TrialConfig, before: int) -> Taken:
    """One training, in a process that has not touched the GPU yet."""
    device, told = torch.device("cuda"), config.training
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    torch.zeros(1, device=device)
    context = used() - before
    generator = torch.Generator().manual_seed(0)
    count = max(EVALUATED, told.batch_size)
    pixels = torch.randint(256, (count, config.model.in_channels, *config.model.image_size), dtype=torch.uint8, generator=generator)
    split = Split(pixels.to(device), (torch.arange(count) % config.model.num_classes).to(device))
    plain = Normalisation.of((0.5,) * config.model.in_channels, (0.25,) * config.model.in_channels, device)
    torch.cuda.reset_peak_memory_stats()
    images = torch.cuda.memory_allocated()
    state = start(config, plain, device)
    for step in range(4):
        state.model.train()
        raw, labels = split.images[: told.batch_size], split.labels[: told.batch_size]
        batch, targets = augment.mixed(augment.normalise(raw, plain.mean, plain.std), labels, told, generator)
        if step == 1:  # the first finds its kernels
            torch.cuda.synchronize()
            began = time.perf_counter()
        train_step(state, batch, targets, 1e-4, step)
    torch.cuda.synchronize()
    per_step = (time.perf_counter() - began) / 3
    steps = torch.cuda.max_memory_allocated() - images
    del batch, targets, raw
    torch.cuda.reset_peak_memory_stats()
    evaluate(state.outcome, Split(split.images[:EVALUATED], split.labels[:EVALUATED]), plain, 512)
    model, micro = config.model, -(-told.batch_size // state.accumulation)
    held = torch.cuda.max_memory_reserved()
    half = machine.autocast_type(config, device) is not None
    words = "graphs" * told.cuda_graphs or "compiled" * told.compile
    name = f"{model.image_size[0]}/{model.patch_size} dim {model.dim} depth {model.depth} mlp {model.mlp_width} heads {model.heads}"
    return Taken(
        name=f"{name} batch {micro} {'bfloat16' if half else 'float32'} {words}".strip(),
        predicted=cost_of(model, micro, device="cuda", half=half).train_bytes,
        context=context,
        images=images,
        steps=steps,
        validation=torch.cuda.max_memory_allocated() - images,
        held=held,
        taken=used() - before,
        seconds_per_step=per_step,
    )


def configs(count: int, vit_s16: bool) -> list[TrialConfig]:
    """What is trained: proposals, the one in the middle in float32 and as a CUDA graph, and ViT-S/16."""
    spec = search_file.load(SPACES / "cifar10.yaml")
    drawn = sorted(proposals(spec)[:count], key=lambda config: cost_of(config.model, 1).train_flops)
    told = [replace(config, training=replace(config.training, cutmix=1.0)) for config in drawn]
    middle = told[len(told) // 2]
    told += [replace(config, training=replace(config.training, precision="float32")) for config in (middle, told[-1])]
    told.append(replace(middle, training=replace(middle.training, cuda_graphs=True)))
    if vit_s16:
        large = search_file.load(SPACES / "vit_s16.yaml")
        config = large.trial_config(large.space.draw(random.Random(0)), in_channels=3, num_classes=1000, trial=0)
        told.append(replace(config, training=replace(config.training, compile=False)))
    return told


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--shapes", default=9, type=int)
    ask.add_argument("--vit-s16", action="store_true")
    ask.add_argument("--json", type=Path)
    told = ask.parse_args()
    seen: list[Taken] = []
    fork = multiprocessing.get_context("fork")  # nothing has touched the GPU yet, so a child can
    before = used()

    def apart(do: Callable[[], object]) -> object:
        ours, theirs = fork.Pipe()
        child = fork.Process(target=lambda: theirs.send(do()))
        child.start()
        theirs.close()
        try:
            return ours.recv()
        except EOFError:
            return None
        finally:
            child.join()

    for config in configs(told.shapes, told.vit_s16):
        one = apart(lambda config=config: measured(config, before))  # type: ignore[misc]
        if isinstance(one, Taken):
            seen.append(one)
            print(json.dumps(asdict(one)), flush=True)
            if told.json:
                told.json.write_text(json.dumps([asdict(each) for each in seen], indent=1))
    print(apart(lambda: surroundings(torch.device("cuda"))))
    rows = [
        [
            one.name,
            f"{one.predicted / MIB:,.0f}",
            f"{one.steps / MIB:,.0f}",
            f"{one.steps / one.predicted:.2f}",
            f"{one.validation / MIB:,.0f}",
            f"{one.validation / one.predicted:.2f}",
            f"{one.held / MIB:,.0f}",
            f"{one.taken / MIB:,.0f}",
        ]
        for one in seen
    ]
    print(table(["shape", "predicted, MiB", "steps", "of predicted", "validation", "of predicted", "held", "taken"], rows))
    print(f"a process's context: {statistics.median(one.context for one in seen) / MIB:,.0f} MiB")


if __name__ == "__main__":
    main()
