"""Who holds the lease of a key, as far as this process has seen: since when, and how often it was robbed.

A holder that is dead never stores, and a stale item has no clock that would end its lease; one that is merely slow
must get to store. So each theft of a key doubles the time that the next holder is given, and the life of its lease.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from leasecache.fork import forget_after_fork
from leasecache.lease import Token
from leasecache.policy import LEASE_MOST

KNOWN = 4096  # keys remembered, the latest
MOST = 0.5  # of a holder's time
TICK = 1.0  # s: memcached counts in whole ones, so a lease may end that much early
LONGEST = 8  # times lease_for: what thefts can stretch a holder's time to


@dataclass(slots=True)
class _Holder:
    cas: int
    since: float  # monotonic s when this process first saw this lease
    thefts: int = 0
    outlived: bool = False  # a load of this process took longer than this lease, or one before it
    goes: float | None = None  # monotonic s when the stale value that it replaces does


class Holders:
    """The leases of others that callers of this process have run into, by key."""

    def __init__(self) -> None:
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start anew."""
        self._lock = threading.Lock()
        self._by_key: OrderedDict[bytes, _Holder] = OrderedDict()

    def deadline(
        self, key: bytes, token: Token, patience: float, lease_for: float, now: float, goes: float | None = None
    ) -> float:
        """Return when (monotonic s) the holder of `token` has had its time, seen for the first time now or earlier.

        A holder gets `patience` s, doubled for each holder of the key before it that was robbed. `goes` (monotonic s)
        is when the stale value will, None without one: later than it was means that another value has been stored.
        """
        with self._lock:
            holder = self._by_key.get(key)
            if holder is None or holder.cas != token.cas:
                before = holder if holder is not None and not _is_later(goes, holder.goes) else None
                outlived = before is not None and before.outlived
                holder = _Holder(token.cas, now, _thefts(before, patience, lease_for, now), outlived, goes)
            self._keep(key, holder)
            return holder.since + _time(holder.thefts, patience, lease_for)

    def grant(self, key: bytes, lease_for: float) -> float:
        """Return the s that a caller who outlasts the present holder asks for: twice what that one had.

        The item of a lease ends with it, so a loader that is slower than `lease_for` stores only under a longer one.
        """
        with self._lock:
            holder = self._by_key.get(key)
            thefts = holder.thefts if holder is not None else 0
            return min(_time(1 + thefts, lease_for, lease_for) + TICK, LEASE_MOST)

    def outlived(self, key: bytes, token: Token, seconds: float, lease_for: float, now: float) -> None:
        """Note a load of this process that was refused after `seconds`, most of its lease: it had ended by itself."""
        if seconds < _most(lease_for):
            return
        with self._lock:
            holder = self._by_key.get(key) or _Holder(token.cas, now - seconds)
            holder.outlived = True
            self._keep(key, holder)

    def is_too_short(self, key: bytes, token: Token, lease_for: float, now: float) -> bool:
        """Tell whether `token`, a lease of `lease_for` s that we have just won, follows one that our load outlived."""
        with self._lock:
            before = self._by_key.get(key)
            if before is None or not before.outlived or before.cas == token.cas:
                return False
            return _thefts(before, lease_for, lease_for, now) > 0

    def drop(self, key: bytes) -> None:
        """Forget a key whose value has been stored."""
        with self._lock:
            self._by_key.pop(key, None)

    def _keep(self, key: bytes, holder: _Holder) -> None:
        self._by_key[key] = holder
        self._by_key.move_to_end(key)
        if len(self._by_key) > KNOWN:
            self._by_key.popitem(last=False)


def _time(thefts: int, patience: float, lease_for: float) -> float:
    return min(patience * 2.0 ** min(thefts, 64), max(patience, LONGEST * lease_for))


def _most(seconds: float) -> float:
    """Return from when on a lease of `seconds` may have ended by itself."""
    return max(seconds - TICK, MOST * seconds)


def _is_later(goes: float | None, before: float | None) -> bool:
    """Tell two times at which a stale value goes apart: a theft leaves that as it is, but servers count whole ticks."""
    return goes is not None and before is not None and goes > before + 2 * TICK


def _thefts(before: _Holder | None, patience: float, lease_for: float, now: float) -> int:
    """Count a theft when the holder before had most of its time: nobody tells whether it was robbed, or by whom.

    Other processes met it a little earlier, so they rob it a little earlier; and a lease that ends by itself may do so
    a tick early.
    """
    if before is None:
        return 0
    tick = TICK if patience >= lease_for else 0
    return before.thefts + (now >= before.since + MOST * _time(before.thefts, patience, lease_for) - tick)
