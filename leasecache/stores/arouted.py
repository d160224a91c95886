"""Several nodes as one asynchronous store: keys go where `RoutedStore` sends them, the nodes are asked at once."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from leasecache import _accel
from leasecache.errors import NodeError
from leasecache.guard import RECORD_FLAGS, ring_mark
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Stored, Token
from leasecache.stores.base import AsyncBatchReader, AsyncLeaseNode, AsyncReader, Outcome
from leasecache.stores.ring import ring
from leasecache.stores.trust import ATTEMPTS, Trust, unclearable

Q = TypeVar("Q")
A = TypeVar("A")
Do = Callable[[AsyncLeaseNode, Sequence[Q]], Awaitable[Sequence[A]]]


class AsyncRoutedStore:
    """Routes keys to nodes by rendezvous hashing."""

    def __init__(
        self,
        nodes: Sequence[AsyncLeaseNode],
        namespace: str | None = None,
        weights: Sequence[int] | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        """Take what `RoutedStore` takes."""
        self.nodes = tuple(nodes)
        self.namespace = namespace
        self.guarded = guarded
        names = [node.name for node in nodes]
        self._ring = ring(names, weights)
        mark = ring_mark(names, weights)
        for node in nodes:
            node.trust = Trust(namespace, mark, node.name) if guarded else None
        self._returning: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks only weakly

    def node_for(self, key: bytes) -> AsyncLeaseNode:
        """Return the node that owns `key`."""
        return self.nodes[self._ring.owner(key)]

    async def lease_get(
        self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None
    ) -> Answer:
        """Return the owner's answer. Raises NodeError."""
        return await self.node_for(key).lease_get(key, lease_for, refresh_ahead, mark)

    async def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask, or the error of its node."""
        return await self._each(asks, [ask.key for ask in asks], lambda node, owned: node.lease_get_many(owned))

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> AsyncReader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags."""
        readers = [node.reader(lease_for, refresh_ahead, flags, mark) for node in self.nodes]
        return readers[0] if len(readers) == 1 else _accel.RingReader(self._ring, readers)

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> AsyncBatchReader:
        """Return a `lease_get_many` of keys that gives the values alone of plain hits with these client flags."""
        readers = {node.name: node.batch_reader(lease_for, refresh_ahead, flags, mark) for node in self.nodes}
        return lambda keys: self._each(keys, keys, lambda node, owned: readers[node.name](owned))

    async def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store at the owner. Raises NodeError."""
        return await self.node_for(lease.key).lease_set(lease, flags, body, ttl)

    async def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome | NodeError]:
        """Store under each lease; the error of its node where that failed."""
        keys = [fill.lease.key for fill in fills]
        return await self._each(fills, keys, lambda node, owned: node.lease_set_many(owned))

    async def release(self, lease: Lease) -> None:
        """Give the lease back to the owner. Raises NodeError."""
        await self.node_for(lease.key).release(lease)

    async def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names and answer as a lease-get then does. Raises NodeError."""
        return await self.node_for(key).steal(key, token, lease_for, mark)

    async def invalidate(self, keys: Sequence[bytes], stale_for: float = 0, *, plain: bool = False) -> None:
        """Invalidate on every owner; then raise the error of the first that did not do it, if any.

        On guarded nodes that is done under the generation, too, and GuardError when there is none to do it under;
        not with `plain` keys, of functions without a guard.
        """
        owners = self._owners(keys).items()
        await _all([_invalidate(node, [keys[i] for i in owned], stale_for, plain=plain) for node, owned in owners])

    async def clear(self) -> None:
        """Give every node a new generation; then raise the error of the first where that failed, if any.

        What stands there under no generation stays. Raises ConfigError when the nodes are not guarded.
        """
        if not self.guarded:
            raise unclearable()
        await _all([_bump(node) for node in self.nodes])

    async def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching leases. Raises NodeError."""
        return await self.node_for(key).look(key, mark)

    async def stats(self) -> Mapping[str, dict[str, Any]]:
        """Return each node's own figures. Raises NodeError."""
        found = await asyncio.gather(*[node.stats() for node in self.nodes])
        return {node.name: figures for node, figures in zip(self.nodes, found, strict=True)}

    async def aclose(self) -> None:
        """Close the connections; the store can be used again."""
        for node in self.nodes:
            await node.aclose()

    async def _each(self, items: Sequence[Q], keys: Sequence[bytes], do: "Do[Q, A]") -> list[A | NodeError]:
        """Do the items of each node in one go, the nodes side by side; return the results in the order of `items`."""
        if len(self.nodes) == 1:
            return await _done(do, self.nodes[0], items)
        owners = self._owners(keys)
        tasks = [asyncio.ensure_future(_done(do, node, [items[i] for i in owned])) for node, owned in owners.items()]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:  # what they have won, or win before the cancellation reaches them, has no taker
                task.add_done_callback(self._return)
                task.cancel()
            raise
        found: list[Any] = [None] * len(items)
        for positions, task in zip(owners.values(), tasks, strict=True):
            for i, result in zip(positions, task.result(), strict=True):
                found[i] = result
        return found

    def _return(self, task: "asyncio.Task[list[Any]]") -> None:
        if task.cancelled() or task.exception() is not None:
            return
        leases = [answer for answer in task.result() if isinstance(answer, Lease)]
        if leases:
            returning = task.get_loop().create_task(self._give_back(leases))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)

    async def _give_back(self, leases: Sequence[Lease]) -> None:
        await asyncio.gather(*[self.release(lease) for lease in leases], return_exceptions=True)

    def _owners(self, keys: Iterable[bytes]) -> dict[AsyncLeaseNode, list[int]]:
        owned: dict[AsyncLeaseNode, list[int]] = defaultdict(list)
        for i, key in enumerate(keys):
            owned[self.node_for(key)].append(i)
        return owned


async def _all(steps: Iterable[Awaitable[None]]) -> None:
    """Take all steps side by side, whichever fail; then raise what the first of these has raised."""
    for failure in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(failure, BaseException):
            raise failure


async def _invalidate(node: AsyncLeaseNode, keys: Sequence[bytes], stale_for: float, *, plain: bool) -> None:
    if plain or node.trust is None:
        await node.invalidate(keys, stale_for)
        return
    trust, meant = node.trust, [*keys]
    generation = trust.known.generation if trust.known else None
    for _ in range(ATTEMPTS):
        if generation is not None:
            meant += trust.under(generation, keys)
        found = trust.generation(await node.invalidate_under(trust.key, meant, stale_for))
        if found == generation:
            return
        generation, meant = found, []
    raise trust.unsettled()


async def _bump(node: AsyncLeaseNode) -> None:
    """Write the node's guard record anew, under a generation of which nothing is stored."""
    assert node.trust is not None
    trust = node.trust
    for _ in range(ATTEMPTS):
        found = await node.lease_get(trust.key, 1)
        if isinstance(found, Lease):
            await node.release(found)  # the record's, for the daemon to write
        lease, body, ttl = trust.bumped(found)
        if isinstance(await node.lease_set(lease, RECORD_FLAGS, body, ttl), Stored):
            return
    raise trust.unsettled()


async def _done(do: "Do[Q, A]", node: AsyncLeaseNode, items: Sequence[Q]) -> list[A | NodeError]:
    try:
        return [*await do(node, items)]
    except NodeError as error:
        return [error] * len(items)
