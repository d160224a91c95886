"""Pure-Python twin of `leasecache._mux`: the requests of many tasks over one connection.

Replies of the meta protocol come in the order of their requests, so a queue tells whose each one is. Requests of one
turn of the event loop leave together. Whatever could shift that order ends the connection: a reply that its
command cannot have, a reply that nobody asked for, one that does not come in time.

The guarded requests of one write share one reading of the guard record, in front of the first of them: the server reads
it before any of their keys, and after each of their calls began.
"""

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from leasecache._pure import LINE_LIMIT, Reply, parse_reply
from leasecache._pure_pending import Epochs, Guard, Owner, Pending, Read, Record
from leasecache.errors import NodeError, NodeTimeout, ProtocolError

QUIET = -1  # instead of a number of replies: as many as come before MN
ANY_FLAGS = -1  # no client flags: the request is not a reader's
FIRST_BUFFER = 65536  # bytes
EARLY = 4096  # bytes of requests that leave before the turn is over, so that the server works while the tasks do
LARGEST = 2**30  # bytes of a value, whatever a server says: what memcached's -I may be at most
QUEUE_LIMIT = 262144  # bytes of requests that wait for the transport; who comes then waits for room

_STATED = re.compile(rb"VA ([0-9]{1,10})[ \r]").match

Parse = Callable[[bytes, int], "tuple[Reply, int] | None"]


class Mux(asyncio.BufferedProtocol):
    """Sends the requests of all tasks of one event loop over one connection and gives each its replies."""

    __slots__ = (
        *("born", "closed", "died", "loop", "mark", "open"),
        *(
            "_epochs",
            "_error",
            "_flushing",
            "_most",
            "_name",
            "_out",
            "_out_size",
            "_owner",
            "_parse",
            "_paused",
            "_pending",
        ),
        *("_record", "_rest", "_room", "_served", "_timeout", "_timer", "_transport", "_waiters"),
    )

    def __init__(
        self,
        name: str,
        owner: Owner,
        epochs: Epochs,
        born: int,
        mark: Callable[[], bytes],
        timeout: float,
        parse: Parse = parse_reply,
        most: int = LARGEST,
    ) -> None:
        """`name` begins messages, `born` is the connection's number, `timeout` the s that each request may take.

        `mark` gives what a command that makes a CAS number has in front of its end. `most` bytes a value may have.
        """
        self.loop = asyncio.get_running_loop()
        self._owner = owner
        self._epochs = epochs
        self.born = born
        self.mark = mark
        self._timeout = timeout
        self.open = False
        self.died = False  # the server ended it after it had answered: over another connection it may answer again
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._name = name
        self._parse = parse
        self._most = most
        self._transport: Any = None
        self._pending: deque[Pending | Record] = deque()
        self._record: Record | None = None  # among what waits to be sent
        self._out: list[bytes] = []
        self._out_size = 0
        self._flushing = self._paused = self._served = False
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._error: NodeError | None = None
        self._room = memoryview(bytearray(FIRST_BUFFER))
        self._rest = b""

    @property
    def idle(self) -> bool:
        """Whether nothing waits for an answer."""
        return not self._pending

    @property
    def full(self) -> bool:
        """Whether so much waits to be sent that a caller should wait for `drained` first."""
        return self._out_size >= QUEUE_LIMIT

    def ask(self, request: bytes, count: int, read: Read, context: Any) -> Pending:
        """Send a request; awaited, it gives what `read` makes of its `count` replies, or of those before MN.

        Raises NodeError when the connection is gone.
        """
        if not self.open:
            raise self._gone()
        pending = Pending(self, count, read, context, ANY_FLAGS, None)
        pending._most = request.count(b"\n")
        self._add(pending, request)
        return pending

    def drained(self) -> "asyncio.Future[None]":
        """Return a future that is done when the transport has taken what waits. Raises NodeError like a request."""
        waiter = self.loop.create_future()
        if self.open:
            self._waiters.append(waiter)
        else:
            waiter.set_exception(self._gone())
        return waiter

    def close(self) -> None:
        """End the connection when what was asked has been answered; `closed` is done then."""
        self.open = False
        if not self._pending:
            self._end(NodeError("connection closed"), failed=False)

    def detach(self) -> None:
        """Let go of the connection in a forked child, where the parent goes on using it."""
        self.open = False
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self._transport.get_extra_info("socket").fileno())  # unlike close, no event loop is told
        os.close(null)

    def connection_made(self, transport: Any) -> None:
        """Take over a connection that has been greeted."""
        self._transport = transport
        self.open = True

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the transport puts what it receives."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Give every reply that is complete to whoever asked for it."""
        if self._error is not None:
            return
        data, position = self._rest + self._room[:nbytes], 0
        try:
            while self._error is None and position < len(data):
                if not self._pending:
                    raise ProtocolError("a reply that nobody asked for")
                self._check_size(data, position)
                parsed = self._parse(data, position)
                if parsed is None:
                    break
                reply, position = parsed
                self._take(reply)
        except ProtocolError as error:
            self._end(error, failed=True)
        self._rest = data[position:]

    def _check_size(self, data: bytes, start: int) -> None:
        """Refuse a value before it has come that is larger than anything the server stores."""
        end = data.find(b"\r\n", start, start + LINE_LIMIT + 2)
        stated = _STATED(data, start, end + 1) if end >= 0 else None
        if stated is not None and int(stated[1]) > self._most:
            raise ProtocolError(f"a value of {int(stated[1])} bytes, and the server stores {self._most} at most")

    def eof_received(self) -> None:
        """Let the transport close; `connection_lost` follows."""

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what was asked and will not be answered."""
        self.died = self._error is None and self._served
        fault = f"connection broke: {error}" if error else "connection closed by the server"
        self._end(NodeError(fault), failed=not self.died)
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Keep requests here while the transport has enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """Send what has gathered."""
        self._paused = False
        self._flush()

    def _guard(self, pending: Pending, guard: Guard, known: Any) -> None:
        """Have the record read in front of this request, or of one before it that leaves with it."""
        record = self._record
        if record is None or record.guard.trust is not guard.trust:
            record = self._record = Record(guard, pending._deadline)
            self._pending.append(record)
            self._out.append(guard.request)
            self._out_size += len(guard.request)
        pending._guard, pending._known, pending._record = guard, known, record

    def _add(self, pending: Pending, request: bytes) -> None:
        self._pending.append(pending)
        self._out.append(request)
        self._out_size += len(request)
        if self._out_size >= EARLY and not self._paused:
            self._send()
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)
        if self._timer is None:
            self._timer = self.loop.call_later(self._timeout, self._tick, True)

    def _flush(self) -> None:
        self._flushing = False
        if self._paused or self._error is not None:
            return
        if self._out:
            self._send()
        if not self._paused:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _send(self) -> None:
        self._record = None
        data = b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        self._transport.write(data)

    def _take(self, reply: Reply) -> None:
        pending = self._pending[0]
        if isinstance(pending, Record):
            self._see(pending, reply)
        elif pending._flags != ANY_FLAGS:
            self._finish(pending, self._found(pending, reply))
        elif pending._count == QUIET and reply.code != b"MN":
            if len(pending._replies) == pending._most:
                raise ProtocolError("more replies than commands")
            pending._replies.append(reply)
        else:
            if pending._count != QUIET:
                pending._replies.append(reply)
            if len(pending._replies) >= pending._count:
                self._finish(pending, self._read(pending))

    def _see(self, record: Record, reply: Reply) -> None:
        try:
            record.seen = record.guard.see(reply)
        except ProtocolError:
            raise
        except NodeError as error:
            record.seen = error
        self._pending.popleft()
        self._served = True

    def _found(self, pending: Pending, reply: Reply) -> Any:
        record = pending._record
        plain = not (reply.won or reply.stale or reply.taken) and (record is None or record.seen is pending._known)
        if plain and reply.code == b"VA" and reply.value is not None and reply.flags == pending._flags:
            return reply.value
        pending._replies.append(reply)
        answers = self._read(pending)
        if isinstance(answers, NodeError):
            return answers
        return answers[0] if record is None else self._judged(pending, record, answers[0])

    def _judged(self, pending: Pending, record: Record, answer: Any) -> Any:
        """Return the answer to a guarded request, or why it is not to be believed: then its lease is given back."""
        assert pending._guard is not None
        answer, fault, pending._again = pending._guard.judge(pending._known, record.seen, answer)
        if fault is None:
            return answer
        self._owner.orphaned(self, answer)
        return fault

    def _read(self, pending: Pending) -> Any:
        """Return what the replies mean, or the error that is this request's alone."""
        try:
            return pending._read(pending._replies, pending._epoch, self.born, pending._context)
        except ProtocolError:  # not an answer to this command: what follows may be another's
            raise
        except NodeError as error:
            return self._named(error)

    def _finish(self, pending: Pending, result: Any) -> None:
        self._pending.popleft()
        self._served = True
        if pending._future.done():
            if not isinstance(result, NodeError):
                self._owner.orphaned(self, result)
        elif isinstance(result, NodeError):
            pending._future.set_exception(result)
        else:
            pending._future.set_result(result)
        if not self.open and not self._pending:
            self._end(NodeError("connection closed"), failed=False)

    def _tick(self, grace: bool) -> None:
        self._timer = None
        if not self._pending:
            return
        late = time.monotonic() - self._pending[0]._deadline
        if late < 0:
            self._timer = self.loop.call_later(-late, self._tick, True)
        elif grace:  # the loop was held up for so long, and has not read what may be there
            self._timer = self.loop.call_later(min(late, self._timeout), self._tick, False)
        else:
            self._end(NodeTimeout(f"no answer within {self._timeout:g} s"), failed=True)

    def _end(self, error: NodeError, *, failed: bool) -> None:
        if self._error is not None:
            return
        self.open = False
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        self._owner.lost(self, error if self._pending or failed else None, failed)
        self._out.clear()
        waiting: list[asyncio.Future[Any]] = [p._future for p in self._pending if isinstance(p, Pending)]
        self._pending.clear()
        for future in waiting + self._waiters:
            if not future.done():
                future.set_exception(self._gone())
        self._waiters.clear()

    def _gone(self) -> NodeError:
        return self._named(self._error or NodeError("connection is closing"))

    def _named(self, error: NodeError) -> NodeError:
        return type(error)(f"{self._name}: {error}")


class MuxReader:
    """Lease-gets with the same terms; called with a key it gives an awaitable, of the value alone for a plain hit."""

    __slots__ = ("_flags", "_guard", "_muxes", "_read", "_request", "_retry")

    def __init__(
        self,
        muxes: Mapping[asyncio.AbstractEventLoop, Mux],
        request: tuple[bytes, bytes, bytes],
        flags: int,
        read: Read,
        retry: Callable[[bytes], Awaitable[Any]],
        guard: Guard | None = None,
    ) -> None:
        """`muxes` are the open connections, `request` stands around key and mark; `retry` does what these cannot."""
        self._muxes = muxes
        self._request = b"%b%%b%%b%b%%b%b" % request
        self._flags = flags
        self._read = read
        self._retry = retry
        self._guard = guard

    def __call__(self, key: bytes) -> Awaitable[Any]:
        mux = self._muxes.get(asyncio.get_running_loop())
        if mux is None or not mux.open or mux.full:
            return self._retry(key)
        known = None if self._guard is None else self._guard.usable()
        if self._guard is not None and known is None:
            return self._retry(key)
        pending = Pending(mux, 1, self._read, (key,), self._flags, self._retry)
        if self._guard is not None:
            mux._guard(pending, self._guard, known)
        prefix = b"" if known is None else known.prefix
        mux._add(pending, self._request % (prefix, key, mux.mark()))
        return pending
