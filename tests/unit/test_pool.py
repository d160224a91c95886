"""The pool's rules that need no server: one connection is opened at a time, and who waits for what."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import NodeError, NodeTimeout
from leasecache.lab import wait_until
from leasecache.stores.pool import Connection, Pool


class Wire:
    """What a connection talks over; here nobody is at the other end."""

    def close(self) -> None:
        pass


class Dialling:
    """Opens connections when it is told to, and tells how many are being opened at once."""

    def __init__(self) -> None:
        self.opening, self.most, self.opened = 0, 0, 0
        self.may_open = threading.Semaphore(0)
        self.fault: NodeError | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Connection[Any]:
        with self._lock:
            self.opening += 1
            self.most = max(self.most, self.opening)
        assert self.may_open.acquire(timeout=60)
        with self._lock:
            self.opening -= 1
            self.opened += 1
        if self.fault is not None:
            raise self.fault
        return Connection(Wire(), None)


def test_callers_share_the_first_connection_while_the_second_is_opened() -> None:
    """Twenty callers come at once: one connection is opened at a time, and whoever is freed first serves the next."""
    dial = Dialling()
    pool: Pool[Any] = Pool(dial, 64, patience=60)

    def exchange() -> int:
        connection = pool.acquire()
        pool.release(connection)
        return connection.epoch

    with ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(exchange) for _ in range(20)]
        wait_until(lambda: pool.waiting == 19, 60, "the others to wait")
        assert dial.opening == 1
        dial.may_open.release()
        wait_until(lambda: sum(call.done() for call in calls) >= 19, 60, "all but one to be served")
        dial.may_open.release(20)
        assert len({call.result() for call in calls}) <= 2
    assert dial.most == 1
    assert dial.opened <= 2


def test_callers_that_need_connections_at_once_get_them_one_after_the_other() -> None:
    """Callers that keep theirs do not share: as many are opened as are needed, up to the limit."""
    dial = Dialling()
    pool: Pool[Any] = Pool(dial, 5, patience=60)
    dial.may_open.release(10)
    with ThreadPoolExecutor(6) as threads:
        held = [threads.submit(pool.acquire) for _ in range(6)]
        wait_until(lambda: sum(call.done() for call in held) == 5, 60, "five to be opened")
        first = next(call for call in held if call.done()).result()
        pool.release(first)
        assert [call.result().epoch for call in held].count(first.epoch) == 2
    assert (dial.opened, dial.most) == (5, 1)


def test_who_waits_for_the_first_connection_fails_with_it() -> None:
    """When the first connection cannot be opened, those who wait for it fail at once, not one after the other."""
    dial = Dialling()
    dial.fault = NodeTimeout("no answer")
    pool: Pool[Any] = Pool(dial, 64, patience=60)
    with ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(pool.acquire) for _ in range(20)]
        wait_until(lambda: pool.waiting == 19, 60, "the others to wait")
        dial.may_open.release()
        errors = [call.exception(timeout=60) for call in calls]
    assert {type(error) for error in errors} == {NodeTimeout}
    assert dial.opened == 1


def test_an_interrupted_opening_fails_nobody_else() -> None:
    """A signal that ends one caller's opening leaves the right to open to the next one."""
    dial = Dialling()
    interrupted = threading.Event()

    def connect() -> Connection[Any]:
        if not interrupted.is_set():
            interrupted.set()
            wait_until(lambda: pool.waiting == 3, 60, "the others to wait")
            raise KeyboardInterrupt
        return dial()

    pool: Pool[Any] = Pool(connect, 64, patience=60)
    dial.may_open.release(10)

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            pool.acquire()

    with ThreadPoolExecutor(4) as threads:
        opening = threads.submit(first)
        assert interrupted.wait(60)
        others = [threads.submit(pool.acquire) for _ in range(3)]
        opening.result()
        assert len({other.result().epoch for other in others}) == 3
