"""Replies of a Redis server: its protocol (RESP2) read as the bytes come, with a limit on everything that it announces.

Source: Redis serialization protocol specification, "RESP2". redis-py's parsers believe every size that they are told.
"""

from typing import Any

from redis._parsers import _RESP2Parser
from redis.exceptions import ConnectionError as RedisConnectionError

from leasecache.errors import ProtocolError

LONGEST = 2**29  # bytes of a string: what Redis holds at most
MOST = 2**17  # elements of a list: a batch has 1,000 keys, a cluster 16,384 slots
DEEPEST = 8  # lists within lists; a script's answer, or the nodes of a slot, have 3
LINE = 2**13  # bytes of a line: an error has words
LOGIN = 2**16  # bytes of all replies until we are let in, which redis-py reads
WHOLE = 2**30  # bytes that are kept of replies that have begun
INCOMPLETE = object()  # instead of a reply that has not arrived


class Replies:
    """The bytes that a server has sent and nobody has read, and the reply that they begin."""

    __slots__ = ("_buffer", "_lists", "_position", "_sizes")

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""
        self._position = 0
        self._lists: list[list[Any]] = []  # those that have begun, from the outermost to the innermost
        self._sizes: list[int] = []  # how many elements each is to have

    @property
    def unread(self) -> bool:
        """Whether there are bytes that no reply has taken."""
        return self._position < len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take what has arrived. Raises ProtocolError."""
        if not self.unread:
            self._buffer, self._position = data, 0
            return
        if isinstance(self._buffer, bytes):
            self._buffer, self._position = bytearray(self._buffer[self._position :]), 0
        self._buffer += data
        if len(self._buffer) > WHOLE:
            raise ProtocolError(f"a reply of more than {WHOLE} bytes")

    def take(self) -> Any:
        """Return the next reply, an error reply as redis-py's ResponseError, or INCOMPLETE. Raises ProtocolError.

        Raises redis-py's ConnectionError for error replies that leave the connection without use.
        """
        while True:
            item = self._item()
            if item is INCOMPLETE:
                return item
            while item is not self:  # else a list has begun
                if not self._lists:
                    return item
                self._lists[-1].append(item)
                if len(self._lists[-1]) < self._sizes[-1]:
                    break
                self._sizes.pop()
                item = self._lists.pop()

    def _item(self) -> Any:
        """Return what is complete, INCOMPLETE, or this reader when a list has begun."""
        buffer, start = self._buffer, self._position
        end = buffer.find(b"\r\n", start, start + LINE)
        if end < 0:
            if len(buffer) - start >= LINE:
                raise ProtocolError(f"a line of more than {LINE} bytes")
            return INCOMPLETE
        kind, line = buffer[start : start + 1], bytes(buffer[start + 1 : end])
        if kind == b"$":
            return self._string(_number(line, LONGEST), end + 2)
        self._position = end + 2
        if kind == b"*":
            return self._list(_number(line, MOST))
        if kind == b":":
            return _number(line, 2**63, least=-(2**63))
        if kind == b"+":
            return line
        if kind == b"-":
            return _error(line)
        raise ProtocolError(f"unexpected answer: {kind + line!r:.120}")

    def _string(self, size: int, start: int) -> Any:
        end = start + size
        if size < 0:
            self._position = start
            return None
        if len(self._buffer) < end + 2:
            return INCOMPLETE
        if self._buffer[end : end + 2] != b"\r\n":
            raise ProtocolError("a string that is longer than announced")
        self._position = end + 2
        return bytes(self._buffer[start:end])

    def _list(self, size: int) -> Any:
        if size <= 0:
            return [] if size == 0 else None
        if len(self._lists) == DEEPEST:
            raise ProtocolError(f"lists more than {DEEPEST} deep")
        self._lists.append([])
        self._sizes.append(size)
        return self


def _number(line: bytes, most: int, least: int = -1) -> int:
    digits = line[1:] if line[:1] == b"-" else line
    if not (digits.isdigit() and len(digits) < 20):
        raise ProtocolError(f"unexpected answer: {line!r:.120} is no number")
    number = int(line)
    if not least <= number <= most:
        raise ProtocolError(f"unexpected answer: {number} is not from {least} to {most}")
    return number


def _error(line: bytes) -> Exception:
    error: Exception = _RESP2Parser.parse_error(  # type: ignore[no-untyped-call]
        line.decode(errors="replace")
    )
    if isinstance(error, RedisConnectionError):
        raise error
    return error
