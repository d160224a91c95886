"""`AsyncCache` in an event loop: cancellation, several loops, background tasks, contexts; also under uvloop."""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import uvloop

from leasecache import AsyncCache, Cache, ConfigError, DefinitionError
from leasecache.lab import MemcachedServer
from leasecache.lease import Lease

Body = Callable[[AsyncCache], Awaitable[None]]
LIMIT = 60  # s


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, memcached: MemcachedServer) -> Callable[[Body], None]:
    """Run a test's coroutine with a cache on a memcached of its own, on each kind of event loop."""

    def run(body: Body) -> None:
        async def main() -> None:
            async with AsyncCache.from_url(memcached.url) as cache:
                await asyncio.wait_for(body(cache), LIMIT)

        loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    return run


class Loader:
    """A loader that can be held up."""

    def __init__(self) -> None:
        self.calls = 0
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, value: Any) -> Any:
        self.calls += 1
        self.began.set()
        await self.may_end.wait()
        return value

    def hold(self) -> None:
        self.began.clear()
        self.may_end.clear()


def declare(cache: AsyncCache, loader: Loader, **policy: Any) -> Any:
    @cache.cached("item:{n}", **{"ttl": 60, "wait_for": 15, **policy})
    async def item(n: int) -> int:
        return int(await loader(n))

    return item


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise TimeoutError(what)


def test_herd_of_tasks_loads_once(run: Callable[[Body], None]) -> None:
    """Two hundred tasks on one cold key run one loader."""

    async def body(cache: AsyncCache) -> None:
        loader = Loader()
        item = declare(cache, loader)
        assert await asyncio.gather(*(item(1) for _ in range(200))) == [1] * 200
        assert loader.calls == 1
        assert await asyncio.gather(*(item(1) for _ in range(200))) == [1] * 200
        figures = cache.stats().functions[0]
        assert (figures.hits, figures.won) == (200, 1)

    run(body)


def test_cancelled_winner_gives_its_lease_back(run: Callable[[Body], None]) -> None:
    """A task that is cancelled while it loads releases the lease: another one wins at once, not after lease_for."""

    async def body(cache: AsyncCache) -> None:
        loader = Loader()
        loader.hold()
        item = declare(cache, loader, lease_for=60)
        winner = asyncio.create_task(item(1))
        await loader.began.wait()
        winner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await winner
        lease = await cache.lease_get(item.key(1))
        assert isinstance(lease, Lease)

    run(body)


def test_waiters_of_a_cancelled_winner_contend(run: Callable[[Body], None]) -> None:
    """When the winner is cancelled one of those who wait loads, and the others get its value."""

    async def body(cache: AsyncCache) -> None:
        loader = Loader()
        loader.hold()
        item = declare(cache, loader, lease_for=60)
        winner = asyncio.create_task(item(1))
        await loader.began.wait()
        waiters = [asyncio.create_task(item(1)) for _ in range(20)]
        await asyncio.sleep(0)
        loader.began.clear()
        winner.cancel()
        await loader.began.wait()
        loader.may_end.set()
        assert await asyncio.gather(*waiters) == [1] * 20
        assert loader.calls == 2

    run(body)


def test_cancelled_waiters_disturb_nobody(run: Callable[[Body], None]) -> None:
    """Of tasks that wait for another process's lease any may be cancelled, those that look for all included."""

    async def body(cache: AsyncCache) -> None:
        loader = Loader()
        item = declare(cache, loader, lease_for=60)
        lease = await cache.lease_get(item.key(1), lease_for=60)
        assert isinstance(lease, Lease)
        waiters = [asyncio.create_task(item(1)) for _ in range(30)]
        poller = cache.driver()._poller()
        await until(lambda: poller._waiting, "a task to look")
        for waiter in waiters[:15]:
            waiter.cancel()
            await asyncio.sleep(0.001)
        await cache.driver().store.lease_set(lease, item._self_core.codec.tag, b"\x07", 60)
        ended = await asyncio.gather(*waiters, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended[:15])
        assert ended[15:] == [7] * 15
        assert loader.calls == 0

    run(body)


def test_cancelled_batch_gives_all_its_leases_back(run: Callable[[Body], None]) -> None:
    """A get_many that is cancelled in its loads leaves no key locked, whether its load had begun or not."""

    async def body(cache: AsyncCache) -> None:
        loader = Loader()
        loader.hold()
        item = declare(cache, loader, lease_for=60)
        batch = asyncio.create_task(item.get_many(range(20)))
        await until(lambda: loader.calls == 8, "eight loads to run at once")
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert loader.calls == 8
        for n in range(20):
            assert isinstance(await cache.lease_get(item.key(n)), Lease)

    run(body)


def test_get_many_loads_eight_at_once(run: Callable[[Body], None]) -> None:
    """A batch of twenty loads in a window of eight that moves on as loads end."""

    async def body(cache: AsyncCache) -> None:
        running, most = 0, 0

        @cache.cached("n:{n}", ttl=60)
        async def number(n: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01 if n % 3 else 0.03)
            running -= 1
            return n

        assert await number.get_many(range(20)) == {n: n for n in range(20)}
        assert most == 8

    run(body)


def test_aclose_ends_refreshes_and_gives_their_leases_back(run: Callable[[Body], None]) -> None:
    """A refresh in the background is cancelled by aclose; the stale value can be refreshed by others at once."""

    async def body(cache: AsyncCache) -> None:
        loader = Loader()
        item = declare(cache, loader, stale_for=30)
        await item(1)
        await item.invalidate(1)
        loader.hold()
        assert (await item.lookup(1)).state == "stale"
        await loader.began.wait()
        await cache.aclose()
        lease = await cache.lease_get(item.key(1))
        assert isinstance(lease, Lease)
        assert lease.value is not None

    run(body)


def test_refresh_runs_in_the_winner_without_a_background(memcached: MemcachedServer) -> None:
    """background=None: whoever wins the refresh of a stale value waits for it, and gets the stale value."""

    async def main() -> None:
        async with AsyncCache.from_url(memcached.url, background=None) as cache:
            versions = iter((1, 2))

            @cache.cached("item:{n}", ttl=60, stale_for=30)
            async def item(n: int) -> int:
                return next(versions)

            await item(1)
            await item.invalidate(1)
            assert await item(1) == 1
            assert (await item.lookup(1)).state == "fresh"
            assert await item(1) == 2

    asyncio.run(main())


def test_loops_in_threads_have_connections_of_their_own(memcached: MemcachedServer) -> None:
    """One cache in two event loops at once: right values, one load per key, and a loop that has gone is no obstacle."""
    cache = AsyncCache.from_url(memcached.url)
    loads: list[int] = []

    @cache.cached("item:{n}", ttl=60, wait_for=15)
    async def item(n: int) -> int:
        loads.append(n)
        await asyncio.sleep(0.01)
        return n

    async def work() -> None:
        for _ in range(3):
            found = await asyncio.gather(*(item(n) for n in range(50)))
            assert found == list(range(50))
        await cache.aclose()

    failures: list[BaseException] = []

    def in_thread() -> None:
        try:
            for _ in range(3):
                asyncio.run(work())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=in_thread) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert sorted(loads) == list(range(50))


def test_loads_see_the_context_of_their_caller(run: Callable[[Body], None]) -> None:
    """Context variables reach the loader, in the caller and in the background; bypass is of one context."""

    async def body(cache: AsyncCache) -> None:
        tenant = contextvars.ContextVar("tenant", default="nobody")
        seen: list[str] = []

        @cache.cached("item:{n}", ttl=60, stale_for=30)
        async def item(n: int) -> int:
            seen.append(tenant.get())
            return n

        tenant.set("first")
        await item(1)
        await item.invalidate(1)
        tenant.set("second")
        await item(1)
        await until(lambda: len(seen) == 2, "the refresh")
        with cache.bypass():
            await item(1)
            assert (await asyncio.create_task(item.lookup(1))).state == "uncached"
        assert seen == ["first", "second", "second", "second"]
        await until(lambda: not cache.driver()._refreshes, "the refresh to store")
        assert (await item.lookup(1)).state == "fresh"

    run(body)


def test_sync_and_async_caches_share_what_is_stored(memcached: MemcachedServer) -> None:
    """The same function under `Cache` and `AsyncCache` has the same keys and reads the same values and leases."""
    sync = Cache.from_url(memcached.url)

    @sync.cached("user:{n}", ttl=60)
    def user(n: int) -> dict[str, int]:
        return {"n": n}

    async def main() -> None:
        async with AsyncCache.from_url(memcached.url) as cache:

            @cache.cached("user:{n}", ttl=60)
            async def auser(n: int) -> dict[str, int]:
                return {"n": -n}

            user(1)
            assert await auser(1) == {"n": 1}
            await auser(2)
            assert user(2) == {"n": 2 * -1}
            assert auser.key(1) == user.key(1)

    with sync:
        asyncio.run(main())


def test_each_cache_takes_its_own_kind_of_function() -> None:
    """AsyncCache refuses plain functions, and Cache refuses coroutine functions; the message names the other."""
    with pytest.raises(DefinitionError, match=r"is not async def; AsyncCache caches async functions, Cache plain ones"):

        @AsyncCache.from_url("memory://").cached("item:{n}", ttl=60)  # type: ignore[arg-type]
        def plain(n: int) -> int:
            return n

    with pytest.raises(DefinitionError, match=r"is async; Cache caches plain functions, AsyncCache async ones"):

        @Cache.from_url("memory://").cached("item:{n}", ttl=60)
        async def coroutine(n: int) -> int:
            return n


def test_methods_and_the_face_of_the_function() -> None:
    """A decorated coroutine function is one to `inspect`; methods bind; many values per call work alike."""

    async def main() -> None:
        async with AsyncCache.from_url("memory://") as cache:

            class Repository:
                def __init__(self) -> None:
                    self.loads = 0

                @cache.cached("item:{n}", ttl=60)
                async def item(self, n: int) -> int:
                    """Return an item."""
                    self.loads += 1
                    return n

                @cache.cached_many("many:{n}", ttl=60)
                async def many(self, ns: Sequence[int]) -> dict[int, int]:
                    return {n: n for n in ns}

            repository = Repository()
            assert asyncio.iscoroutinefunction(Repository.item)
            assert Repository.item.__doc__ == "Return an item."
            assert await repository.item(1) == 1
            assert await Repository.item(repository, 1) == 1
            assert repository.loads == 1
            assert await repository.item.get_many([1, 2]) == {1: 1, 2: 2}
            assert await repository.many([1, 2]) == {1: 1, 2: 2}
            assert (await repository.many.lookup(1)).state == "fresh"

    asyncio.run(main())


def test_unconfigured_cache_names_the_fix() -> None:
    """An AsyncCache that was never given a URL says which call is missing."""
    cache = AsyncCache()

    @cache.cached("item:{n}", ttl=60)
    async def item(n: int) -> int:
        return n

    with pytest.raises(ConfigError, match=r"cache\.configure"):
        asyncio.run(item(1))
    cache.configure("memory://")
    assert asyncio.run(item(1)) == 1
