"""One daemon, several caches: memcached and Redis behind the same dispatch, and two rings while nodes are moved."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from leasecache import Cache, row
from leasecache.config import open_store
from leasecache.guard import Record, guard_key
from leasecache.lab import MemcachedServer, RedisServer, wait_until
from tests.fix_daemon import WITHIN, World

Get = Callable[[int], str]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What ends with the test."""
    with ExitStack() as opened:
        yield opened


def application(world: World, url: str, stack: ExitStack) -> Get:
    """Return a guarded function of an application that uses this cache."""
    cache = stack.enter_context(Cache.from_url(url, guard="daemon"))

    @cache.cached("media:{x}", ttl=600, depends_on=row("media", x="id"))
    def get_media(x: int) -> str:
        return str(world.primary.value("select title from media where id = %s", x, dbname=world.database))

    return get_media


def serves(world: World, more: str) -> None:
    """Start the world's daemon with a further cache."""
    config = world.daemon.config
    config.write_text(config.read_text().replace("[cache]\n", f'[cache]\nmore = ["{more}"]\n'))
    world.daemon.start().streaming()


def await_fresh(world: World, get: Get, ids: range) -> None:
    """Wait until every call is a hit."""

    def fresh() -> bool:
        return all(get.lookup(x).state == "fresh" for x in ids)  # type: ignore[attr-defined]

    wait_until(fresh, WITHIN, f"hits; {world.daemon.log()}")


def await_titles(world: World, get: Get, ids: range, title: str) -> None:
    """Wait until every call brings this title."""
    wait_until(lambda: all(get(x) == title for x in ids), WITHIN, f"{title}; {world.daemon.log()}")


def test_memcached_and_redis(primary_world: World, stack: ExitStack) -> None:
    """Applications on either cache are vouched for, and a write invalidates on both."""
    world, ids = primary_world, range(1, 4)
    redis = stack.enter_context(RedisServer())
    url = f"{redis.url}?namespace=shop"
    world.write("insert into media select x, 'first' from generate_series(1, 3) as x")
    serves(world, url)
    getters = [application(world, url, stack), application(world, world.url, stack)]
    for get in getters:
        await_fresh(world, get, ids)
    world.write("update media set title = 'second'")
    for get in getters:
        await_titles(world, get, ids, "second")
        await_fresh(world, get, ids)
    redis.stop()
    assert [getters[0](x) for x in ids] == ["second"] * 3
    world.write("update media set title = 'third'")
    await_titles(world, getters[1], ids, "third")


def test_an_old_and_a_new_ring(primary_world: World, stack: ExitStack) -> None:
    """While nodes are added clients of either ring are vouched for, and the owners by both are told."""
    world, ids = primary_world, range(1, 30)
    added = stack.enter_context(MemcachedServer())
    url = world.url.replace("?", f",{added.address}?")
    world.write("insert into media select x, 'first' from generate_series(1, 29) as x")
    serves(world, url)
    old, new = application(world, world.url, stack), application(world, url, stack)
    for get in (old, new):
        await_fresh(world, get, ids)
    store = open_store(url)
    stack.callback(store.close)
    records = [node.look(guard_key("shop")) for node in store.nodes]  # type: ignore[attr-defined]
    rings = {
        node.name: len(Record.from_bytes(found.value).rings) for node, found in zip(store.nodes, records, strict=True)
    }  # type: ignore[union-attr]
    assert rings == {world.memcached.address: 2, added.address: 1}
    world.write("update media set title = 'second'")
    for get in (old, new):
        await_titles(world, get, ids, "second")


def test_a_ring_that_nobody_serves(primary_world: World, stack: ExitStack) -> None:
    """Guard: the ring's mark. A client that finds nodes otherwise than the daemon does believes none of them."""
    world = primary_world
    world.write("insert into media values (1, 'first')")
    world.daemon.start().streaming()
    fits = application(world, world.url, stack)
    await_fresh(world, fits, range(1, 2))
    other = application(world, world.url.replace("?", "*2?"), stack)
    assert other.lookup(1).state == "uncached"  # type: ignore[attr-defined]
