"""Leases in this process: the reference semantics that the networked stores must agree with."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from leasecache import _accel
from leasecache._accel import Item
from leasecache.codecs import UNCACHEABLE
from leasecache.errors import NodeError
from leasecache.fork import forget_after_fork
from leasecache.guard import NO_RUN
from leasecache.lease import Answer, Ask, Decision, Fill, Hit, Lease, Refused, Stale, Stored, Token, Wait, decide
from leasecache.stores.base import BatchReader, Outcome, Reader

CAPACITY = 64 * 2**20  # bytes
OVERHEAD = 200  # bytes an entry costs beside key and value, roughly what CPython takes
POLL = 0.001  # s before a waiter looks again for the first time


class MemoryStore:
    """An LRU of encoded values, bounded in bytes; one lock, one injected clock. It is its own only node."""

    name = "memory"
    guarded = False
    mark = b""
    trust = None

    def __init__(
        self, namespace: str | None = None, *, capacity: int = CAPACITY, clock: Callable[[], float] | None = None
    ) -> None:
        """`capacity` in bytes; `clock` returns s, default `time.monotonic` looked up at each call."""
        self.namespace = namespace
        self.nodes = (self,)
        self._capacity = capacity
        self._clock = clock
        self._cas = 0
        self._items: OrderedDict[bytes, Item] = OrderedDict()  # the same object for ever: readers hold on to it
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start anew, CAS numbers apart: a fork may come amid a change, and copies leases that nobody holds."""
        self._lock = threading.Lock()
        self._items.clear()
        self._size = 0

    def node_for(self, key: bytes) -> "MemoryStore":
        """Return this store."""
        return self

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Answer:
        """Return the value, or the lease to load it, or who has it."""
        with self._lock:
            now = self._now()
            item = self._find(key, now)
            if item is None:
                item = self._put(key, Item(0, b"", self._next_cas(), now + lease_for))
                won = True
            else:
                early = bool(refresh_ahead) and item.flags != 0 and item.expires - now < refresh_ahead
                won = (item.stale or early) and not item.taken
            taken = item.taken or (not won and not item.flags)
            item.taken = item.taken or won
            return self._answer(key, item, won, taken, now)

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a hit with these client flags.

        It may look at an item and move it to the end without the lock, so whatever holds the lock must leave the items
        fit to be looked at after each step, and not iterate over them.
        """

        def read(key: bytes) -> bytes | Answer:
            answer = self.lease_get(key, lease_for, refresh_ahead)
            return answer.value if type(answer) is Hit and answer.flags == flags else answer

        return _accel.MemoryReader(self._items, self._clock, refresh_ahead, flags, read)

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask."""
        return [self.lease_get(*ask) for ask in asks]

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader:
        """Return a lease-get of many keys that gives the values alone of hits with these client flags."""
        read = self.reader(lease_for, refresh_ahead, flags)
        return lambda keys: [read(key) for key in keys]

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under the lease if nothing has voided it."""
        with self._lock:
            now = self._now()
            item = self._find(lease.key, now)
            if lease.token is None or item is None:
                return Refused("deleted or expired while loading")
            if item.cas != lease.token.cas:
                return Refused("invalidated or taken over while loading")
            fits = len(lease.key) + len(body) + OVERHEAD <= self._capacity
            flags, body = (flags, body) if fits else (UNCACHEABLE, b"")
            self._put(lease.key, Item(flags, body, self._next_cas(), now + max(1, int(ttl))))
            return Stored() if fits else Refused(f"larger than the store's {self._capacity} bytes")

    def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome | NodeError]:
        """Store under each lease."""
        return [self.lease_set(*fill) for fill in fills]

    def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names, unless it is gone, and answer as a lease-get then does."""
        with self._lock:
            item = self._find(key, self._now())
            if item is not None and item.cas == token.cas:
                self._mark_stale(item)
        return self.lease_get(key, lease_for)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return the number of items, and the bytes that they and their keys take."""
        with self._lock:
            return {self.name: {"items": len(self._items), "bytes": self._size, "capacity": self._capacity}}

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next reader wins at once."""
        with self._lock:
            item = self._find(lease.key, self._now())
            if lease.token is None or lease.fresh or item is None or item.cas != lease.token.cas:
                return
            if lease.value is None:
                self._drop(lease.key)
            else:
                self._mark_stale(item)

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0, *, plain: bool = False) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s, never longer than they had."""
        with self._lock:
            now = self._now()
            for key in keys:
                item = self._find(key, now)
                if item is None:
                    continue
                expires = min(item.expires, now + int(stale_for))
                if expires - now < 1:
                    self._drop(key)
                else:
                    item.expires = expires
                    self._mark_stale(item)

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Invalidate; there is no guard record."""
        self.invalidate(keys, stale_for)

    def run(self) -> str:
        """Return the mark of a server that forgets everything."""
        return NO_RUN

    def clear(self) -> None:
        """Forget every value, and every lease."""
        self.close()

    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching leases or recency; the answer does not tell whether it is stale."""
        with self._lock:
            now = self._now()
            item = self._find(key, now)
            return Hit(item.value, item.flags, item.expires - now) if item is not None and item.flags else None

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()
            self._size = 0

    def _answer(self, key: bytes, item: Item, won: bool, taken: bool, now: float) -> Answer:
        token = Token(item.cas, 0, 0)
        left = item.expires - now
        decision = decide(won, item.stale, taken, len(item.value), item.flags)
        if item.flags:
            self._items.move_to_end(key)
        if decision is Decision.HIT:
            return Hit(item.value, item.flags, left, token)
        if decision is Decision.STALE:
            return Stale(item.value, item.flags, left, token)
        if decision is Decision.WAIT:
            return Wait(POLL, token)
        if decision is Decision.WON:
            return Lease(key, token)
        return Lease(key, token, item.value, decision is Decision.REFRESH, item.flags, left)

    def _find(self, key: bytes, now: float) -> Item | None:
        item = self._items.get(key)
        if item is not None and item.expires <= now:
            self._drop(key)
            return None
        return item

    def _put(self, key: bytes, item: Item) -> Item:
        self._drop(key)
        self._items[key] = item
        self._size += _size(key, item)
        while self._size > self._capacity and len(self._items) > 1:
            self._size -= _size(*self._items.popitem(last=False))
        return item

    def _drop(self, key: bytes) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self._size -= _size(key, item)

    def _mark_stale(self, item: Item) -> None:
        item.stale, item.taken, item.cas = True, False, self._next_cas()

    def _now(self) -> float:
        return time.monotonic() if self._clock is None else self._clock()

    def _next_cas(self) -> int:
        self._cas += 1
        return self._cas


def _size(key: bytes, item: Item) -> int:
    return len(key) + len(item.value) + OVERHEAD
