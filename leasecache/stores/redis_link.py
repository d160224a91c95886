"""One connection to Redis: made by redis-py, bounded in time per exchange, never revived."""

import math
import select
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redis import exceptions
from redis._parsers import _RESP2Parser
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from leasecache.errors import GuardError, NodeError, NodeTimeout, ProtocolError
from leasecache.stores.dial import Tls
from leasecache.stores.redis_record import QUESTION, Running
from leasecache.stores.redis_reply import INCOMPLETE, LOGIN, Replies
from leasecache.stores.redis_wire import Command, Unfit, code, complaint, get_two, optional_bytes, pack, pair, refused

Address = tuple[str, int] | str  # host and port, or the path of a Unix socket
RECEIVED = 2**16  # bytes at most in one go

# What redis-py raises on bytes that are not of the protocol is what its parser stumbles over.
FAILURES = (exceptions.RedisError, OSError, ValueError, RecursionError, OverflowError, MemoryError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to get into a server; times in s."""

    timeout: float = 1.0
    connect_timeout: float = 1.0
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None

    def anonymous(self) -> "Access":
        """Return the same without user, password and database: what a Sentinel takes."""
        return replace(self, username=None, password=None, db=0)

    def arguments(self) -> dict[str, Any]:
        """Return redis-py's keyword arguments of a connection; the older protocol has all that leases need."""
        given: dict[str, Any] = {"db": self.db, "username": self.username, "password": self.password, "protocol": 2}
        given |= {"socket_timeout": self.timeout, "socket_connect_timeout": self.connect_timeout}
        given["parser_class"] = _RESP2Parser  # whatever is installed: hiredis takes memory for a list that is announced
        if self.tls is not None:
            files = {"ssl_ca_certs": self.tls.ca, "ssl_certfile": self.tls.cert, "ssl_keyfile": self.tls.key}
            given |= {"ssl_check_hostname": True, **files}  # True is not the default of every redis-py
        return given


def _bounded(kind: Any) -> Any:
    """Return the class of redis-py's connection with one time limit per exchange, and one life.

    Its own limit starts anew with every byte that comes. It would also connect again by itself: the epoch of our
    connection would lie, and a token from before a restart could store.
    """

    class Bounded(kind):  # type: ignore[misc]
        spent = False

        def _connect(self) -> "_Socket":
            if self.spent:
                raise exceptions.ConnectionError("connection closed")
            self.spent = True
            return _Socket(super()._connect(), self.limit)

    return Bounded


class _Socket:
    """A socket with one deadline from the first byte sent to the last received."""

    def __init__(self, sock: Any, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._answering = False
        self._polls = False
        self._left: float = LOGIN  # bytes that may come

    def let_in(self) -> None:
        """End the limit of what may come."""
        self._left = math.inf

    def sendall(self, data: bytes) -> None:
        """Send everything; what is sent after something was received begins another exchange."""
        if self._answering:
            self._deadline, self._answering = time.monotonic() + self._timeout, False
        rest = memoryview(data)
        while rest:
            self._limit()
            rest = rest[self._sock.send(rest) :]

    def recv(self, size: int) -> bytes:
        """Receive some bytes."""
        self._answering = self._answering or not self._polls
        self._limit()
        data: bytes = self._sock.recv(size)
        self._count(len(data))
        return data

    def recv_into(self, buffer: Any) -> int:
        """Receive some bytes into a buffer, for redis-py's compiled parser."""
        self._answering = self._answering or not self._polls
        self._limit()
        received: int = self._sock.recv_into(buffer)
        self._count(received)
        return received

    def look(self) -> bytes | None:
        """Return a byte that is there already, b"" at the end, None when nothing is, TLS's own messages apart."""
        self._sock.settimeout(0)
        try:
            data: bytes = self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        return data

    def settimeout(self, timeout: float | None) -> None:
        """Take 0 for a look at what is there already; redis-py sets its limit again after that."""
        self._polls = timeout == 0

    def _count(self, received: int) -> None:
        self._left -= received
        if self._left < 0:
            raise ProtocolError(f"more than {LOGIN} bytes in reply to our login")

    def _limit(self) -> None:
        if self._polls:
            self._sock.settimeout(0)
            return
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Link:
    """A connection that answers commands, the wire of `pool.Connection`. After an error it must be closed."""

    __slots__ = ("_connection", "_replies", "_unasked", "running")

    def __init__(self, address: Address, access: Access) -> None:
        """Connect and authenticate. Raises NodeError, and Unfit when we are not let in."""
        self.running = Running()
        self._connection = _unconnected(address, access)
        try:
            self._connection.connect()
        except exceptions.ResponseError as error:
            raise Unfit(f"it refuses us: {complaint(error)}") from error
        except NodeError:
            raise
        except FAILURES as error:
            raise failure(error) from error
        self._connection._sock.let_in()
        self._replies = Replies()
        self._unasked = select.poll()
        self._unasked.register(self.fileno(), select.POLLIN)

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return what each read from its reply, or its ResponseError. Raises NodeError.

        A script that the server does not know is sent in full: NOSCRIPT is per command, and nothing ran.
        """
        replies = self._talk(b"".join([command.packed for command in commands]), len(commands))
        lost = [i for i, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if lost:
            again = self._talk(b"".join([commands[i].spelled_out for i in lost]), len(lost))
            for i, reply in zip(lost, again, strict=True):
                replies[i] = reply
        return read(commands, replies)

    def ask(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Send commands; return the replies, or their ResponseErrors. Raises NodeError."""
        return self._talk(b"".join([pack(parts) for parts in commands]), len(commands))

    def doubt(self, run: str | None) -> GuardError | None:
        """Return why nothing may be sent to a server that is to be in this run, or ask it. Raises NodeError."""
        if run is None:
            return None
        if self.running.unclear(run):
            [reply] = self.ask([QUESTION])
            try:
                self.running.take(reply, run)
            except GuardError as error:
                return error
        return self.running.doubt(run)

    def get(self, key: bytes) -> bytes | None:
        """Return the reply to a GET, or None in place of a ResponseError. Raises NodeError."""
        [reply] = self._talk(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key), 1)
        return None if isinstance(reply, exceptions.ResponseError) else optional_bytes(reply)

    def get_two(self, first: bytes, second: bytes) -> tuple[bytes | None, bytes | None]:
        """Return the reply to an MGET of two keys, or Nones in place of a ResponseError. Raises NodeError."""
        [reply] = self._talk(get_two(first, second), 1)
        if isinstance(reply, exceptions.ResponseError):
            return None, None
        return pair(reply)

    def fileno(self) -> int:
        """Return the socket's descriptor, −1 when it is closed."""
        sock = self._connection._sock
        return -1 if sock is None else int(sock.fileno())

    def close(self) -> None:
        """Close the socket; never raises."""
        self._connection.disconnect()

    def _talk(self, request: bytes, count: int) -> list[Any]:
        """Send and receive; what arrived while nothing was asked is no answer to anything."""
        try:
            self._refuse_unread()
            self._connection.send_packed_command([request], check_health=False)
            return [self._reply() for _ in range(count)]
        except NodeError:
            raise
        except FAILURES as error:
            raise failure(error) from error

    def _refuse_unread(self) -> None:
        """Raise ConnectionError when the server has closed the connection, ProtocolError when it has sent more."""
        if self._replies.unread:
            raise ProtocolError("bytes after the last expected reply")
        if self._unasked.poll(0) and (waiting := self._connection._sock.look()) is not None:
            if not waiting:
                raise exceptions.ConnectionError("connection closed by the server")
            raise ProtocolError("bytes after the last expected reply")

    def _reply(self) -> Any:
        replies = self._replies
        while (reply := replies.take()) is INCOMPLETE:
            data = self._connection._sock.recv(RECEIVED)
            if not data:
                raise exceptions.ConnectionError("connection closed by the server")
            replies.feed(data)
        return reply


_TCP, _TLS, _UNIX = _bounded(Connection), _bounded(SSLConnection), _bounded(UnixDomainSocketConnection)


def _unconnected(address: Address, access: Access) -> Any:
    arguments = access.arguments()
    if isinstance(address, str):
        connection = _UNIX(path=address, **arguments)
    else:
        connection = (_TCP if access.tls is None else _TLS)(host=address[0], port=address[1], **arguments)
    connection.limit = access.timeout  # redis-py 5.0 forgets its own over a Unix socket
    return connection


def ask_once(address: Address, access: Access, commands: Sequence[Sequence[bytes]]) -> list[Any]:
    """Return the replies to commands over a connection of their own. Raises NodeError."""
    link = Link(address, access)
    try:
        return link.ask(commands)
    finally:
        link.close()


def read(commands: Sequence[Command], replies: Sequence[Any]) -> list[Any]:
    """Return what each command reads from its reply, or its ResponseError. Raises NodeError.

    A server that has become a replica, or starts, is of no use to any command: the connection has to go.
    """
    for reply in replies:
        if isinstance(reply, exceptions.ResponseError) and code(reply) in ("READONLY", "MASTERDOWN"):
            raise refused(reply)
    return [
        reply if isinstance(reply, exceptions.ResponseError) else command.read(reply)
        for command, reply in zip(commands, replies, strict=True)
    ]


def failure(error: Exception) -> NodeError:
    """Return ours for an error of redis-py or of the socket."""
    if isinstance(error, NodeError):
        return error
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return Unfit(f"it does not let us in: {error}; give user and password in the URL: redis://user:password@host")
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return NodeTimeout("no answer in time")
    if isinstance(error, exceptions.ConnectionError | OSError):
        return NodeError(f"{error or type(error).__name__}")
    return ProtocolError(f"unexpected answer: {error or type(error).__name__}")


def origin(error: BaseException) -> BaseException:
    """Return the socket's own error behind an error, which redis-py hides; the error itself when there is none."""
    seen: BaseException | None = error
    while seen is not None and not (isinstance(seen, OSError) and seen.errno):
        seen = seen.__cause__ or seen.__context__
    return seen or error
