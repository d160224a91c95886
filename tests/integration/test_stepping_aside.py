"""When the cache is not used, or used without functions: bypass, configuration, the low-level calls."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import Cache, ConfigError, UnguardedWarning, row
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Lease, Stored
from tests.callers import Loader, declare, held


def test_low_level_lease_cannot_last_for_ever(cache: Cache) -> None:
    """A lease of more than 30 days, which memcached would take for a date, is refused."""
    with pytest.raises(ConfigError, match=r"lease_for=1000000000\.0 must be"):
        cache.lease_get(b"item:1", lease_for=1e9)


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
        assert loader.began.wait(60)
        with cache.override("memory://"):
            lease = held(cache, get_item, 1)
            inside = pool.submit(get_item.lookup, 1)
            overriding = cache.driver().local.flights
            wait_until(lambda: len(overriding._by_key.get(get_item.key(1), ())), 60, "the caller inside to wait")
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
