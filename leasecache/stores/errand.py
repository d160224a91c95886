"""Deletions that nobody waits for: sent to a memcached server, and gone on with whenever its socket is ready.

For whoever does everything in one thread, as the invalidation daemon: handing an exchange to a thread that waits, and
the answer back, takes longer than the exchange.
"""

import re
import select
import socket
from collections.abc import Callable, Sequence

from leasecache._accel import Reply, Wire, parse_reply
from leasecache.errors import NodeError, NodeTimeout, ProtocolError
from leasecache.stores.pool import Connection

MOST = 1 << 21  # bytes of replies beside the misses: a guard record that fits into no item is none
_PIECE = 1 << 16  # bytes
_MISSES = re.compile(rb"(?:NF\r\n)*")  # all that quiet deletions are answered, as a rule
_MISS = 4  # bytes
_END = b"MN\r\n"

Read = Callable[[Sequence[Reply]], bytes | None]  # the replies but for misses → the guard record; raises NodeError
Settle = Callable[[NodeError | None], None]  # takes the connection back; raises the node's error, if it is one


class Errand:
    """Quiet deletions under way, which end with `mn`. It is over when `done`; then there is a result, or an error."""

    def __init__(self, connection: Connection[Wire], request: bytes, read: Read, settle: Settle, until: float) -> None:
        """Begin to send. The connection is the errand's own, until `settle` is called once; `until` is monotonic s."""
        self.until = until
        self.lost = False  # nothing is wrong with the node, and over another connection it may go better
        self._sock: socket.socket = connection.sock
        self.socket = self._sock.fileno()
        self._unsent = memoryview(request)
        self._most = request.count(b"\n")  # replies
        self._read, self._settle = read, settle
        self._received = b""
        self._over = False
        self._error: Exception | None = None
        self._record: bytes | None = None
        self.attend(0.0)

    @property
    def events(self) -> int:
        """What of `socket` has to be waited for, as `select.poll` has it."""
        return select.POLLOUT if self._unsent else select.POLLIN  # replies fit into any socket buffer

    def done(self) -> bool:
        """Whether it is over."""
        return self._over

    def exception(self) -> Exception | None:
        """Return what went wrong: a NodeError, or None; None, too, for one that was `lost`."""
        return self._error

    def result(self) -> bytes | None:
        """Return the guard record as it stood after the deletions; None = absent, or not asked for."""
        return self._record

    def attend(self, now: float) -> None:
        """Do what can be done without waiting; `now` is monotonic s. Never raises NodeError."""
        if self._over:
            return
        try:
            replies = self._exchange(now)
            if replies is not None:
                self._record = self._read(replies)
                self._end(None)
        except NodeError as error:
            self._end(error)

    def close(self) -> None:
        """Give it up wherever it stands; nobody can use the connection any more."""
        self._over = True
        self._sock.close()

    def _exchange(self, now: float) -> list[Reply] | None:
        try:
            if self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent, socket.MSG_DONTWAIT) :]
                return None  # there can be no answer yet
            piece = self._sock.recv(_PIECE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if now >= self.until:
                raise NodeTimeout("no answer in time") from None
            return None
        except OSError as error:
            raise NodeError(f"connection broke: {error}") from error
        if not piece:
            raise NodeError("connection closed by the server")
        self._received += piece
        return self._replies()

    def _replies(self) -> list[Reply] | None:
        """Return the replies but for misses once they are all there, None before that."""
        data = self._received
        if not data.endswith(_END):
            if len(data) > MOST + _MISS * self._most:
                raise ProtocolError("more than quiet deletions are ever answered")
            return None
        found = _MISSES.match(data)
        at = 0 if found is None else found.end()
        misses = at // _MISS
        replies: list[Reply] = []
        while (parsed := parse_reply(data, at)) is not None:
            reply, at = parsed
            if reply.code == b"MN":
                break
            replies.append(reply)
        else:
            return None  # what looked like the end was within a value
        if at != len(data) or misses + len(replies) >= self._most:
            raise ProtocolError("more replies than commands")
        return replies

    def _end(self, error: NodeError | None) -> None:
        self._over = True
        try:
            self._settle(error)
        except NodeError as named:
            self._error = named
        else:
            self.lost = error is not None
