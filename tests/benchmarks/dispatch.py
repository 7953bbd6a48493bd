"""Operators that one training step sends to the device, ours against the peers: the figure that carries over to a GPU.

    python tests/benchmarks/dispatch.py

A GPU that waits for launches takes as long as there are operators (4 to 5 microseconds each on an H200, shared/VIT.md), so
their number is a speed that no noise touches. Counted are forward, cross-entropy, backward and fused AdamW at depth 6
(32x32 images, patch 4, dim 192, 3 heads), without views and metadata.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "expand",
    "detach",
    "alias",
    "split",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "permute",
    "unbind",
}
"""Operators that only say how memory is to be read."""


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


def operators(step: Callable[[], object]) -> Counter[str]:
    """How often each operator but views is dispatched in `step`; it runs once before, uncounted."""
    step()
    with _Counting() as seen:
        step()
    return Counter({name: count for name, count in seen.counts.items() if name not in VIEWS})


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward, cross-entropy, backward and fused AdamW on one batch."""
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    labels = torch.zeros(len(images), dtype=torch.int64)

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def main() -> None:
    """Print the table."""
    from peers import contenders
    from rounds import surroundings, table

    from vit_search.config.model_config import ModelConfig

    print(surroundings(torch.device("cpu"), "timm", "torchvision", "vit-pytorch", "transformers"))
    rows = []
    for pool in ("cls", "mean"):
        config = ModelConfig(image_size=(32, 32), in_channels=3, num_classes=10, patch_size=4, dim=192, depth=6, heads=3, pool=pool)
        for name, build in contenders(config).items():
            counts = operators(training_step(build(), torch.zeros(2, 3, 32, 32)))
            most = ", ".join(f"{count} {operator}" for operator, count in counts.most_common(5))
            rows.append((counts.total(), [f"{name}, {pool}", str(counts.total()), most]))
    print(table(["contender", "operators", "of which"], [row for _, row in sorted(rows)]))


if __name__ == "__main__":
    main()
