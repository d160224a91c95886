"""Race 16: joining another caller's load must not cross an invalidation."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import Cache
from leasecache.lab import MemcachedServer, RedisServer, wait_until
from leasecache.lease import Lease

WAYS: dict[str, Callable[[Any], str]] = {
    "call": lambda get_row: str(get_row(1)),
    "lookup": lambda get_row: str(get_row.lookup(1).value),
    "get_many": lambda get_row: str(get_row.get_many([1])[1]),
    "refresh": lambda get_row: str(get_row.refresh(1)),
}


class Table:
    """One row, and loads of its old version that can be held up on their way."""

    def __init__(self) -> None:
        self.row = "old"
        self.began = threading.Semaphore(0)
        self.go_on = threading.Event()

    def read(self, row_id: int) -> str:
        """Read the row; while it is the old one, its answer is not delivered before `go_on`."""
        value = self.row
        self.began.release()
        if value == "old":
            assert self.go_on.wait(60)
        return value


@pytest.fixture
def table() -> Table:
    """A table whose row is "old"."""
    return Table()


@pytest.fixture(params=["memcached", "redis", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """Each store; those on a network for the test alone."""
    if request.param == "memory":
        return "memory://"
    server: MemcachedServer | RedisServer = request.getfixturevalue(request.param)
    return server.url


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that end before the cache is closed."""
    with ThreadPoolExecutor(8) as executor:
        yield executor


def declare(cache: Cache, table: Table, **policy: Any) -> Any:
    @cache.cached("row:{row_id}", **{"ttl": 60, "lease_for": 60, "wait_for": 60, **policy})
    def get_row(row_id: int) -> str:
        return table.read(row_id)

    return get_row


def flights(cache: Cache) -> int:
    """Count the loads and waits that are registered."""
    return sum(map(len, list(cache.driver().local.flights._by_key.values())))


@pytest.mark.parametrize("way", WAYS)
def test_caller_after_an_invalidation_does_not_join_the_older_load(
    url: str, table: Table, pool: ThreadPoolExecutor, way: str
) -> None:
    """A load that began before an invalidation answers only callers from before it; guard: own lease-get, own token."""
    with Cache.from_url(url) as cache:
        get_row = declare(cache, table)
        first = pool.submit(get_row, 1)
        assert table.began.acquire(timeout=60)
        table.row = "new"
        get_row.invalidate(1)
        assert WAYS[way](get_row) == "new"
        table.go_on.set()
        assert first.result() == "old"
        assert get_row(1) == "new"


@pytest.mark.parametrize("way", ["call", "lookup", "get_many"])
def test_waiter_of_another_token_does_not_join(
    memcached: MemcachedServer, table: Table, pool: ThreadPoolExecutor, way: str
) -> None:
    """A caller that finds another process's lease polls for it, though this process still loads under a void one.

    Guard: the CAS in `Flight.admits`.
    """
    with Cache.from_url(memcached.url) as cache, Cache.from_url(memcached.url) as elsewhere:
        get_row = declare(cache, table)
        first = pool.submit(get_row, 1)
        assert table.began.acquire(timeout=60)
        get_row.invalidate(1)
        taken = elsewhere.lease_get(get_row.key(1), lease_for=60)
        assert isinstance(taken, Lease)
        second = pool.submit(WAYS[way], get_row)
        wait_until(lambda: flights(cache) == 2, 60, "the second caller to wait by itself")
        table.row = "new"
        table.go_on.set()
        assert first.result() == "old"
        elsewhere.release(taken)
        assert second.result() == "new"


def test_callers_of_the_same_token_join(url: str, table: Table, pool: ThreadPoolExecutor) -> None:
    """Nothing came between: all who wait for one token get the value of one load."""
    with Cache.from_url(url) as cache:
        get_row = declare(cache, table)
        first = pool.submit(get_row, 1)
        assert table.began.acquire(timeout=60)
        others = [pool.submit(get_row.lookup, 1) for _ in range(5)]
        wait_until(lambda: get_row._self_core.stats.misses >= 6, 60, "all to have asked")
        table.go_on.set()
        assert first.result() == "old"
        assert {other.result().value for other in others} == {"old"}
        assert not table.began.acquire(blocking=False)


def test_refresh_does_not_join_the_load_that_runs(url: str, table: Table, pool: ThreadPoolExecutor) -> None:
    """refresh() loads what is there now, though no invalidation has voided the older load; guard: `renew` waits."""
    with Cache.from_url(url) as cache:
        get_row = declare(cache, table)
        first = pool.submit(get_row, 1)
        assert table.began.acquire(timeout=60)
        table.row = "new"
        refreshed = pool.submit(get_row.refresh, 1)
        wait_until(lambda: bool(cache.driver()._poller._waiting), 60, "the refresh to wait")
        table.go_on.set()
        assert refreshed.result() == "new"
        assert first.result() == "old"


def test_load_without_a_lease_serves_nobody_who_came_later(table: Table, pool: ThreadPoolExecutor) -> None:
    """With the node down a load answers callers from before it only; guard: later ones queue for the next load."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with Cache.from_url(f"memcached://127.0.0.1:{closed.getsockname()[1]}") as cache:
            get_row = declare(cache, table)
            first = pool.submit(get_row, 1)
            assert table.began.acquire(timeout=60)
            table.row = "new"
            later = [pool.submit(get_row, 1) for _ in range(4)]
            queued = cache.driver().local.permits._queued
            wait_until(lambda: len(queued) == 1, 60, "the others to queue")
            table.go_on.set()
            assert first.result() == "old"
            assert [call.result() for call in later] == ["new"] * 4


def test_waiter_that_wins_loads_for_those_who_came_before(
    memcached: MemcachedServer, table: Table, pool: ThreadPoolExecutor
) -> None:
    """Whoever joined a wait is answered by a load that begins after the wait; a caller after a later invalidation not.

    Guard: the wait's flight takes the token of the lease that it has won.
    """
    with Cache.from_url(memcached.url) as cache, Cache.from_url(memcached.url) as elsewhere:
        get_row = declare(cache, table)
        taken = elsewhere.lease_get(get_row.key(1), lease_for=60)
        assert isinstance(taken, Lease)
        waiting = [pool.submit(get_row, 1) for _ in range(3)]
        wait_until(lambda: get_row._self_core.stats.misses >= 3, 60, "all to have asked")
        elsewhere.release(taken)
        assert table.began.acquire(timeout=60)
        table.row = "new"
        get_row.invalidate(1)
        assert get_row(1) == "new"
        table.go_on.set()
        assert {call.result() for call in waiting} <= {"old", "new"}
        assert get_row(1) == "new"
