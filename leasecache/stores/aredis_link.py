"""One asyncio connection to Redis, the twin of `redis_link.Link`, and the connections of one event loop."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis import exceptions
from redis._parsers import _AsyncRESP2Parser
from redis.asyncio.connection import Connection as TcpConnection
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from leasecache.errors import GuardError, NodeError, NodeTimeout, ProtocolError
from leasecache.stores.pool import Connection
from leasecache.stores.redis_link import FAILURES, RECEIVED, Access, Address, failure, read
from leasecache.stores.redis_record import QUESTION, Running
from leasecache.stores.redis_reply import INCOMPLETE, LOGIN, Replies
from leasecache.stores.redis_wire import Command, Unfit, complaint, get_two, optional_bytes, pack, pair
from leasecache.stores.within import within

_left_behind: list[Any] = []  # a parent's connections: collecting one would take it from the parent's event loop


def _once(kind: Any) -> Any:
    """Return the class of redis-py's connection with one life: connecting again would let its epoch lie."""

    class Once(kind):  # type: ignore[misc]
        spent = False

        async def _connect(self) -> None:
            if self.spent:
                raise exceptions.ConnectionError("connection closed")
            self.spent = True
            await super()._connect()
            self._reader: Any = _Frugal(self._reader)

    return Once


class _Frugal:
    """A stream that gives redis-py no more than the replies to a login can have."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._left = LOGIN

    async def readexactly(self, size: int) -> Any:
        """Read so many bytes. Raises ProtocolError."""
        self._count(size)
        return await self.stream.readexactly(size)

    async def readline(self) -> Any:
        """Read a line. Raises ProtocolError."""
        line = await self.stream.readline()
        self._count(len(line))
        return line

    async def read(self, size: int) -> Any:
        """Read some bytes. Raises ProtocolError."""
        data = await self.stream.read(size)
        self._count(len(data))
        return data

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ProtocolError(f"more than {LOGIN} bytes in reply to our login")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_TCP, _TLS, _UNIX = _once(TcpConnection), _once(SSLConnection), _once(UnixDomainSocketConnection)


class AsyncLink:
    """A connection that answers commands. After an error, and after a cancelled call, it must be closed."""

    def __init__(self, address: Address, access: Access) -> None:
        """Connects by `open`."""
        arguments = access.arguments() | {
            "parser_class": _AsyncRESP2Parser,
            "socket_timeout": None,
        }  # ours is for a whole exchange
        self._timeout = access.timeout
        self._connect_timeout = access.connect_timeout + access.timeout
        self._expired = False
        self._replies = Replies()
        self.running = Running()
        if isinstance(address, str):
            self._connection = _UNIX(path=address, **arguments)
        else:
            self._connection = (_TCP if access.tls is None else _TLS)(host=address[0], port=address[1], **arguments)
        self._can_read: Callable[[], Awaitable[bool]] = getattr(self._connection, "can_read", None) or (
            self._connection.can_read_destructive  # its name before redis-py 8
        )

    async def open(self) -> None:
        """Connect and authenticate. Raises NodeError, and Unfit when we are not let in."""
        try:
            await within(self._connect_timeout, self._connection.connect())
        except exceptions.ResponseError as error:
            raise Unfit(f"it refuses us: {complaint(error)}") from error
        except asyncio.TimeoutError as error:
            raise NodeTimeout("no connection in time") from error
        except NodeError:
            raise
        except FAILURES as error:
            raise failure(error) from error

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return what each read from its reply, or its ResponseError. Raises NodeError.

        A script that the server does not know is sent in full: NOSCRIPT is per command, and nothing ran.
        """
        replies = await self._talk(b"".join([command.packed for command in commands]), len(commands))
        lost = [i for i, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if lost:
            again = await self._talk(b"".join([commands[i].spelled_out for i in lost]), len(lost))
            for i, reply in zip(lost, again, strict=True):
                replies[i] = reply
        return read(commands, replies)

    async def ask(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Send commands; return the replies, or their ResponseErrors. Raises NodeError."""
        return await self._talk(b"".join([pack(parts) for parts in commands]), len(commands))

    async def doubt(self, run: str | None) -> GuardError | None:
        """Return why nothing may be sent to a server that is to be in this run, or ask it. Raises NodeError."""
        if run is None:
            return None
        if self.running.unclear(run):
            [reply] = await self.ask([QUESTION])
            try:
                self.running.take(reply, run)
            except GuardError as error:
                return error
        return self.running.doubt(run)

    async def get(self, key: bytes) -> bytes | None:
        """Return the reply to a GET, or None in place of a ResponseError. Raises NodeError."""
        [reply] = await self._talk(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key), 1)
        return None if isinstance(reply, exceptions.ResponseError) else optional_bytes(reply)

    async def get_two(self, first: bytes, second: bytes) -> tuple[bytes | None, bytes | None]:
        """Return the reply to an MGET of two keys, or Nones in place of a ResponseError. Raises NodeError."""
        [reply] = await self._talk(get_two(first, second), 1)
        if isinstance(reply, exceptions.ResponseError):
            return None, None
        return pair(reply)

    def close(self) -> None:
        """Close the socket; never raises."""
        writer = self._connection._writer
        if writer is not None:
            with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile
                writer.transport.abort()
            self._connection._reader = self._connection._writer = None

    def leave(self) -> None:
        """Let go of the connection in a forked child; its descriptor's number stays taken, whoever closes it."""
        writer = self._connection._writer
        if writer is not None:
            with contextlib.suppress(OSError), open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), writer.get_extra_info("socket").fileno())
            _left_behind.append(self._connection)

    async def _talk(self, request: bytes, count: int) -> list[Any]:
        """Send and receive under one deadline; what arrived while nothing was asked is no answer to anything."""
        alarm = asyncio.get_running_loop().call_later(self._timeout, self._expire)
        try:
            await self._refuse_unread()
            await self._connection.send_packed_command([request], check_health=False)
            return [await self._reply() for _ in range(count)]
        except FAILURES as error:
            if self._expired:
                raise NodeTimeout("no answer in time") from error
            if isinstance(error, NodeError):
                raise
            raise failure(error) from error
        finally:
            alarm.cancel()

    async def _refuse_unread(self) -> None:
        """Raise ConnectionError when the server has closed the connection, ProtocolError when it has sent more."""
        reader = self._connection._reader
        if (
            self._replies.unread or reader._buffer or await self._can_read()
        ):  # which overlooks the buffer before redis-py 8
            if reader.at_eof():  # an end is something to read, too
                raise exceptions.ConnectionError("connection closed by the server")
            raise ProtocolError("bytes after the last expected reply")

    def _expire(self) -> None:
        self._expired = True
        self._connection._writer.transport.abort()

    async def _reply(self) -> Any:
        replies = self._replies
        while (reply := replies.take()) is INCOMPLETE:
            data = await self._connection._reader.stream.read(RECEIVED)
            if not data:
                raise exceptions.ConnectionError("connection closed by the server")
            replies.feed(data)
        return reply


async def ask_once(address: Address, access: Access, commands: Sequence[Sequence[bytes]]) -> list[Any]:
    """Return the replies to commands over a connection of their own. Raises NodeError."""
    link = AsyncLink(address, access)
    try:
        await link.open()
        return await link.ask(commands)
    finally:
        link.close()


class LoopPool:
    """At most `limit` connections of one event loop to one node; one that is idle is used again, the latest first."""

    def __init__(self, connect: Callable[[], Awaitable[Connection[AsyncLink]]], limit: int, patience: float) -> None:
        """`connect` opens one; a caller waits up to `patience` s for one when `limit` are busy."""
        self.idle: deque[Connection[AsyncLink]] = deque()
        self.open: set[Connection[AsyncLink]] = set()
        self._connect = connect
        self._limit = limit
        self._patience = patience
        self._opening = 0
        self._term = 0
        self._waiting: set[asyncio.Future[None]] = set()

    async def acquire(self) -> Connection[AsyncLink]:
        """Return a connection for one exchange. Raises NodeError, or NodeTimeout when all stay busy."""
        deadline = time.monotonic() + self._patience
        while not self.idle:
            if len(self.open) + self._opening < self._limit:
                return await self._establish()
            if not await self._change(deadline):
                raise NodeTimeout(f"all {self._limit} connections stayed busy for {self._patience:g} s")
        return self.idle.pop()

    async def acquire_before(self, epoch: int) -> Connection[AsyncLink] | None:
        """Return a connection established no later than `epoch`, or None when none of those is left."""
        deadline = time.monotonic() + self._patience
        while any(connection.epoch <= epoch for connection in self.open):
            for connection in self.idle:
                if connection.epoch <= epoch:
                    self.idle.remove(connection)
                    return connection
            if not await self._change(deadline):
                return None
        return None

    def release(self, connection: Connection[AsyncLink]) -> None:
        """Give back a connection whose exchange was read to its end."""
        if connection.term != self._term:
            return self.discard(connection)
        connection.pooled = True
        self.idle.append(connection)
        self._changed()
        return None

    def discard(self, connection: Connection[AsyncLink]) -> None:
        """Close a connection that may hold half an answer, or that broke."""
        connection.wire.close()
        self.open.discard(connection)
        self._changed()

    def drop_idle(self) -> None:
        """Close the connections that nobody uses now."""
        while self.idle:
            self.discard(self.idle.pop())

    def close(self) -> None:
        """Close the connections, those in use when they come back; the pool can be used again."""
        self._term += 1
        self.drop_idle()

    async def _establish(self) -> Connection[AsyncLink]:
        self._opening += 1
        term = self._term
        try:
            connection = await self._connect()
            connection.term = term
            self.open.add(connection)
            return connection
        finally:
            self._opening -= 1
            self._changed()

    async def _change(self, deadline: float) -> bool:
        """Wait until a connection comes back or goes; False when time is over."""
        change = asyncio.get_running_loop().create_future()
        self._waiting.add(change)
        try:
            await asyncio.wait((change,), timeout=max(0, deadline - time.monotonic()))
            return change.done()
        finally:
            self._waiting.discard(change)

    def _changed(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)
