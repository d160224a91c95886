"""The memcached meta protocol without I/O: requests as bytes, replies as lease answers.

Source: memcached doc/protocol.txt, "Meta Commands"; behaviour of 1.6.18 and later.
"""

import math
import re
from collections.abc import Iterable, Sequence

from leasecache._accel import Reply
from leasecache.errors import NodeError, ProtocolError
from leasecache.lease import (
    Answer,
    Decision,
    Hit,
    Lease,
    Refused,
    Stale,
    Stored,
    Token,
    Wait,
    decide,
)

NOOP = b"mn\r\n"
RELATIVE_LIMIT = 30 * 86400  # s; memcached takes a larger TTL for an absolute time
ITEM_OVERHEAD = 64  # bytes a memcached item needs beside key and value (header, CAS, flags, CRLF), rounded up
HIT = Decision.HIT  # read once: an Enum's members are slow to look up
POLL = 0.001  # s before a waiter looks again for the first time

_DEBUG = re.compile(rb"(\S+) exp=(-?\d+) la=\d+ cas=(\d+) fetch=\w+ cls=\d+ size=(\d+)")


def lease_get(key: bytes, lease_for: float, refresh_ahead: float = 0) -> bytes:
    """Ask for the value, or for the lease on a stub that lives `lease_for` s; N comes before t (server order)."""
    if refresh_ahead:
        return b"mg %b N%d c f t v R%d\r\n" % (key, math.ceil(lease_for), math.ceil(refresh_ahead))
    return b"mg %b N%d c f t v\r\n" % (key, math.ceil(lease_for))


def lease_set(key: bytes, cas: int, flags: int, body: bytes, ttl: int) -> bytes:
    """Store under the token. There is no form without C: a fill without it brings stale sets back."""
    return b"ms %b %d C%d T%d F%d c\r\n%b\r\n" % (key, len(body), cas, ttl, flags, body)


def delete_quietly(keys: Iterable[bytes]) -> bytes:
    """Delete values and stubs; only misses are answered. Ends with a no-op whose MN acknowledges them all."""
    return b"".join([b"md %b q\r\n" % key for key in keys]) + NOOP


def look(keys: Iterable[bytes]) -> bytes:
    """Ask for expiry and size of items without taking a lease or bumping them."""
    return b"".join([b"me %b\r\n" % key for key in keys])


def mark_stale_quietly(windows: Iterable[tuple[bytes, int]]) -> bytes:
    """Void leases and leave each value stale for its window in s; a window of 0 deletes. Ends with a no-op."""
    return b"".join([b"md %b I T%d q\r\n" % w if w[1] else b"md %b q\r\n" % w[0] for w in windows]) + NOOP


def release(lease: Lease) -> bytes | None:
    """Give the lease back, or None when nothing must be sent: a fresh value is refreshed by its expiry."""
    if lease.token is None or lease.fresh:
        return None
    if lease.value is None:
        return b"md %b C%d\r\n" % (lease.key, lease.token.cas)
    return b"md %b I C%d\r\n" % (lease.key, lease.token.cas)  # without T: the TTL stays


def exptime(ttl: float, now: float) -> int:
    """Return the wire TTL of `ttl` s, rounded down but at least 1; beyond 30 days an absolute time from `now`."""
    seconds = max(1, int(ttl))
    return seconds if seconds <= RELATIVE_LIMIT else int(now) + seconds


def stale_window(reply: Reply, stale_for: float) -> int:
    """Return the s a value may stay as stale, from its `me` reply: never more than it had left. 0 = delete.

    `md I T` sets the TTL, so a second invalidation would start the window anew, and a first one could lengthen it.
    """
    if reply.code != b"ME":
        return 0
    left = abs(_debug(reply)[0])  # negative on 1.6.18, positive on 1.6.45
    return int(stale_for) if left == 1 else min(int(stale_for), left)  # 1 s left and "no expiry" look alike


def _debug(reply: Reply) -> tuple[int, int]:
    found = _DEBUG.fullmatch(reply.value or b"")
    if found is None:
        raise ProtocolError(f"unexpected answer to me: {(reply.value or b'')[:80]!r}")
    return int(found[2]), int(found[3])


def debug(line: bytes) -> tuple[float | None, int] | None:
    """Read a whole `ME …` line: (s left or None, CAS); None when the item is absent."""
    if not line.startswith(b"ME "):
        return None
    found = _DEBUG.fullmatch(line[3:])
    if found is None:
        raise ProtocolError(f"unexpected answer to me: {line[:80]!r}")
    expiry = int(found[2])
    return (None if expiry == -1 else float(abs(expiry))), int(found[3])


def answer(key: bytes, reply: Reply, epoch: int, born: int) -> Answer:
    """Turn the reply to a lease-get into what the caller may do. Raises NodeError on an error reply."""
    if reply.code == b"EN":
        return Lease(key, None)  # no memory for the stub although N asked for one
    if reply.code != b"VA" or reply.value is None:
        raise unexpected(reply)
    value, flags, ttl = reply.value, reply.flags, reply.ttl
    token = Token(reply.cas, epoch, born)
    expires_in = None if ttl < 0 else float(ttl)
    decision = decide(reply.won, reply.stale, reply.taken, len(value), flags)
    if decision is HIT:
        return Hit(value, flags, expires_in, token)
    if decision is Decision.WON:
        return Lease(key, token)
    if decision is Decision.WAIT:
        return Wait(POLL, token)
    if decision is Decision.STALE:
        return Stale(value, flags, expires_in, token)
    if decision is Decision.UNSTORABLE:
        return Lease(key, None)
    return Lease(key, token, value, decision is Decision.REFRESH, flags, expires_in)


_SET_REASONS = {
    b"NF": "deleted or expired while loading",
    b"EX": "invalidated or taken over while loading",
}


def outcome(reply: Reply) -> Stored | Refused:
    """Turn the reply to a lease-set into its outcome. Raises NodeError on what a lease-set is never answered."""
    if reply.code == b"HD":
        return Stored()
    if reply.code in _SET_REASONS:
        return Refused(_SET_REASONS[reply.code])
    if reply.code == b"SERVER_ERROR":  # too large or out of memory: the server has deleted the key
        return Refused((reply.value or b"").decode(errors="replace"))
    raise unexpected(reply)


def acknowledge(replies: Sequence[Reply]) -> None:
    """Check the replies of quiet deletions: only misses may have been answered. Raises NodeError otherwise."""
    for reply in replies:
        if reply.code != b"NF":
            raise unexpected(reply)


def unexpected(reply: Reply) -> NodeError:
    """Return the error for a reply that the command cannot have."""
    text = (reply.value or b"")[:120].decode(errors="replace") if reply.code == b"SERVER_ERROR" else ""
    error = NodeError if reply.code == b"SERVER_ERROR" else ProtocolError
    return error(f"unexpected reply {reply.code.decode()} {text}".rstrip())
