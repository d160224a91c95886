"""The store that holds nothing: `null://` disables caching."""

from collections.abc import Sequence
from typing import Any

from leasecache.errors import NodeError
from leasecache.guard import NO_RUN
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Refused, Token
from leasecache.stores.base import BatchReader, Outcome, Reader


class NullStore:
    """Answers every lease-get with a lease that cannot store. It is its own only node."""

    name = "null"
    guarded = False
    mark = b""
    trust = None

    def __init__(self, namespace: str | None = None) -> None:
        self.namespace = namespace
        self.nodes = (self,)

    def node_for(self, key: bytes) -> "NullStore":
        """Return this store."""
        return self

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Answer:
        """Return a lease without a token."""
        return Lease(key, None)

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader:
        """Return a function that answers every key with a lease without a token."""
        return lambda key: Lease(key, None)

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return a lease without a token per ask."""
        return [Lease(ask.key, None) for ask in asks]

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader:
        """Return a function that answers every key with a lease without a token."""
        return lambda keys: [Lease(key, None) for key in keys]

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Refuse."""
        return Refused("caching is disabled")

    def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome | NodeError]:
        """Refuse them all."""
        return [self.lease_set(*fill) for fill in fills]

    def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Return a lease without a token."""
        return Lease(key, None)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return nothing: there is nothing to count."""
        return {self.name: {}}

    def release(self, lease: Lease) -> None:
        """Do nothing: there is no lease."""

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0, *, plain: bool = False) -> None:
        """Do nothing: there is no value."""

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Return None: there is no guard record."""

    def run(self) -> str:
        """Return the mark of a server that forgets everything."""
        return NO_RUN

    def clear(self) -> None:
        """Do nothing: there is no value."""

    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing: nothing is open."""
