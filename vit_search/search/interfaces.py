"""What the driver needs of the world around it: somewhere to keep events, and what is known of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from vit_search.errors import ClusterError
from vit_search.ledger.events import Event

if TYPE_CHECKING:
    from vit_search.runtime.ray_session import Shape


class EventLog(Protocol):
    """Where events are kept: tracking.ledger's Ledger."""

    @property
    def events(self) -> Sequence[Event]:
        """All so far."""
        ...

    @property
    def listeners(self) -> list[Callable[[Event], None]]:
        """Told of each event, in this order, once it is kept."""
        ...

    def append(self, event: Event) -> None:
        """Keep one more."""
        ...


class ClusterView(Protocol):
    """What is known of the cluster at this moment."""

    @property
    def leaving(self) -> Collection[str]:
        """Ids of nodes that get no more work, since they are about to be taken away."""
        ...

    @property
    def lost(self) -> ClusterError | None:
        """Set where the head of the cluster does not answer any more."""
        ...

    @property
    def shapes(self) -> Sequence[Shape]:
        """The nodes that are there, and the kinds that may come."""
        ...

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        """What each living node has, by its id."""
        ...
