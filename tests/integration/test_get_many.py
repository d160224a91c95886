"""Batches of calls: one lease-get per node, loads of what is missing, keys that others load."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from leasecache import Cache
from leasecache.lab import wait_until
from leasecache.lease import Lease
from tests.callers import Loader, declare, held


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
        assert loader.began.wait(60)
        batch = pool.submit(get_item.get_many, [5, 6])
        loader.may_end.set()
        assert (other.result(), batch.result()) == (5, {5: 5, 6: 6})
    assert loader.calls == 2


def test_get_many_asks_again_for_what_went_stale_too_long_ago(cache: Cache) -> None:
    """A stale value whose window is over when the other keys are loaded is not served; the guard is Batch._expire.

    memcached tells what is left in whole seconds, so a caller counts on up to one more than there is.
    """
    began, held_up, versions = threading.Event(), threading.Event(), iter(range(1, 10))

    @cache.cached("item:{n}", ttl=60, stale_for=3)
    def item(n: int) -> int:
        if n == 2:
            began.set()
            assert held_up.wait(60)
        return next(versions)

    assert item(1) == 1
    item.invalidate(1)
    held(cache, item, 1)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(item.get_many, [1, 2])
        assert began.wait(60)
        over = time.monotonic() + 3
        wait_until(lambda: item.peek(1) is None and time.monotonic() > over, 60, "the window to end")
        held_up.set()
        assert batch.result(60) == {1: 3, 2: 2}


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

    @cache.cached("page:{n}:{language}", ttl=60, lease_for=60, wait_for=60)
    def page(n: int, language: str = "en") -> list[int]:
        return [int(loader(n))]

    began = time.monotonic()
    found = page.get_many([(1,), (1, "en"), 1])
    assert found == {(1,): [1], (1, "en"): [1], 1: [1]}
    assert found[1] is not found[(1,)] is not found[(1, "en")]
    assert loader.calls == 1
    assert time.monotonic() - began < 30  # whoever waits for himself does so for `wait_for`
    assert page.lookup(1).state == "fresh"
