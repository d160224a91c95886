"""In-process coalescing: one wait per key and token, one unleased load per key.

Joining somebody else's load must not cross an invalidation. A caller sends its own lease-get first and joins a
flight only when the answer names the flight's token, over a connection that was established before that token was
issued: then nothing can have voided the token between the load's begin and the caller's.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from leasecache.fork import forget_after_fork
from leasecache.lease import Token


@dataclass(frozen=True, slots=True)
class Landed:
    """What a flight brought: an encoded value, and whether the cache holds it."""

    flags: int
    body: bytes
    cached: bool
    expires_in: float | None


class Flight:
    """One load, or one poll for somebody else's, that other callers of this process wait for."""

    __slots__ = ("__weakref__", "_done", "_listeners", "_lock", "landed", "thread", "token")

    def __init__(self, token: Token | None) -> None:
        self.token = token
        self.thread = threading.get_ident()
        self.landed: Landed | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], object]] = []

    @property
    def ended(self) -> bool:
        """Tell whether there is nothing to wait for any more."""
        return self._done.is_set()

    def end(self, landed: Landed | None) -> None:
        """Wake everyone; None means that they must ask again. What ends it first counts."""
        with self._lock:
            if self._done.is_set():
                return
            self.landed = landed
            self._done.set()
        for wake in self._listeners:
            wake()

    def wait(self, seconds: float) -> Landed | None:
        """Wait up to `seconds`; None when the flight brought nothing, or not yet."""
        return self.landed if self._done.wait(max(seconds, 0)) else None

    def listen(self, wake: Callable[[], object]) -> None:
        """Call `wake()` once the flight has ended, from the thread that ends it; at once if it has."""
        with self._lock:
            if not self._done.is_set():
                self._listeners.append(wake)
                return
        wake()

    def unlisten(self, wake: Callable[[], object]) -> None:
        """Take back `listen`."""
        with self._lock:
            if wake in self._listeners and not self._done.is_set():
                self._listeners.remove(wake)

    def admits(self, token: Token) -> bool:
        """Tell whether a caller whose lease-get was answered with `token` may take this flight's value."""
        mine = self.token
        return mine is not None and mine.cas == token.cas and token.born <= mine.epoch


class Flights:
    """The flights of this process that were begun under a lease, by key."""

    def __init__(self) -> None:
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Drop everything; a fork has copied flights that nobody here will end."""
        self._lock = threading.Lock()
        self._by_key: dict[bytes, list[Flight]] = {}

    def begin(self, key: bytes, token: Token | None) -> Flight:
        """Register a flight that others may join."""
        flight = Flight(token)
        with self._lock:
            self._by_key.setdefault(key, []).append(flight)
        return flight

    def join_or_begin(self, key: bytes, token: Token) -> tuple[Flight, bool]:
        """Return a flight that admits `token` and False, or a new one and True."""
        with self._lock:
            flights = self._by_key.setdefault(key, [])
            for flight in flights:
                if flight.admits(token):
                    return flight, False
            flight = Flight(token)
            flights.append(flight)
            return flight, True

    def end(self, key: bytes, flight: Flight, landed: Landed | None) -> None:
        """Take the flight off and wake those who joined."""
        with self._lock:
            flights = self._by_key.get(key, [])
            if flight in flights:
                flights.remove(flight)
            if not flights:
                self._by_key.pop(key, None)
        flight.end(landed)


class Permits:
    """One load without a lease per key at a time. It serves only the callers that began before it.

    A flight is here while a caller holds on to it: one that a signal took before it could leave must block nobody.
    """

    def __init__(self) -> None:
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Drop everything; a fork has copied loads that nobody here will end."""
        self._lock = threading.Lock()
        self._running: WeakValueDictionary[bytes, Flight] = WeakValueDictionary()
        self._queued: WeakValueDictionary[bytes, Flight] = WeakValueDictionary()

    def enter(self, key: bytes) -> tuple[Flight, Flight | None, bool]:
        """Return (flight, the running load to let pass first, whether the caller leads the flight)."""
        with self._lock:
            running = self._running.get(key)
            if running is None:
                flight = self._running[key] = Flight(None)
                return flight, None, True
            leads = key not in self._queued
            return self._queued.setdefault(key, Flight(None)), running, leads

    def promote(self, key: bytes, flight: Flight) -> Flight | None:
        """Let the queued `flight` run; or return the load that still runs, which must pass first."""
        with self._lock:
            running = self._running.get(key)
            if running is None:
                self._running[key] = flight
                self._queued.pop(key, None)
            return running

    def leave(self, key: bytes, flight: Flight, landed: Landed | None) -> None:
        """End a flight, whether it ran or was given up in the queue, and wake its callers."""
        with self._lock:
            for flights in (self._running, self._queued):
                if flights.get(key) is flight:
                    del flights[key]
        flight.end(landed)
