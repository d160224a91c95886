"""Loaders that ask for keys of their own batch: nobody waits for a load that waits for its turn behind him."""

import asyncio
from collections.abc import Iterator

import pytest

from leasecache import AsyncCache
from leasecache.acalls import LOADS_AT_ONCE
from leasecache.lab import MemcachedServer

LAST = 3 * LOADS_AT_ONCE


@pytest.fixture(params=["memory", "memcached"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty store in memory and on memcached."""
    if request.param == "memory":
        yield "memory://"
    else:
        server: MemcachedServer = request.getfixturevalue("memcached")
        yield server.url


def test_loaders_that_ask_for_the_last_key_of_their_batch(url: str) -> None:
    """All loads that have begun want the one that has not; the guard is the `queued` of `gather`."""

    async def main() -> None:
        async with AsyncCache.from_url(url) as cache:

            @cache.cached("item:{n}", ttl=60, wait_for=60, lease_for=60)
            async def item(n: int) -> int:
                return n + (await item(LAST) if n < LAST else 0)

            found = await asyncio.wait_for(item.get_many(range(LAST + 1)), 40)
            assert found == {n: n + LAST if n < LAST else n for n in range(LAST + 1)}
            assert (await item.lookup(LAST)).state == "fresh"

    asyncio.run(main())


def test_tasks_of_a_batch_wait_for_loads_that_have_begun(url: str) -> None:
    """What runs already is loaded once, whoever of the batch wants it, too."""
    loads: list[int] = []

    async def main() -> None:
        async with AsyncCache.from_url(url) as cache:

            @cache.cached("item:{n}", ttl=60, wait_for=60, lease_for=60)
            async def item(n: int) -> int:
                loads.append(n)
                await asyncio.sleep(0.05)
                return n + (await item(0) if n else 0)

            await asyncio.wait_for(item.get_many(range(LOADS_AT_ONCE)), 40)

    asyncio.run(main())
    assert sorted(loads) == list(range(LOADS_AT_ONCE))
