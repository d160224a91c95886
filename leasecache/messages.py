"""Commit messages: what to invalidate, which travels with the application's own transaction through Postgres's log.

The payload is text: a line with the version, then a line per wish. Keys are logical ones, with their namespace.

    1
    0 shop:media:12345
    60 shop:user:7
    = 0 shop:comments:{int}:{str} 7 hello%20world
    * shop

A key comes with the s it may be served stale. After "=" follow the s, a template whose fields are named by their kinds
(`leasecache.keys.KINDS`), and for each field the value as Postgres prints it, percent-encoded, "!" for NULL; so a
trigger can name a key that is too long to be written as it is. "*" is all that a namespace holds. What follows a
further blank belongs to later versions and is passed over; a daemon that does not know a kind of line passes over that
line, and counts the message.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from leasecache._accel import Renderer
from leasecache.keys import KINDS, check_key, key_prefix

PREFIX = "leasecache"  # of pg_logical_emit_message; daemons pass over those of others
DDL_PREFIX = "leasecache.ddl"  # of what an event trigger sends: the tag of a statement that changes the schema
MOST_BYTES = 2**20  # of a payload; it is held in memory on its way by the server, and read in one go by each daemon
_VERSION = b"1"
_STALE_MOST = 10**9  # s
_SECONDS = rb"([0-9]{1,10}(?:\.[0-9]{1,6})?)"
_KEY_LINE = re.compile(_SECONDS + rb" ([!-~]{1,250})(?: .*)?").fullmatch
_TEMPLATE_LINE = re.compile(rb"= " + _SECONDS + rb" ([!-~]{1,250})((?: (?:[!-$&-~]|%[0-9A-Fa-f]{2})*)*)").fullmatch
_NAMESPACE_LINE = re.compile(rb"\* ([A-Za-z0-9._-]+)(?: .*)?").fullmatch
_FIELD = re.compile(r"\{([a-z]+)\}")


class CommitMessage(NamedTuple):
    """A statement with one `%s`, and its parameters; run it in the transaction whose commit shall invalidate."""

    sql: str
    parameters: tuple[str]


class Payload(NamedTuple):
    """What a daemon reads from a message: what it understands, and what it does not understand, if anything."""

    keys: dict[bytes, float]  # key → s it may be served stale
    namespaces: frozenset[bytes]  # of which everything is to go
    fault: str | None


def build_message(keys: Mapping[bytes, float], *, namespaces: Iterable[str] = ()) -> CommitMessage:
    """Return the statement that invalidates `keys` at commit; each may then be served stale for its seconds.

    Of `namespaces` all guarded values go. Raises TypeError or ValueError on what no daemon could read: no key, no such
    time, or more than MOST_BYTES in all; ConfigError on what is no namespace.
    """
    lines = [_VERSION.decode()]
    for key, stale_for in keys.items():
        check_key(key)
        if not 0 <= stale_for <= _STALE_MOST:
            raise ValueError(f"stale_for={stale_for!r} of {key.decode()} must be from 0 to {_STALE_MOST} s")
        lines.append(f"{_decimal(stale_for)} {key.decode()}")
    lines += [f"* {key_prefix(namespace).decode().removesuffix(':')}" for namespace in namespaces]
    payload = "\n".join(lines)
    if len(payload) > MOST_BYTES:
        raise ValueError(f"{len(keys)} keys do not fit into the {MOST_BYTES} bytes of a commit message; send several")
    return CommitMessage(f"SELECT pg_logical_emit_message(true, '{PREFIX}', %s::text)", (payload,))


def read_payload(content: bytes) -> Payload:
    """Read what `build_message` wrote, or anything else: what is no line of a known version is named as the fault."""
    if len(content) > MOST_BYTES:
        return Payload({}, frozenset(), f"{len(content)} bytes are more than {MOST_BYTES}")
    version, *lines = content.split(b"\n")
    if version != _VERSION:
        return Payload({}, frozenset(), f"unknown version {version[:20]!r}")
    keys: dict[bytes, float] = {}
    namespaces: set[bytes] = set()
    fault = None
    for line in lines:
        if (found := _NAMESPACE_LINE(line)) is not None:
            namespaces.add(found[1])
        elif (wish := _wish(line)) is not None:
            key, stale_for = wish
            keys[key] = min(stale_for, keys.get(key, stale_for))
        else:
            fault = fault or f"unknown line {line[:80]!r}"
    return Payload(keys, frozenset(namespaces), fault)


def _wish(line: bytes) -> tuple[bytes, float] | None:
    """Return the key that a line names, and its seconds."""
    found = _KEY_LINE(line)
    if found is not None:
        return found[2], float(found[1])
    found = _TEMPLATE_LINE(line)
    if found is None:
        return None
    try:
        return _rendered(found[2].decode(), found[3]), float(found[1])
    except ValueError:
        return None


def _rendered(template: str, arguments: bytes) -> bytes:
    """Return the key of a template and its arguments. Raises ValueError when they do not go together."""
    renderer, count = _renderer(template)
    texts = [None if text == b"!" else unquote_to_bytes(text) for text in arguments.split(b" ")[1:]]
    return renderer.from_text(texts[:count])


@functools.lru_cache(1_000)
def _renderer(template: str) -> tuple[Renderer, int]:
    literals, kinds = _FIELD.split(template)[::2], _FIELD.split(template)[1::2]
    if not {*kinds} <= {*KINDS} or set("{}") & set("".join(literals)):
        raise ValueError(f"{template!r} has a field of no known kind")
    count = len(kinds)
    codes = tuple(map(KINDS.index, kinds))
    literal_bytes = tuple(literal.encode() for literal in literals)
    return Renderer(template, literal_bytes, tuple(kinds), codes, (True,) * count, (None,) * count), count


def _decimal(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
