"""Leases on a Redis cluster: each command goes to the primary that owns its key's slot."""

from collections.abc import Sequence
from typing import Any

from leasecache.errors import ConfigError, NodeError
from leasecache.metrics import NodeStats
from leasecache.stores import redis_wire as wire
from leasecache.stores.redis import RedisNode, address_of
from leasecache.stores.redis_calls import RedisCalls, ShortWay
from leasecache.stores.redis_leases import Exchange, Replies
from leasecache.stores.redis_link import Access, ask_once
from leasecache.stores.redis_record import UNGUARDABLE
from leasecache.stores.redis_route import Hop, Members, Slots, Survey, route


class RedisCluster(RedisCalls):
    """A Redis cluster. To routing and to the daemon it is one node."""

    scattered = True

    def __init__(self, seeds: Sequence[str], access: Access | None = None, *, pool: int = 64) -> None:
        """`seeds` are the names, "host:port", of some of its nodes; `pool` connections to each. Opens nothing."""
        self.name = ",".join(seeds)
        self.errors = NodeStats()
        self._access = access or Access()
        self._slots = Slots(seeds)
        self._members = Members(self._slots, lambda name: RedisNode(name, self._access, pool=pool, cluster=self.errors))

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        sizes = [node.connections for node in list(self._members.by_name.values())]
        return sum(size[0] for size in sizes), sum(size[1] for size in sizes)

    def short_way(self, refresh_ahead: float, flags: int) -> ShortWay:
        """Return a look at a key that gives the value of a plain hit, and None when a lease-get is needed."""
        ways: dict[RedisNode, ShortWay] = {}
        owner, nodes = self._slots.owner, self._members.by_name

        def get(key: bytes) -> bytes | None:
            node = nodes.get(owner(key) or "")
            if node is None:
                return None
            way = ways.get(node)
            if way is None:
                way = ways[node] = node.short_way(refresh_ahead, flags)
            try:
                return way(key)
            except NodeError:  # the slot may have another owner by now
                return None

        return get

    def guarded_way(self, refresh_ahead: float, flags: int, mark: bytes) -> ShortWay:
        """Raise ConfigError: a cluster has no guard."""
        raise ConfigError(UNGUARDABLE)

    def exchange(self, request: Exchange) -> Replies:
        """Send each command to the owner of its key. What no node has done is answered with a NodeError."""
        journey = route(request, self._slots)
        try:
            hops = next(journey)
            while True:
                hops = journey.send([self._perform(hop) for hop in hops])
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            for node in self._members.retired():
                node.close()

    def stats(self) -> dict[str, Any]:
        """Return the figures of each primary by its name (Redis documentation, "INFO")."""
        self.exchange(Exchange([]))
        return {name: self._members.get(name).stats() for name in sorted(self._slots.primaries)}

    def close(self) -> None:
        """Close idle connections; the cluster can be used again."""
        for node in list(self._members.by_name.values()):
            node.close()

    def _perform(self, hop: Hop | Survey) -> Any:
        try:
            if isinstance(hop, Hop):
                return self._members.get(hop.node).exchange(hop.exchange)
            return wire.read_slots(ask_once(address_of(hop.node), self._access, wire.SLOTS)[0])
        except NodeError as error:
            return error
