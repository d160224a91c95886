"""The classic memcached protocol without I/O, for what the meta protocol does not tell.

Source: memcached doc/protocol.txt, "Retrieval command", "General-purpose statistics".
"""

import re
from typing import NamedTuple

from pymemcache.client.base import STAT_TYPES

from leasecache.errors import NodeError, ProtocolError
from leasecache.stores.meta import Complaint

STATS = b"stats\r\n"

_VALUE = re.compile(rb"VALUE \S+ (\d{1,10}) (\d{1,10}) (\d{1,20})").fullmatch


class Looked(NamedTuple):
    """What `me` and `gets` say of one item; `debug` is the line of `me`."""

    debug: bytes
    flags: int
    value: bytes
    cas: int | None  # None = absent


def look(key: bytes) -> bytes:
    """Ask for an item without touching its lease or recency."""
    return b"me %b\r\ngets %b\r\n" % (key, key)


def read_stats(data: bytes) -> dict[str, object] | None:
    """Read the answer to STATS, None while bytes are missing; figures have the types that pymemcache gives them."""
    found = _stats(data)
    return None if found is None else {name.decode(): _figure(name, text) for name, text in found.items()}


def read_time(data: bytes) -> int | None:
    """Read from the answer to STATS what the server takes for now, in s since 1970. Raises NodeError."""
    found = _stats(data)
    if found is None:
        return None
    text = found.get(b"time", b"")
    if not (text.isdigit() and len(text) <= 20):
        raise ProtocolError(f"the time is {text[:80]!r}")
    return int(text)


def read_look(data: bytes) -> Looked | None:
    """Read the answer to `look`, None while bytes are missing. Raises NodeError."""
    debug, _, rest = data.partition(b"\r\n")
    line, found, body = rest.partition(b"\r\n")
    if not found:
        return None
    if line == b"END":
        return Looked(debug, 0, b"", None)
    value = _VALUE(line)
    if value is None:
        raise _unexpected(line)
    size = int(value[2])
    if len(body) < size + len(b"\r\nEND\r\n"):
        return None
    if body[size:] != b"\r\nEND\r\n":
        raise _unexpected(body[size:])
    return Looked(debug, int(value[1]), body[:size], int(value[3]))


def _stats(data: bytes) -> dict[bytes, bytes] | None:
    *lines, rest = data.split(b"\r\n")
    found: dict[bytes, bytes] = {}
    for i, line in enumerate(lines):
        if line == b"END":
            if rest or i != len(lines) - 1:
                raise _unexpected(b"".join(lines[i + 1 :]) + rest)
            return found
        word, _, text = line.partition(b" ")
        name, _, value = text.partition(b" ")
        if word != b"STAT":
            raise _unexpected(b"\r\n".join([*lines[i:], rest]).removesuffix(b"\r\n"))
        found[name] = value
    return None


def _figure(name: bytes, text: bytes) -> object:
    try:
        return STAT_TYPES.get(name, int)(text)
    except ValueError:
        return text


def _unexpected(line: bytes) -> NodeError:
    """Return the error for an answer; the server's own word for it is a complaint if nothing comes behind."""
    kind = Complaint if line.startswith(b"SERVER_ERROR") and b"\n" not in line else ProtocolError
    return kind(f"unexpected answer {line[:80]!r}")
