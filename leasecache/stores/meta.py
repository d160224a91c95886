"""The memcached meta protocol without I/O: requests as bytes, replies as lease answers.

Source: memcached doc/protocol.txt, "Meta Commands"; behaviour of 1.6.18 and later.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from leasecache._accel import Reply, delete_requests
from leasecache.errors import NodeError, ProtocolError
from leasecache.guard import wire_key
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
    token,
)

NOOP = b"mn\r\n"
RELATIVE_LIMIT = 30 * 86400  # s; memcached takes a larger TTL for a date, in s since 1970
DATE_MOST = 2**31 - 1  # the last date that a TTL can be: 19 January 2038
ITEM_OVERHEAD = 63  # bytes an item has beside key and value: header 48, CAS 8, flags 4, a zero, CRLF
REQUEST_OVERHEAD = 64  # bytes a request has beside the key, at most
HIT = Decision.HIT  # read once: an Enum's members are slow to look up
REST = -1  # of a window: what the item has left
LOOKS = 5  # at an item that others change meanwhile, before an invalidation deletes it
POLL = 0.001  # s before a waiter looks again for the first time

_DEBUG = re.compile(rb"(\S+) exp=(-?\d+) la=\d+ cas=(\d+) fetch=\w+ cls=\d+ size=(\d+)")


class NoRoom(Refused):
    """The server could not take the value. It has deleted the key, or left the lease as it was, to be released."""


class Complaint(NodeError):
    """The server could not do it, and said so as the protocol allows."""


class Window(NamedTuple):
    """How long a value may stay as stale, and the CAS number of the item that was looked at."""

    seconds: int  # 0 = delete it, REST = for what it has left
    cas: int


def lease_get(key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes = b"") -> bytes:
    """Ask for the value, or for the lease on a stub that lives `lease_for` s; N comes before t (server order)."""
    if refresh_ahead:
        return b"mg %b N%d c f t v R%d%b\r\n" % (key, math.ceil(lease_for), math.ceil(refresh_ahead), mark)
    return b"mg %b N%d c f t v%b\r\n" % (key, math.ceil(lease_for), mark)


def lease_set(key: bytes, cas: int, flags: int, body: bytes, ttl: int, mark: bytes = b"") -> bytes:
    """Store under the token. There is no form without C: a fill without it brings stale sets back."""
    return b"ms %b %d C%d T%d F%d c%b\r\n%b\r\n" % (key, len(body), cas, ttl, flags, mark, body)


def delete_quietly(keys: Iterable[bytes]) -> bytes:
    """Delete values and stubs; only misses are answered. Ends with a no-op whose MN acknowledges them all."""
    return b"".join(delete_requests(keys, sys.maxsize)) + NOOP


def read_record(guard_key: bytes) -> bytes:
    """Ask for the guard record, and for nothing else about it: its reply is the same until it changes."""
    return b"mg %b v\r\n" % guard_key


def then_record(request: bytes, guard_key: bytes | None) -> bytes:
    """Let quiet commands be followed by a read of the guard record, before their no-op; None = by nothing."""
    return request if guard_key is None else request.removesuffix(NOOP) + read_record(guard_key) + NOOP


def split_record(replies: Sequence[Reply], guard_key: bytes | None) -> tuple[Sequence[Reply], bytes | None]:
    """Return the replies of the quiet commands, and the record behind them. Raises NodeError."""
    return (replies, None) if guard_key is None else (replies[:-1], record(replies[-1:], 0, 0, None))


def look(keys: Iterable[bytes]) -> bytes:
    """Ask for expiry and size of items without taking a lease or bumping them."""
    return b"".join([b"me %b\r\n" % key for key in keys])


def mark_stale_quietly(
    seen: Iterable[tuple[bytes, Window]], now: Callable[[], int], mark: Callable[[], bytes] = bytes
) -> bytes:
    """Void leases and leave each value stale for its window, unless it has changed meanwhile. Ends with a no-op.

    `now` is that of `exptime`.
    """
    return b"".join([_mark_stale(key, window, now, mark) for key, window in seen]) + NOOP


def _mark_stale(key: bytes, window: Window, now: Callable[[], int], mark: Callable[[], bytes]) -> bytes:
    if not window.seconds:
        return b"md %b q\r\n" % key
    if window.seconds == REST:
        return b"md %b I C%d q%b\r\n" % (key, window.cas, mark())
    return b"md %b I T%d C%d q%b\r\n" % (key, exptime(window.seconds, now), window.cas, mark())


def release(lease: Lease, mark: bytes = b"") -> bytes | None:
    """Give the lease back, or None when nothing must be sent: a fresh value is refreshed by its expiry."""
    if lease.token is None or lease.fresh:
        return None
    key = on_the_wire(lease.key, lease.token)
    if lease.value is None:
        return b"md %b C%d\r\n" % (key, lease.token.cas)
    return b"md %b I C%d%b\r\n" % (key, lease.token.cas, mark)  # without T: the TTL stays


def steal(key: bytes, token: Token, mark: bytes = b"") -> bytes:
    """Void a lease that somebody else holds: the next reader wins. Without T, so that the TTL stays."""
    return b"md %b I C%d%b\r\n" % (on_the_wire(key, token), token.cas, mark)


def on_the_wire(key: bytes, token: Token) -> bytes:
    """Return what a logical key is called on the node that has issued the token."""
    return wire_key(token.generation, key) if token.generation else key


def exptime(ttl: float, now: Callable[[], int]) -> int:
    """Return the wire TTL of `ttl` s, rounded down, at least 1. Beyond 30 days it is a date; raises what `now` raises.

    `now` tells the server's time, in s since 1970, and is called for dates only. By any other clock that is wrong a
    value would live for years, or not at all. What would outlive the last date lives until then, or for 30 days.
    """
    seconds = max(1, int(ttl))
    if not is_date(seconds):
        return seconds
    today = now()
    return min(today + seconds, DATE_MOST) if today + RELATIVE_LIMIT < DATE_MOST else RELATIVE_LIMIT


def is_date(ttl: float) -> bool:
    """Tell whether `ttl` s are so many that memcached wants the date instead."""
    return int(ttl) > RELATIVE_LIMIT


def read_windows(replies: Sequence[Reply], epoch: int, born: int, stale_for: float) -> list[Window]:
    """Return the s each value may stay as stale, from its `me` reply: never more than it had left.

    `md I T` sets the TTL, so a second invalidation would start the window anew, and a first one could lengthen it.
    What has no more than `stale_for` left is marked without T: a T of what it had left would give it another second
    whenever the server's clock ticks in between. The CAS number makes sure that the item is still the one looked at.
    """
    return [_window(reply, int(stale_for)) for reply in replies]


def _window(reply: Reply, stale_for: int) -> Window:
    if reply.code == b"EN":
        return Window(0, 0)
    if reply.code != b"ME":
        raise _unexpected(reply)
    left, cas = _debug(reply.value or b"")
    return Window(stale_for if left > stale_for else left and REST, cas)


def debug(line: bytes) -> tuple[int, int] | None:
    """Read a whole `ME …` line: (s left, CAS); None when the item is absent."""
    return None if line == b"EN" else _debug(line.removeprefix(b"ME "))


def _debug(text: bytes) -> tuple[int, int]:
    """Return s left and CAS. The time is negative on 1.6.18; −1 is also "no expiry", which our items never have."""
    found = _DEBUG.fullmatch(text)
    if found is None:
        raise ProtocolError(f"unexpected answer to me: {text[:80]!r}")
    return abs(int(found[2])), int(found[3])


def record(replies: Sequence[Reply], epoch: int, born: int, context: object) -> bytes | None:
    """Return the guard record from the first reply; None when absent, or a stub, or marked by whomever as stale.

    Raises NodeError on an error reply.
    """
    if not replies:
        raise ProtocolError("no reply for the guard record")
    reply = replies[0]
    if reply.code not in (b"EN", b"VA"):
        raise _unexpected(reply)
    return None if reply.won or reply.stale or reply.taken else reply.value or None


def read_answers(
    replies: Sequence[Reply], epoch: int, born: int, keys: Sequence[bytes], generation: int = 0
) -> list[Answer]:
    """Turn the replies to lease-gets into what their callers may do. Raises NodeError on an error reply.

    `keys` are logical, `generation` is the one under which they were asked for.
    """
    return [_answer(key, reply, epoch, born, generation) for key, reply in zip(keys, replies, strict=True)]


def _answer(key: bytes, reply: Reply, epoch: int, born: int, generation: int) -> Answer:
    if reply.code == b"EN":
        return Lease(key, None)  # no memory for the stub although N asked for one
    if reply.code != b"VA" or reply.value is None:
        raise _unexpected(reply)
    value, flags, ttl = reply.value, reply.flags, reply.ttl
    mine = token(reply.cas, epoch, born, generation)
    expires_in = None if ttl < 0 else float(ttl)
    decision = decide(reply.won, reply.stale, reply.taken, len(value), flags)
    if decision is HIT:
        return Hit(value, flags, expires_in, mine)
    if decision is Decision.WON:
        return Lease(key, mine)
    if decision is Decision.WAIT:
        return Wait(POLL, mine)
    if decision is Decision.STALE:
        return Stale(value, flags, expires_in, mine)
    if decision is Decision.UNSTORABLE:
        return Lease(key, None)
    return Lease(key, mine, value, decision is Decision.REFRESH, flags, expires_in)


_SET_REASONS = {
    b"NF": "deleted or expired while loading",
    b"EX": "invalidated or taken over while loading",
}


def read_outcomes(replies: Sequence[Reply], epoch: int, born: int, context: None) -> list[Stored | Refused]:
    """Turn the replies to lease-sets into their outcomes. Raises NodeError on what a lease-set is never answered."""
    return [_outcome(reply) for reply in replies]


def read_outcome(replies: Sequence[Reply], epoch: int, born: int, context: None) -> Stored | Refused:
    """Turn the reply to a lease-set into its outcome. Raises like `read_outcomes`."""
    return _outcome(replies[0])


def _outcome(reply: Reply) -> Stored | Refused:
    if reply.code == b"HD":
        return Stored()
    if reply.code in _SET_REASONS:
        return Refused(_SET_REASONS[reply.code])
    if reply.code == b"SERVER_ERROR":
        return NoRoom((reply.value or b"").decode(errors="replace"))
    raise _unexpected(reply)


def read_marked(replies: Sequence[Reply], epoch: int, born: int, context: None) -> bool:
    """Check the replies of `mark_stale_quietly`; False when an item had changed since it was looked at.

    Raises NodeError on anything but such changes and misses.
    """
    read_acknowledgement([reply for reply in replies if reply.code != b"EX"], epoch, born, context)
    return all(reply.code != b"EX" for reply in replies)


def read_acknowledgement(replies: Sequence[Reply], epoch: int, born: int, context: None) -> None:
    """Check the replies of quiet deletions: only misses may have been answered. Raises NodeError otherwise."""
    for reply in replies:
        if reply.code != b"NF":
            raise _unexpected(reply)


def read_nothing(replies: Sequence[Reply], epoch: int, born: int, context: None) -> None:
    """Check the reply to a release: done, or there was nothing to give back any more. Raises NodeError otherwise."""
    for reply in replies:
        if reply.code not in (b"HD", b"NF", b"EX"):
            raise _unexpected(reply)


def _unexpected(reply: Reply) -> NodeError:
    text = (reply.value or b"")[:120].decode(errors="replace") if reply.code == b"SERVER_ERROR" else ""
    error = Complaint if reply.code == b"SERVER_ERROR" else ProtocolError
    return error(f"unexpected reply {reply.code.decode()} {text}".rstrip())
