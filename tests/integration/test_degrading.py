"""When waiting ends and when the cache fails: permits, timeouts, dead holders, nodes that are down."""

import multiprocessing
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import Cache, LeaseTimeout, NodeError
from leasecache.lab import MemcachedServer, TcpProxy, wait_until
from leasecache.lease import Lease
from leasecache.stores.probe import MOST
from tests.callers import LONG, Loader, count_joins, count_permits, declare, held, in_threads


def test_wait_timeout_load_lets_one_caller_load(cache: Cache) -> None:
    """When a holder does not finish within wait_for, one caller per process loads without storing, for all."""
    loader = Loader()
    get_item = declare(cache, loader, wait_for=0.2)
    held(cache, get_item, 1)
    loader.hold()
    entered = count_permits(get_item)
    with ThreadPoolExecutor(30) as pool:
        futures = [pool.submit(get_item.lookup, 1) for _ in range(30)]
        wait_until(lambda: len(entered) == 30, 60, "everyone to ask for the permit")
        loader.may_end.set()
        assert {future.result().state for future in futures} == {"uncached"}
    assert loader.calls == 2  # one for the first, one for those who came while it ran


def test_wait_timeout_raise(cache: Cache) -> None:
    """With on_wait_timeout="raise" the caller gets LeaseTimeout and nothing is loaded."""
    loader = Loader()
    get_item = declare(cache, loader, wait_for=0.1, on_wait_timeout="raise")
    held(cache, get_item, 1)
    with pytest.raises(LeaseTimeout, match=r"within 0\.1 s"):
        get_item(1)
    assert loader.calls == 0


def test_wait_timeout_stale(cache: Cache) -> None:
    """With on_wait_timeout="stale" a value that was invalidated is served after wait_for, and without one it raises."""
    loader = Loader()
    get_item = declare(cache, loader, wait_for=0.1, on_wait_timeout="stale")
    get_item(1)
    cache.invalidate(get_item.key(1), stale_for=30)
    held(cache, get_item, 1)
    assert get_item.lookup(1).state == "stale"
    held(cache, get_item, 2)
    with pytest.raises(LeaseTimeout):
        get_item(2)
    assert loader.calls == 1


def test_value_refused_by_an_invalidation_still_answers_its_callers(cache: Cache) -> None:
    """A load that an invalidation overtakes gives its callers the value, uncached; the next caller loads anew."""
    loader = Loader()
    loader.hold()
    get_item = declare(cache, loader)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(get_item.lookup, 1)
        assert loader.began.wait(60)
        get_item.invalidate(1)
        loader.may_end.set()
        assert loading.result().state == "uncached"
    assert get_item.lookup(1).state == "loaded"
    assert loader.calls == 2


def test_waiter_that_takes_over_answers_the_other_waiters() -> None:
    """When a holder elsewhere gives up, one waiter loads for all who wait here, though its store is refused."""
    loader = Loader()
    loader.hold()
    with Cache.from_url("memory://") as cache, ThreadPoolExecutor(10) as pool:
        get_item = declare(cache, loader)
        lease = held(cache, get_item, 1)
        joined = count_joins(get_item)
        waiting = [pool.submit(get_item.lookup, 1) for _ in range(10)]
        wait_until(lambda: len(joined) == 10, 60, "all to wait")
        cache.release(lease)
        assert loader.began.wait(60)
        get_item.invalidate(1)
        loader.may_end.set()
        assert {future.result().state for future in waiting} == {"uncached"}
    assert loader.calls == 1


def _herd(url: str, start: Any, calls: Any) -> None:
    def load(item_id: int) -> int:
        with calls.get_lock():
            calls.value += 1
        time.sleep(0.05)
        return item_id

    with Cache.from_url(url) as cache:
        load.__annotations__ = {"item_id": int, "return": int}
        get_item = cache.cached("item:{item_id}", ttl=60, lease_for=LONG, wait_for=LONG)(load)
        start.wait()
        assert in_threads(50, lambda: get_item(1)) == [1] * 50


def test_herd_of_processes_loads_once(memcached: MemcachedServer) -> None:
    """Four processes with fifty threads each on one cold key run one loader among them."""
    context = multiprocessing.get_context("spawn")
    start, calls = context.Barrier(4), context.Value("i", 0)
    url = f"{memcached.url}?timeout={LONG}&connect_timeout={LONG}"  # of the machine it takes all there is
    processes = [context.Process(target=_herd, args=(url, start, calls)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * LONG)
    assert [process.exitcode for process in processes] == [0] * 4
    assert calls.value == 1


def _hold_for_ever(url: str, began: Any) -> None:
    with Cache.from_url(url) as cache:
        assert isinstance(cache.lease_get(b"item:1", lease_for=1), Lease)
        began.set()
        signal.pause()


def test_killed_holder_delays_the_others_by_lease_for(memcached: MemcachedServer) -> None:
    """When the winner is killed with SIGKILL, a waiter wins once lease_for is over."""
    context = multiprocessing.get_context("spawn")
    began = context.Event()
    holder = context.Process(target=_hold_for_ever, args=(memcached.url, began))
    holder.start()
    assert began.wait(60)
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    loader = Loader()
    with Cache.from_url(memcached.url) as cache:
        assert declare(cache, loader).lookup(1).state == "loaded"
    assert loader.calls == 1


def test_unreachable_cache_does_not_break_the_application() -> None:
    """Nobody listens: values come from the loader, coalesced; only an invalidation reports it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"memcached://127.0.0.1:{free.getsockname()[1]}"
        loader = Loader()
        with Cache.from_url(url) as cache:
            get_item = declare(cache, loader)
            assert get_item.lookup(1).state == "uncached"
            assert get_item.get_many([1, 2]) == {1: 1, 2: 2}
            assert get_item.peek(1) is None
            with pytest.raises(NodeError, match=r"memcached 127\.0\.0\.1"):
                get_item.invalidate(1)


def test_paused_cache_costs_a_bounded_time_and_few_loads(memcached: MemcachedServer) -> None:
    """A cache that accepts and never answers costs the time limit once, then its callers fail fast and share loads."""
    loader = Loader()
    with Cache.from_url(f"{memcached.url}?timeout=0.3&connect_timeout=0.3") as cache:
        get_item = declare(cache, loader)
        get_item(1)
        entered = count_permits(get_item)
        loader.hold()
        memcached.pause()
        with ThreadPoolExecutor(40) as pool:
            futures = [pool.submit(get_item, 1) for _ in range(40)]
            wait_until(lambda: len(entered) == 40, 60, "everyone to give the cache up")
            loader.may_end.set()
            assert [future.result() for future in futures] == [1] * 40
        assert loader.calls == 3  # the first fill, the first load without the cache, one for those who came meanwhile
        memcached.resume()
        wait_until(lambda: get_item.lookup(1).state == "fresh", 60, "the node to be used again")


def test_one_caller_probes_a_node_that_is_down(memcached: MemcachedServer) -> None:
    """When the back-off is over, one caller pays the time limit to probe; the others go on failing fast."""
    with Cache.from_url(f"{memcached.url}?timeout=0.6&connect_timeout=0.6") as cache:
        get_item = declare(cache, Loader())
        get_item(1)
        memcached.pause()
        get_item(1)
        probe = cache.driver().store.nodes[0]._down  # type: ignore[attr-defined]
        wait_until(lambda: time.monotonic() >= probe._until, 60, "the end of the first back-off")
        probe.delay = MOST  # the next one is the longest, so that all have come before it ends
        before = cache.stats().nodes[0].errors
        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(get_item, range(20))) == list(range(20))
        after = cache.stats().nodes[0].errors
        memcached.resume()
        probe._until = 0.0  # its end
        assert {kind: after[kind] - before[kind] for kind in after} == {
            **dict.fromkeys(after, 0),
            "timeout": 1,
            "down": 19,
        }
        wait_until(lambda: get_item.lookup(1).state == "fresh", 60, "the node to be used again")


def test_restarted_cache_is_used_again(memcached: MemcachedServer) -> None:
    """After a restart the first calls find their connections dead, and the application does not notice."""
    loader = Loader()
    with Cache.from_url(memcached.url) as cache:
        get_item = declare(cache, loader)
        in_threads(8, lambda: get_item(1))
        memcached.kill()
        assert get_item(1) == 1
        memcached.restart()
        wait_until(lambda: get_item.lookup(1).state == "fresh", 60, "values to be cached again")


def test_connection_cut_in_an_answer_is_a_load(memcached: MemcachedServer) -> None:
    """A connection that is reset while the answer is awaited gives the loader's value, and the cache recovers."""
    loader = Loader()
    port = int(memcached.address.rsplit(":", 1)[1])
    with TcpProxy(port) as proxy, Cache.from_url(f"memcached://{proxy.address}?timeout=2") as cache:
        get_item = declare(cache, loader)
        get_item(1)
        proxy.stall("replies")
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(get_item, 1)
            proxy.reset()
            assert call.result(60) == 1
        proxy.flow("replies")
        wait_until(lambda: get_item.lookup(1).state == "fresh", 60, "the connection to be made again")
