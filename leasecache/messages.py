"""Commit messages: keys to invalidate, which travel with the application's own transaction through Postgres's log.

The payload is text: a line with the version, then a line per key with the s it may be served stale. What follows a
further blank in such a line belongs to later versions and is passed over. Keys are logical ones, with their namespace.

    1
    0 shop:media:12345
    60 shop:user:7
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from leasecache.keys import check_key

PREFIX = "leasecache"  # of pg_logical_emit_message; daemons pass over those of others
MOST_BYTES = 2**20  # of a payload; it is held in memory on its way by the server, and read in one go by each daemon
_VERSION = b"1"
_STALE_MOST = 10**9  # s
_LINE = re.compile(rb"([0-9]{1,10}(?:\.[0-9]{1,6})?) ([!-~]{1,250})(?: .*)?").fullmatch


class CommitMessage(NamedTuple):
    """A statement with one `%s`, and its parameters; run it in the transaction whose commit shall invalidate."""

    sql: str
    parameters: tuple[str]


class Payload(NamedTuple):
    """What a daemon reads from a message: the keys it understands, and what it does not understand, if anything."""

    keys: dict[bytes, float]  # key → s it may be served stale
    fault: str | None


def build_message(keys: Mapping[bytes, float]) -> CommitMessage:
    """Return the statement that invalidates `keys` at commit; each may then be served stale for its seconds.

    Raises TypeError or ValueError on what no daemon could read: no key, no such time, or more than MOST_BYTES in all.
    """
    lines = [_VERSION.decode()]
    for key, stale_for in keys.items():
        check_key(key)
        if not 0 <= stale_for <= _STALE_MOST:
            raise ValueError(f"stale_for={stale_for!r} of {key.decode()} must be from 0 to {_STALE_MOST} s")
        lines.append(f"{_decimal(stale_for)} {key.decode()}")
    payload = "\n".join(lines)
    if len(payload) > MOST_BYTES:
        raise ValueError(f"{len(keys)} keys do not fit into the {MOST_BYTES} bytes of a commit message; send several")
    return CommitMessage(f"SELECT pg_logical_emit_message(true, '{PREFIX}', %s::text)", (payload,))


def read_payload(content: bytes) -> Payload:
    """Read what `build_message` wrote, or anything else: what is no key of a known version is named as the fault."""
    if len(content) > MOST_BYTES:
        return Payload({}, f"{len(content)} bytes are more than {MOST_BYTES}")
    version, *lines = content.split(b"\n")
    if version != _VERSION:
        return Payload({}, f"unknown version {version[:20]!r}")
    keys: dict[bytes, float] = {}
    fault = None
    for line in lines:
        found = _LINE(line)
        if found is None:
            fault = fault or f"unknown line {line[:80]!r}"
            continue
        stale_for = float(found[1])
        keys[found[2]] = min(stale_for, keys.get(found[2], stale_for))
    return Payload(keys, fault)


def _decimal(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
