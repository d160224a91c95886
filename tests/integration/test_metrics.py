"""Figures of a cache on real servers: what its calls and its nodes have counted, and what a scrape shows of it."""

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from leasecache import AsyncCache, Cache, NodeError
from leasecache.config import open_store
from leasecache.lab import MemcachedServer, TcpProxy, free_port, wait_until
from leasecache.lease import Lease, Stored
from leasecache.metrics import NodeFigures, snapshot
from leasecache.prometheus import LeasecacheCollector
from leasecache.stores.base import Store
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.redis import RedisNode
from leasecache.stores.redis_link import Access
from leasecache.stores.routed import RoutedStore
from tests.fix_fork import in_a_child
from tests.fix_patience import PATIENT

SOON = 60.0  # s
COUNTERS = ("hits", "stale", "misses", "won", "stolen", "refused", "unleased", "misread", "failed")


def figures(store: Store) -> NodeFigures:
    """The figures of a store's only node."""
    [node] = snapshot([], store).nodes
    return node


@pytest.fixture(params=[("memcached", PATIENT), ("redis", PATIENT)])
def behind(request: pytest.FixtureRequest) -> Iterator[tuple[TcpProxy, Store]]:
    """A server of each kind behind a proxy that the test may disturb, and a store of that way and time limit."""
    kind, timeout = request.param
    server = request.getfixturevalue(f"shared_{kind}")
    with TcpProxy(server.port) as proxy:
        made = {
            "memcached": lambda: MemcachedNode(proxy.address, timeout=timeout),
            "redis": lambda: RedisNode(proxy.address, Access(timeout=timeout)),
        }
        store = RoutedStore([made[kind]()])
        yield proxy, store
        store.close()


@pytest.fixture
def proxy(behind: tuple[TcpProxy, Store]) -> TcpProxy:
    """The proxy."""
    return behind[0]


@pytest.fixture
def store(behind: tuple[TcpProxy, Store]) -> Store:
    """The store."""
    return behind[1]


def answers(store: Store, key: bytes) -> bool:
    """Whether the node does what it is asked."""
    try:
        store.lease_get(key, 10)
    except NodeError:
        return False
    return True


def test_connections_are_counted(store: Store, key: bytes) -> None:
    """Nothing is open before first use; then one connection is, and is idle between exchanges."""
    opened = [figures(store).connections_open, figures(store).connections_idle]
    store.lease_get(key, 10)
    now = figures(store)
    assert (opened, now.connections_open, now.connections_idle) == ([0, 0], 1, 1)
    assert (now.up, now.down_for, sum(now.errors.values())) == (True, None, 0)


def test_a_broken_connection(store: Store, proxy: TcpProxy, key: bytes) -> None:
    """A connection that died is an error though the exchange succeeds over another one, for plain reads as well."""
    for read in (lambda: store.lease_get(key, 10), lambda: store.reader(10, 0, 1)(key)):
        assert read() is not None
        before = figures(store).errors["broken"]
        proxy.reset()
        assert read() is not None
        assert figures(store).errors["broken"] == before + 1
        assert figures(store).up


def test_a_node_that_is_not_there(key: bytes) -> None:
    """A refused connection is counted and marks the node down; whoever is not let through meanwhile counts as down."""
    store = open_store(f"memcached://127.0.0.1:{free_port()}")
    assert not answers(store, key)
    assert not answers(store, key)
    node = figures(store)
    assert node.errors["broken"] >= 1
    assert node.errors["broken"] + node.errors["down"] == 2  # a second probe, when the first is long over
    assert node.down_for is not None
    assert not node.up


@pytest.mark.parametrize("behind", [("memcached", 1), ("redis", 1)], indirect=True)
def test_a_node_that_does_not_answer(store: Store, proxy: TcpProxy, key: bytes) -> None:
    """A timeout marks the node down, for ever longer, until it answers again."""
    store.lease_get(key, 10)
    proxy.stall()
    assert not answers(store, key)
    first = figures(store)
    assert (first.errors["timeout"], first.errors["broken"], first.up) == (1, 0, False)
    wait_until(lambda: not answers(store, key) and figures(store).errors["down"] > 0, SOON, "a caller to fail fast")
    later = figures(store)
    assert first.down_for is not None
    assert later.down_for is not None
    assert later.down_for > first.down_for
    proxy.flow()
    wait_until(lambda: answers(store, key), SOON, "the node to be believed again")
    assert (figures(store).up, figures(store).down_for) == (True, None)


def test_an_answer_that_is_none(shared_memcached: MemcachedServer, key: bytes) -> None:
    """Bytes that the protocol does not allow are an error of their own kind."""
    store = open_store(shared_memcached.url)
    lease = store.lease_get(key, 10)
    assert isinstance(lease, Lease)
    assert isinstance(store.lease_set(lease, 1, b"x", 60), Stored)
    with pytest.raises(NodeError):
        store.lease_get(b"two words", 10)  # the server takes the second one for flags
    assert figures(store).errors["protocol"] == 1
    store.close()


@pytest.fixture
def cache(shared_memcached: MemcachedServer) -> Iterator[Cache]:
    """A cache in a namespace of its own."""
    with Cache.from_url(f"{shared_memcached.url}?namespace=m{uuid.uuid4().hex[:8]}", background=None) as made:
        yield made


def counters(cache: Cache) -> dict[str, int]:
    """The counters of a cache's only function that are not 0."""
    [function] = cache.stats().functions
    return {name: count for name in COUNTERS if (count := getattr(function, name))}


def url_of(cache: Cache) -> str:
    """The URL that a cache was made with."""
    stats = cache.stats()
    return f"memcached://{stats.nodes[0].name}?namespace={stats.namespace}"


def test_hits_and_misses(cache: Cache) -> None:
    """A load is a miss and a lease won; what follows are hits, from batches and lookups, too. A peek is no call."""

    @cache.cached("item:{item_id}", ttl=60)
    def get_item(item_id: int) -> int:
        return item_id

    assert counters(cache) == {}
    get_item(1)
    assert counters(cache) == {"misses": 1, "won": 1}
    get_item(1)
    get_item.lookup(1)
    get_item.peek(1)
    assert counters(cache) == {"misses": 1, "won": 1, "hits": 2}
    assert get_item.get_many([1, 2, 3]) == {1: 1, 2: 2, 3: 3}
    assert counters(cache) == {"misses": 3, "won": 3, "hits": 3}
    with cache.bypass():
        get_item(1)
    [function] = cache.stats().functions
    assert (function.hits, function.loaded.count, function.waited.count) == (3, 3, 0)
    assert function.hit_ratio == cache.stats().hit_ratio == 0.5


def test_a_stale_value(cache: Cache) -> None:
    """The caller that gets the stale value and refreshes it counts as stale, and wins a lease."""

    @cache.cached("item:{item_id}", ttl=60, stale_for=60)
    def get_item(item_id: int) -> int:
        return item_id

    get_item(1)
    get_item.invalidate(1)
    get_item(1)
    assert counters(cache) == {"misses": 1, "stale": 1, "won": 2}


def test_a_refused_fill(cache: Cache) -> None:
    """A value that was invalidated while it was loaded is not stored."""

    @cache.cached("item:{item_id}", ttl=60)
    def get_item(item_id: int) -> int:
        get_item.invalidate(item_id)
        return item_id

    assert get_item(1) == 1
    assert counters(cache) == {"misses": 1, "won": 1, "refused": 1}


def test_a_load_that_raises(cache: Cache) -> None:
    """A load that raised is counted, and is not among the times of loads."""

    @cache.cached("item:{item_id}", ttl=60)
    def get_item(item_id: int) -> int:
        raise LookupError(item_id)

    with pytest.raises(LookupError):
        get_item(1)
    assert counters(cache) == {"misses": 1, "won": 1, "failed": 1}
    assert cache.stats().functions[0].loaded.count == 0


def test_a_value_of_another_version(cache: Cache) -> None:
    """A value that another version of the function has stored is dropped and counted."""

    def get_item(item_id: int) -> int:
        return item_id

    cache.cached("item:{item_id}", ttl=60, version=1)(get_item)(1)
    with Cache.from_url(url_of(cache)) as later:
        assert later.cached("item:{item_id}", ttl=60, version=2)(get_item)(1) == 1
        assert counters(later) == {"misses": 1, "won": 1, "misread": 1}


def test_a_herd(cache: Cache) -> None:
    """Of many callers of a cold key one wins and loads, and the others are seen waiting."""
    callers = 8

    @cache.cached("item:{item_id}", ttl=60, wait_for=SOON, lease_for=60)
    def get_item(item_id: int) -> int:
        wait_until(lambda: cache.stats().functions[0].misses == callers, SOON, "everybody to have asked")
        return item_id

    with ThreadPoolExecutor(callers) as pool:
        assert list(pool.map(get_item, [1] * callers)) == [1] * callers
    assert counters(cache) == {"misses": callers, "won": 1}
    [function] = cache.stats().functions
    assert (function.loaded.count, function.waited.count) == (1, callers - 1)
    assert 0 < function.waited.sum < callers * SOON


def test_a_stolen_lease(cache: Cache) -> None:
    """A lease whose holder has died is taken from it once its time is over."""

    @cache.cached("item:{item_id}", ttl=60, lease_for=1, wait_for=30)
    def get_item(item_id: int) -> int:
        return item_id

    assert isinstance(cache.lease_get(get_item.key(1), lease_for=600), Lease)
    assert get_item(1) == 1
    assert counters(cache) == {"misses": 1, "won": 1, "stolen": 1}
    assert cache.stats().functions[0].waited.count == 1


def test_a_dead_node() -> None:
    """Calls without a node are misses, and loads without a lease."""
    with Cache.from_url(f"memcached://127.0.0.1:{free_port()}") as cache:

        @cache.cached("item:{item_id}", ttl=60)
        def get_item(item_id: int) -> int:
            return item_id

        assert [get_item(n) for n in range(3)] == [0, 1, 2]
        assert counters(cache) == {"misses": 3, "unleased": 3}
        [node] = cache.stats().nodes
        assert (node.up, sum(node.errors.values()) >= 3) == (False, True)


def test_threads_lose_no_call(cache: Cache) -> None:
    """Each of the calls of many threads is a hit, stale or a miss, and each lease won is a load."""
    threads, calls = 8, 200

    @cache.cached("item:{item_id}", ttl=60, wait_for=SOON, lease_for=60)
    def get_item(item_id: int) -> int:
        return item_id

    def work(thread: int) -> None:
        for n in range(calls):
            get_item((n + thread) % 50)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    [function] = cache.stats().functions
    assert function.hits + function.stale + function.misses == threads * calls
    assert function.won == function.loaded.count >= 50


def test_a_forked_worker_shows_its_own(cache: Cache) -> None:
    """A child of a process that has counted begins with nothing and counts its own calls."""

    @cache.cached("item:{item_id}", ttl=60)
    def get_item(item_id: int) -> int:
        return item_id

    get_item(1)
    get_item(1)

    def child() -> str:
        before = counters(cache)
        get_item(1)
        return json.dumps([before, counters(cache), cache.stats().nodes[0].connections_open])

    assert json.loads(in_a_child(child)) == [{}, {"hits": 1}, 1]
    assert counters(cache) == {"misses": 1, "won": 1, "hits": 1}


def scrape(*caches: Cache | AsyncCache) -> str:
    """What a collector of these caches shows."""
    registry = CollectorRegistry()
    registry.register(LeasecacheCollector(*caches))
    return generate_latest(registry).decode()


def test_a_scrape_of_a_cache(cache: Cache) -> None:
    """A collector shows what the cache has counted, also when it was made before a cache had a URL."""
    late = Cache()
    scrape(cache, late)

    @cache.cached("item:{item_id}", ttl=60)
    def get_item(item_id: int) -> int:
        return item_id

    get_item(1)
    get_item(1)
    late.configure(f"{url_of(cache)}late")
    families = {family.name: family for family in text_string_to_metric_families(scrape(cache, late))}
    calls = {sample.labels["result"]: sample.value for sample in families["leasecache_calls"].samples}
    assert calls == {"hit": 1, "stale": 0, "miss": 1}
    namespaces = {sample.labels["cache"] for sample in families["leasecache_node_up"].samples}
    assert namespaces == {cache.stats().namespace, f"{cache.stats().namespace}late"}
    late.close()


def test_an_asynchronous_cache(cache: Cache) -> None:
    """Tasks are counted as threads are, and a scrape adds the figures of both caches of a namespace up."""
    callers = 8

    @cache.cached("item:{item_id}", ttl=60)
    def get_item(item_id: int) -> int:
        return item_id

    async def use() -> str:
        async with AsyncCache.from_url(url_of(cache)) as twin:

            @twin.cached("other:{item_id}", ttl=60, wait_for=SOON, lease_for=60)
            async def get_other(item_id: int) -> int:
                while twin.stats().functions[0].misses < callers:
                    await asyncio.sleep(0.001)
                return item_id

            herd = asyncio.gather(*(get_other(1) for _ in range(callers)))
            assert await asyncio.wait_for(herd, SOON) == [1] * callers
            await get_other(1)
            assert await get_other.get_many([1]) == {1: 1}
            [function], [node] = twin.stats().functions, twin.stats().nodes
            assert (function.hits, function.misses, function.won) == (2, callers, 1)
            assert (function.loaded.count, function.waited.count) == (1, callers - 1)
            assert (node.connections_open, node.connections_idle) == (1, 1)
            return scrape(cache, twin)

    get_item(1)
    text = asyncio.run(use())
    assert sorted(re.findall(r'calls_total.*result="miss".* (\S+)', text)) == ["1.0", "8.0"]
    assert re.findall(r'node_connections.*state="idle".* (\S+)', text) == ["2.0"]


def test_a_node_that_does_not_answer_tasks(shared_memcached: MemcachedServer) -> None:
    """An asynchronous node counts timeouts, and those who fail fast after them, and is up once it answers."""

    async def use() -> None:
        with TcpProxy(shared_memcached.port) as proxy:
            async with AsyncCache.from_url(f"memcached://{proxy.address}?timeout=1") as cache:

                @cache.cached("item:{item_id}", ttl=60)
                async def get_item(item_id: int) -> int:
                    return item_id

                await get_item(0)
                proxy.stall()
                assert await get_item(1) == 1
                [node] = cache.stats().nodes
                assert (node.errors["timeout"] >= 1, node.up) == (True, False)
                await asyncio.wait_for(_until(lambda: cache.stats().nodes[0].errors["down"] > 0, get_item), SOON)
                proxy.flow()
                await asyncio.wait_for(_until(lambda: cache.stats().nodes[0].up, get_item), SOON)

    asyncio.run(use())


async def _until(condition: Callable[[], bool], call: Callable[[int], Awaitable[int]]) -> None:
    """Call a function until a condition holds."""
    while not condition():
        assert await call(2) == 2
        await asyncio.sleep(0.01)
