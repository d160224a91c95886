"""Waiting threads: one of them sends the looks of all, in one batch per node, and wakes whoever they concern."""

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any, TypeVar

from leasecache.errors import NodeError
from leasecache.fork import forget_after_fork
from leasecache.lease import Lease
from leasecache.schedule import Schedule
from leasecache.stores.base import Store
from leasecache.task import Join, Look

K = TypeVar("K")


class Poller:
    """Serves the threads of this process that wait for other holders' leases in one store.

    The thread that leads sleeps until a look is due and sends it; the others sleep until they are woken. When the
    leader's own wait is over it wakes another one to lead. Every primitive that a thread sleeps on is made by that
    call, so that the poller works when gevent patches the standard library after the cache was declared.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Drop everything; threads do not survive a fork."""
        self._lock = threading.Lock()
        self._schedule = Schedule()
        self._signals: dict[int, threading.Event] = {}  # of looks
        self._waiting: list[threading.Event] = []
        self._leader: threading.Event | None = None

    def wait(self, requests: Mapping[K, Look | Join]) -> dict[K, Any]:
        """Wait until at least one of the requests is done; return the results of those that are."""
        signal = threading.Event()
        looks = [request for request in requests.values() if isinstance(request, Look)]
        joins = [request for request in requests.values() if isinstance(request, Join)]
        until = min(request.until for request in requests.values())
        done: dict[K, Any] = {}
        try:
            self._enter(signal, looks)
            for join in joins:
                join.flight.listen(signal.set)
            while not done:
                signal.clear()
                done = self._collect(requests, looks)
                if not done:
                    self._sleep(signal, until)
            return done
        finally:
            for join in joins:
                join.flight.unlisten(signal.set)
            self._leave(signal, looks if not done else [])

    def _enter(self, signal: threading.Event, looks: list[Look]) -> None:
        with self._lock:
            self._waiting.append(signal)
            for look in looks:
                self._schedule.add(look)
                self._signals[id(look)] = signal
            leader = self._leader
        if leader is not None:
            leader.set()  # the new looks may be due before it meant to wake

    def _collect(self, requests: Mapping[K, Look | Join], looks: list[Look]) -> dict[K, Any]:
        """Return the results that are there, and then stop looking; an answer that comes later is not wanted."""
        now = time.monotonic()
        with self._lock:
            done = {position: _result(request) for position, request in requests.items() if _is_done(request, now)}
            if done:
                self._drop(looks)
        return done

    def _sleep(self, signal: threading.Event, until: float) -> None:
        """Sleep until something has happened or is to be done; a leader does what is due."""
        with self._lock:
            leads = self._leader in (None, signal)
            if leads:
                self._leader = signal
                until = min(until, self._schedule.earliest())
        left = until - time.monotonic()
        if left > 0:
            signal.wait(left)
        elif leads:
            self._send()

    def _send(self) -> None:
        with self._lock:
            looks = self._schedule.due(time.monotonic())
        answers = self._store.lease_get_many([look.ask for look in looks]) if looks else []
        with self._lock:
            settled, unwanted = self._schedule.answer(looks, answers, time.monotonic())
            signals = [self._signals[id(look)] for look in settled]
        for signal in signals:
            signal.set()
        for lease in unwanted:
            self._release(lease)

    def _leave(self, signal: threading.Event, looks: list[Look]) -> None:
        """Stop waiting, after an interrupt with `looks` that may have been answered; let another thread lead."""
        with self._lock:
            self._drop(looks)
            self._waiting.remove(signal)
            if self._leader is signal:
                self._leader = None
            heir = self._waiting[0] if self._leader is None and self._waiting else None
        if heir is not None:
            heir.set()
        for look in looks:
            if isinstance(look.answer, Lease):
                self._release(look.answer)

    def _drop(self, looks: list[Look]) -> None:
        for look in looks:
            self._schedule.discard(look)
            self._signals.pop(id(look), None)

    def _release(self, lease: Lease) -> None:
        with contextlib.suppress(NodeError):  # it runs out by itself
            self._store.release(lease)


def _is_done(request: Look | Join, now: float) -> bool:
    ended = request.settled if isinstance(request, Look) else request.flight.ended
    return ended or request.until <= now


def _result(request: Look | Join) -> Any:
    return request.answer if isinstance(request, Look) else request.flight.landed
