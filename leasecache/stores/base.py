"""What the flows and the daemon ask of a store. Small on purpose: the null store is its whole length."""

from collections.abc import Callable, Sequence
from typing import Protocol

from leasecache.errors import NodeError
from leasecache.lease import Answer, Hit, Lease, Refused, Stored


class Node(Protocol):
    """One cache server, as the invalidation daemon sees it."""

    name: str  # "host:port" or the path of a Unix socket; shown to operators

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void outstanding leases on `keys`, drop the values or leave them stale for at most `stale_for` s.

        Returns once the node has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        ...


Reader = Callable[[bytes], bytes | Answer]


class Store(Protocol):
    """All nodes behind one URL. Expected outcomes are values; NodeError means that a node did not do it."""

    namespace: str | None

    @property
    def nodes(self) -> Sequence[Node]: ...
    def node_for(self, key: bytes) -> Node: ...
    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0) -> Answer: ...
    def reader(self, lease_for: float, refresh_ahead: float, flags: int) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags."""
        ...

    def lease_get_many(
        self, keys: Sequence[bytes], lease_for: float, refresh_ahead: float = 0
    ) -> dict[bytes, Answer | NodeError]: ...
    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Stored | Refused: ...
    def release(self, lease: Lease) -> None: ...
    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None: ...
    def look(self, key: bytes) -> Hit | None: ...
    def close(self) -> None: ...
