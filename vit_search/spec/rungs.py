"""Where trials are looked at, how they are parted by size, and how sure a share is: what stopping, its plan and its report agree on."""

from __future__ import annotations

import math
import random
import statistics

from vit_search.spec.space import Space


def levels(*, grace_epochs: int, reduction_factor: int, epochs: int) -> list[int]:
    """The rungs, grace_epochs * reduction_factor**k, below a full training's length: a finished trial is not stopped."""
    found, rung = [], grace_epochs
    while rung < epochs:
        found.append(rung)
        rung *= reduction_factor
    return found


def boundaries(space: Space, strata: int, draws: int = 2000) -> list[float]:
    """Training FLOPs that part the proposals that can be run into `strata` groups of equal share: strata - 1 of them, ascending.

    From a sample with a fixed seed, so a resumed search has the same ones.
    """
    if strata == 1:
        return []
    rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
    drawn = (space.draw(rng) for _ in range(draws))
    flops = [float(space.cost(params).train_flops) for params in drawn if space.problem(params) is None]
    return statistics.quantiles(flops, n=strata, method="inclusive") if len(flops) > 1 else []


def wilson(hits: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval, 95 % by default, of a share of which `hits` of `count` were seen; 0 to 1 where there are none (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, wide = hits / count, z * z / count
    middle = (share + wide / 2) / (1 + wide)
    half = math.sqrt(share * (1 - share) * wide + wide * wide / 4) / (1 + wide)
    return max(0.0, middle - half), min(1.0, middle + half)
