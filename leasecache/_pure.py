"""Pure-Python twin of `leasecache._hot`: the meta-protocol reply reader and the wire."""

import time
from collections.abc import Callable
from typing import Any

from leasecache.errors import NodeError, NodeTimeout, ProtocolError

LINE_LIMIT = 2048  # bytes of a reply line; memcached itself refuses longer lines


class Reply:
    """One reply of the meta protocol (memcached doc/protocol.txt, "Meta Commands")."""

    __slots__ = ("cas", "code", "flags", "opaque", "stale", "taken", "ttl", "value", "won")

    code: bytes  # VA HD EN NF NS EX MN ME, or SERVER_ERROR
    value: bytes | None  # VA: the value; ME and SERVER_ERROR: the rest of the line
    flags: int  # f: client flags
    cas: int  # c
    ttl: int  # t: s left, −1 = no expiry
    opaque: int  # O, −1 = none
    won: bool  # W
    stale: bool  # X
    taken: bool  # Z

    def __init__(self, code: bytes, value: bytes | None = None) -> None:
        self.code = code
        self.value = value
        self.flags = self.cas = 0
        self.ttl = self.opaque = -1
        self.won = self.stale = self.taken = False


_CODES = frozenset([b"HD", b"EN", b"NF", b"NS", b"EX", b"MN"])
_NUMBERS = {b"f": ("flags", 2**32), b"c": ("cas", 2**64), b"t": ("ttl", 2**32), b"O": ("opaque", 2**31)}
_MARKS = {b"W": "won", b"X": "stale", b"Z": "taken"}


def parse_reply(data: bytes, start: int) -> tuple[Reply, int] | None:
    """Read the reply that begins at `start`: (reply, where the next begins), or None while bytes are missing.

    Raises ProtocolError on anything the protocol does not allow; the connection is then unusable.
    """
    if not 0 <= start <= len(data):
        raise ValueError("start is outside the data")
    end = data.find(b"\r\n", start, start + LINE_LIMIT + 2)
    if end < 0:
        if len(data) - start > LINE_LIMIT + 1:  # one byte more may be the CR of a line that is just short enough
            raise ProtocolError("reply line is longer than the protocol allows")
        return None
    line = data[start:end]
    code, blank, rest = line.partition(b" ")
    if code == b"VA":
        return _parse_value(data, end + 2, rest.split(b" "))
    if code in _CODES:
        return _with_flags(Reply(code), rest.split(b" ") if blank else []), end + 2
    if code in (b"ME", b"SERVER_ERROR"):
        return Reply(code, rest), end + 2
    raise ProtocolError(f"unexpected reply {line[:80]!r}")


def _parse_value(data: bytes, start: int, tokens: list[bytes]) -> tuple[Reply, int] | None:
    size = _number(tokens[0], 2**30 + 1)  # more cannot be stored, whatever -I says
    reply = _with_flags(Reply(b"VA"), tokens[1:])
    end = start + size
    if len(data) < end + 2:
        return None
    if data[end : end + 2] != b"\r\n":
        raise ProtocolError("value is not followed by CRLF")
    reply.value = data[start:end]
    return reply, end + 2


def _with_flags(reply: Reply, tokens: list[bytes]) -> Reply:
    for token in tokens:
        if token in _MARKS:
            setattr(reply, _MARKS[token], True)
        elif token == b"t-1":
            reply.ttl = -1
        elif token[:1] in _NUMBERS:
            name, limit = _NUMBERS[token[:1]]
            setattr(reply, name, _number(token[1:], limit))
        else:
            raise ProtocolError(f"unexpected flag {token[:80]!r} in a reply")
    return reply


def _number(text: bytes, limit: int) -> int:
    if not text.isdigit() or len(text) > 20 or int(text) >= limit:
        raise ProtocolError(f"expected a number below {limit}, got {text[:80]!r}")
    return int(text)


class Wire:
    """Request and reply over a Python socket, each exchange under one deadline; works with gevent and TLS."""

    __slots__ = ("_parse", "_sock", "_timeout")

    def __init__(
        self,
        sock: Any,
        timeout: float,
        parse: Callable[[bytes, int], tuple[Reply, int] | None] = parse_reply,
    ) -> None:
        """Take over a connected socket; `timeout` is the s one exchange may take, sending included."""
        self._sock = sock
        self._timeout = timeout
        self._parse = parse
        sock.settimeout(timeout)

    def exchange(self, request: bytes, count: int) -> list[Reply]:
        """Send `request` and return its `count` replies.

        Raises NodeTimeout, NodeError or ProtocolError, after which the wire must be closed.
        """
        replies: list[Reply] = []
        self._converse(request, replies, lambda: len(replies) == count)
        return replies

    def exchange_quiet(self, request: bytes) -> list[Reply]:
        """Send quiet commands ended by `mn` and return the replies before its MN. Raises like `exchange`."""
        replies: list[Reply] = []
        most = request.count(b"\n")

        def done() -> bool:
            ended = bool(replies) and replies[-1].code == b"MN"
            if len(replies) > most and not ended:
                raise ProtocolError("more replies than commands")
            return ended

        self._converse(request, replies, done)
        return replies[:-1]

    def hit(self, request: bytes, flags: int) -> bytes | Reply:
        """Send a lease-get; return the value if it is a plain hit with these client flags, else the reply.

        A plain hit is VA without W, X and Z. Raises like `exchange`.
        """
        return self.hits(request, 1, flags)[0]

    def hits(self, request: bytes, count: int, flags: int) -> list[bytes | Reply]:
        """Send `count` lease-gets; return for each what `hit` returns. Raises like `exchange`."""
        return [_unwrapped(reply, flags) for reply in self.exchange(request, count)]

    def guarded_hits(self, request: bytes, count: int, flags: int, expected: bytes) -> list[bytes | Reply | None]:
        """Send the read of a guard record and `count` lease-gets; return what `hits` does behind the first reply.

        That is None if it is `expected`, byte for byte. Raises like `exchange`.
        """
        replies: list[Any] = []
        self._converse(request, replies, lambda: len(replies) == count + 1, expected)
        return [replies[0], *[_unwrapped(reply, flags) for reply in replies[1:]]]

    def close(self) -> None:
        """Close the socket; never raises."""
        self._sock.close()

    def _converse(
        self, request: bytes, replies: list[Any], done: Callable[[], bool], expected: bytes | None = None
    ) -> None:
        """Send, and receive until it is done; of a first reply that is as expected there is None."""
        deadline = time.monotonic() + self._timeout
        try:
            self._sock.settimeout(self._timeout)
            self._sock.sendall(request)
            data, position = b"", 0
            while True:
                if expected is not None and not replies and data.startswith(expected, position):
                    replies.append(None)
                    position += len(expected)
                position = self._parse_all(data, position, replies, done)
                if done():
                    break
                left = deadline - time.monotonic()
                if left <= 0:  # a peer that never pauses would keep every recv within its own timeout
                    raise TimeoutError
                self._sock.settimeout(left)
                chunk = self._sock.recv(262144)
                if not chunk:
                    raise NodeError("connection closed by the server")
                data, position = data[position:] + chunk, 0
        except TimeoutError as error:
            raise NodeTimeout(f"no answer within {self._timeout:g} s") from error
        except NodeError:
            raise
        except OSError as error:
            raise NodeError(f"connection broke: {error}") from error
        if position != len(data):
            raise ProtocolError("bytes after the last expected reply")

    def _parse_all(self, data: bytes, position: int, replies: list[Reply], done: Callable[[], bool]) -> int:
        while not done():
            parsed = self._parse(data, position)
            if parsed is None:
                break
            reply, position = parsed
            replies.append(reply)
        return position


def _unwrapped(reply: Reply, flags: int) -> bytes | Reply:
    if reply.value is None or reply.flags != flags or reply.won or reply.stale or reply.taken:
        return reply
    return reply if reply.code != b"VA" else reply.value
