"""Leases on one memcached server, by the meta protocol."""

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError

from leasecache import _accel, _pure
from leasecache._accel import Reply, Wire
from leasecache.errors import ConfigError, NodeError, NodeTimeout, ProtocolError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Refused, Token
from leasecache.metrics import NodeStats
from leasecache.stores import meta
from leasecache.stores.base import BatchReader, Outcome, Reader
from leasecache.stores.pool import EPOCH, Connection, Pool
from leasecache.stores.probe import Probe

LEAST_VERSION = (1, 6, 13)  # md C and ms c behave since then
CHUNK = 32 * 1024  # bytes of requests sent before their replies are read; fits any socket buffer
SETTINGS_FOR = 5.0  # s that a server's settings are taken to be what they were
QUIET = -1  # instead of a number of replies: as many as come before MN

Address = tuple[str, int] | str
T = TypeVar("T")
C = TypeVar("C")
Read = Callable[[list[Reply], int, int, C], T]  # replies, epoch when they were asked for, that of the connection


class MemcachedNode:
    """One memcached server: leases by the meta protocol over a pool of connections."""

    def __init__(self, name: str, *, timeout: float = 1.0, connect_timeout: float = 1.0, pool: int = 64) -> None:
        """`name` is "host:port" or a socket's path; times in s; `pool` connections at most. Opens nothing."""
        self.name = name
        self._address = node_address(name)
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._pool = Pool(self._connect, pool, patience=timeout)
        self._size_limit, self._settings_until = 0, 0.0  # bytes; monotonic s
        self.errors = NodeStats()
        self._down = Probe(self.errors)

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        return self._pool.size

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0) -> Answer:
        """Return the value, or the lease to load it, or who has it. Raises NodeError."""
        request = meta.lease_get(key, lease_for, refresh_ahead)
        return self._exchange(request, 1, meta.read_answers, (key,))[0]

    def reader(self, lease_for: float, refresh_ahead: float, flags: int) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags.

        A plain hit over an idle connection takes the short way; everything else goes the way of `lease_get`.
        """
        request = meta.lease_get(b"%b", lease_for, refresh_ahead)
        idle, release, down = self._pool.idle, self._pool.release, self._down

        def read(key: bytes) -> bytes | Answer:
            if down.delay or not idle:
                return self.lease_get(key, lease_for, refresh_ahead)
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                return self.lease_get(key, lease_for, refresh_ahead)
            epoch = EPOCH.latest
            try:
                found = connection.wire.hit(request % key, flags)
                if isinstance(found, bytes):
                    answer: bytes | Answer = found
                else:
                    [answer] = meta.read_answers([found], epoch, connection.epoch, (key,))
            except NodeError as error:
                self._pool.discard(connection)
                self.errors.count(error)
                return self._again(connection, self._named(error), request % key, 1, meta.read_answers, (key,))[0]
            except BaseException:
                self._pool.discard(connection)
                raise
            release(connection)
            return answer

        return read

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer per ask, in order, with one round trip per 32 KiB of requests. Raises NodeError."""
        answers: list[Answer] = []
        for chunk in chunks([meta.lease_get(*ask) for ask in asks]):
            asked = [ask.key for ask in asks[len(answers) : len(answers) + len(chunk)]]
            answers += self._exchange(b"".join(chunk), len(chunk), meta.read_answers, asked)
        return answers

    def batch_reader(self, lease_for: float, refresh_ahead: float, flags: int) -> BatchReader:
        """Return a lease-get of many keys that gives the values alone of plain hits with these client flags."""

        def read(keys: Sequence[bytes]) -> list[bytes | Answer | NodeError]:
            answers = self.lease_get_many([Ask(key, lease_for, refresh_ahead) for key in keys])
            return [a.value if type(a) is Hit and a.flags == flags else a for a in answers]

        return read

    def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome]:
        """Store under each lease. Raises NodeError."""
        return [self.lease_set(*fill) for fill in fills]

    def steal(self, key: bytes, token: Token, lease_for: float) -> Answer:
        """Void the lease that `token` names, unless it is gone, and answer as a lease-get then does. Raises NodeError.

        Of many who steal one token one gets a lease: the server compares the CAS.
        """
        connection = self._pool.acquire_before(token.epoch)
        if connection is not None:
            self._over(connection, meta.steal(key, token), 1, meta.read_nothing, None)
        return self.lease_get(key, lease_for)

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under the lease, over a connection older than it. Raises NodeError."""
        if lease.token is None:
            return Refused("the server had no room for a lease, or holds somebody else's value")
        request = meta.lease_set(lease.key, lease.token.cas, flags, body, meta.exptime(ttl, time.time()))
        connection = self._pool.acquire_before(lease.token.epoch)
        if connection is None:
            return Refused("every connection from before the lease is gone, the server may have restarted")
        if len(lease.key) + len(body) + meta.ITEM_OVERHEAD > connection.item_size_max:
            self._pool.release(connection)
            self.release(lease)
            return Refused(f"larger than the server's item_size_max of {connection.item_size_max} bytes")
        return self._over(connection, request, 1, meta.read_outcome, None)

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next reader wins at once. Raises NodeError."""
        request = meta.release(lease)
        connection = self._pool.acquire_before(lease.token.epoch) if request and lease.token else None
        if connection is not None and request is not None:
            self._over(connection, request, 1, meta.read_nothing, None)

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s.

        Returns once the server has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        for chunk in chunks(keys):
            if stale_for < 1:
                request = meta.delete_quietly(chunk)
            else:
                windows = self._exchange(meta.look(chunk), len(chunk), meta.read_windows, stale_for)
                request = meta.mark_stale_quietly(zip(chunk, windows, strict=True))
            self._exchange(request, QUIET, meta.read_acknowledgement, None)

    def look(self, key: bytes) -> Hit | None:
        """Return the value without touching leases or recency; the answer does not tell whether it is stale.

        Raises NodeError.
        """
        with _Admin(self) as client:
            for _ in range(10):  # until both answers are about the same version of the item
                seen = meta.debug(client.raw_command(b"me " + key))
                (flags, value), cas = client.gets(key, default=(0, b""), cas_default=None)
                if seen is None or (cas is not None and int(cas) == seen[1]):
                    break
            return Hit(value, flags, seen[0]) if seen is not None and flags else None

    def stats(self) -> dict[str, Any]:
        """Return the server's own figures (memcached doc/protocol.txt, "General-purpose statistics")."""
        with _Admin(self) as client:
            return {name.decode(): value for name, value in client.stats().items()}

    def close(self) -> None:
        """Close idle connections; the node can be used again."""
        self._pool.close()

    def _exchange(self, request: bytes, count: int, read: Read[C, T], context: C) -> T:
        """Send and receive over any connection, and read the replies."""
        self._down.check(f"memcached {self.name}")
        connection = self._acquire()
        try:
            result = self._over(connection, request, count, read, context)
        except NodeError as error:
            result = self._again(connection, error, request, count, read, context)
        self._down.answered()
        return result

    def _again(self, used: Connection, error: NodeError, request: bytes, count: int, read: Read[C, T], context: C) -> T:
        """Talk once more over a new connection if a pooled one turned out dead; else the node has failed."""
        if isinstance(error, (NodeTimeout, ProtocolError)) or not used.pooled:
            self._down.failed()
            raise error
        self._pool.drop_idle()  # what else is idle has most likely died with it
        connection = self._acquire()
        try:
            return self._over(connection, request, count, read, context)
        except NodeError:
            self._down.failed()
            raise

    def _acquire(self) -> Connection:
        try:
            return self._pool.acquire()
        except NodeError as error:
            self.errors.count(error)
            self._down.failed()
            raise

    def _over(self, connection: Connection, request: bytes, count: int, read: Read[C, T], context: C) -> T:
        """Send, receive and read; a connection whose answer was not read to a good end is not used again."""
        epoch = EPOCH.latest  # before the request is sent: a later connection may be to a restarted server
        wire = connection.wire
        try:
            replies = wire.exchange_quiet(request) if count == QUIET else wire.exchange(request, count)
            result = read(replies, epoch, connection.epoch, context)
        except NodeError as error:
            self._pool.discard(connection)
            self.errors.count(error)
            raise self._named(error) from error
        except BaseException:  # a signal, a greenlet's timeout: half an answer may be left on the wire
            self._pool.discard(connection)
            raise
        self._pool.release(connection)
        return result

    def _named(self, error: NodeError) -> NodeError:
        return type(error)(f"memcached {self.name}: {error}")

    def _connect(self) -> Connection:
        with _Admin(self) as client:
            require_version(self.name, client.version())
            item_size_max = self._item_size_max(client)
            sock, client.sock = client.sock, None  # the wire owns it from here
        return Connection(self._wire(sock), item_size_max)

    def _item_size_max(self, client: Client) -> int:
        """Return the server's limit in bytes, asked anew when the last answer is some s old. Raises ConfigError.

        A herd opens many connections at once, and reading the settings is most of what that costs.
        """
        if time.monotonic() >= self._settings_until:
            settings = client.stats("settings")
            if settings.get(b"cas_enabled") in (b"no", False):  # the client may or may not have parsed it
                raise ConfigError(f"memcached {self.name} runs with -C (no CAS); leases need it: start it without -C")
            self._size_limit = int(settings.get(b"item_size_max", 2**20))
            self._settings_until = time.monotonic() + SETTINGS_FOR
        return self._size_limit

    def _wire(self, sock: Any) -> Wire:
        # A monkey-patched or TLS socket must do its own waiting: asked of this socket, not of the import order.
        if type(sock) is socket.socket and type(sock).__module__ == "socket":
            return _accel.Wire(sock, self._timeout)
        return _pure.Wire(sock, self._timeout, _accel.parse_reply)

    def client(self) -> Client:
        """Return an unconnected pymemcache client of this node, for connecting and administration."""
        return Client(
            self._address,
            connect_timeout=self._connect_timeout,
            timeout=self._timeout,
            no_delay=True,
            serde=_RawSerde(),
        )


class _RawSerde:
    """Gives pymemcache's readers the client flags beside the bytes."""

    def serialize(self, key: bytes, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: bytes, value: bytes, flags: int) -> tuple[int, bytes]:
        return flags, value


class _Admin:
    """A pymemcache client for one task; its exceptions become ours."""

    def __init__(self, node: MemcachedNode) -> None:
        self._name = node.name
        self._client = node.client()

    def __enter__(self) -> Client:
        return self._client

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._client.close()
        if isinstance(error, TimeoutError) and not isinstance(error, NodeError):
            raise NodeTimeout(f"memcached {self._name}: no answer in time") from error
        if isinstance(error, (OSError, MemcacheError)) and not isinstance(error, NodeError):
            raise NodeError(f"memcached {self._name}: {error or type(error).__name__}") from error


def node_address(name: str) -> Address:
    """Return host and port, or the path of a Unix socket."""
    if name.startswith("/"):
        return name
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def require_version(name: str, version: bytes) -> None:
    """Raise ConfigError when the version that a server gives is too old for leases."""
    numbers = tuple(int(part) for part in version.split(b"-")[0].split(b".") if part.isdigit())
    if numbers < LEAST_VERSION:
        text = version.decode(errors="replace")
        raise ConfigError(f"memcached {name} is version {text}; leases need 1.6.13 or newer: upgrade it")


def chunks(parts: Sequence[bytes]) -> Iterable[list[bytes]]:
    """Split requests into lists of at most CHUNK bytes, one request at least."""
    chunk: list[bytes] = []
    size = 0
    for part in parts:
        if size + len(part) > CHUNK and chunk:
            yield chunk
            chunk, size = [], 0
        chunk.append(part)
        size += len(part)
    if chunk:
        yield chunk
