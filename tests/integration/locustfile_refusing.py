"""The herd on a cache that gives every lease back instead of storing: what the load test has to notice."""

from leasecache.lease import Lease, Refused
from leasecache.stores.memcached import MemcachedStore
from loadtests.locustfile import Reader, Writer

__all__ = ["Reader", "Writer"]


def refuse(store: MemcachedStore, lease: Lease, flags: int, body: bytes, ttl: float) -> Refused:
    """Lose a value."""
    store.release(lease)
    return Refused("broken on purpose")


MemcachedStore.lease_set = refuse  # type: ignore[method-assign]
