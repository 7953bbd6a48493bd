"""Statistics that several packages need."""

from __future__ import annotations

import math


def wilson(hits: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval, 95 % by default, of a share of which `hits` of `count` were seen; 0 to 1 where there are none (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, wide = hits / count, z * z / count
    middle = (share + wide / 2) / (1 + wide)
    half = math.sqrt(share * (1 - share) * wide + wide * wide / 4) / (1 + wide)
    return max(0.0, middle - half), min(1.0, middle + half)
