"""Talking to one memcached server: its connections, what a failed exchange says about it, and when to ask again."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pymemcache.client.base import Client

from leasecache import _accel, _pure
from leasecache._accel import Reply, Wire
from leasecache.errors import GuardError, LeasecacheError, NodeError, NodeTimeout, ProtocolError
from leasecache.lease import ANY_CONNECTION, NO_CONNECTION
from leasecache.metrics import NodeStats
from leasecache.stores import classic, meta
from leasecache.stores.clock import Reading
from leasecache.stores.dial import Dialer, Tls, converse
from leasecache.stores.errand import Errand
from leasecache.stores.greeting import Credentials
from leasecache.stores.pool import EPOCH, Connection, Pool
from leasecache.stores.probe import Probe
from leasecache.stores.trust import Trust

QUIET = -1  # instead of a number of replies: as many as come before MN

T = TypeVar("T")
C = TypeVar("C")
Build = Callable[[Connection[Wire]], bytes]  # the request, for this connection
Read = Callable[[list[Reply], int, int, C], T]  # replies, epoch when they were asked for, that of the connection


class NoEpoch(_accel.EpochState):
    """Instead of EPOCH behind a proxy, whose connections survive restarts of the server: they prove nothing."""

    def __init__(self) -> None:
        self.latest = NO_CONNECTION


class MemcachedLink:
    """The connections to one memcached server, and exchanges over them."""

    def __init__(
        self,
        name: str,
        *,
        timeout: float = 1.0,
        connect_timeout: float = 1.0,
        pool: int = 64,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        proxied: bool = False,
    ) -> None:
        """`name` is "host:port" or a socket's path; times in s; `pool` connections at most. Opens nothing.

        `proxied`: what answers there is a TCP proxy, so that only CAS numbers chosen by us make a lease safe.
        """
        self.name = name
        self._timeout = timeout
        self._dialer = Dialer(
            name,
            timeout=timeout,
            connect_timeout=connect_timeout,
            tls=tls,
            credentials=credentials,
            proxied=proxied,
        )
        self._epoch = NoEpoch() if proxied else EPOCH
        self._pool: Pool[Wire] = Pool(self._connect, pool, patience=timeout)
        self._reading: Reading | None = None  # of the server's clock; None = not asked yet
        self.errors = NodeStats()
        self._down = Probe(self.errors)
        self.trust: Trust | None = None

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        return self._pool.size

    def close(self) -> None:
        """Close idle connections; the node can be used again."""
        self._pool.close()

    def _trusted(self) -> Trust:
        if self.trust is None:
            raise ValueError(f"memcached {self.name} is asked for guarded keys, and is not guarded")
        return self.trust

    def _now(self, connection: Connection[Wire]) -> int:
        """Return the server's time, asked over this connection when no recent answer holds for it. Raises NodeError."""
        reading = self._reading
        if reading is None or not reading.holds(connection.epoch):
            epoch = EPOCH.latest
            seconds = converse(connection.sock, classic.STATS, classic.read_time, self._timeout)
            reading = self._reading = Reading(seconds, time.monotonic(), epoch)
        return reading.now()

    def _exchange(self, build: Build, count: int, read: Read[C, T], context: C) -> T:
        """Send and receive over any connection, and read the replies."""
        self._down.check(f"memcached {self.name}")
        while True:
            connection = self._acquire()
            try:
                result = self._over(connection, build, count, read, context)
            except NodeError as error:
                self._broke(connection, error)
            else:
                self._down.answered()
                return result

    def _begin(self, request: bytes, read: Callable[[Sequence[Reply]], bytes | None]) -> Errand | None:
        """Begin an exchange of quiet commands that is gone on with later; None when it cannot be without waiting."""
        if self._down.delay:
            return None
        try:
            connection = self._pool.idle.pop()
        except IndexError:
            return None
        if connection.sock.gettimeout() is not None:  # its wire is not the compiled one: each call may wait that long
            self._pool.release(connection)
            return None

        def settle(error: NodeError | None) -> None:
            if error is not None:
                self._broke(connection, error)
            else:
                self._pool.release(connection)
                self._down.answered()

        return Errand(connection, request, read, settle, time.monotonic() + self._timeout)

    def _present(self, epoch: int, build: Build, count: int, read: Read[C, T], context: C) -> T | None:
        """Do the like with tokens of `epoch`, over a connection that may present them; None when none is left."""
        if epoch == ANY_CONNECTION:
            return self._exchange(build, count, read, context)
        while (connection := self._pool.acquire_before(epoch)) is not None:
            try:
                return self._over(connection, build, count, read, context)
            except NodeError as error:
                self._broke(connection, error)
        return None

    def _acquire(self) -> Connection[Wire]:
        try:
            return self._pool.acquire()
        except LeasecacheError as error:
            if isinstance(error, NodeError):
                self.errors.count(error)
            self._down.failed()
            raise

    def _over(self, connection: Connection[Wire], build: Build, count: int, read: Read[C, T], context: C) -> T:
        """Send, receive and read. After a NodeError the connection is the caller's, to be reported by `_broke`."""
        epoch = self._epoch.latest  # before the request is sent: a later connection may be to a restarted server
        wire = connection.wire
        try:
            request = build(connection)
            replies = wire.exchange_quiet(request) if count == QUIET else wire.exchange(request, count)
            result = read(replies, epoch, connection.epoch, context)
        except NodeError:
            raise
        except BaseException:  # a signal, a greenlet's timeout: half an answer may be left on the wire
            self._pool.discard(connection)
            raise
        self._pool.release(connection)
        return result

    def _broke(self, connection: Connection[Wire], error: NodeError) -> None:
        """Take note of a failed exchange; return if it may go better over another connection, else raise NodeError.

        A connection that was idle may have died unnoticed. A restart ends them all, and one failed call finds that out.
        """
        self.errors.count(error)
        named = type(error)(f"memcached {self.name}: {error}")
        if isinstance(error, meta.Complaint):  # the replies are whole: nothing is wrong with connection or node
            self._pool.release(connection)
            raise named from error
        self._pool.discard(connection)
        if isinstance(error, NodeTimeout):
            self._pool.drop_idle()  # a node that has gone without a word has ended none of them
        elif not isinstance(error, ProtocolError):
            self._dialer.distrust()
            self._pool.drop_ended()
            if connection.pooled:
                return
        self._down.failed()
        raise named from error

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Client]:
        """Give a client for administration; what it meets counts."""
        try:
            with self._dialer.client() as client:
                yield client
        except GuardError:  # nothing is wrong with the node
            self._down.answered()
            raise
        except NodeError as error:
            self.errors.count(error)
            self._down.failed()
            raise
        self._down.answered()

    def _connect(self) -> Connection[Wire]:
        sock, terms = self._dialer.dial()
        return Connection(self._wire(sock), sock, explicit=terms.explicit)

    def _wire(self, sock: Any) -> Wire:
        # A monkey-patched or TLS socket must do its own waiting: asked of this socket, not of the import order.
        if type(sock) is socket.socket and type(sock).__module__ == "socket":
            return _accel.Wire(sock, self._timeout)
        return _pure.Wire(sock, self._timeout, _accel.parse_reply)
