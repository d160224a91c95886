"""Refreshes: stale values, values near their expiry, in the background and when asked for."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from leasecache import Cache
from leasecache.lab import wait_until
from leasecache.lease import Lease
from tests.callers import Loader, declare, in_threads, taken


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
    assert loader.began.wait(60)
    assert {entry.state for entry in in_threads(10, lambda: page.lookup(1))} == {"stale"}
    loader.may_end.set()
    wait_until(lambda: page.lookup(1).state == "fresh", 60, "the refresh to be stored")
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
    wait_until(lambda: {page.lookup(n).state for n in range(8)} == {"fresh"}, 60, "the refreshes to be stored")


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
        wait_until(lambda: len(seen) == 2, 60, "the refresh")
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
            wait_until(lambda: not set(threading.enumerate()) - before, 60, "the threads to end")


def test_refresh_ahead_serves_the_value_and_renews_it(cache: Cache) -> None:
    """Within refresh_ahead of its expiry a value is served as fresh and loaded anew in the background."""
    loader = Loader()
    get_item = declare(cache, loader, ttl=50, refresh_ahead=49, jitter=0.9)
    assert get_item(1) == 1
    assert wait_until(lambda: get_item(1) == 1 and loader.calls > 1, 60, "a refresh ahead of the expiry")


def test_refresh_loads_though_the_value_is_fresh(cache: Cache) -> None:
    """refresh() loads and stores now; readers go on hitting meanwhile."""
    loader = Loader()
    get_item = declare(cache, loader)
    get_item(1)
    loader.hold()
    with ThreadPoolExecutor(1) as pool:
        refreshed = pool.submit(get_item.refresh, 1)
        assert loader.began.wait(60)
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
        assert loader.began.wait(60)
        get_item.invalidate(1)
        loader.may_end.set()
        assert refreshed.result() == 1
    assert get_item.peek(1) is None
