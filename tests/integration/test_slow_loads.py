"""Loads that take longer than `lease_for`: whichever way a process loads, it asks for a longer lease the next time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from leasecache import Cache
from leasecache.lab import RedisServer, wait_until
from leasecache.lease import Lease
from tests.facade import BlockingCache

SLOW = 1.2  # s of a load under leases of 1 s; those that follow are longer

pytestmark = pytest.mark.usefixtures("generous")


@pytest.fixture(params=["threads", "tasks"])
def redis_cache(request: pytest.FixtureRequest, redis: RedisServer) -> Iterator[Any]:
    """A cache on Redis, synchronous and asyncio."""
    with (Cache.from_url if request.param == "threads" else BlockingCache)(redis.url) as opened:
        yield opened


def test_refresh_slower_than_its_lease_is_stored_at_the_second_call(cache: Any) -> None:
    """What only `refresh` loads is stored as well; the guard is `_long_enough` in `renew`."""

    @cache.cached("item:{n}", ttl=60, lease_for=1)
    def item(n: int) -> int:
        time.sleep(SLOW)
        return n

    assert [item.refresh(1), item.peek(1)] == [1, None]
    assert item.refresh(1) == 1
    assert item.peek(1).value == 1


def test_batches_slower_than_their_leases_are_stored_at_the_second_call(cache: Any) -> None:
    """Every lease of a batch is exchanged for a longer one, of `get_many`, of `cached_many` and of its refresh."""

    @cache.cached("item:{n}", ttl=60, lease_for=1)
    def item(n: int) -> int:
        time.sleep(SLOW)
        return n

    @cache.cached_many("user:{n}", ttl=60, lease_for=1)
    def users(n: Sequence[int]) -> Mapping[int, int]:
        time.sleep(SLOW)
        return {user: user for user in n}

    assert item.get_many([1, 2]) == {1: 1, 2: 2}
    assert [item.peek(n) for n in (1, 2)] == [None, None]
    assert item.get_many([1, 2]) == {1: 1, 2: 2}
    assert [item.peek(n).value for n in (1, 2)] == [1, 2]
    for batch, load in ([1, 2], users), ([3, 4], users.refresh):
        assert load(batch) == {n: n for n in batch}
        assert [users.peek(n) for n in batch] == [None, None]
        assert load(batch) == {n: n for n in batch}
        assert [users.peek(n).value for n in batch] == batch


def test_stale_value_is_replaced_by_a_refresh_slower_than_its_lease(redis_cache: Any) -> None:
    """On Redis the lease on a stale value ends by itself, too; a refresh in the background must get to store."""
    loads = iter(range(1, 100))

    @redis_cache.cached("item:{n}", ttl=60, lease_for=1, stale_for=50)
    def item(n: int) -> int:
        time.sleep(SLOW)
        return next(loads)

    assert [item.lookup(1).state for _ in range(3)] == ["uncached", "loaded", "fresh"]
    item.invalidate(1)
    assert item.lookup(1).state == "stale"
    wait_until(lambda: item.lookup(1).state == "fresh", 60, "a refresh to be stored")
    assert item(1) <= 5


def test_dead_refresher_after_others_that_have_stored(redis_cache: Any, redis: RedisServer) -> None:
    """Who has seen healthy refreshes of others takes a dead one's over after `lease_for`; guard: `_is_later`."""

    @redis_cache.cached("item:{n}", ttl=600, lease_for=1, stale_for=300)
    def item(n: int) -> bytes:
        return b"ours"

    with Cache.from_url(redis.url) as other:
        for value in (item(1), b"another", b"a third"):
            other.invalidate(item.key(1), stale_for=300)
            refresh = other.driver().store.lease_get(item.key(1), 60)
            assert isinstance(refresh, Lease)
            assert item.lookup(1).state == "stale"
            time.sleep(2.5)  # more than two ticks, and than a holder's time
            other.driver().store.lease_set(refresh, refresh.flags, value, 600)
        other.invalidate(item.key(1), stale_for=300)
        assert isinstance(other.driver().store.lease_get(item.key(1), 60), Lease)
    died = time.monotonic()
    wait_until(lambda: item.lookup(1).state == "fresh", 60, "the dead refresher's lease to be taken over")
    assert time.monotonic() - died < 6  # were the others taken for robbed, it would have eight times its second
