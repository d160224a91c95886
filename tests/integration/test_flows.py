"""What callers of a decorated function see: one load, errors, values that cannot be stored or read."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import Cache
from leasecache.flow import refresh
from leasecache.lease import Lease
from leasecache.task import Get, Load
from tests.callers import LONG, Loader, declare


def test_herd_loads_once(cache: Cache) -> None:
    """A hundred threads on one cold key run one loader, and all get its value."""
    loader = Loader()
    loader.hold()
    get_item = declare(cache, loader)
    with ThreadPoolExecutor(100) as pool:
        futures = [pool.submit(get_item, 7) for _ in range(100)]
        assert loader.began.wait(60)
        loader.may_end.set()
        assert [future.result() for future in futures] == [7] * 100
    assert loader.calls == 1


def test_every_caller_gets_a_copy_of_its_own(cache: Cache) -> None:
    """Changing what a call returned changes nothing for other callers, those of the same load included."""
    loader = Loader()
    loader.hold()

    @cache.cached("list:{n}", ttl=60, lease_for=LONG, wait_for=LONG)
    def numbers(n: int) -> list[int]:
        return list(loader([n]))

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(numbers, 1) for _ in range(8)]
        assert loader.began.wait(60)
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
    assert time.monotonic() - began < LONG / 2  # its lease would last that long
    assert loader.calls == 2


def test_waiters_of_a_failed_load_contend_again(cache: Cache) -> None:
    """When the winner's loader raises, one of the waiters loads; nobody hangs and nobody gets the winner's error."""
    loader = Loader()
    loader.hold()
    loader.fault = ValueError("once")
    get_item = declare(cache, loader)
    with ThreadPoolExecutor(20) as pool:
        winner = pool.submit(get_item, 1)
        assert loader.began.wait(60)
        loader.fault = None
        others = [pool.submit(get_item, 1) for _ in range(19)]
        loader.may_end.set()
        assert [future.result() for future in others] == [1] * 19
        with pytest.raises(ValueError, match="once"):
            winner.result()
    assert loader.calls == 2


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
