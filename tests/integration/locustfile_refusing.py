"""The herd on a cache that gives every lease back instead of storing: what the load test has to notice."""

from leasecache.lease import Lease, Refused
from leasecache.stores.routed import RoutedStore
from loadtests.locustfile import Reader, Writer

__all__ = ["Reader", "Writer"]


def refuse(store: RoutedStore, lease: Lease, flags: int, body: bytes, ttl: float) -> Refused:
    """Lose a value."""
    store.release(lease)
    return Refused("broken on purpose")


RoutedStore.lease_set = refuse  # type: ignore[method-assign]
