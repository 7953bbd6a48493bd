"""The limits of one replica of the server, and the count of the bytes that its requests hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReplicaLimits:
    """The limits of one replica."""

    batch: int = 32
    """Images classified at once."""
    images: int = 128
    """Images in one JSON request."""
    queue: int = 256
    """Requests that wait or are classified. Further ones get status 503. A request that is still arriving does not count."""
    body_bytes: int = 16 * 2**20
    """Length of one request's body, in bytes."""
    held_bytes: int = 256 * 2**20
    """Bytes of all requests together, as far as they have arrived: headers, bodies and decoded pixels."""
    timeout_s: float = 10.0
    """Seconds from a request's headers to its answer."""


class HeldBytes:
    """Counts the bytes of a replica's requests, from arrival to answer. Only the event loop changes it."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0

    def add(self, count: int) -> bool:
        """Add to the count. Returns: whether it is within the limit."""
        self.bytes += count
        return self.bytes <= self.limit

    def remove(self, count: int) -> None:
        """Subtract from the count."""
        self.bytes -= count
