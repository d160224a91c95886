"""Pure-Python twin of `leasecache._hot`: key rendering, the meta-protocol reply reader and the wire.

The twin installs anywhere and is the oracle of the compiled code: both give the same bytes and the same errors.
"""

import datetime
import hashlib
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from leasecache.errors import NodeError, NodeTimeout, ProtocolError

KIND_INT, KIND_STR, KIND_BOOL, KIND_UUID, KIND_DATE, KIND_BYTES = range(6)
KEY_LIMIT = 220  # bytes of a logical key; leaves room under memcached's 250 for a generation
KEY_HEAD = 187  # KEY_LIMIT − "~" − 32 hex digits
LINE_LIMIT = 2048  # bytes of a reply line; memcached itself refuses longer lines

_ESCAPES = [
    bytes([b]) if chr(b) in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-" else b"%%%02X" % b
    for b in range(256)
]
_PLAIN = re.compile(rb"[A-Za-z0-9._~-]*").fullmatch
_INT_TEXT = re.compile(rb"0|-?[1-9][0-9]*").fullmatch
_UUID_TEXT = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_HEX_TEXT = re.compile(rb"\\x(?:[0-9a-f]{2})*").fullmatch
_SHORTENED = re.compile(rb".{187}~[0-9a-f]{32}", re.DOTALL).fullmatch


def percent_encode(text: bytes) -> bytes:
    """Percent-encode every byte outside A-Za-z0-9._~- with upper-case hex digits."""
    return text if _PLAIN(text) else b"".join([_ESCAPES[b] for b in text])


def shorten(key: bytes) -> bytes:
    """Return `key`, or its first 187 bytes, `~` and the BLAKE2b-128 of the whole when it exceeds 220 bytes.

    A key of exactly 220 bytes that already looks shortened is shortened again; otherwise an argument could be
    chosen to spell the shortened form of another key.
    """
    if len(key) < KEY_LIMIT or (len(key) == KEY_LIMIT and not _SHORTENED(key)):
        return key
    return key[:KEY_HEAD] + b"~" + hashlib.blake2b(key, digest_size=16).hexdigest().encode()


class Renderer:
    """Renders the keys of one template, from Python arguments or from Postgres text, to the same bytes."""

    __slots__ = ("_enums", "_function", "_kinds", "_literals", "_names", "_nullable")

    def __init__(
        self,
        function: str,
        literals: tuple[bytes, ...],
        names: tuple[str, ...],
        kinds: tuple[int, ...],
        nullable: tuple[bool, ...],
        enums: tuple[type | None, ...],
    ) -> None:
        """Take one literal more than there are fields; `enums` holds the Enum class of a field or None."""
        if len(literals) != len(names) + 1 or not len(names) == len(kinds) == len(nullable) == len(enums):
            raise ValueError("literals, names, kinds, nullable and enums do not fit together")
        if not all(type(literal) is bytes for literal in literals):
            raise TypeError("literals must be bytes")
        if not all(0 <= kind < len(_PYTHON_KINDS) for kind in kinds):
            raise ValueError("a kind is unknown")
        self._function = function
        self._literals = literals
        self._names = names
        self._kinds = kinds
        self._nullable = nullable
        self._enums = enums

    def from_python(self, values: tuple[Any, ...]) -> bytes:
        """Render the key of typed Python arguments. Raises TypeError naming function and field."""
        if len(values) != len(self._names):
            raise TypeError(f"{self._function}: the key takes {len(self._names)} fields, not {len(values)}")
        parts = [self._literals[0]]
        for i, value in enumerate(values):
            parts += (self._python_field(i, value), self._literals[i + 1])
        return shorten(b"".join(parts))

    def from_text(self, columns: Sequence[bytes | None]) -> bytes:
        """Render the key of Postgres text output, None for NULL. Raises ValueError on text not of the kind."""
        if len(columns) != len(self._names):
            raise ValueError(f"{self._function}: the key takes {len(self._names)} fields, not {len(columns)}")
        parts = [self._literals[0]]
        for i, text in enumerate(columns):
            parts += (b"!" if text is None else self._text_field(i, text), self._literals[i + 1])
        return shorten(b"".join(parts))

    def _python_field(self, i: int, value: Any) -> bytes:
        if value is None and self._nullable[i]:
            return b"!"
        enum = self._enums[i]
        if enum is not None:
            if not isinstance(value, enum):
                raise self._type_error(i, value, enum.__name__)
            value = value.value  # type: ignore[attr-defined]
        expected, encode = _PYTHON_KINDS[self._kinds[i]]
        try:
            encoded = encode(value)
        except UnicodeEncodeError:
            raise ValueError(f"{self._function}: key field {self._names[i]!r} holds a lone surrogate") from None
        if encoded is None:
            raise self._type_error(i, value, expected)
        return encoded

    def _text_field(self, i: int, text: bytes) -> bytes:
        encoded = _TEXT_KINDS[self._kinds[i]](text)
        if encoded is None:
            raise ValueError(f"{self._function}: {text[:80]!r} is not the Postgres text of field {self._names[i]}")
        return encoded

    def _type_error(self, i: int, value: Any, expected: str) -> TypeError:
        return TypeError(
            f"{self._function}: key field {self._names[i]!r} must be {expected}, not {type(value).__name__}"
        )


def _int(value: Any) -> bytes | None:
    return b"%d" % value if isinstance(value, int) and not isinstance(value, bool) else None


def _str(value: Any) -> bytes | None:
    return percent_encode(str.encode(value)) if isinstance(value, str) else None


def _bool(value: Any) -> bytes | None:
    return (b"t" if value else b"f") if isinstance(value, bool) else None


def _uuid(value: Any) -> bytes | None:
    return percent_encode(str(value).encode()) if isinstance(value, uuid.UUID) else None


def _date(value: Any) -> bytes | None:
    is_date = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    return percent_encode(value.isoformat().encode()) if is_date else None


def _bytes(value: Any) -> bytes | None:
    return percent_encode(value) if isinstance(value, bytes) else None


_PYTHON_KINDS: list[tuple[str, Callable[[Any], bytes | None]]] = [
    ("int", _int),
    ("str", _str),
    ("bool", _bool),
    ("UUID", _uuid),
    ("date", _date),
    ("bytes", _bytes),
]

_TEXT_KINDS: list[Callable[[bytes], bytes | None]] = [
    lambda text: text if _INT_TEXT(text) else None,
    percent_encode,
    lambda text: text if text in (b"t", b"f") else None,
    lambda text: text if _UUID_TEXT(text) else None,
    percent_encode,  # ISO dates pass unchanged; infinity, BC and five-digit years have no Python date
    lambda text: percent_encode(bytes.fromhex(text[2:].decode())) if _HEX_TEXT(text) else None,
]


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
    size = _number(tokens[0], 2**31)
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
        self._converse(request, replies, lambda: bool(replies) and replies[-1].code == b"MN")
        return replies[:-1]

    def hit(self, request: bytes, flags: int) -> bytes | Reply:
        """Send a lease-get; return the value if it is a plain hit with these client flags, else the reply.

        A plain hit is VA without W, X and Z. Raises like `exchange`.
        """
        [reply] = self.exchange(request, 1)
        if reply.value is None or reply.flags != flags or reply.won or reply.stale or reply.taken:
            return reply
        return reply if reply.code != b"VA" else reply.value

    def close(self) -> None:
        """Close the socket; never raises."""
        self._sock.close()

    def _converse(self, request: bytes, replies: list[Reply], done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._timeout
        try:
            self._sock.settimeout(self._timeout)
            self._sock.sendall(request)
            data, position = b"", 0
            while True:
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
