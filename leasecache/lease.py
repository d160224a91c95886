"""The lease: what a lease-get may answer, and the decision table that reads a server's answer.

An item is a stub (empty, flags 0: somebody may load it), a value (flags ≠ 0) or foreign (written by someone else).
Three marks say who may do what: W this caller has won, X the value was invalidated, Z another caller has won.
Leases are those of "Scaling Memcache at Facebook" (NSDI '13, section 3.2.1).
"""

import enum
import itertools
from dataclasses import dataclass
from typing import NamedTuple

EXPLICIT_CAS = 1 << 62  # CAS numbers from here on were chosen at random by a client; no server counts that far
ANY_CONNECTION = 1 << 62  # instead of a connection's number: later than all of them
NO_CONNECTION = 0  # earlier than all of them


class Token(NamedTuple):
    """Proves the right to store: the item's CAS, and when it was issued in terms of this process's connections.

    A CAS that a server has counted can come back after its restart. A connection that is older than the token has
    outlived any restart, so only such a connection may present it. A CAS that a client has drawn at random never comes
    back: its epoch is ANY_CONNECTION.
    """

    cas: int
    epoch: int  # number of the latest connection when the lease-get was sent
    born: int  # number of the connection that brought the answer
    generation: int = 0  # that the key carries on its node, 0 = none: the function is not guarded


def token(cas: int, epoch: int, born: int, generation: int = 0) -> Token:
    """Return the token of a CAS that connection `born` brought when connection `epoch` was the latest."""
    return Token(cas, ANY_CONNECTION if cas >= EXPLICIT_CAS else epoch, born, generation)


class Hit(NamedTuple):
    """A value that nothing has invalidated."""

    value: bytes
    flags: int = 0
    expires_in: float | None = None  # s, None = no expiry
    token: Token | None = None


class Stale(NamedTuple):
    """A value that was invalidated; another caller is loading its successor under `token`."""

    value: bytes
    flags: int = 0
    expires_in: float | None = None
    token: Token | None = None


class Wait(NamedTuple):
    """Another caller holds the lease `token` and there is no value to serve; look again in `retry_after` s."""

    retry_after: float
    token: Token | None = None


class Lease(NamedTuple):
    """The right to load and store `key`. `value` is the value in hand, if any; `fresh` tells whether it still holds.

    A lease without a token cannot store: the server had no memory, or somebody else's value is in the way.
    """

    key: bytes
    token: Token | None
    value: bytes | None = None
    fresh: bool = False
    flags: int = 0
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The value is in the cache."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The value was not stored, because it may be older than an invalidation or because it cannot be held."""

    reason: str


Answer = Hit | Stale | Wait | Lease


class Ask(NamedTuple):
    """One lease-get of a batch."""

    key: bytes  # logical
    lease_for: float  # s
    refresh_ahead: float = 0  # s
    mark: bytes | None = None  # of a guarded function: what the guard record of the node must name


class Fill(NamedTuple):
    """One lease-set of a batch."""

    lease: Lease
    flags: int
    body: bytes
    ttl: float  # s


class Content(enum.Enum):
    """What an item holds."""

    STUB = "stub"  # size 0, flags 0
    VALUE = "value"  # flags ≠ 0
    FOREIGN = "foreign"  # size > 0, flags 0


class Decision(enum.Enum):
    """What a lease-get means for the caller."""

    HIT = "serve it"
    WON = "load and store"
    WON_STALE = "load and store, a stale value is in hand"
    REFRESH = "serve it, load and store in the background"
    STALE = "serve it if stale is allowed, else wait"
    WAIT = "wait"
    UNSTORABLE = "load, do not store"


STUB, VALUE, FOREIGN = Content.STUB, Content.VALUE, Content.FOREIGN

# (W, X, Z, content) → decision. Every other combination is somebody else's item: load, do not store.
DECISIONS = {
    (False, False, False, VALUE): Decision.HIT,
    (True, False, False, STUB): Decision.WON,
    (True, True, False, STUB): Decision.WON,
    (True, True, False, VALUE): Decision.WON_STALE,
    (True, False, False, VALUE): Decision.REFRESH,
    (False, True, True, VALUE): Decision.STALE,
    (False, False, True, VALUE): Decision.HIT,
    (False, False, True, STUB): Decision.WAIT,
    (False, True, True, STUB): Decision.WAIT,
}


def content(size: int, flags: int) -> Content:
    """Classify an item by its size in bytes and its client flags."""
    if flags:
        return VALUE
    return FOREIGN if size else STUB


def decide(won: bool, stale: bool, taken: bool, size: int, flags: int) -> Decision:
    """Read the marks W, X, Z, the size in bytes and the client flags of an item."""
    return _DECIDED[won, stale, taken, size > 0, flags > 0]


_BITS = (False, True)
_DECIDED = {  # DECISIONS for every answer there can be, with keys that are quick to make
    (won, stale, taken, sized, flagged): DECISIONS.get(
        (won, stale, taken, content(sized, flagged)), Decision.UNSTORABLE
    )
    for won, stale, taken, sized, flagged in itertools.product(_BITS, repeat=5)
}
