"""Connections to one node: shared by threads, dropped after a fork, each with the epoch of its birth."""

import contextlib
import errno
import random
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from leasecache._accel import ConnectionState, EpochState, Marks, PoolState
from leasecache.errors import NodeError, NodeTimeout
from leasecache.fork import forget_after_fork
from leasecache.lease import EXPLICIT_CAS

SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # of this machine, not of the node


class Epoch(EpochState):
    """Counts the connections of this process in the order in which they were established."""

    def __init__(self) -> None:
        self.latest = 0
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Renew the lock, which another thread may have held when the process forked."""
        self._lock = threading.Lock()

    def advance(self) -> int:
        """Return the number of a connection that has just been established."""
        with self._lock:
            self.latest += 1
            return self.latest


class CasNumbers:
    """Draws CAS numbers of 62 random bits, none twice: not in another thread, nor process, nor after a fork.

    A generator of our own: an application may seed that of `random`, in every worker alike.
    """

    def __init__(self) -> None:
        self._random = random.Random()
        self._bits = self._random.getrandbits  # one call into C: threads cannot share a number
        self.mark = Marks(self._bits, EXPLICIT_CAS)
        forget_after_fork(self)

    def forget(self) -> None:
        """Seed anew; the parent goes on drawing the numbers that would come next."""
        self._random.seed()

    def draw(self) -> int:
        """Return the next number."""
        return self._bits(62) | EXPLICIT_CAS


EPOCH = Epoch()
NUMBERS = CasNumbers()


class Closable(Protocol):
    """What talks over the socket of a connection."""

    def close(self) -> None:
        """Close the socket; never raises."""
        ...


W = TypeVar("W", bound=Closable)


class Connection(ConnectionState, Generic[W]):
    """A wire and when it was established; `pooled` tells whether it served before, and may have died since."""

    __slots__ = ("__weakref__", "sock")

    wire: W

    def __init__(self, wire: W, sock: Any, *, explicit: bool = False) -> None:
        """`sock` is the wire's; `explicit` tells whether its server takes CAS numbers from us."""
        self.wire = wire
        self.mark = NUMBERS.mark if explicit else bytes
        self.epoch = EPOCH.advance()
        self.pooled = False
        self.term = 0
        self.sock = sock

    @property
    def ended(self) -> bool:
        """Whether the server has closed it, or sends what nobody asked for; asked between two exchanges."""
        poller = select.poll()
        try:
            poller.register(self.sock, select.POLLIN)
        except ValueError:  # closed by us
            return True
        return bool(poller.poll(0))


class Pool(PoolState, Generic[W]):
    """At most `limit` connections; one that is idle is used again, the latest first.

    One connection is opened at a time: in a herd most callers find one that others have done with before one of their
    own would have greeted the server, and five hundred greetings would take longer than the load they wait for.
    """

    idle: list[Connection[W]]
    _opening: bool
    _failures: int  # first connections that could not be opened
    _failure: NodeError  # why the latest of them could not

    def __init__(self, connect: Callable[[], Connection[W]], limit: int, patience: float) -> None:
        """`connect` opens one; a caller waits up to `patience` s for one when `limit` are busy."""
        self._connect = connect
        self._limit = limit
        self._patience = patience
        self.term = 0
        self.idle = []
        self._open: WeakSet[Connection[W]] = WeakSet()  # weak: one that a signal took from its user is not open
        self._begin()
        forget_after_fork(self)

    @property
    def size(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them that are idle."""
        return len(self._open), len(self.idle)

    def acquire(self) -> Connection[W]:
        """Return a connection for one exchange. Raises NodeError, or NodeTimeout when all stay busy."""
        try:
            return self.idle.pop()
        except IndexError:
            pass
        try:
            return self._open_or_wait(self._limit)
        except NodeError as error:
            cause = error.__cause__
            if not (isinstance(cause, OSError) and cause.errno in SCARCE and self._open):
                raise
        return self._open_or_wait(0)  # no descriptor left for one more: share those that are open

    def acquire_before(self, epoch: int) -> Connection[W] | None:
        """Return a connection established no later than `epoch`, or None when none of those is left."""
        deadline = time.monotonic() + self._patience
        with self._changed:
            self.waiting += 1
            self._choosy += 1
            try:
                while any(connection.epoch <= epoch for connection in self._open):
                    found = self._take_before(epoch)
                    if found is not None or not _wait(self._changed, deadline):
                        return found
                return None
            finally:
                self._choosy -= 1
                self.waiting -= 1

    def release(self, connection: Connection[W]) -> None:
        """Give back a connection whose exchange was read to its end."""
        if connection.term != self.term:
            self.discard(connection)
            return
        connection.pooled = True
        self.idle.append(connection)
        if self.waiting:
            with self._lock:
                self._freed.notify()
                if self._choosy:
                    self._changed.notify_all()

    def discard(self, connection: Connection[W]) -> None:
        """Close a connection that may hold half an answer, or that broke."""
        connection.wire.close()
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()
            self._freed.notify()

    def close(self) -> None:
        """Close the connections, those in use when they come back; the pool can be used again."""
        self.term += 1
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close the connections that nobody uses now."""
        with contextlib.suppress(IndexError):
            while True:
                self.discard(self.idle.pop())

    def drop_ended(self) -> None:
        """Close the connections that nobody uses now and the server has ended; a restart ends them all."""
        for _ in range(len(self.idle)):
            try:
                connection = self.idle.pop(0)
            except IndexError:  # other threads took the rest
                return
            if connection.ended:
                self.discard(connection)
            else:
                self.release(connection)

    def __del__(self) -> None:
        for connection in self.idle:
            connection.wire.close()

    def _open_or_wait(self, limit: int) -> Connection[W]:
        deadline = time.monotonic() + self._patience
        with self._lock:
            failures = self._failures
            self.waiting += 1
            try:
                while True:
                    with contextlib.suppress(IndexError):
                        return self.idle.pop()
                    if self._failures != failures:
                        raise type(self._failure)(f"another caller has just failed to connect: {self._failure}")
                    if not self._opening and len(self._open) < limit:
                        break
                    if not _wait(self._freed, deadline):
                        raise NodeTimeout(f"all {len(self._open)} connections stayed busy for {self._patience:g} s")
                self._opening = True
            finally:
                self.waiting -= 1
        return self._establish()

    def _establish(self) -> Connection[W]:
        connection, term = None, self.term
        try:
            connection = self._connect()
            connection.term = term
            return connection
        except NodeError as error:
            self._give_up(error)
            raise
        finally:
            with self._lock:
                self._opening = False
                if connection is not None:
                    self._open.add(connection)
                self._freed.notify()  # the next one may be opened

    def _give_up(self, error: NodeError) -> None:
        """Let those fail, too, who wait for the first connection: they need not try the same."""
        with self._lock:
            if not self._open:
                self._failures += 1
                self._failure = error
                self._freed.notify_all()

    def _take_before(self, epoch: int) -> Connection[W] | None:
        for connection in list(self.idle):
            if connection.epoch <= epoch:
                try:
                    self.idle.remove(connection)
                except ValueError:
                    continue  # another thread was faster
                return connection
        return None

    def forget(self) -> None:
        """Drop what a fork has copied, those in use too; the parent goes on using those sockets."""
        for connection in self._open:
            connection.wire.close()
        self.idle.clear()
        self.term += 1
        self._open = WeakSet()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()  # a signal handler may use the cache, too
        self._freed = threading.Condition(self._lock)  # a connection for anyone, or the right to open one
        self._changed = threading.Condition(self._lock)  # for those who need one of a certain age
        self._opening = False
        self._failures = 0
        self._failure = NodeError("nothing has failed")
        self._choosy = 0  # callers that need a connection of a certain age
        self.waiting = 0


def _wait(condition: threading.Condition, deadline: float) -> bool:
    left = deadline - time.monotonic()
    return left > 0 and condition.wait(min(left, 0.05)) is not None
