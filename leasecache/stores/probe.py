"""Leaving a failed node alone: callers fail fast, and one at a time finds out whether it is back."""

import threading
import time

from leasecache._accel import ProbeState
from leasecache.errors import NodeError
from leasecache.fork import forget_after_fork
from leasecache.metrics import NodeStats

FIRST, MOST = 0.1, 5.0  # s a failed node is left alone, doubling


class Probe(ProbeState):
    """Fails fast while a node is down, and lets one caller probe it after each back-off."""

    def __init__(self, errors: NodeStats) -> None:
        """`errors` are the node's: told when callers fail fast, and since when."""
        self._errors = errors
        self.delay = 0.0  # s between two probes, 0 = up
        self._until = 0.0  # on the monotonic clock: when the next caller may probe
        self._probing = False
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Renew the lock, which another thread may have held when the process forked."""
        self._lock = threading.Lock()

    def check(self, name: str) -> None:
        """Raise NodeError while the node is left alone; the caller that finds the time over probes it."""
        if not self.delay:
            return
        with self._lock:
            if self.delay and time.monotonic() < self._until:
                self._errors.down += 1
                raise NodeError(f"{name} is marked down after a failure; it is probed every {self.delay:g} s")
            self._probing = True
            self._until = time.monotonic() + MOST  # should this caller never report, another one probes

    def failed(self) -> None:
        """Leave the node alone, twice as long as last time."""
        with self._lock:
            now = time.monotonic()
            if self._probing or now >= self._until:  # failures of the same moment count once
                self.delay = min(self.delay * 2 or FIRST, MOST)
                self._until = now + self.delay
                self._probing = False
                self._errors.mark(self)

    def passed_on(self) -> None:
        """Let the next caller probe: this one was cancelled before it knew."""
        if self.delay:
            with self._lock:
                if self._probing:
                    self._until = 0.0

    def answered(self) -> None:
        """Believe that the node is up."""
        if self.delay:
            with self._lock:
                self.delay = self._until = 0.0
                self._errors.unmark(self)
                self._probing = False
