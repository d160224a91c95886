"""Leases by hand: what a framework that knows nothing of our marks gets to see."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leasecache import Cache, Lease, Refused
from leasecache.lab import MemcachedServer
from tests.facade import BlockingCache

KEY = b"page:1"
LARGE = b"x" * 2**20  # more than either store takes


@pytest.fixture(params=["memory", "memcached"])
def small_url(request: pytest.FixtureRequest) -> str:
    """The URL of a store that cannot hold a megabyte."""
    if request.param == "memory":
        return "memory://?capacity=100000"
    server: MemcachedServer = request.getfixturevalue("memcached")
    return server.url


@pytest.fixture(params=[Cache.from_url, BlockingCache])
def small_cache(request: pytest.FixtureRequest, small_url: str) -> Iterator[Any]:
    """A cache on it, synchronous and asyncio."""
    open_cache: Callable[[str], Any] = request.param
    with open_cache(small_url) as opened:
        yield opened


def test_value_too_large_is_no_empty_hit(small_cache: Any) -> None:
    """Who finds the mark of a value too large may load and not store; guard: `unmarked` in `lease_get`."""
    assert isinstance(small_cache.lease_set(small_cache.lease_get(KEY), LARGE, 60), Refused)
    for _ in range(2):
        assert small_cache.lease_get(KEY) == Lease(KEY, None)
    assert isinstance(small_cache.lease_set(small_cache.lease_get(KEY), b"small", 60), Refused)


def test_mark_that_was_invalidated_is_no_stale_value(small_cache: Any) -> None:
    """One caller has a lease without a value in hand, the others load; what is stored then is served."""
    small_cache.lease_set(small_cache.lease_get(KEY), LARGE, 60)
    small_cache.invalidate(KEY, stale_for=30)
    won = small_cache.lease_get(KEY)
    assert (won.value, won.fresh, won.token is not None) == (None, False, True)
    assert small_cache.lease_get(KEY) == Lease(KEY, None)
    small_cache.release(won)
    small_cache.lease_set(small_cache.lease_get(KEY), b"small", 60)
    assert small_cache.lease_get(KEY).value == b"small"
