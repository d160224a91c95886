"""Leases on one Redis server."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from redis.exceptions import ResponseError

from leasecache.errors import ConfigError, LeasecacheError, NodeError, NodeTimeout, ProtocolError
from leasecache.metrics import NodeStats
from leasecache.stores import redis_leases as leases
from leasecache.stores import redis_record
from leasecache.stores import redis_wire as wire
from leasecache.stores.pool import EPOCH, Connection, Pool
from leasecache.stores.probe import Probe
from leasecache.stores.redis_calls import RedisCalls, ShortWay
from leasecache.stores.redis_greeting import GREETING, check_greeting
from leasecache.stores.redis_leases import Exchange, Replies, Reply
from leasecache.stores.redis_link import Access, Address, Link, ask_once, origin
from leasecache.stores.redis_route import find_primary
from leasecache.stores.redis_wire import Unfit

Locate = Callable[[], Address]


class RedisNode(RedisCalls):
    """One Redis server: leases by scripts over a pool of connections, plain hits by GET."""

    def __init__(
        self,
        name: str,
        access: Access | None = None,
        *,
        pool: int = 64,
        locate: Locate | None = None,
        cluster: NodeStats | None = None,
    ) -> None:
        """`name` is "host:port" or a socket's path; `pool` connections at most. Opens nothing.

        `locate` tells the address each time a connection is opened, default the name's. `cluster` are the figures of
        the cluster that it is part of.
        """
        self.name = name
        self.errors = cluster or NodeStats()
        self._access = access or Access()
        self.moves = locate is not None
        self._locate = locate or (lambda: address_of(name))
        self._cluster = cluster is not None
        self._pool: Pool[Link] = Pool(self._connect, pool, patience=self._access.timeout)
        self._down = Probe(self.errors)
        self._fit = False  # whether a connection was ever made: then what refuses us now may pass

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        return self._pool.size

    def short_way(self, refresh_ahead: float, flags: int) -> ShortWay:
        """Return a GET over an idle connection that gives the value of a plain hit, and None when more is needed.

        A plain hit has these client flags and is not near its expiry. Raises NodeError.
        """
        prefix, plain = wire.prefix_of(flags), wire.plain
        idle, release, down = self._pool.idle, self._pool.release, self._down

        def get(key: bytes) -> bytes | None:
            if down.delay or not idle:
                return None
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                return None
            try:
                found = connection.wire.get(key)
            except NodeError as error:
                self._broke(connection, error)
                return None
            except BaseException:
                self._pool.discard(connection)
                raise
            release(connection)
            return plain(found, prefix, refresh_ahead, time.time() if refresh_ahead else 0)

        return get

    def guarded_way(self, refresh_ahead: float, flags: int, mark: bytes) -> ShortWay:
        """Return a look like that of `short_way` together with the guard record: MGET; for the function of `mark`.

        Raises NodeError.
        """
        trust = self.trust
        assert trust is not None
        prefix, plain, vouched = wire.prefix_of(flags), wire.plain, redis_record.same
        idle, release, down = self._pool.idle, self._pool.release, self._down

        def get(key: bytes) -> bytes | None:
            known = trust.known
            if known is None or mark not in known.marks or down.delay or not idle:
                return None
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                return None
            if connection.wire.running.now != known.record.run:
                release(connection)
                return None
            try:
                record, found = connection.wire.get_two(trust.key, known.prefix + key)
            except NodeError as error:
                self._broke(connection, error)
                return None
            except BaseException:
                self._pool.discard(connection)
                raise
            release(connection)
            if not vouched(record, known.raw):
                return None
            return plain(found, prefix, refresh_ahead, time.time() if refresh_ahead else 0)

        return get

    def exchange(self, request: Exchange) -> Replies:
        """Send commands and return what was read, None each when no connection is old enough. Raises NodeError."""
        if request.before is not None:
            return self._present(request.before, request)
        self._down.check(f"redis {self.name}")
        while True:
            connection = self._acquire()
            try:
                replies = self._over(connection, request)
            except NodeError as error:
                self._broke(connection, error)
            else:
                self._down.answered()
                return replies

    def stats(self) -> dict[str, Any]:
        """Return the server's own figures (Redis documentation, "INFO")."""
        return self._hold(leases.figures())

    def close(self) -> None:
        """Close idle connections; the node can be used again."""
        self._pool.close()

    def _present(self, epoch: int, request: Exchange) -> Replies:
        """Present tokens of `epoch` over a connection that was there before them; None each when none is left."""
        while (connection := self._pool.acquire_before(epoch)) is not None:
            try:
                return self._over(connection, request)
            except NodeError as error:
                self._broke(connection, error)
        return [None] * len(request.commands)

    def _acquire(self) -> Connection[Link]:
        try:
            return self._pool.acquire()
        except LeasecacheError as error:
            if isinstance(error, NodeError):
                self.errors.count(error)
            self._down.failed()
            raise

    def _over(self, connection: Connection[Link], request: Exchange) -> Replies:
        """Send, receive and read. After a NodeError the connection is the caller's, to be reported by `_broke`."""
        epoch = EPOCH.latest  # before the request is sent: a later connection may be to a restarted server
        try:
            doubt = connection.wire.doubt(request.run)
            values = (
                [self._named(doubt)] * len(request.commands) if doubt else connection.wire.exchange(request.commands)
            )
        except NodeError:
            raise
        except BaseException:  # a signal, a greenlet's timeout: half an answer may be left on the wire
            self._pool.discard(connection)
            raise
        self._pool.release(connection)
        for value in values:
            if isinstance(value, ResponseError) and wire.code(value) not in ("MOVED", "ASK", "WRONGTYPE"):
                self.errors.count(NodeError(str(value)))
        run = connection.wire.running.now
        return [Reply(value, epoch, connection.epoch, self.name, run) for value in values]

    def _broke(self, connection: Connection[Link], error: NodeError) -> None:
        """Take note of a failed exchange; return if it may go better over another connection, else raise NodeError.

        A connection that was idle may have died unnoticed. A restart ends them all, and one failed call finds that out.
        """
        self.errors.count(error)
        self._pool.discard(connection)
        if isinstance(error, NodeTimeout):
            self._pool.drop_idle()  # a node that has gone without a word has ended none of them
        elif not isinstance(error, ProtocolError):
            self._pool.drop_ended()
            if connection.pooled:
                return
        self._down.failed()
        raise self._named(error) from error

    def _connect(self) -> Connection[Link]:
        """Open a connection to a server that can hold leases. Raises NodeError, or ConfigError at the first attempt.

        Once it was fit, what keeps us out may be a failover or a password that is being changed: it may pass.
        """
        try:
            link = Link(self._locate(), self._access)
            try:
                check_greeting(link.ask(GREETING), cluster=self._cluster)
            except BaseException:
                link.close()
                raise
        except Unfit as error:
            kind = NodeError if self._fit else ConfigError
            raise kind(f"redis {self.name}: {error}") from error
        except NodeError as error:
            raise self._named(error) from origin(error)
        self._fit = True
        return Connection(link, link)

    def _named(self, error: NodeError) -> NodeError:
        return type(error)(f"redis {self.name}: {error}")


class Sentinels:
    """Knows where the primary of a service is, which may be elsewhere after a failover."""

    def __init__(self, service: str, names: Sequence[str], access: Access) -> None:
        """`names` are "host:port" of Sentinels; those that want a password get that of the service."""
        self.name = f"{service}@{','.join(names)}"
        self._service = service
        self._names = list(names)
        self._access = access

    def locate(self) -> Address:
        """Return the address of the primary. Raises NodeError."""
        search = find_primary(self._service, self._names)
        try:
            name = next(search)
            while True:
                name = search.send(self._ask(name))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _ask(self, name: str) -> "tuple[str, int] | NodeError | None":
        question = [wire.find_primary(self._service)]
        try:
            try:
                [reply] = ask_once(address_of(name), self._access.anonymous(), question)
            except Unfit:
                [reply] = ask_once(address_of(name), replace(self._access, db=0), question)
            return wire.read_primary(reply)
        except NodeError as error:
            return error


def address_of(name: str) -> Address:
    """Return the host and port, or the path of a Unix socket, that a node's name tells."""
    if name.startswith("/"):
        return name
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)
