"""What loaders may do: ask for cached values themselves, and raise anything."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from leasecache import AsyncCache, Cache

URGENT: Any = {
    "ttl": 60,
    "wait_for": 20,
    "lease_for": 60,
    "on_wait_timeout": "raise",
}  # a wait for oneself ends in this


@pytest.fixture(params=["memory", "memcached", "null", "down"])
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """A cache in memory, one on memcached, none, and one whose server does not run."""
    urls = {"memory": "memory://", "null": "null://", "down": "memcached://127.0.0.1:1"}
    url = urls.get(request.param) or request.getfixturevalue("memcached").url
    with Cache.from_url(url) as opened:
        yield opened


def test_loader_asks_for_its_own_key(cache: Cache) -> None:
    """A load that asks for its own value loads within it, as waiting would be for itself; guard: `Local.is_own`."""
    depth = 0

    @cache.cached("own:{n}", **URGENT)
    def get_depth(n: int) -> int:
        nonlocal depth
        depth += 1
        return depth if depth == 3 else get_depth(n)

    assert get_depth(1) == 3


def test_loader_asks_for_what_its_batch_has_yet_to_load(cache: Cache) -> None:
    """A batch leads the loads of all its keys, so one must not wait for another; guard: `Local.is_own`."""

    @cache.cached("factorial:{n}", **URGENT)
    def factorial(n: int) -> int:
        return n * factorial(n - 1) if n else 1

    assert factorial.get_many([4, 3, 2]) == {4: 24, 3: 6, 2: 2}


def test_batch_loader_asks_for_what_it_is_loading(cache: Cache) -> None:
    """The same when one call loads the whole batch; guard: `Local.is_own`."""

    @cache.cached_many("sum:{n}", **URGENT)
    def get_sums(numbers: list[int]) -> dict[int, int]:
        return {n: n + get_sums([n - 1])[n - 1] if n else 0 for n in numbers}

    assert get_sums([4, 3, 2]) == {4: 10, 3: 6, 2: 3}


@pytest.mark.parametrize("url", ["memory://", "null://", "memcached://127.0.0.1:1"])
def test_task_asks_for_its_own_key(url: str) -> None:
    """The same in an event loop, alone, in a batch, and from a task that the loader starts; guard: `Local.loading`."""

    async def body() -> None:
        async with AsyncCache.from_url(url) as cache:
            depth = 0

            @cache.cached("own:{n}", **URGENT)
            async def get_depth(n: int) -> int:
                nonlocal depth
                depth += 1
                return depth if depth % 3 == 0 else await asyncio.create_task(get_depth(n))  # type: ignore[arg-type]

            @cache.cached_many("sum:{n}", **URGENT)
            async def get_sums(numbers: list[int]) -> dict[int, int]:
                return {n: n + (await get_sums([n - 1]))[n - 1] if n else 0 for n in numbers}

            assert await get_depth(1) == 3
            assert await get_depth.get_many([2]) == {2: 6}
            assert await get_sums([4, 3, 2]) == {4: 10, 3: 6, 2: 3}

    asyncio.run(body())


def test_task_that_outlives_its_load_waits_like_any_other() -> None:
    """What a loader has started is no part of the load when that has ended; guard: `loading` empties its hand."""

    async def body() -> None:
        async with AsyncCache.from_url("memory://") as cache:
            loads, may_ask, may_end = 0, asyncio.Event(), asyncio.Event()
            late: list[asyncio.Task[int]] = []

            async def ask_later() -> int:
                await may_ask.wait()
                return await get_item(1)

            @cache.cached("item:{n}", ttl=60, wait_for=20)
            async def get_item(n: int) -> int:
                nonlocal loads
                loads += 1
                if loads == 1:
                    late.append(asyncio.create_task(ask_later()))
                else:
                    await may_end.wait()
                return loads

            assert await get_item(1) == 1
            await get_item.invalidate(1)
            second = asyncio.create_task(get_item(1))  # type: ignore[arg-type]
            while loads < 2:
                await asyncio.sleep(0)
            may_ask.set()
            for _ in range(50):
                await asyncio.sleep(0)
            may_end.set()
            assert (await second, await late[0], loads) == (2, 2, 2)

    asyncio.run(body())


def test_task_awaits_what_its_batch_is_loading() -> None:
    """What one load of a batch brings is stored though another, which is in need of it, still runs.

    Guard: `_Batch._is_quick` is for threads alone.
    """

    async def body() -> None:
        async with AsyncCache.from_url("memory://") as cache:

            @cache.cached("factorial:{n}", **URGENT)
            async def factorial(n: int) -> int:
                return n * await factorial(n - 1) if n else 1

            await factorial(0)  # so that loads are known to be quick
            assert await factorial.get_many([4, 3, 2, 1]) == {4: 24, 3: 6, 2: 2, 1: 1}

    asyncio.run(body())


@pytest.mark.parametrize("error", [StopIteration("over"), GeneratorExit(), KeyboardInterrupt()], ids=repr)
def test_whatever_a_loader_raises_frees_its_keys(error: BaseException) -> None:
    """Generators drive loads, yet what means something to a generator is an error like any other; guard: `_Stopped`."""
    failing = True

    def load(numbers: list[int]) -> dict[int, int]:
        if failing:
            raise error
        return {n: n for n in numbers}

    with Cache.from_url("memory://") as cache:

        @cache.cached("one:{n}", **URGENT)
        def get_one(n: int) -> int:
            return load([n])[n]

        @cache.cached_many("many:{n}", **URGENT)
        def get_some(numbers: list[int]) -> dict[int, int]:
            return load(numbers)

        calls: list[Any] = [lambda: get_one(1), lambda: get_one.get_many([2, 3]), lambda: get_some([1, 2])]
        for call in calls:
            with pytest.raises(type(error)) as caught:
                call()
            assert caught.value is error
        failing = False
        states = [get_one.lookup(n).state for n in (1, 2, 3)] + [get_some.lookup(n).state for n in (1, 2)]
        assert states == ["loaded"] * 5
