"""Leases on one Redis server."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from leasecache.errors import ConfigError, LeasecacheError, NodeError, NodeTimeout, ProtocolError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Token
from leasecache.metrics import NodeStats
from leasecache.stores import redis_leases as leases
from leasecache.stores import redis_wire as wire
from leasecache.stores.base import BatchReader, Outcome, Reader
from leasecache.stores.pool import EPOCH, Connection, Pool
from leasecache.stores.probe import Probe
from leasecache.stores.redis_leases import Conversation, Exchange, Replies
from leasecache.stores.redis_link import Access, Address, Link
from leasecache.stores.redis_wire import Command, Unfit

T = TypeVar("T")
Locate = Callable[[], Address]


class RedisCalls(ABC):
    """What a store asks of a node, over whatever performs the exchanges."""

    name: str
    errors: NodeStats
    scattered = False  # whether the keys may be on several servers

    @abstractmethod
    def exchange(self, request: Exchange) -> Replies | None:
        """Send commands and return what was read, or None when no connection is old enough. Raises NodeError."""

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0) -> Answer:
        """Return the value, or the lease to load it, or who has it. Raises NodeError."""
        return self._hold(leases.lease_get(Ask(key, lease_for, refresh_ahead)))

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer per ask, in order, with one round trip per 1,000 keys. Raises NodeError."""
        return self._hold(leases.lease_get_many(asks))

    def batch_reader(self, lease_for: float, refresh_ahead: float, flags: int) -> BatchReader:
        """Return a lease-get of many keys that gives the values alone of plain hits with these client flags."""

        def read(keys: Sequence[bytes]) -> list[bytes | Answer]:
            asks = [Ask(key, lease_for, refresh_ahead) for key in keys]
            return self._hold(leases.read_many(asks, flags, scattered=self.scattered))

        return read

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under the lease, over a connection older than it. Raises NodeError."""
        return self._hold(leases.lease_set(Fill(lease, flags, body, ttl)))

    def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome]:
        """Store under each lease. Raises NodeError."""
        return self._hold(leases.lease_set_many(fills))

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next reader wins at once. Raises NodeError."""
        self._hold(leases.release(lease))

    def steal(self, key: bytes, token: Token, lease_for: float) -> Answer:
        """Void the lease that `token` names, unless it is gone, and answer as a lease-get then does. Raises NodeError.

        Of many who steal one token one gets a lease: the server compares the tokens.
        """
        return self._hold(leases.steal(key, token, lease_for))

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s.

        Returns once the server has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        self._hold(leases.invalidate(keys, stale_for, scattered=self.scattered))

    def look(self, key: bytes) -> Hit | None:
        """Return the value without touching its lease; the answer does not tell whether it is stale.

        Raises NodeError. Redis counts it as a use of the key.
        """
        return self._hold(leases.look(key))

    def _hold(self, conversation: Conversation[T]) -> T:
        """Perform the exchanges of a conversation; return what it comes to."""
        replies: Replies | None = None
        try:
            request = next(conversation)
            while True:
                replies = self.exchange(request)
                request = self._next(conversation, replies)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _next(self, conversation: Conversation[T], replies: Replies | None) -> Exchange:
        try:
            return conversation.send(replies)
        except NodeError as error:  # a command was refused; the node is up
            self.errors.count(error)
            raise self.named(error) from error

    def named(self, error: NodeError) -> NodeError:
        """Return the error with the node's name."""
        kind = NodeError if isinstance(error, Unfit) else type(error)
        return kind(f"redis {self.name}: {error}")


class RedisNode(RedisCalls):
    """One Redis server: leases by scripts over a pool of connections, plain hits by GET."""

    def __init__(
        self,
        name: str,
        access: Access | None = None,
        *,
        pool: int = 64,
        locate: Locate | None = None,
        cluster: bool = False,
    ) -> None:
        """`name` is "host:port" or a socket's path; `pool` connections at most. Opens nothing.

        `locate` tells the address each time a connection is opened, default the name's.
        """
        self.name = name
        self.errors = NodeStats()
        self._access = access or Access()
        self._locate = locate or (lambda: address_of(name))
        self._cluster = cluster
        self._pool: Pool[Link] = Pool(self._connect, pool, patience=self._access.timeout)
        self._down = Probe(self.errors)
        self._fit = False  # whether a connection was ever made: then what refuses us now may pass

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        return self._pool.size

    def reader(self, lease_for: float, refresh_ahead: float, flags: int) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags.

        A plain hit is a GET; only when that brings something else the scripts are asked.
        """
        prefix, plain = wire.prefix_of(flags), wire.plain
        idle, release, down = self._pool.idle, self._pool.release, self._down

        def read(key: bytes) -> bytes | Answer:
            if down.delay or not idle:
                return self.lease_get(key, lease_for, refresh_ahead)
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                return self.lease_get(key, lease_for, refresh_ahead)
            try:
                found = connection.wire.get(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key))
            except NodeError as error:
                self._broke(connection, error)
                found = None
            except BaseException:
                self._pool.discard(connection)
                raise
            else:
                release(connection)
            body = plain(found, prefix, refresh_ahead, time.time() if refresh_ahead else 0)
            return self.lease_get(key, lease_for, refresh_ahead) if body is None else body

        return read

    def exchange(self, request: Exchange) -> Replies | None:
        """Send commands and return what was read, or None when no connection is old enough. Raises NodeError."""
        if request.before is not None:
            return self._present(request.before, request.commands)
        self._down.check(f"redis {self.name}")
        while True:
            connection = self._acquire()
            try:
                replies = self._over(connection, request.commands)
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

    def _present(self, epoch: int, commands: Sequence[Command]) -> Replies | None:
        """Send tokens of `epoch` over a connection that was there before them; None when none is left."""
        while (connection := self._pool.acquire_before(epoch)) is not None:
            try:
                return self._over(connection, commands)
            except NodeError as error:
                self._broke(connection, error)
        return None

    def _acquire(self) -> Connection[Link]:
        try:
            return self._pool.acquire()
        except LeasecacheError as error:
            if isinstance(error, NodeError):
                self.errors.count(error)
            self._down.failed()
            raise

    def _over(self, connection: Connection[Link], commands: Sequence[Command]) -> Replies:
        """Send, receive and read. After a NodeError the connection is the caller's, to be reported by `_broke`."""
        epoch = EPOCH.latest  # before the request is sent: a later connection may be to a restarted server
        try:
            values = connection.wire.exchange(commands)
        except NodeError:
            raise
        except BaseException:  # a signal, a greenlet's timeout: half an answer may be left on the wire
            self._pool.discard(connection)
            raise
        self._pool.release(connection)
        return Replies(values, epoch, connection.epoch)

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
        raise self.named(error) from error

    def _connect(self) -> Connection[Link]:
        """Open a connection to a server that can hold leases. Raises NodeError, or ConfigError at the first attempt.

        Once it was fit, what keeps us out may be a failover or a password that is being changed: it may pass.
        """
        try:
            link = Link(self._locate(), self._access)
            try:
                wire.check_greeting(link.ask(wire.GREETING), cluster=self._cluster)
            except BaseException:
                link.close()
                raise
        except Unfit as error:
            raise self.named(error) if self._fit else ConfigError(f"redis {self.name}: {error}") from error
        except NodeError as error:
            raise self.named(error) from error
        self._fit = True
        return Connection(link, link)


def address_of(name: str) -> Address:
    """Return the host and port, or the path of a Unix socket, that a node's name tells."""
    if name.startswith("/"):
        return name
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)
