"""What callers of a decorated function see: one load, waiting, stale values, errors, a cache that fails."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from leasecache import Cache, ConfigError, LeaseTimeout, NodeError, UnguardedWarning, row
from leasecache.flow import AHEAD_ALWAYS, refresh
from leasecache.lab import MemcachedServer, TcpProxy, wait_until
from leasecache.lease import Lease, Stored
from leasecache.task import Get, Load
from tests.facade import BlockingCache


@pytest.fixture(params=["memory", "memcached"])
def sync_cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """A synchronous cache in memory and one on memcached, for what only threads can do."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("memcached").url
    with Cache.from_url(url) as opened:
        yield opened


@pytest.fixture(params=["memory", "memcached", "async-memory", "async-memcached"])
def cache(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cache in memory and one on memcached, of the test's own, synchronous and asyncio."""
    url = request.getfixturevalue("memcached").url if request.param.endswith("memcached") else "memory://"
    with (BlockingCache if request.param.startswith("async") else Cache.from_url)(url) as opened:
        yield opened


class Loader:
    """A loader that counts its runs and can be held up or told to fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.fault: Exception | None = None
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self._lock = threading.Lock()

    def __call__(self, value: Any) -> Any:
        with self._lock:
            self.calls += 1
            fault = self.fault
        self.began.set()
        assert self.may_end.wait(20)
        if fault is not None:
            raise fault
        return value

    def hold(self) -> None:
        self.may_end.clear()
        self.began.clear()


def declare(cache: Cache, loader: Loader, **policy: Any) -> Any:
    @cache.cached("item:{item_id}", **{"ttl": 60, **policy})
    def get_item(item_id: int) -> int:
        return int(loader(item_id))

    return get_item


def in_threads(count: int, call: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(count)]]


def test_herd_loads_once(cache: Cache) -> None:
    """A hundred threads on one cold key run one loader, and all get its value."""
    loader = Loader()
    loader.hold()
    get_item = declare(cache, loader)
    with ThreadPoolExecutor(100) as pool:
        futures = [pool.submit(get_item, 7) for _ in range(100)]
        assert loader.began.wait(10)
        loader.may_end.set()
        assert [future.result() for future in futures] == [7] * 100
    assert loader.calls == 1


def test_every_caller_gets_a_copy_of_its_own(cache: Cache) -> None:
    """Changing what a call returned changes nothing for other callers, those of the same load included."""
    loader = Loader()
    loader.hold()

    @cache.cached("list:{n}", ttl=60)
    def numbers(n: int) -> list[int]:
        return list(loader([n]))

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(numbers, 1) for _ in range(8)]
        assert loader.began.wait(10)
        loader.may_end.set()
        for value in [future.result() for future in futures]:
            assert value == [1]
            value.append(2)
    assert numbers(1) == [1]


def test_loader_error_reaches_its_caller_and_frees_the_key(cache: Cache) -> None:
    """An exception of the loader is the caller's, nothing is cached, and the next caller loads at once."""
    loader = Loader()
    get_item = declare(cache, loader)
    loader.fault = KeyError("no such item")
    with pytest.raises(KeyError, match="no such item"):
        get_item(1)
    loader.fault = None
    began = time.monotonic()
    assert get_item(1) == 1
    assert time.monotonic() - began < 5
    assert loader.calls == 2


def test_waiters_of_a_failed_load_contend_again(cache: Cache) -> None:
    """When the winner's loader raises, one of the waiters loads; nobody hangs and nobody gets the winner's error."""
    loader = Loader()
    loader.hold()
    loader.fault = ValueError("once")
    get_item = declare(cache, loader)
    with ThreadPoolExecutor(20) as pool:
        winner = pool.submit(get_item, 1)
        assert loader.began.wait(10)
        loader.fault = None
        others = [pool.submit(get_item, 1) for _ in range(19)]
        loader.may_end.set()
        assert [future.result() for future in others] == [1] * 19
        with pytest.raises(ValueError, match="once"):
            winner.result()
    assert loader.calls == 2


def test_stale_value_is_served_while_one_caller_refreshes(cache: Cache) -> None:
    """After an invalidation everyone gets the stale value at once; one background load replaces it."""
    loader = Loader()
    versions = iter(range(1, 10))

    @cache.cached("page:{n}", ttl=60, stale_for=30)
    def page(n: int) -> int:
        return int(loader(next(versions)))

    assert page(1) == 1
    loader.hold()
    page.invalidate(1)
    first = page.lookup(1)
    assert (first.value, first.state) == (1, "stale")
    assert loader.began.wait(10)
    assert {entry.state for entry in in_threads(10, lambda: page.lookup(1))} == {"stale"}
    loader.may_end.set()
    wait_until(lambda: page.lookup(1).state == "fresh", 10, "the refresh to be stored")
    assert (page(1), loader.calls) == (2, 2)


def test_refresh_with_ignored_arguments_runs_in_the_winner(sync_cache: Cache) -> None:
    """A loader that was given things outside the key is not run behind its caller's back."""
    threads = []

    @sync_cache.cached("page:{n}", ttl=60, stale_for=30, ignore=("session",))
    def page(n: int, session: object) -> int:
        threads.append(threading.current_thread())
        return n

    page(1, object())
    page.invalidate(1)
    assert page.lookup(1, object()).state == "stale"
    assert threads == [threading.current_thread()] * 2


def test_background_outlives_loaders_that_exit(sync_cache: Cache) -> None:
    """A loader that calls sys.exit() ends its own refresh and no other one, however often."""
    leave = [True]

    @sync_cache.cached("page:{n}", ttl=60, stale_for=30)
    def page(n: int) -> int:
        if leave[0] and threading.current_thread() is not threading.main_thread():
            sys.exit(1)
        return n

    for n in range(8):
        page(n)
        page.invalidate(n)
        assert page.lookup(n).state == "stale"
    leave[0] = False
    wait_until(lambda: {page.lookup(n).state for n in range(8)} == {"fresh"}, 10, "the refreshes to be stored")


def test_executor_that_refuses_does_not_cost_the_value_in_hand() -> None:
    """When no refresh can be begun, as at shutdown, the stale value is served and its lease given back."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with Cache.from_url("memory://", background=executor) as cache:
        get_item = declare(cache, Loader(), stale_for=30)
        get_item(1)
        get_item.invalidate(1)
        assert [get_item.lookup(1).state for _ in range(2)] == ["stale"] * 2
        assert isinstance(cache.lease_get(get_item.key(1)), Lease)


@pytest.mark.parametrize("own", [True, False], ids=["own executor", "ours"])
def test_background_sees_the_context_of_its_caller(own: bool) -> None:
    """Context variables reach a loader that refreshes in the background, whoever runs it."""
    tenant: ContextVar[str] = ContextVar("tenant")
    seen: list[str] = []
    with ThreadPoolExecutor(1) as pool, Cache.from_url("memory://", **({"background": pool} if own else {})) as cache:

        @cache.cached("item:{n}", ttl=60, stale_for=30)
        def item(n: int) -> int:
            seen.append(tenant.get())
            return n

        tenant.set("first")
        item(1)
        item.invalidate(1)
        tenant.set("second")
        item(1)
        wait_until(lambda: len(seen) == 2, 10, "the refresh")
    assert seen == ["first", "second"]


def test_close_ends_the_threads_that_refresh() -> None:
    """A cache that is closed leaves no thread behind, and refreshes again when it is used again."""
    before = set(threading.enumerate())
    with Cache.from_url("memory://") as cache:

        @cache.cached("page:{n}", ttl=60, stale_for=30)
        def page(n: int) -> int:
            return n

        for _ in range(2):
            page(1)
            page.invalidate(1)
            assert page.lookup(1).state == "stale"
            assert set(threading.enumerate()) - before
            cache.close()
            wait_until(lambda: not set(threading.enumerate()) - before, 10, "the threads to end")


def test_low_level_lease_cannot_last_for_ever(cache: Cache) -> None:
    """A lease of more than 30 days, which memcached would take for a date, is refused."""
    with pytest.raises(ConfigError, match=r"lease_for=1000000000\.0 must be"):
        cache.lease_get(b"item:1", lease_for=1e9)


def test_refresh_ahead_serves_the_value_and_renews_it(cache: Cache) -> None:
    """Within refresh_ahead of its expiry a value is served as fresh and loaded anew in the background."""
    loader = Loader()
    get_item = declare(cache, loader, ttl=50, refresh_ahead=49, jitter=0.9)
    assert get_item(1) == 1
    assert wait_until(lambda: get_item(1) == 1 and loader.calls > 1, 10, "a refresh ahead of the expiry")


def test_refresh_loads_though_the_value_is_fresh(cache: Cache) -> None:
    """refresh() loads and stores now; readers go on hitting meanwhile."""
    loader = Loader()
    get_item = declare(cache, loader)
    get_item(1)
    loader.hold()
    with ThreadPoolExecutor(1) as pool:
        refreshed = pool.submit(get_item.refresh, 1)
        assert loader.began.wait(10)
        assert get_item.lookup(1).state == "fresh"
        loader.may_end.set()
        assert refreshed.result() == 1
    assert loader.calls == 2


def test_refresh_stores_after_one_that_failed(cache: Cache) -> None:
    """A refresh whose loader raised keeps the win of a fresh value until its ttl; a later one stores all the same."""
    loader = Loader()
    versions = iter(range(1, 10))

    @cache.cached("page:{n}", ttl=60, wait_for=0.2)
    def page(n: int) -> int:
        return int(loader(next(versions)))

    assert page(1) == 1
    loader.fault = ValueError("database down")
    with pytest.raises(ValueError, match="database down"):
        page.refresh(1)
    assert page(1) == 1
    loader.fault = None
    assert page.refresh(1) == 3
    assert page.lookup(1).value == 3


def test_refresh_of_a_taken_value_is_refused_when_invalidated_meanwhile(cache: Cache) -> None:
    """A refresh that goes by the version it saw does not store what it loaded before an invalidation."""
    loader = Loader()
    get_item = declare(cache, loader, wait_for=0)
    get_item(1)
    assert taken(cache, get_item.key(1)).fresh
    loader.hold()
    with ThreadPoolExecutor(1) as pool:
        refreshed = pool.submit(get_item.refresh, 1)
        assert loader.began.wait(10)
        get_item.invalidate(1)
        loader.may_end.set()
        assert refreshed.result() == 1
    assert get_item.peek(1) is None


def taken(cache: Any, key: bytes) -> Any:
    """Win the refresh of a fresh value."""

    def lease_get() -> Any:
        return cache.driver().store.lease_get(key, 10, AHEAD_ALWAYS)

    return cache.loop.run(lease_get) if isinstance(cache, BlockingCache) else lease_get()


def held(cache: Cache, get_item: Any, *args: Any) -> Lease:
    """Hold the lease of a key as a process would that never finishes loading."""
    lease = cache.lease_get(get_item.key(*args))
    assert isinstance(lease, Lease)
    return lease


def test_wait_timeout_load_lets_one_caller_load(cache: Cache) -> None:
    """When a holder does not finish within wait_for, one caller per process loads without storing, for all."""
    loader = Loader()
    get_item = declare(cache, loader, wait_for=0.2)
    held(cache, get_item, 1)
    loader.hold()
    entered = count_permits(get_item)
    with ThreadPoolExecutor(30) as pool:
        futures = [pool.submit(get_item.lookup, 1) for _ in range(30)]
        wait_until(lambda: len(entered) == 30, 10, "everyone to ask for the permit")
        loader.may_end.set()
        assert {future.result().state for future in futures} == {"uncached"}
    assert loader.calls == 2  # one for the first, one for those who came while it ran


def count_permits(get_item: Any) -> list[bytes]:
    """Return a list that grows by a key whenever a caller asks for the permit to load without a lease."""
    permits = get_item._self_core._runtime.driver().local.permits
    entered: list[bytes] = []
    enter = permits.enter

    def counted(key: bytes) -> Any:
        answer = enter(key)
        entered.append(key)
        return answer

    permits.enter = counted
    return entered


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
        assert loader.began.wait(10)
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
        get_item = declare(cache, loader, wait_for=10)
        lease = held(cache, get_item, 1)
        joined = count_joins(get_item)
        waiting = [pool.submit(get_item.lookup, 1) for _ in range(10)]
        wait_until(lambda: len(joined) == 10, 10, "all to wait")
        cache.release(lease)
        assert loader.began.wait(10)
        get_item.invalidate(1)
        loader.may_end.set()
        assert {future.result().state for future in waiting} == {"uncached"}
    assert loader.calls == 1


def count_joins(get_item: Any) -> list[bytes]:
    """Return a list that grows by a key whenever a caller begins to wait for somebody's lease."""
    flights = get_item._self_core._runtime.driver().local.flights
    joined: list[bytes] = []
    join_or_begin = flights.join_or_begin

    def counted(key: bytes, token: Any) -> Any:
        answer = join_or_begin(key, token)
        joined.append(key)
        return answer

    flights.join_or_begin = counted
    return joined


def test_get_many_loads_only_what_is_missing(cache: Cache) -> None:
    """A batch hits what is cached, loads the rest once, and answers in the order asked."""
    loader = Loader()
    get_item = declare(cache, loader)
    get_item(2)
    assert list(get_item.get_many([3, 2, 1, 3]).items()) == [(3, 3), (2, 2), (1, 1)]
    assert loader.calls == 3
    assert get_item.get_many([1, 2, 3]) == {1: 1, 2: 2, 3: 3}
    assert loader.calls == 3
    assert get_item.get_many([]) == {}


def test_get_many_waits_for_keys_that_others_load(cache: Cache) -> None:
    """A key of the batch that another caller is loading is waited for, not loaded again."""
    loader = Loader()
    loader.hold()
    get_item = declare(cache, loader)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(get_item, 5)
        assert loader.began.wait(10)
        batch = pool.submit(get_item.get_many, [5, 6])
        loader.may_end.set()
        assert (other.result(), batch.result()) == (5, {5: 5, 6: 6})
    assert loader.calls == 2


def test_get_many_asks_again_for_what_went_stale_too_long_ago(cache: Cache) -> None:
    """A stale value whose window is over when the other keys are loaded is not served; the guard is Batch._expire."""
    held_up, versions = threading.Event(), iter(range(1, 10))

    @cache.cached("item:{n}", ttl=60, stale_for=1)
    def item(n: int) -> int:
        if n == 2:
            assert held_up.wait(20)
        return next(versions)

    assert item(1) == 1
    item.invalidate(1)
    held(cache, item, 1)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(item.get_many, [1, 2])
        wait_until(lambda: item.peek(1) is None, 10, "the window to end")
        held_up.set()
        assert batch.result(20) == {1: 3, 2: 2}


def test_get_many_gives_back_what_it_did_not_load(cache: Cache) -> None:
    """When one load of a batch raises, the other keys can be won at once."""
    loader = Loader()
    get_item = declare(cache, loader)
    loader.fault = ValueError("first key")
    with pytest.raises(ValueError, match="first key"):
        get_item.get_many([1, 2, 3])
    assert all(isinstance(cache.lease_get(get_item.key(n)), Lease) for n in (1, 2, 3))


def test_get_many_of_one_key_under_two_names_loads_once(cache: Cache) -> None:
    """Arguments that differ only in a default left out are one key: one lease, one load, no wait for oneself."""
    loader = Loader()

    @cache.cached("page:{n}:{language}", ttl=60)
    def page(n: int, language: str = "en") -> list[int]:
        return [int(loader(n))]

    began = time.monotonic()
    found = page.get_many([(1,), (1, "en"), 1])
    assert found == {(1,): [1], (1, "en"): [1], 1: [1]}
    assert found[1] is not found[(1,)] is not found[(1, "en")]
    assert loader.calls == 1
    assert time.monotonic() - began < 1.5
    assert page.lookup(1).state == "fresh"


def test_none_is_cached_for_its_own_ttl(cache: Cache) -> None:
    """None is a value like any other, and lives negative_ttl."""
    loader = Loader()

    @cache.cached("user:{user_id}", ttl=1000, negative_ttl=20, jitter=0)
    def get_user(user_id: int) -> str | None:
        loader(None)
        return None if user_id == 0 else "somebody"

    assert (get_user(0), get_user(0), loader.calls) == (None, None, 1)
    absent, present = get_user.lookup(0), get_user.lookup(1)
    assert absent.expires_in is not None
    assert absent.expires_in <= 20
    assert present.expires_in == 1000


def test_value_of_another_type_is_loaded_anew(cache: Cache) -> None:
    """After a deploy that changed the type the old value is neither served nor an error, and is replaced."""
    loader = Loader()

    def item(item_id: int) -> int:
        return int(loader(item_id))

    old = cache.cached("item:{item_id}", ttl=60, version=1)(item)
    new = cache.cached("item:{item_id}", ttl=60, version=2)(item)
    old(1)
    assert new.lookup(1).state == "loaded"
    assert new.lookup(1).state == "fresh"
    assert loader.calls == 2


def test_bypass_neither_serves_nor_fills(cache: Cache) -> None:
    """Inside bypass() every call loads and the cache is left as it was."""
    loader = Loader()
    get_item = declare(cache, loader)
    with cache.bypass():
        assert get_item.lookup(1).state == "uncached"
        assert get_item.get_many([1, 2]) == {1: 1, 2: 2}
    assert get_item.peek(1) is None
    get_item(1)
    with cache.bypass():
        get_item(1)
    assert loader.calls == 5


def test_in_transaction_bypasses() -> None:
    """While the cache's in_transaction answers true, nothing is served and nothing filled."""
    inside = [True]
    loader = Loader()
    with Cache.from_url("memory://", in_transaction=lambda: inside[0]) as cache:
        get_item = declare(cache, loader)
        get_item(1)
        assert get_item.peek(1) is None
        inside[0] = False
        get_item(1)
        assert get_item.peek(1) is not None


def _herd(url: str, start: Any, calls: Any) -> None:
    def load(item_id: int) -> int:
        with calls.get_lock():
            calls.value += 1
        time.sleep(0.05)
        return item_id

    with Cache.from_url(url) as cache:
        load.__annotations__ = {"item_id": int, "return": int}
        get_item = cache.cached("item:{item_id}", ttl=60)(load)
        start.wait()
        assert in_threads(50, lambda: get_item(1)) == [1] * 50


def test_herd_of_processes_loads_once(memcached: MemcachedServer) -> None:
    """Four processes with fifty threads each on one cold key run one loader among them."""
    context = multiprocessing.get_context("spawn")
    start, calls = context.Barrier(4), context.Value("i", 0)
    processes = [context.Process(target=_herd, args=(memcached.url, start, calls)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
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
    assert began.wait(30)
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    loader = Loader()
    with Cache.from_url(memcached.url) as cache:
        assert declare(cache, loader, lease_for=1, wait_for=10).lookup(1).state == "loaded"
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
            wait_until(lambda: len(entered) == 40, 8, "everyone to give the cache up")
            loader.may_end.set()
            assert [future.result() for future in futures] == [1] * 40
        assert loader.calls == 3  # the first fill, the first load without the cache, one for those who came meanwhile
        memcached.resume()
        wait_until(lambda: get_item.lookup(1).state == "fresh", 15, "the node to be used again")


def test_one_caller_probes_a_node_that_is_down(memcached: MemcachedServer) -> None:
    """When the back-off is over, one caller pays the time limit to probe; the others go on failing fast."""
    with Cache.from_url(f"{memcached.url}?timeout=0.6&connect_timeout=0.6") as cache:
        get_item = declare(cache, Loader())
        get_item(1)
        memcached.pause()
        get_item(1)
        probe = cache.driver().store.nodes[0]._down  # type: ignore[attr-defined]
        wait_until(lambda: time.monotonic() >= probe._until, 10, "the end of the first back-off")

        def timed(item_id: int) -> float:
            began = time.monotonic()
            assert get_item(item_id) == item_id
            return time.monotonic() - began

        with ThreadPoolExecutor(20) as pool:
            took = list(pool.map(timed, range(20)))
        memcached.resume()
        assert sum(seconds > 0.5 for seconds in took) == 1
        wait_until(lambda: get_item.lookup(1).state == "fresh", 15, "the node to be used again")


def test_restarted_cache_is_used_again(memcached: MemcachedServer) -> None:
    """After a restart the first calls find their connections dead, and the application does not notice."""
    loader = Loader()
    with Cache.from_url(memcached.url) as cache:
        get_item = declare(cache, loader)
        in_threads(8, lambda: get_item(1))
        memcached.kill()
        assert get_item(1) == 1
        memcached.restart()
        wait_until(lambda: get_item.lookup(1).state == "fresh", 15, "values to be cached again")


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
            assert call.result(20) == 1
        proxy.flow("replies")
        wait_until(lambda: get_item.lookup(1).state == "fresh", 15, "the connection to be made again")


def test_interrupted_driver_closes_its_flow() -> None:
    """An interrupt between two requests, which the flow does not see, still ends what the flow has begun."""
    ended = []

    def flow() -> Any:
        try:
            yield Get()
        finally:
            ended.append(True)

    class Interrupting:
        """A flow during whose second step a signal arrives."""

        def __init__(self) -> None:
            self.inner = flow()

        def __next__(self) -> Any:
            return next(self.inner)

        def send(self, result: Any) -> Any:
            raise KeyboardInterrupt

        def close(self) -> None:
            self.inner.close()

    interrupted = Interrupting()
    with Cache.from_url("memory://") as cache:
        core = declare(cache, Loader())._self_core
        with pytest.raises(KeyboardInterrupt):
            cache.driver().run(interrupted, core.task(core.bind(), b"item:1", lambda: 1))  # type: ignore[arg-type]
    assert ended == [True]


def test_abandoned_flow_ends_its_flight() -> None:
    """A load that is given up from outside asks for nothing more, and nobody waits for it."""
    with Cache.from_url("memory://") as cache:
        core = declare(cache, Loader())._self_core
        lease = cache.lease_get(b"item:1")
        assert isinstance(lease, Lease)
        task = core.task(core.bind(), b"item:1", lambda: 1)
        flow = refresh(task, lease)
        assert next(flow) == Load()
        flow.close()
        assert not cache.driver().local.flights._by_key


def test_unencodable_value_names_the_function(cache: Cache) -> None:
    """A loader that returns what its annotation does not allow is told so, and its lease is given back."""

    @cache.cached("raw:{n}", ttl=60)
    def raw_value(n: int) -> bytes:
        return "not bytes"  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"raw_value returned a str that cannot be cached"):
        raw_value(1)
    assert isinstance(cache.lease_get(raw_value.key(1)), Lease)


def test_unconfigured_cache_names_the_fix() -> None:
    """A cache that was never given a URL says which call is missing."""
    cache = Cache()
    get_item = declare(cache, Loader())
    with pytest.raises(ConfigError, match=r"cache\.configure\("):
        get_item(1)
    cache.configure("memory://")
    assert get_item(1) == 1


def test_depends_on_without_a_guard_warns_once(memcached: MemcachedServer) -> None:
    """A networked cache that relies on a daemon without saying guard="none" warns, once."""
    cache = Cache.from_url(memcached.url)

    def get_media(row_id: int) -> int:
        return row_id

    def get_user(row_id: int) -> int:
        return row_id

    with pytest.warns(UnguardedWarning, match="depends_on without a guard"):
        cache.cached("media:{row_id}", ttl=60, depends_on=row("media", row_id="id"))(get_media)
    cache.cached("user:{row_id}", ttl=60, depends_on=row("users", row_id="id"))(get_user)  # a warning would fail here
    assert [rule.table for rule in cache.rules.rules] == ["media", "users"]


@pytest.mark.parametrize(
    "key",
    [b"", b"a b", b"a\r\nmg b v", b"a\x7f", b"\xc3\xa4", b"k" * 251, "text", None],
    ids=lambda key: repr(key)[:12],
)
def test_low_level_takes_only_keys(cache: Cache, key: Any) -> None:
    """What is no key is refused before it reaches the wire, where it could end a command and begin another."""
    for verb in (cache.lease_get, cache.invalidate):
        with pytest.raises((TypeError, ValueError), match=r"a cache key is 1 to 250 bytes of visible ASCII"):
            verb(key)
    assert isinstance(cache.lease_get(b"k" * 250), Lease)


def test_low_level_takes_only_bytes(cache: Cache) -> None:
    """A value of the low-level API is bytes in every store."""
    lease = cache.lease_get(b"key")
    assert isinstance(lease, Lease)
    for value in ("text", bytearray(b"shared"), None):
        with pytest.raises(TypeError, match="a value is bytes, not"):
            cache.lease_set(lease, value, 60)  # type: ignore[arg-type]
    assert cache.lease_set(lease, b"value", 60) == Stored()


def test_load_in_another_store_is_not_joined() -> None:
    """A caller of an overriding store does not take what was loaded for the configured one under the same CAS."""
    loader = Loader()
    with Cache.from_url("memory://") as cache, ThreadPoolExecutor(2) as pool:
        get_item = declare(cache, loader, wait_for=0.3)
        loader.hold()
        outside = pool.submit(get_item, 1)
        assert loader.began.wait(10)
        with cache.override("memory://"):
            lease = held(cache, get_item, 1)
            inside = pool.submit(get_item.lookup, 1)
            overriding = cache.driver().local.flights
            wait_until(lambda: len(overriding._by_key.get(get_item.key(1), ())), 10, "the caller inside to wait")
            loader.may_end.set()
            assert outside.result() == 1
            assert inside.result().state == "uncached"  # by a load of its own, once wait_for was over
            cache.release(lease)
    assert loader.calls == 2


def test_null_cache_always_loads() -> None:
    """null:// neither serves nor stores."""
    loader = Loader()
    get_item = declare(Cache.from_url("null://"), loader)
    assert [get_item.lookup(1).state, get_item.lookup(1).state] == ["uncached"] * 2
    get_item.invalidate(1)
    assert get_item.peek(1) is None
    assert loader.calls == 2
