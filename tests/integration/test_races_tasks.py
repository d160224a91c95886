"""Race 16 among tasks of an event loop: joining another task's load must not cross an invalidation."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from leasecache import AsyncCache
from leasecache.lab import MemcachedServer, RedisServer
from leasecache.lease import Lease

WITHIN = 60  # s


async def get_one(get_row: Any) -> str:
    """Read by a batch of one."""
    return str((await get_row.get_many([1]))[1])


WAYS: dict[str, Callable[[Any], Awaitable[str]]] = {
    "call": lambda get_row: get_row(1),
    "get_many": get_one,
    "refresh": lambda get_row: get_row.refresh(1),
}


class Table:
    """One row, and loads of its old version that are held up on their way."""

    def __init__(self) -> None:
        self.row = "old"
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()

    async def read(self, row_id: int) -> str:
        """Read the row; while it is the old one, its answer is not delivered before `go_on`."""
        value = self.row
        self.began.set()
        if value == "old":
            await self.go_on.wait()
        return value


@pytest.fixture(params=["memcached", "redis", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """Each store; those on a network for the test alone."""
    if request.param == "memory":
        return "memory://"
    server: MemcachedServer | RedisServer = request.getfixturevalue(request.param)
    return server.url


def declare(cache: AsyncCache, table: Table, **policy: Any) -> Any:
    @cache.cached("row:{row_id}", **{"ttl": 60, "lease_for": 60, "wait_for": 60, **policy})
    async def get_row(row_id: int) -> str:
        return await table.read(row_id)

    return get_row


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until something holds."""
    while not condition():
        await asyncio.sleep(0.001)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop, for some s at most."""
    asyncio.run(asyncio.wait_for(test, WITHIN))


@pytest.mark.parametrize("way", WAYS)
def test_task_after_an_invalidation_does_not_join_the_older_load(url: str, way: str) -> None:
    """A load that began before an invalidation answers only tasks from before it; guard: own lease-get, own token."""

    async def scenario() -> None:
        table = Table()
        async with AsyncCache.from_url(url) as cache:
            get_row = declare(cache, table)
            first = asyncio.create_task(get_row(1))
            await table.began.wait()
            table.row = "new"
            await get_row.invalidate(1)
            assert await WAYS[way](get_row) == "new"
            table.go_on.set()
            assert await first == "old"
            assert await get_row(1) == "new"

    run(scenario())


@pytest.mark.parametrize("way", ["call", "get_many"])
def test_task_that_finds_another_token_does_not_join(memcached: MemcachedServer, way: str) -> None:
    """A task that finds another process's lease waits for that, not for its own process's void load.

    Guard: the CAS in `Flight.admits`.
    """

    async def scenario() -> None:
        table = Table()
        url = memcached.url
        async with AsyncCache.from_url(url) as cache, AsyncCache.from_url(url) as elsewhere:
            get_row = declare(cache, table)
            first = asyncio.create_task(get_row(1))
            await table.began.wait()
            await get_row.invalidate(1)
            taken = await elsewhere.lease_get(get_row.key(1), lease_for=60)
            assert isinstance(taken, Lease)
            second = asyncio.ensure_future(WAYS[way](get_row))
            by_key = cache.driver().local.flights._by_key
            await until(lambda: sum(map(len, by_key.values())) == 2)
            table.row = "new"
            table.go_on.set()
            assert await first == "old"
            await elsewhere.release(taken)
            assert await second == "new"

    run(scenario())


def test_load_without_a_lease_serves_no_task_that_came_later() -> None:
    """With the node down a load answers tasks from before it only; guard: later ones queue for the next load."""

    async def scenario(port: int) -> None:
        table = Table()
        async with AsyncCache.from_url(f"memcached://127.0.0.1:{port}") as cache:
            get_row = declare(cache, table)
            first = asyncio.create_task(get_row(1))
            await table.began.wait()
            table.row = "new"
            later = [asyncio.create_task(get_row(1)) for _ in range(4)]
            await until(lambda: len(cache.driver().local.permits._queued) == 1)
            table.go_on.set()
            assert await first == "old"
            assert await asyncio.gather(*later) == ["new"] * 4

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        run(scenario(closed.getsockname()[1]))
