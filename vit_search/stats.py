"""Statistics that several packages need."""

from __future__ import annotations

import math


def wilson(hits: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson interval, 95 % by default, of a share, after `hits` of `count`; 0 to 1 if `count` is 0 (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, wide = hits / count, z * z / count
    middle = (share + wide / 2) / (1 + wide)
    half = math.sqrt(share * (1 - share) * wide + wide * wide / 4) / (1 + wide)
    # At the ends the bound is the share itself. Rounding could move it, and a perfect score would then be outside of its own interval.
    return 0.0 if hits <= 0 else max(0.0, middle - half), 1.0 if hits >= count else min(1.0, middle + half)
