"""Several nodes as one store: rendezvous hashing decides which node owns a key."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from leasecache import _accel
from leasecache.errors import LeasecacheError, NodeError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Token
from leasecache.stores.base import BatchReader, LeaseNode, Outcome, Reader
from leasecache.stores.ring import ring

Q = TypeVar("Q")
A = TypeVar("A")


class RoutedStore:
    """Routes keys to nodes by rendezvous hashing."""

    def __init__(
        self, nodes: Sequence[LeaseNode], namespace: str | None = None, weights: Sequence[int] | None = None
    ) -> None:
        """`weights` are the nodes' shares of the keys in proportion to each other; default one each."""
        self.nodes = tuple(nodes)
        self.namespace = namespace
        self._ring = ring([node.name for node in nodes], weights)

    def node_for(self, key: bytes) -> LeaseNode:
        """Return the node that owns `key`."""
        return self.nodes[self._ring.owner(key)]

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0) -> Answer:
        """Return the owner's answer. Raises NodeError."""
        return self.node_for(key).lease_get(key, lease_for, refresh_ahead)

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask, or the error of its node."""
        return self._each(asks, [ask.key for ask in asks], lambda node, owned: node.lease_get_many(owned))

    def reader(self, lease_for: float, refresh_ahead: float, flags: int) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags."""
        readers = [node.reader(lease_for, refresh_ahead, flags) for node in self.nodes]
        return readers[0] if len(readers) == 1 else _accel.RingReader(self._ring, readers)

    def batch_reader(self, lease_for: float, refresh_ahead: float, flags: int) -> BatchReader:
        """Return a `lease_get_many` of keys that gives the values alone of plain hits with these client flags."""
        readers = {node.name: node.batch_reader(lease_for, refresh_ahead, flags) for node in self.nodes}
        return lambda keys: self._each(keys, keys, lambda node, owned: readers[node.name](owned))

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store at the owner. Raises NodeError."""
        return self.node_for(lease.key).lease_set(lease, flags, body, ttl)

    def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome | NodeError]:
        """Store under each lease; the error of its node where that failed."""
        return self._each(fills, [fill.lease.key for fill in fills], lambda node, owned: node.lease_set_many(owned))

    def release(self, lease: Lease) -> None:
        """Give the lease back to the owner. Raises NodeError."""
        self.node_for(lease.key).release(lease)

    def steal(self, key: bytes, token: Token, lease_for: float) -> Answer:
        """Void the lease that `token` names and answer as a lease-get then does. Raises NodeError."""
        return self.node_for(key).steal(key, token, lease_for)

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Invalidate on every owner; then raise the error of the first that did not do it, if any."""
        failures: list[LeasecacheError] = []
        for node, positions in self._owners(keys).items():
            try:
                node.invalidate([keys[i] for i in positions], stale_for)
            except LeasecacheError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def look(self, key: bytes) -> Hit | None:
        """Return the value without touching leases. Raises NodeError."""
        return self.node_for(key).look(key)

    def stats(self) -> Mapping[str, dict[str, Any]]:
        """Return each node's own figures. Raises NodeError."""
        return {node.name: node.stats() for node in self.nodes}

    def close(self) -> None:
        """Close idle connections; the store can be used again."""
        for node in self.nodes:
            node.close()

    def _each(
        self, items: Sequence[Q], keys: Sequence[bytes], do: Callable[[LeaseNode, Sequence[Q]], Sequence[A]]
    ) -> list[A | NodeError]:
        """Do the items of each node in one go; return the results in the order of `items`."""
        if len(self.nodes) == 1:
            return _done(do, self.nodes[0], items)
        found: list[Any] = [None] * len(items)
        for node, positions in self._owners(keys).items():
            results = _done(do, node, [items[i] for i in positions])
            for i, result in zip(positions, results, strict=True):
                found[i] = result
        return found

    def _owners(self, keys: Iterable[bytes]) -> dict[LeaseNode, list[int]]:
        owned: dict[LeaseNode, list[int]] = defaultdict(list)
        for i, key in enumerate(keys):
            owned[self.node_for(key)].append(i)
        return owned


def _done(
    do: Callable[[LeaseNode, Sequence[Q]], Sequence[A]], node: LeaseNode, items: Sequence[Q]
) -> list[A | NodeError]:
    try:
        return [*do(node, items)]
    except NodeError as error:
        return [error] * len(items)
