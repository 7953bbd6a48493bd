"""How much one replica of the server takes on: the limits, and the count of the bytes that its requests hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReplicaLimits:
    """What one replica takes on."""

    batch: int = 32
    """Images classified at once."""
    images: int = 128
    """Images in one JSON request."""
    queue: int = 256
    """Requests that wait or are classified; one more is told to come again. A request that is still arriving does not count."""
    body_bytes: int = 16 * 2**20
    """Of a request."""
    held_bytes: int = 256 * 2**20
    """Of all requests, as far as they have arrived: headers, bodies, and the pixels that they are decoded to."""
    timeout_s: float = 10.0
    """From a request's headers to its answer."""


class HeldBytes:
    """Bytes of a replica's requests, from their arrival to their answers. All of it is written in the event loop."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0

    def add(self, count: int) -> bool:
        """Count some more. Returns: whether there was room for them."""
        self.bytes += count
        return self.bytes <= self.limit

    def remove(self, count: int) -> None:
        """Count some less."""
        self.bytes -= count
