"""Tasks, event loops and threads that share a Redis store."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import AsyncCache, Cache
from leasecache.config import open_async_store, open_store
from leasecache.errors import NodeTimeout
from leasecache.lab import RedisServer
from leasecache.lease import Hit, Lease, Stored
from leasecache.stores.base import AsyncStore
from tests.fix_redis import FLAGS, KEY, filled


def on(url: str, steps: Callable[[Any], Awaitable[None]]) -> None:
    """Run steps on a store in an event loop of its own."""

    async def run() -> None:
        store = open_async_store(url)
        await steps(store)
        await store.aclose()

    asyncio.run(run())


def prepared(redis: RedisServer) -> None:
    """Store a value under ten keys."""
    with contextlib.closing(open_store(redis.url)) as store:
        for i in range(10):
            filled(store, b"key:%d" % i, b"%d" % i)


def test_cancelled_exchange_costs_its_connection(redis: RedisServer) -> None:
    """The reply to a cancelled call is not taken for another's; guard: what is cancelled closes its connection."""
    prepared(redis)

    async def steps(store: AsyncStore) -> None:
        read = store.reader(10, 0, FLAGS)
        for how in (lambda: read(b"key:1"), lambda: store.lease_get(b"key:1", 10)):
            await store.lease_get(b"key:2", 10)
            redis.pause()
            call = asyncio.ensure_future(how())
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            redis.resume()
            found = await store.lease_get(b"key:3", 10)
            assert isinstance(found, Hit)
            assert found.value == b"3"

    on(f"{redis.url}?pool=1&timeout=5", steps)


def test_tasks_share_few_connections(redis: RedisServer) -> None:
    """A hundred tasks over two connections each get their own answer."""
    prepared(redis)

    async def steps(store: AsyncStore) -> None:
        keys = [b"key:%d" % (i % 10) for i in range(100)]
        found = await asyncio.gather(*[store.lease_get(key, 10) for key in keys])
        assert [answer.value for answer in found if isinstance(answer, Hit)] == [key[4:] for key in keys]
        assert store.nodes[0].connections[0] == 2  # type: ignore[attr-defined]

    on(f"{redis.url}?pool=2&timeout=20", steps)


def test_task_that_finds_no_connection_waits_no_longer_than_its_time(redis: RedisServer) -> None:
    """While all connections are busy with a silent server, a call is a NodeTimeout."""

    async def steps(store: AsyncStore) -> None:
        await store.lease_get(KEY, 10)
        redis.pause()
        calls = [store.lease_get(KEY, 10) for _ in range(4)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        redis.resume()
        assert all(isinstance(result, NodeTimeout) or "marked down" in str(result) for result in results)

    on(f"{redis.url}?pool=1&timeout=0.3", steps)


def test_each_event_loop_has_connections_of_its_own(redis: RedisServer) -> None:
    """One store serves one loop after the other; a lease of the first is not stored over the second's connection."""
    store = open_async_store(redis.url)

    async def win() -> Lease:
        answer = await store.lease_get(KEY, 10)
        assert isinstance(answer, Lease)
        return answer

    async def end(lease: Lease) -> Any:
        return await store.lease_set(lease, FLAGS, b"value", 60)

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    lease = first.run_until_complete(win())
    second.run_until_complete(store.lease_get(b"other", 10))
    assert type(second.run_until_complete(end(lease))).__name__ == "Refused"
    assert first.run_until_complete(end(lease)) == Stored()
    first.run_until_complete(store.aclose())
    for loop in (second, first):  # the other loop's connections close in its next turn
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


def test_herd_of_tasks_loads_once(redis: RedisServer) -> None:
    """A hundred tasks on a cold key run one loader."""
    loads = []

    async def run() -> None:
        async with AsyncCache.from_url(redis.url) as cache:

            @cache.cached("item:{item_id}", ttl=60)
            async def get_item(item_id: int) -> int:
                loads.append(item_id)
                await asyncio.sleep(0.05)
                return item_id

            assert await asyncio.gather(*[get_item(1) for _ in range(100)]) == [1] * 100
            assert (await get_item.lookup(1)).state == "fresh"

    asyncio.run(run())
    assert loads == [1]


def test_herd_of_threads_loads_once(redis: RedisServer) -> None:
    """Forty threads on a cold key run one loader over four connections."""
    loads = []
    with Cache.from_url(f"{redis.url}?pool=4") as cache, ThreadPoolExecutor(40) as threads:

        @cache.cached("item:{item_id}", ttl=60)
        def get_item(item_id: int) -> int:
            loads.append(item_id)
            return item_id

        assert set(threads.map(get_item, [1] * 400)) == {1}
    assert loads == [1]
