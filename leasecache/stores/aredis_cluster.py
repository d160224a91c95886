"""Leases on a Redis cluster for asyncio: the twin of `RedisCluster`; the nodes are asked at once."""

import asyncio
from collections.abc import Sequence
from typing import Any

from leasecache.errors import ConfigError, NodeError
from leasecache.metrics import NodeStats
from leasecache.stores import redis_wire as wire
from leasecache.stores.aredis import AsyncRedisNode
from leasecache.stores.aredis_calls import AsyncRedisCalls, ShortWay
from leasecache.stores.aredis_link import ask_once
from leasecache.stores.redis import address_of
from leasecache.stores.redis_leases import Exchange, Replies
from leasecache.stores.redis_link import Access
from leasecache.stores.redis_record import UNGUARDABLE
from leasecache.stores.redis_route import Hop, Members, Slots, Survey, route


class AsyncRedisCluster(AsyncRedisCalls):
    """A Redis cluster. To routing it is one node."""

    scattered = True

    def __init__(self, seeds: Sequence[str], access: Access | None = None, *, pool: int = 64) -> None:
        """`seeds` are the names, "host:port", of some of its nodes; `pool` connections to each and per event loop.

        Opens nothing.
        """
        super().__init__(pool)
        self.name = ",".join(seeds)
        self.errors = NodeStats()
        self._access = access or Access()
        self._slots = Slots(seeds)
        self._members = Members(
            self._slots, lambda name: AsyncRedisNode(name, self._access, pool=pool, cluster=self.errors)
        )

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        sizes = [node.connections for node in list(self._members.by_name.values())]
        return sum(size[0] for size in sizes), sum(size[1] for size in sizes)

    def short_way(self, refresh_ahead: float, flags: int) -> ShortWay:
        """Return a look at a key that gives the value of a plain hit, and None when a lease-get is needed."""
        ways: dict[AsyncRedisNode, ShortWay] = {}

        async def get(key: bytes) -> bytes | None:
            node = self._members.by_name.get(self._slots.owner(key) or "")
            if node is None:
                return None
            way = ways.get(node)
            if way is None:
                way = ways[node] = node.short_way(refresh_ahead, flags)
            try:
                return await way(key)
            except NodeError:  # the slot may have another owner by now
                return None

        return get

    def guarded_way(self, refresh_ahead: float, flags: int, mark: bytes) -> ShortWay:
        """Raise ConfigError: a cluster has no guard."""
        raise ConfigError(UNGUARDABLE)

    async def exchange(self, request: Exchange) -> Replies:
        """Send each command to the owner of its key. What no node has done is answered with a NodeError."""
        journey = route(request, self._slots)
        try:
            hops = next(journey)
            while True:
                hops = journey.send(await asyncio.gather(*[self._perform(hop) for hop in hops]))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            for node in self._members.retired():
                await node.aclose()

    async def stats(self) -> dict[str, Any]:
        """Return the figures of each primary by its name (Redis documentation, "INFO")."""
        await self.exchange(Exchange([]))
        return {name: await self._members.get(name).stats() for name in sorted(self._slots.primaries)}

    async def aclose(self) -> None:
        """Close idle connections; the cluster can be used again."""
        await self._orphans.ended()
        for node in list(self._members.by_name.values()):
            await node.aclose()

    async def _perform(self, hop: Hop | Survey) -> Any:
        try:
            if isinstance(hop, Hop):
                return await self._members.get(hop.node).exchange(hop.exchange)
            return wire.read_slots((await ask_once(address_of(hop.node), self._access, wire.SLOTS))[0])
        except NodeError as error:
            return error
