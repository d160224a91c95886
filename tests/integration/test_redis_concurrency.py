"""Tasks, event loops and threads that share a Redis store."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import AsyncCache, Cache
from leasecache.config import open_async_store, open_store
from leasecache.errors import NodeTimeout
from leasecache.lab import RedisServer
from leasecache.lease import Ask, Hit, Lease, Stored
from leasecache.stores.base import AsyncStore
from tests.fix_redis import FLAGS, KEY, filled, holds

LONG = 3600  # s: a lease that does not run out while the test lasts
WON_TOO_LATE = """
import asyncio, socket, sys
from leasecache.config import open_async_store
store = open_async_store(sys.argv[1])

async def main():
    await store.lease_get(b"to connect", 1)
    with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as admin:
        admin.sendall(b"CLIENT PAUSE 60000 WRITE\\r\\n")
        admin.recv(5)
    call = asyncio.ensure_future(store.lease_get(b"key", 3600))
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait({call})
"""
ENDS = {
    "run": "asyncio.run(main())",
    "close": "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
}


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

    on(f"{redis.url}?pool=1&timeout=60", steps)


def test_tasks_share_few_connections(redis: RedisServer) -> None:
    """A hundred tasks over two connections each get their own answer."""
    prepared(redis)

    async def steps(store: AsyncStore) -> None:
        keys = [b"key:%d" % (i % 10) for i in range(100)]
        found = await asyncio.gather(*[store.lease_get(key, 10) for key in keys])
        assert [answer.value for answer in found if isinstance(answer, Hit)] == [key[4:] for key in keys]
        assert store.nodes[0].connections[0] == 2  # type: ignore[attr-defined]

    on(f"{redis.url}?pool=2&timeout=60", steps)


def test_task_that_finds_no_connection_waits_no_longer_than_its_time(redis: RedisServer) -> None:
    """While all connections are busy with a silent server, a call is a NodeTimeout."""

    async def steps(store: AsyncStore) -> None:
        await store.lease_get(KEY, 10)
        redis.pause()
        calls = [store.lease_get(KEY, 10) for _ in range(4)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        redis.resume()
        assert all(isinstance(result, NodeTimeout) or "marked down" in str(result) for result in results)

    on(f"{redis.url}?pool=1&timeout=1", steps)


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
        async with AsyncCache.from_url(f"{redis.url}?timeout=60&connect_timeout=60") as cache:

            @cache.cached("item:{item_id}", ttl=60, lease_for=60, wait_for=60)
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
    with (
        Cache.from_url(f"{redis.url}?pool=4&timeout=60&connect_timeout=60") as cache,
        ThreadPoolExecutor(40) as threads,
    ):

        @cache.cached("item:{item_id}", ttl=60, lease_for=60, wait_for=60)
        def get_item(item_id: int) -> int:
            loads.append(item_id)
            return item_id

        assert set(threads.map(get_item, [1] * 400)) == {1}
    assert loads == [1]


HOW: dict[str, Callable[[AsyncStore, Sequence[bytes]], Awaitable[Any]]] = {
    "one": lambda store, keys: store.lease_get(keys[0], LONG),
    "reader": lambda store, keys: _read(store, keys[0]),
    "many": lambda store, keys: store.lease_get_many([Ask(key, LONG) for key in keys]),
    "batch": lambda store, keys: store.batch_reader(LONG, 0, FLAGS)(keys),
}


async def _read(store: AsyncStore, key: bytes) -> Any:
    return await store.reader(LONG, 0, FLAGS)(key)


async def _cancelled(call: Awaitable[Any], delay: float) -> bool:
    """Tell whether the call was cancelled, rather than answered just before."""
    try:
        await asyncio.wait_for(call, delay)
    except asyncio.TimeoutError:
        return True
    return False


async def _won_by(store: AsyncStore, keys: Sequence[bytes]) -> list[Lease]:
    """Return leases of these keys, as soon as nobody else has them."""
    leases: dict[bytes, Lease] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for key in set(keys) - set(leases):
            answer = await store.lease_get(key, LONG)
            if isinstance(answer, Lease):
                leases[key] = answer
        if len(leases) == len(keys):
            return list(leases.values())
        await asyncio.sleep(0.005)
    raise AssertionError(f"leases that nobody holds: {sorted(set(keys) - set(leases))}")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_cancelled_winner_gives_its_lease_back(request: pytest.FixtureRequest, kind: str, how: str) -> None:
    """A lease that is won after the caller was cancelled is free at once, whenever that was; guard: `_adopt`."""
    server = request.getfixturevalue({"redis": "shared_redis", "cluster": "shared_redis_cluster"}[kind])

    async def steps(store: AsyncStore) -> None:
        await store.lease_get_many([Ask(b"to connect %d" % i, 1) for i in range(20)])
        cancelled = 0
        for i in range(20):
            keys = [b"cancelled:%s:%s:%d:%d" % (kind.encode(), how.encode(), i, j) for j in range(8)]
            if await _cancelled(HOW[how](store, keys), i * 0.0001):
                await _won_by(store, keys)
                cancelled += 1
        assert cancelled

    on(f"{server.url}?timeout=60", steps)


@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_cancelled_thief_gives_its_lease_back(request: pytest.FixtureRequest, kind: str) -> None:
    """What a cancelled `steal` wins is free at once; guard: `steal` is seen through."""
    server = request.getfixturevalue({"redis": "shared_redis", "cluster": "shared_redis_cluster"}[kind])

    async def steps(store: AsyncStore) -> None:
        for i in range(20):
            key = b"stolen:%s:%d" % (kind.encode(), i)
            [held] = await _won_by(store, [key])
            assert held.token is not None
            call = asyncio.ensure_future(store.steal(key, held.token, LONG))
            for _ in range(i // 4):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait({call})
            if call.cancelled():
                await store.release(held)
                await _won_by(store, [key])

    on(f"{server.url}?timeout=60", steps)


def test_orphans_are_few_and_keep_their_connections(redis: RedisServer) -> None:
    """Of 100 callers cancelled at a silent server two go on, over the connections they had; guard: `limit`."""

    async def steps(store: AsyncStore) -> None:
        keys = [b"orphan:%d" % i for i in range(100)]
        await asyncio.gather(*[store.lease_get(b"to connect %d" % i, 1) for i in range(4)])
        node: Any = store.nodes[0]
        before = len(asyncio.all_tasks())
        redis.pause()
        calls = [asyncio.ensure_future(store.lease_get(key, LONG)) for key in keys]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        for _ in range(3):  # turns in which the others end
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) - before == 2 * 2
        redis.resume()
        await node.aclose()  # waits for them
        assert len(asyncio.all_tasks()) == before
        await _won_by(store, keys)

    on(f"{redis.url}?pool=2&timeout=60", steps)


def test_cancelled_batch_sends_no_more_than_it_had(redis: RedisServer) -> None:
    """A batch of several round trips ends with the one it is in; what earlier ones won is free; guard: `here`."""

    async def steps(store: AsyncStore) -> None:
        asks = [Ask(b"chunk:%d" % i, LONG) for i in range(20_000)]
        call = asyncio.ensure_future(store.lease_get_many(asks))
        while not holds(redis, "{chunk:0}:l"):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        await store.nodes[0].aclose()  # type: ignore[attr-defined]
        scripts = int(redis.ask("INFO commandstats").partition("cmdstat_evalsha:calls=")[2].partition(",")[0])
        assert scripts < len(asks)
        await _won_by(store, [ask.key for ask in asks[::500]])

    on(f"{redis.url}?timeout=60", steps)


@pytest.mark.parametrize("end", ENDS)
def test_loop_that_ends_before_its_orphans_says_nothing(redis: RedisServer, end: str) -> None:
    """Neither `asyncio.run` nor a loop that is just closed complains of them; guards: `_die_quietly`, `close`."""
    done = subprocess.run(
        [sys.executable, "-c", WON_TOO_LATE + ENDS[end], f"{redis.url}?timeout=60", str(redis.port)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    redis.ask("CLIENT UNPAUSE")
    assert (done.returncode, done.stderr) == (0, "")
