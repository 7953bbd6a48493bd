"""Seeds that derive from what they are for, so that nothing depends on what ran before."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed out of several numbers and words: the same parts, the same seed, on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
