"""What the driver needs from outside: a log of events, and a view of the cluster. Tests replace both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from vit_search.errors import ClusterError
from vit_search.ledger.events import Event

if TYPE_CHECKING:
    from vit_search.runtime.ray_session import Shape


class EventLog(Protocol):
    """A log of events. In a real search: the Ledger of ledger/file.py."""

    @property
    def events(self) -> Sequence[Event]:
        """All events so far."""
        ...

    @property
    def listeners(self) -> list[Callable[[Event], None]]:
        """Called in this order with each event after it was stored."""
        ...

    def append(self, event: Event) -> None:
        """Store one event and call the listeners."""
        ...


class ClusterView(Protocol):
    """The cluster as it is at this moment."""

    @property
    def leaving(self) -> Collection[str]:
        """Ids of nodes that get no more work because they are about to be removed."""
        ...

    @property
    def lost(self) -> ClusterError | None:
        """The error, if the head of the cluster does not answer any more."""
        ...

    @property
    def shapes(self) -> Sequence[Shape]:
        """The nodes that are up, and the kinds of nodes that may be added."""
        ...

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        """The resources of each living node, by node id."""
        ...
