"""Waiting for others: one batch of looks per process, holders that die or are slow, herds that stay small."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import Cache
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Lease, Stored
from leasecache.stores.base import Store
from tests.callers import count_permits

SPAWN = multiprocessing.get_context("spawn")
LONG = 60.0  # s: no lease runs out and no wait ends but where a test says so


@pytest.fixture
def cache(memcached: MemcachedServer) -> Iterator[Cache]:
    """A cache on a memcached of the test's own."""
    with Cache.from_url(memcached.url) as opened:
        yield opened


@pytest.fixture
def elsewhere(memcached: MemcachedServer) -> Iterator[Cache]:
    """The same cache as another process has it."""
    with Cache.from_url(memcached.url) as opened:
        yield opened


def held(cache: Cache, key: bytes, lease_for: float = LONG) -> Lease:
    """Hold the lease of a key as a process would that never finishes loading."""
    lease = cache.lease_get(key, lease_for=lease_for)
    assert isinstance(lease, Lease)
    return lease


def know_loads(get_item: Any, seconds: float) -> None:
    """Let a function know how long its loads take, as twenty of them would have told it."""
    for _ in range(20):
        get_item._self_core._load_time.observe(seconds)


def count_batches(store: Store) -> list[int]:
    """Return a list that grows by the size of every batch of lease-gets."""
    sizes: list[int] = []
    lease_get_many = store.lease_get_many

    def counted(asks: Any) -> Any:
        sizes.append(len(asks))
        return lease_get_many(asks)

    store.lease_get_many = counted  # type: ignore[method-assign]
    return sizes


def test_threads_that_wait_for_many_keys_look_in_one_batch(cache: Cache, elsewhere: Cache) -> None:
    """Forty threads wait for forty keys held elsewhere; their looks go together, and each gets its own value."""

    @cache.cached("item:{n}", ttl=60, wait_for=LONG, lease_for=LONG)
    def item(n: int) -> int:
        raise AssertionError("somebody else loads")

    leases = [held(elsewhere, item.key(n)) for n in range(40)]
    sizes = count_batches(cache.driver().store)
    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(item, n) for n in range(40)]
        wait_until(lambda: sizes[-3:] == [40] * 3, 60, "batches of all looks")
        filled = [elsewhere.driver().store.lease_set(lease, item._self_core.codec.tag, b"\x07", 60) for lease in leases]
        assert filled == [Stored()] * 40
        assert [future.result() for future in waiting] == [7] * 40


def test_the_leader_of_the_looks_can_leave(cache: Cache, elsewhere: Cache) -> None:
    """Whoever looks for all is done first; another one of those who wait goes on looking."""

    @cache.cached("item:{n}", ttl=60, wait_for=LONG, lease_for=LONG)
    def item(n: int) -> int:
        raise AssertionError("somebody else loads")

    leases = [held(elsewhere, item.key(n)) for n in range(8)]
    store, tag = elsewhere.driver().store, item._self_core.codec.tag
    with ThreadPoolExecutor(8) as pool:
        waiting = []
        for n in range(8):
            waiting.append(pool.submit(item, n))
            wait_until(lambda n=n: len(cache.driver()._poller._waiting) == n + 1, 60, "the thread to wait")
        for n in range(8):
            assert store.lease_set(leases[n], tag, b"%c" % n, 60) == Stored()
            assert waiting[n].result(60) == n


def test_stub_of_a_dead_holder_is_stolen_once_loads_are_known(cache: Cache, elsewhere: Cache) -> None:
    """Twenty loads of a few ms tell that a holder of a second is dead; the guard is LoadTime.patience."""
    loads: list[int] = []

    @cache.cached("item:{n}", ttl=60, wait_for=2 * LONG, lease_for=LONG)
    def item(n: int) -> int:
        loads.append(n)
        return n

    dead = held(elsewhere, item.key(1))
    know_loads(item, 0.005)
    began = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        assert [future.result() for future in [pool.submit(item, 1) for _ in range(5)]] == [1] * 5
    assert 0.9 < time.monotonic() - began < LONG / 2  # long before its lease is over
    assert loads == [1]
    assert cache.stats().functions[0].stolen == 1
    assert elsewhere.lease_set(dead, b"late", 60) != Stored()
    assert item.lookup(1).state == "fresh"


def test_holder_is_not_robbed_before_lease_for_while_loads_are_unknown(cache: Cache, elsewhere: Cache) -> None:
    """With fewer than twenty loads known, a slow loader of the first call of a day is left alone."""

    @cache.cached("item:{n}", ttl=60, wait_for=1.5, lease_for=LONG, on_wait_timeout="load")
    def item(n: int) -> int:
        return n

    lease = held(elsewhere, item.key(1))
    for _ in range(19):
        item._self_core._load_time.observe(0.005)
    assert item.lookup(1).state == "uncached"
    assert elsewhere.lease_set(lease, b"late", 60) == Stored()


def test_stale_item_of_a_dead_refresher_is_refreshed_by_another(cache: Cache, elsewhere: Cache) -> None:
    """A stale item has no clock that ends its lease; readers that are served stale steal it when its time is over."""
    versions = iter(range(1, 10))

    @cache.cached("item:{n}", ttl=60, stale_for=50, lease_for=LONG)
    def item(n: int) -> int:
        return next(versions)

    assert item(1) == 1
    item.invalidate(1)
    assert held(elsewhere, item.key(1)).value is not None
    know_loads(item, 0.005)
    assert item.lookup(1).state == "stale"
    assert wait_until(lambda: item.lookup(1).state == "fresh", 60, "somebody to refresh it")
    assert item(1) == 2
    assert cache.stats().functions[0].stolen == 1


def test_value_too_large_keeps_nobody_waiting(memcached: MemcachedServer) -> None:
    """Where a value does not fit, a mark says so: callers load for themselves, and none waits for another's store."""
    loads: list[int] = []
    with Cache.from_url(memcached.url) as cache:

        @cache.cached("blob:{n}", ttl=60, wait_for=2 * LONG, lease_for=2 * LONG)
        def blob(n: int) -> bytes:
            loads.append(n)
            return b"x" * 2_000_000

        assert blob.lookup(1).state == "uncached"
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            states = {future.result().state for future in [pool.submit(blob.lookup, 1) for _ in range(8)]}
        assert states == {"uncached"}
        assert time.monotonic() - began < LONG
        assert 2 <= len(loads) <= 9
        figures = cache.stats().functions[0]
        assert figures.refused == 1
        assert figures.unleased == len(loads) - 1
        assert blob.peek(1) is None
        assert blob.get_many([1])[1] == b"x" * 2_000_000
        blob.invalidate(1)
        assert isinstance(cache.lease_get(blob.key(1)), Lease)


def _load_in_a_process(url: str, counted: Any, seconds: float, start: Any, done: Any) -> None:
    with Cache.from_url(url) as cache:

        @cache.cached("row:{n}", ttl=60, wait_for=LONG, lease_for=LONG)
        def row_(n: int) -> int:
            with counted.get_lock():
                counted.value += 1
            time.sleep(seconds)
            return n

        know_loads(row_, 0.001)
        start.wait()
        done.put(row_.lookup(1).state)


def test_slow_loader_gets_to_store_although_others_steal(memcached: MemcachedServer) -> None:
    """Six processes that take a holder for dead after a second run into a loader of 1.5 s: few load, one stores.

    The guard is that each theft doubles the next holder's time; without it every process would load in turn, and none
    would store before the last. With it the second or third stores; the fourth has 8 s, however busy the machine.
    """
    counted, start, done = SPAWN.Value("i", 0), SPAWN.Event(), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_load_in_a_process, args=(memcached.url, counted, 1.5, start, done)) for _ in range(6)
    ]
    for process in processes:
        process.start()
    try:
        start.set()
        states = [done.get(timeout=LONG) for _ in processes]
    finally:
        for process in processes:
            process.join(60)
            process.kill()
    assert "fresh" in states or "loaded" in states
    assert counted.value <= 4


def test_loader_slower_than_its_lease_stores_at_the_second_attempt(cache: Cache, elsewhere: Cache) -> None:
    """A load of 4.5 s under a lease of 4 s is refused; who outlasted it in another process has a lease of 9 s.

    The guard is Holders.grant: under leases of lease_for no load would ever be stored.
    """
    loads: list[int] = []
    started, followed = threading.Event(), threading.Event()

    def load(n: int) -> int:
        loads.append(n)
        if started.is_set():
            followed.set()
            time.sleep(4.5)
        started.set()
        assert followed.wait(LONG)
        return n

    first, second = (each.cached("item:{n}", ttl=60, wait_for=LONG, lease_for=4)(load) for each in (cache, elsewhere))
    with ThreadPoolExecutor(10) as pool:
        slow = pool.submit(first.lookup, 1)
        assert started.wait(LONG)
        states = [future.result().state for future in [pool.submit(second.lookup, 1) for _ in range(9)]]
    assert slow.result().state == "uncached"
    assert sorted(set(states)) == ["fresh", "loaded"]
    assert first.lookup(1).state == "fresh"
    assert len(loads) == 2


@pytest.mark.usefixtures("generous")
def test_loader_slower_than_its_lease_stores_at_its_second_call(cache: Cache) -> None:
    """A process that nobody waits for remembers that its lease of 1 s ran out, and asks for a longer one.

    The guard is Holders.outlived: without it a function that is always slower than lease_for would never be cached.
    """

    @cache.cached("item:{n}", ttl=60, lease_for=1)
    def item(n: int) -> int:
        time.sleep(1.5)
        return n

    assert [item.lookup(1).state for _ in range(3)] == ["uncached", "loaded", "fresh"]


def _hold_and_die(url: str, ready: Any) -> None:
    with Cache.from_url(url) as cache:

        @cache.cached("row:{n}", ttl=60, lease_for=LONG)
        def row_(n: int) -> int:
            ready.set()
            threading.Event().wait(LONG)
            return n

        row_(1)


def test_winner_killed_by_sigkill_costs_lease_for_at_most(memcached: MemcachedServer) -> None:
    """The holder dies without a word; at the end of its time one waiter takes over, and the others get its value."""
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=_hold_and_die, args=(memcached.url, ready))
    holder.start()
    try:
        assert ready.wait(LONG)
    finally:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    loads: list[int] = []
    with Cache.from_url(memcached.url) as cache:

        @cache.cached("row:{n}", ttl=60, wait_for=LONG, lease_for=2)
        def row_(n: int) -> int:
            loads.append(n)
            return n

        cache.driver().store.steal(row_.key(1), cache.lease_get(row_.key(1)).token, 2)  # type: ignore[union-attr, arg-type]
        with ThreadPoolExecutor(20) as pool:
            values = [future.result() for future in [pool.submit(row_, 1) for _ in range(20)]]
    assert values == [1] * 20
    assert loads == [1]


def test_loader_that_raises_every_second_time(cache: Cache) -> None:
    """Each caller gets a value or the error of its own load; after an error the others contend at once."""
    lock, calls = threading.Lock(), [0]

    @cache.cached("row:{n}", ttl=60, wait_for=LONG, lease_for=LONG)
    def row_(n: int) -> int:
        with lock:
            calls[0] += 1
            number = calls[0]
        time.sleep(0.01)
        if number % 2:
            raise ValueError(number)
        return n

    def call() -> Any:
        try:
            return row_(1)
        except ValueError as error:
            return error.args[0]

    with ThreadPoolExecutor(30) as pool:
        results = [future.result() for future in [pool.submit(call) for _ in range(30)]]
    assert sorted(results) == [1] * 30  # one of them is the number of the first load, which raised
    assert calls == [2]
    assert cache.stats().functions[0].failed == 1


def test_waiters_of_a_node_that_goes_away_load(memcached: MemcachedServer, cache: Cache, elsewhere: Cache) -> None:
    """A look that fails tells everyone who waits for that node; they load together, one at a time.

    The guard is that `_poll` ends its flight before it loads: else others begin only when that load has ended.
    """
    loads: list[int] = []

    @cache.cached("row:{n}", ttl=60, wait_for=LONG, lease_for=LONG)
    def row_(n: int) -> int:
        loads.append(n)
        wait_until(lambda: len(entered) == 10, 60, "all to come while it runs")
        return n

    held(elsewhere, row_.key(1))
    entered = count_permits(row_)
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(row_.lookup, 1) for _ in range(10)]
        wait_until(lambda: cache.driver()._poller._waiting, 60, "a thread to look")
        memcached.kill()
        entries = [future.result(LONG) for future in waiting]
    assert {entry.state for entry in entries} == {"uncached"}
    assert 1 <= len(loads) <= 2  # the first, and one for those who came while it ran


def test_lease_won_for_a_thread_that_gave_up_is_given_back(cache: Cache, elsewhere: Cache) -> None:
    """A look whose thread was interrupted may still win; the guard is that the poller releases what nobody wants."""

    @cache.cached("row:{n}", ttl=60, wait_for=LONG, lease_for=LONG)
    def row_(n: int) -> int:
        return n

    lease = held(elsewhere, row_.key(1))
    poller, store = cache.driver()._poller, cache.driver().store
    lease_get_many, won, given_up = store.lease_get_many, [], []

    def overtaken(asks: Any) -> Any:
        answers = lease_get_many(asks)
        if any(isinstance(answer, Lease) for answer in answers):
            won.append(True)
            for look in list(poller._schedule._looks.values()):
                poller._schedule.discard(look)  # as its thread does when it is interrupted
                given_up.append(look)
        return answers

    store.lease_get_many = overtaken  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(row_, 1)
        wait_until(lambda: poller._waiting, 60, "the thread to wait")
        elsewhere.release(lease)
        wait_until(lambda: won, 60, "the lease to be won")
        store.lease_get_many = lease_get_many  # type: ignore[method-assign]
        free = wait_until(lambda: isinstance(elsewhere.lease_get(row_.key(1)), Lease), 30, "the lease to be free again")
        assert free
        elsewhere.invalidate(row_.key(1))
        for look in given_up:
            look.until = 0.0
        poller._waiting[0].set()
        assert waiting.result(60) == 1
