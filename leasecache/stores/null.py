"""The store that holds nothing: `null://` disables caching."""

from collections.abc import Sequence

from leasecache.errors import NodeError
from leasecache.lease import Answer, Hit, Lease, Refused, Stored
from leasecache.stores.base import Reader


class NullStore:
    """Answers every lease-get with a lease that cannot store. It is its own only node."""

    name = "null"

    def __init__(self, namespace: str | None = None) -> None:
        self.namespace = namespace
        self.nodes = (self,)

    def node_for(self, key: bytes) -> "NullStore":
        """Return this store."""
        return self

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0) -> Answer:
        """Return a lease without a token."""
        return Lease(key, None)

    def reader(self, lease_for: float, refresh_ahead: float, flags: int) -> Reader:
        """Return a function that answers every key with a lease without a token."""
        return lambda key: Lease(key, None)

    def lease_get_many(
        self, keys: Sequence[bytes], lease_for: float, refresh_ahead: float = 0
    ) -> dict[bytes, Answer | NodeError]:
        """Return a lease without a token per key."""
        return {key: Lease(key, None) for key in keys}

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Stored | Refused:
        """Refuse."""
        return Refused("caching is disabled")

    def release(self, lease: Lease) -> None:
        """Do nothing: there is no lease."""

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Do nothing: there is no value."""

    def look(self, key: bytes) -> Hit | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing: nothing is open."""
