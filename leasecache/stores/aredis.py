"""Leases on one Redis server for asyncio; each event loop has connections of its own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from redis.exceptions import ResponseError

from leasecache.errors import ConfigError, LeasecacheError, NodeError, NodeTimeout, ProtocolError
from leasecache.fork import forget_after_fork
from leasecache.metrics import NodeStats
from leasecache.stores import redis_leases as leases
from leasecache.stores import redis_record
from leasecache.stores import redis_wire as wire
from leasecache.stores.aredis_calls import AsyncRedisCalls, ShortWay
from leasecache.stores.aredis_link import AsyncLink, LoopPool, ask_once
from leasecache.stores.pool import EPOCH, Connection
from leasecache.stores.probe import Probe
from leasecache.stores.redis import address_of
from leasecache.stores.redis_greeting import GREETING, check_greeting
from leasecache.stores.redis_leases import Exchange, Replies, Reply
from leasecache.stores.redis_link import Access, Address, origin
from leasecache.stores.redis_route import find_primary
from leasecache.stores.redis_wire import Unfit
from leasecache.stores.shutdown import Shutdown

Locate = Callable[[], Awaitable[Address]]


class AsyncRedisNode(AsyncRedisCalls):
    """One Redis server: leases by scripts, plain hits by GET, over a pool of connections per event loop."""

    def __init__(
        self,
        name: str,
        access: Access | None = None,
        *,
        pool: int = 64,
        locate: Locate | None = None,
        cluster: NodeStats | None = None,
    ) -> None:
        """`name` is "host:port" or a socket's path; `pool` connections at most per event loop. Opens nothing.

        `locate` tells the address each time a connection is opened, default the name's. `cluster` are the figures of
        the cluster that it is part of.
        """
        super().__init__(pool)
        self.name = name
        self.errors = cluster or NodeStats()
        self._access = access or Access()
        self._limit = pool
        self._locate = locate
        self._cluster = cluster is not None
        self._pools: dict[asyncio.AbstractEventLoop, LoopPool] = {}
        self._shutdown = Shutdown(self._leave)
        self._down = Probe(self.errors)
        self._fit = False  # whether a connection was ever made: then what refuses us now may pass
        forget_after_fork(self)

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        pools = list(self._pools.values())
        return sum(len(pool.open) for pool in pools), sum(len(pool.idle) for pool in pools)

    def short_way(self, refresh_ahead: float, flags: int) -> ShortWay:
        """Return a GET over an idle connection that gives the value of a plain hit, and None when more is needed.

        A plain hit has these client flags and is not near its expiry. Raises NodeError.
        """
        prefix = wire.prefix_of(flags)

        async def get(key: bytes) -> bytes | None:
            pool = self._pools.get(asyncio.get_running_loop())
            if self._down.delay or pool is None or not pool.idle:
                return None
            connection = pool.idle.pop()
            try:
                found = await connection.wire.get(key)
            except NodeError as error:
                self._broke(pool, connection, error)
                return None
            except BaseException:
                pool.discard(connection)
                raise
            pool.release(connection)
            return wire.plain(found, prefix, refresh_ahead, time.time() if refresh_ahead else 0)

        return get

    def guarded_way(self, refresh_ahead: float, flags: int, mark: bytes) -> ShortWay:
        """Return a look like that of `short_way` together with the guard record: MGET; for the function of `mark`.

        Raises NodeError.
        """
        trust = self.trust
        assert trust is not None
        prefix = wire.prefix_of(flags)

        async def get(key: bytes) -> bytes | None:
            known, pool = trust.usable(mark), self._pools.get(asyncio.get_running_loop())
            if known is None or self._down.delay or pool is None or not pool.idle:
                return None
            if pool.idle[-1].wire.running.now != known.record.run:
                return None
            connection = pool.idle.pop()
            try:
                record, found = await connection.wire.get_two(trust.key, known.prefix + key)
            except NodeError as error:
                self._broke(pool, connection, error)
                return None
            except BaseException:
                pool.discard(connection)
                raise
            pool.release(connection)
            if not redis_record.same(record, known.raw):
                return None
            return wire.plain(found, prefix, refresh_ahead, time.time() if refresh_ahead else 0)

        return get

    async def exchange(self, request: Exchange) -> Replies:
        """Send commands and return what was read, None each when no connection is old enough. Raises NodeError."""
        pool = self._pool()
        if request.before is not None:
            return await self._present(pool, request.before, request)
        self._down.check(f"redis {self.name}")
        try:
            while True:
                connection = await self._acquire(pool)
                try:
                    replies = await self._over(pool, connection, request)
                except NodeError as error:
                    self._broke(pool, connection, error)
                else:
                    self._down.answered()
                    return replies
        except asyncio.CancelledError:
            self._down.passed_on()
            raise

    async def stats(self) -> dict[str, Any]:
        """Return the server's own figures (Redis documentation, "INFO")."""
        return await self._hold(leases.figures())

    async def aclose(self) -> None:
        """Close idle connections, those of other event loops too; the node can be used again."""
        await self._orphans.ended()
        mine = asyncio.get_running_loop()
        for loop, pool in list(self._pools.items()):
            if loop is not mine and not loop.is_closed():
                loop.call_soon_threadsafe(pool.close)
        await self._leave()

    def forget(self) -> None:
        """Let go of the parent's connections after a fork; the parent goes on using them."""
        for pool in self._pools.values():
            for connection in pool.open:
                connection.wire.leave()
        self._pools.clear()

    async def _leave(self) -> None:
        """Close the idle connections of this event loop."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None:
            pool.close()
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def _pool(self) -> LoopPool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for other in [other for other in self._pools if other.is_closed()]:
                del self._pools[other]
            self._shutdown.watch()
            pool = self._pools[loop] = LoopPool(self._connect, self._limit, self._access.timeout)
        return pool

    async def _present(self, pool: LoopPool, epoch: int, request: Exchange) -> Replies:
        """Present tokens of `epoch` over a connection that was there before them; None each when none is left."""
        while (connection := await pool.acquire_before(epoch)) is not None:
            try:
                return await self._over(pool, connection, request)
            except NodeError as error:
                self._broke(pool, connection, error)
        return [None] * len(request.commands)

    async def _acquire(self, pool: LoopPool) -> Connection[AsyncLink]:
        try:
            return await pool.acquire()
        except LeasecacheError as error:
            if isinstance(error, NodeError):
                self.errors.count(error)
            self._down.failed()
            raise

    async def _over(self, pool: LoopPool, connection: Connection[AsyncLink], request: Exchange) -> Replies:
        """Send, receive and read. After a NodeError the connection is the caller's, to be reported by `_broke`."""
        epoch = EPOCH.latest  # before the request is sent: a later connection may be to a restarted server
        try:
            link, count = connection.wire, len(request.commands)
            doubt = await link.doubt(request.run)
            values = [self._named(doubt)] * count if doubt else await link.exchange(request.commands)
        except NodeError:
            raise
        except BaseException:  # cancelled: half an answer may be left on the wire
            pool.discard(connection)
            raise
        pool.release(connection)
        for value in values:
            if isinstance(value, ResponseError) and wire.code(value) not in ("MOVED", "ASK", "WRONGTYPE"):
                self.errors.count(NodeError(str(value)))
        return [Reply(value, epoch, connection.epoch, self.name, link.running.now) for value in values]

    def _broke(self, pool: LoopPool, connection: Connection[AsyncLink], error: NodeError) -> None:
        """Take note of a failed exchange; return if it may go better over another connection, else raise NodeError.

        A connection that was idle may have died unnoticed, and the others with it.
        """
        self.errors.count(error)
        pool.discard(connection)
        if isinstance(error, NodeTimeout):
            pool.drop_idle()
        elif not isinstance(error, ProtocolError) and connection.pooled:
            return
        self._down.failed()
        raise self._named(error) from error

    async def _connect(self) -> Connection[AsyncLink]:
        """Open a connection to a server that can hold leases. Raises NodeError, or ConfigError at the first attempt.

        Once it was fit, what keeps us out may be a failover or a password that is being changed: it may pass.
        """
        try:
            address = await self._locate() if self._locate else address_of(self.name)
            link = AsyncLink(address, self._access)
            try:
                await link.open()
                check_greeting(await link.ask(GREETING), cluster=self._cluster)
            except BaseException:
                link.close()
                raise
        except Unfit as error:
            kind = NodeError if self._fit else ConfigError
            raise kind(f"redis {self.name}: {error}") from error
        except NodeError as error:
            raise self._named(error) from origin(error)
        self._fit = True
        return Connection(link, None)

    def _named(self, error: NodeError) -> NodeError:
        return type(error)(f"redis {self.name}: {error}")


class AsyncSentinels:
    """Knows where the primary of a service is: the twin of `Sentinels`."""

    def __init__(self, service: str, names: Sequence[str], access: Access) -> None:
        """`names` are "host:port" of Sentinels; those that want a password get that of the service."""
        self.name = f"{service}@{','.join(names)}"
        self._service = service
        self._names = list(names)
        self._access = access

    async def locate(self) -> Address:
        """Return the address of the primary. Raises NodeError."""
        search = find_primary(self._service, self._names)
        try:
            name = next(search)
            while True:
                name = search.send(await self._ask(name))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _ask(self, name: str) -> "tuple[str, int] | NodeError | None":
        question = [wire.find_primary(self._service)]
        try:
            try:
                [reply] = await ask_once(address_of(name), self._access.anonymous(), question)
            except Unfit:
                [reply] = await ask_once(address_of(name), replace(self._access, db=0), question)
            return wire.read_primary(reply)
        except NodeError as error:
            return error
