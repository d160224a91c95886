"""The asynchronous face of the stores of this process: nothing there waits."""

from collections.abc import Mapping, Sequence
from typing import Any

from leasecache.errors import NodeError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Token
from leasecache.stores.base import AsyncBatchReader, AsyncReader, Outcome
from leasecache.stores.memory import MemoryStore
from leasecache.stores.null import NullStore


class AsyncLocalStore:
    """A memory store, or the null store, with methods to await. It is its own only node."""

    guarded = False
    trust = None

    def __init__(self, store: MemoryStore | NullStore) -> None:
        self._store = store
        self.name = store.name
        self.namespace = store.namespace
        self.nodes = (self,)

    def node_for(self, key: bytes) -> "AsyncLocalStore":
        """Return this store."""
        return self

    async def lease_get(
        self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None
    ) -> Answer:
        """Return the value, or the lease to load it, or who has it."""
        return self._store.lease_get(key, lease_for, refresh_ahead)

    async def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask."""
        return self._store.lease_get_many(asks)

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> AsyncReader:
        """Return a lease-get of a key that gives the value alone when it is a hit with these client flags."""
        read_now = self._store.reader(lease_for, refresh_ahead, flags)

        async def read(key: bytes) -> bytes | Answer:
            return read_now(key)

        return read

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> AsyncBatchReader:
        """Return a lease-get of many keys that gives the values alone of hits with these client flags."""
        read_now = self._store.batch_reader(lease_for, refresh_ahead, flags)

        async def read(keys: Sequence[bytes]) -> Sequence[bytes | Answer | NodeError]:
            return read_now(keys)

        return read

    async def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under the lease if nothing has voided it."""
        return self._store.lease_set(lease, flags, body, ttl)

    async def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome | NodeError]:
        """Store under each lease."""
        return self._store.lease_set_many(fills)

    async def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next reader wins at once."""
        self._store.release(lease)

    async def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names, unless it is gone, and answer as a lease-get then does."""
        return self._store.steal(key, token, lease_for)

    async def invalidate(self, keys: Sequence[bytes], stale_for: float = 0, *, plain: bool = False) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s, never longer than they had."""
        self._store.invalidate(keys, stale_for)

    async def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:
        """Invalidate; there is no guard record."""
        return self._store.invalidate_under(guard_key, keys, stale_for)

    async def clear(self) -> None:
        """Forget every value, and every lease."""
        self._store.clear()

    async def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching leases or recency; the answer does not tell whether it is stale."""
        return self._store.look(key)

    async def stats(self) -> Mapping[str, dict[str, Any]]:
        """Return what the store counts."""
        return self._store.stats()

    async def aclose(self) -> None:
        """Forget everything."""
        self._store.close()
