"""Several nodes as one store: rendezvous hashing decides which node owns a key."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from leasecache import _accel
from leasecache.errors import LeasecacheError, NodeError
from leasecache.guard import RECORD_FLAGS, ring_mark
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Stored, Token
from leasecache.stores.base import BatchReader, LeaseNode, Outcome, Reader
from leasecache.stores.ring import ring
from leasecache.stores.trust import ATTEMPTS, Trust, unclearable

Q = TypeVar("Q")
A = TypeVar("A")


class RoutedStore:
    """Routes keys to nodes by rendezvous hashing."""

    def __init__(
        self,
        nodes: Sequence[LeaseNode],
        namespace: str | None = None,
        weights: Sequence[int] | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        """`weights` are the nodes' shares of the keys in proportion to each other; default one each.

        `guarded`: an invalidation daemon vouches for the nodes, by their guard records.
        """
        self.nodes = tuple(nodes)
        self.namespace = namespace
        self.guarded = guarded
        names = [node.name for node in nodes]
        self._ring = ring(names, weights)
        self.mark = ring_mark(names, weights)
        for node in nodes:
            node.trust = Trust(namespace, self.mark, node.name) if guarded else None

    def node_for(self, key: bytes) -> LeaseNode:
        """Return the node that owns `key`."""
        return self.nodes[self._ring.owner(key)]

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Answer:
        """Return the owner's answer. Raises NodeError."""
        return self.node_for(key).lease_get(key, lease_for, refresh_ahead, mark)

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask, or the error of its node."""
        return self._each(asks, [ask.key for ask in asks], lambda node, owned: node.lease_get_many(owned))

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags."""
        readers = [node.reader(lease_for, refresh_ahead, flags, mark) for node in self.nodes]
        return readers[0] if len(readers) == 1 else _accel.RingReader(self._ring, readers)

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader:
        """Return a `lease_get_many` of keys that gives the values alone of plain hits with these client flags."""
        readers = {node.name: node.batch_reader(lease_for, refresh_ahead, flags, mark) for node in self.nodes}
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

    def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names and answer as a lease-get then does. Raises NodeError."""
        return self.node_for(key).steal(key, token, lease_for, mark)

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0, *, plain: bool = False) -> None:
        """Invalidate on every owner; then raise the error of the first that did not do it, if any.

        On guarded nodes that is done under the generation, too, and GuardError when there is none to do it under;
        not with `plain` keys, of functions without a guard.
        """
        failures: list[LeasecacheError] = []
        for node, positions in self._owners(keys).items():
            try:
                _invalidate(node, [keys[i] for i in positions], stale_for, plain=plain)
            except LeasecacheError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def clear(self) -> None:
        """Give every node a new generation; then raise the error of the first where that failed, if any.

        What stands there under no generation stays. Raises ConfigError when the nodes are not guarded.
        """
        if not self.guarded:
            raise unclearable()
        failures: list[LeasecacheError] = []
        for node in self.nodes:
            try:
                _bump(node)
            except LeasecacheError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching leases. Raises NodeError."""
        return self.node_for(key).look(key, mark)

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


def _invalidate(node: LeaseNode, keys: Sequence[bytes], stale_for: float, *, plain: bool) -> None:
    if plain or node.trust is None:
        node.invalidate(keys, stale_for)
        return
    trust, meant = node.trust, [*keys]
    generation = trust.known.generation if trust.known else None
    for _ in range(ATTEMPTS):
        if generation is not None:
            meant += trust.under(generation, keys)
        found = trust.generation(node.invalidate_under(trust.key, meant, stale_for))
        if found == generation:
            return
        generation, meant = found, []
    raise trust.unsettled()


def _bump(node: LeaseNode) -> None:
    """Write the node's guard record anew, under a generation of which nothing is stored."""
    assert node.trust is not None
    trust = node.trust
    for _ in range(ATTEMPTS):
        found = node.lease_get(trust.key, 1)
        if isinstance(found, Lease):
            node.release(found)  # the record's, for the daemon to write
        lease, body, ttl = trust.bumped(found)
        if isinstance(node.lease_set(lease, RECORD_FLAGS, body, ttl), Stored):
            return
    raise trust.unsettled()


def _done(
    do: Callable[[LeaseNode, Sequence[Q]], Sequence[A]], node: LeaseNode, items: Sequence[Q]
) -> list[A | NodeError]:
    try:
        return [*do(node, items)]
    except NodeError as error:
        return [error] * len(items)
