"""The epochs at which trials are compared (rungs), and the groups by training cost that are compared separately (strata)."""

from __future__ import annotations

import random
import statistics

from vit_search.config.space import Space


def levels(*, grace_epochs: int, reduction_factor: int, epochs: int) -> list[int]:
    """The rungs: grace_epochs * reduction_factor**k. All are below the full length, because a finished trial cannot be stopped."""
    rungs, rung = [], grace_epochs
    while rung < epochs:
        rungs.append(rung)
        rung *= reduction_factor
    return rungs


def boundaries(space: Space, strata: int, draws: int = 2000) -> list[float]:
    """Training FLOPs that divide the feasible proposals into `strata` groups of equal size: strata - 1 numbers, ascending.

    They come from a sample with a fixed seed, so a resumed search has the same ones.
    """
    if strata == 1:
        return []
    rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
    drawn = (space.draw(rng) for _ in range(draws))
    flops = [float(space.cost(params).train_flops) for params in drawn if space.problem(params) is None]
    return statistics.quantiles(flops, n=strata, method="inclusive") if len(flops) > 1 else []
