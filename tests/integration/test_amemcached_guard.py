"""memcached over asyncio under a guard: what is believed, what is asked anew, and what is loaded instead."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from leasecache import AsyncCache, row
from leasecache.errors import ConfigError, GuardError
from leasecache.guard import wire_key
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Ask, Hit, Lease, Refused, Stale, Stored, Token, Wait
from leasecache.stores.amemcached import AsyncMemcachedNode
from leasecache.stores.arouted import AsyncRoutedStore
from leasecache.stores.memcached import MemcachedNode
from tests.fix_guard import Voucher

FLAGS = 0x10000001
MARK, OTHER = b"0123456789ab", b"ba9876543210"  # of functions
LONG = 3600  # s: a lease that does not run out while the test lasts
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def voucher(memcached: MemcachedServer) -> Iterator[Voucher]:
    """Who vouches for the test's memcached, over a connection of its own."""
    node = MemcachedNode(memcached.address)
    yield Voucher(node)
    node.close()


@asynccontextmanager
async def opened(voucher: Voucher) -> AsyncIterator[AsyncMemcachedNode]:
    """The node of a guarded store."""
    node = AsyncMemcachedNode(voucher.node.name)
    store = AsyncRoutedStore([node], guarded=True)
    try:
        yield node
    finally:
        await store.aclose()


async def fill(node: AsyncMemcachedNode, keys: Sequence[bytes], mark: bytes | None = MARK) -> None:
    """Store each key as its own value."""
    for key in keys:
        lease = await node.lease_get(key, LONG, mark=mark)
        assert isinstance(lease, Lease)
        assert await node.lease_set(lease, FLAGS, key, 600) == Stored()


def plain(answer: Any) -> Any:
    """Return the value of a hit, the type of anything else."""
    return answer.value if isinstance(answer, Hit) else answer if isinstance(answer, bytes) else type(answer)


async def one(node: AsyncMemcachedNode, key: bytes) -> Any:
    return await node.lease_get(key, LONG, mark=MARK)


async def reader(node: AsyncMemcachedNode, key: bytes) -> Any:
    return await node.reader(LONG, 0, FLAGS, MARK)(key)


async def batch(node: AsyncMemcachedNode, key: bytes) -> Any:
    [answer] = await node.batch_reader(LONG, 0, FLAGS, MARK)([key])
    return answer


async def steal(node: AsyncMemcachedNode, key: bytes) -> Any:
    return await node.steal(key, Token(1, 2**62, 0, 5), LONG, MARK)


async def look(node: AsyncMemcachedNode, key: bytes) -> Any:
    return await node.look(key, MARK)


WAYS = {way.__name__: way for way in (one, reader, batch, steal, look)}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
Way = Callable[[AsyncMemcachedNode, bytes], Coroutine[Any, Any, Any]]


async def verdict(way: Way, node: AsyncMemcachedNode, key: bytes = b"key") -> Any:
    """Return what a guarded read gives: a value, the type of an answer, or what the record lacks."""
    try:
        found = await way(node, key)
    except GuardError as error:
        found = error
    return found.missing if isinstance(found, GuardError) else plain(found)


def leave_a_stub(voucher: Voucher) -> None:
    """Do what a daemon does that is about to write the first record, and no more."""
    voucher.withdraw()
    voucher.node.lease_get(voucher.key, 60)


DISBELIEVED: dict[str, tuple[Callable[[Voucher], object], str]] = {
    "absent": (Voucher.withdraw, "record"),
    "garbage": (lambda voucher: voucher.put(b"1 2 - x"), "record"),
    "of a later version": (lambda voucher: voucher.put(b"2 5 7 - a b"), "record"),
    "of another run": (lambda voucher: voucher.write(run="some"), "record"),
    "a stub": (leave_a_stub, "record"),
    "voided": (lambda voucher: voucher.node.invalidate([voucher.key], stale_for=60), "record"),
    "without our ring": (lambda voucher: voucher.write(rings=frozenset([b"0" * 12])), "ring"),
    "without our rule": (lambda voucher: voucher.write(rules=frozenset([OTHER])), "rule"),
}


@each_way
def test_only_what_a_record_vouches_for_is_believed(voucher: Voucher, run: Run, way: Way) -> None:
    """With a record values are served; when it is gone, or does not name us, they are not, until it is back.

    Guard: `Trust.judge`, for every answer that came with another record than it was asked under.
    """

    async def main() -> None:
        async with opened(voucher) as node:
            assert await verdict(way, node) == "record", "there is none yet"
            voucher.vouch(marks=[MARK])
            await fill(node, [b"key"])
            for what, (spoil, missing) in DISBELIEVED.items():
                assert await verdict(way, node) == b"key", what
                await asyncio.to_thread(spoil, voucher)
                assert await verdict(way, node) == missing, what
                assert await verdict(way, node) == missing, what
                voucher.withdraw()
                voucher.write()
            assert await verdict(way, node) == b"key"
            assert voucher.node.name in str(await _error(way, node, voucher))
            errors = node.errors
            assert (errors.timeout, errors.broken, errors.protocol, errors.down_since) == (0, 0, 0, None)

    run(main())


async def _error(way: Way, node: AsyncMemcachedNode, voucher: Voucher) -> Any:
    voucher.withdraw()
    try:
        return await way(node, b"key")
    except GuardError as error:
        return error


def test_record_that_runs_out(voucher: Voucher, run: Run) -> None:
    """When nobody renews the record, nothing is believed any more, however it is asked for."""

    async def main() -> None:
        async with opened(voucher) as node:
            voucher.vouch(marks=[MARK])
            await fill(node, [b"key"])
            assert [await verdict(way, node) for way in WAYS.values()] == [b"key"] * len(WAYS)
            voucher.write(ttl=1)
            await asyncio.to_thread(wait_until, lambda: voucher.node.look(voucher.key) is None, 60, "the record to go")
            assert [await verdict(way, node) for way in WAYS.values()] == ["record"] * len(WAYS)

    run(main())


@each_way
def test_another_generation_is_asked_for_anew(voucher: Voucher, run: Run, way: Way) -> None:
    """After a bump nothing of the old generation is served, and what a call has won there goes back at once.

    Guard: the comparison of generations, in `Guarding` and in `GuardedBatch`.
    """

    async def main() -> None:
        async with opened(voucher) as node:
            old = voucher.vouch(marks=[MARK]).generation
            await fill(node, [b"key"])
            voucher.bump()
            assert await verdict(way, node) == (type(None) if way is look else Lease)
            await fill(node, [b"kept"])
            voucher.generation = old  # which no daemon does: to see what is there
            voucher.write()
            assert await verdict(way, node) == b"key"
            voucher.bump()
            assert await verdict(way, node, b"other") == (type(None) if way is look else Lease)
            assert isinstance(voucher.node.lease_get(wire_key(old, b"other"), 1), Lease), "nobody holds it"

    run(main())


def test_set_after_a_bump_is_read_by_nobody(voucher: Voucher, run: Run) -> None:
    """A fill, a release and a theft belong to the generation of their token, whatever the record says by then."""

    async def main() -> None:
        async with opened(voucher) as node:
            old = voucher.vouch(marks=[MARK]).generation
            leases = [await one(node, key) for key in (b"set", b"released", b"stolen")]
            assert [lease.token.generation for lease in leases] == [old] * 3
            voucher.bump()
            assert await node.lease_set(leases[0], FLAGS, b"old", 600) == Stored()
            await node.release(leases[1])
            assert isinstance(await node.steal(b"stolen", leases[2].token, LONG, MARK), Lease)
            refused = await node.lease_set(leases[2], FLAGS, b"old", 600)
            assert isinstance(refused, Refused)
            assert isinstance(voucher.node.lease_get(wire_key(old, b"released"), 1), Lease)
            assert await verdict(one, node, b"set") is Lease
            assert await verdict(one, node, b"stolen") is Wait

    run(main())


def test_node_that_was_restarted_is_not_believed(run: Run) -> None:
    """An empty server has no record; when there is one again, leases and values from before are gone."""

    async def main(server: MemcachedServer) -> None:
        other = MemcachedNode(server.address)
        voucher = Voucher(other)
        async with opened(voucher) as node:
            voucher.vouch(marks=[MARK])
            await fill(node, [b"key"])
            lease = await one(node, b"held")
            server.stop()
            server.start()
            assert await verdict(reader, node) == "record"
            voucher.write()
            assert await verdict(reader, node) is Lease
            assert isinstance(await node.lease_set(lease, FLAGS, b"old", 600), Refused)
        other.close()

    with MemcachedServer() as server:
        run(main(server))


def test_batch_of_everything(voucher: Voucher, run: Run) -> None:
    """In one batch each ask is judged by its own mark; who is not guarded has no part in it."""

    async def main() -> None:
        async with opened(voucher) as node:
            voucher.vouch(marks=[MARK])
            await fill(node, [b"a", b"b"])
            await fill(node, [b"plain"], mark=None)
            marks = {b"a": MARK, b"plain": None, b"x": OTHER, b"b": MARK, b"new": MARK}
            asks = [Ask(key, LONG, 0, mark) for key, mark in marks.items()]

            async def sorts() -> list[Any]:
                found = await node.lease_get_many(asks)
                for answer in found:
                    if isinstance(answer, Lease):
                        await node.release(answer)
                return [answer.missing if isinstance(answer, GuardError) else plain(answer) for answer in found]

            assert await sorts() == [b"a", b"plain", "rule", b"b", Lease]
            voucher.bump()
            assert await sorts() == [Lease, b"plain", "rule", Lease, Lease]
            voucher.vouch(marks=[OTHER])
            assert await sorts() == [Lease, b"plain", Lease, Lease, Lease]
            voucher.withdraw()
            assert await sorts() == ["record", b"plain", "record", "record", "record"]

    run(main())


GONE: dict[str, Way] = {
    "one": one,
    "reader": reader,
    "many": lambda node, key: node.lease_get_many([Ask(b"%b:%d" % (key, i), LONG, 0, MARK) for i in range(3)]),
}


@pytest.mark.parametrize("how", GONE)
@pytest.mark.parametrize("bumped", [False, True], ids=["same generation", "bumped"])
def test_cancelled_caller_leaves_nothing_behind(voucher: Voucher, run: Run, how: str, bumped: bool) -> None:
    """Cancelled after any number of turns, a guarded call holds no lease, and the next gets its own answers.

    Guard: `orphaned`, which is told of what came too late, under whichever generation it was won.
    """
    names = [b"key:%d" % i for i in range(3)] if how == "many" else [b"key"]

    async def main() -> None:
        async with opened(voucher) as node:
            voucher.vouch(marks=[MARK])
            await fill(node, [b"other"])
            for turns in range(12):
                before = voucher.generation
                if bumped:
                    voucher.bump()
                task = asyncio.ensure_future(GONE[how](node, b"key"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if not task.cancel():
                    await _release(node, await task)
                await asyncio.wait([task])
                if not task.cancelled():
                    await _release(node, task.result())
                assert plain(await one(node, b"other")) in (b"other", Lease)
                await node.look(b"behind_it")
                for generation in {before, voucher.generation}:
                    for name in names:
                        await asyncio.wait_for(_is_free(voucher, wire_key(generation, name)), 60)
                await _release(node, await one(node, b"other"))

    run(main())


async def _is_free(voucher: Voucher, key: bytes) -> None:
    """Return once a lease can be won, and give it back: the server may serve the connection that frees it later."""
    while not isinstance(found := voucher.node.lease_get(key, LONG), Lease):
        await asyncio.sleep(0.001)
    voucher.node.release(found)


async def _release(node: AsyncMemcachedNode, found: Any) -> None:
    for answer in found if isinstance(found, list) else [found]:
        if isinstance(answer, Lease):
            await node.release(answer)


def test_loops_of_several_threads(voucher: Voucher, run: Run) -> None:
    """Each loop reads the record over its own connection; after a bump none of them serves what was before."""
    node = AsyncMemcachedNode(voucher.node.name)
    AsyncRoutedStore([node], guarded=True)
    voucher.vouch(marks=[MARK])
    both = threading.Barrier(2)
    seen: list[Any] = []

    async def main(name: bytes) -> None:
        read = node.reader(LONG, 0, FLAGS, MARK)
        for i in range(20):
            keys = [b"%b:%d:%d" % (name, i, j) for j in range(5)]
            await fill(node, keys)
            assert [await read(key) for key in keys] == keys
            if await asyncio.to_thread(both.wait, 20) == 0:
                voucher.bump()
            await asyncio.to_thread(both.wait, 20)
            found = await asyncio.gather(*[_await(read(key)) for key in keys])
            seen.extend(map(plain, found))
        await node.aclose()

    threads = [threading.Thread(target=run, args=(main(name),)) for name in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [Lease] * 200


async def _await(answer: Any) -> Any:
    return await answer


class Shop:
    """An `AsyncCache` under a guard on two nodes, and the database whose versions it caches."""

    def __init__(self, *servers: MemcachedServer) -> None:
        addresses = [server.address for server in servers]
        self.cache = AsyncCache.from_url(f"memcached://{','.join(addresses)}?namespace=shop", guard="daemon")
        self.nodes = [MemcachedNode(address) for address in addresses]
        self.vouchers = [Voucher(node, addresses, "shop") for node in self.nodes]
        self.version = 1
        self.loads = 0
        media = {"depends_on": row("media", media_id="id")}

        @self.cache.cached("media:{media_id}", ttl=600, **media)  # type: ignore[arg-type]
        async def get_media(media_id: int) -> str:
            return self.load(media_id)

        @self.cache.cached_many("thumb:{media_id}", ttl=600, **media)  # type: ignore[arg-type]
        async def get_thumbs(media_ids: list[int]) -> dict[int, str]:
            return {media_id: self.load(media_id) for media_id in media_ids}

        @self.cache.cached("plain:{media_id}", ttl=600)
        async def get_plain(media_id: int) -> str:
            return self.load(media_id)

        self.media, self.thumbs, self.plain = get_media, get_thumbs, get_plain

    def load(self, media_id: int) -> str:
        self.loads += 1
        return f"{media_id} v{self.version}"

    def mark_of(self, function: Any) -> bytes:
        """Return what a guard record has to name for it."""
        mark: bytes = function._self_core.bind().profile.mark
        return mark

    def name_of(self, key: bytes) -> str:
        """Return the name of the node that owns a key."""
        return self.cache.driver().store.node_for(key).name

    def vouch(self) -> None:
        for voucher in self.vouchers:
            voucher.vouch(self.cache.rules.rules)

    def withdraw(self) -> None:
        for voucher in self.vouchers:
            voucher.withdraw()

    async def loaded_by(self, call: Coroutine[Any, Any, Any]) -> tuple[Any, int]:
        """Return what a call gives, and how often it has loaded."""
        before = self.loads
        return await call, self.loads - before


@pytest.fixture
def shop() -> Iterator[Shop]:
    """A shop with two servers of its own."""
    with MemcachedServer() as first, MemcachedServer(recent=True) as second:
        shop = Shop(first, second)
        yield shop
        for node in shop.nodes:
            node.close()


IDS = list(range(10))


def test_cache_under_a_guard(shop: Shop, run: Run) -> None:
    """Every way to ask serves what a record vouches for; without one all of them load, store nothing and count it."""

    async def main() -> None:
        async with shop.cache:
            for _ in range(2):
                assert await shop.loaded_by(shop.media.get_many(IDS)) == ({i: f"{i} v1" for i in IDS}, 10)
                assert await shop.loaded_by(shop.thumbs(IDS)) == ({i: f"{i} v1" for i in IDS}, 10)
                assert await shop.loaded_by(shop.media(1)) == ("1 v1", 1)
                assert (await shop.media.lookup(1)).state == "uncached"
                assert (await shop.thumbs.lookup(1)).state == "uncached"
                assert await shop.media.refresh(1) == "1 v1"
                assert (await shop.media.peek(1), await shop.thumbs.peek(1)) == (None, None)
                with pytest.raises(GuardError, match="is the daemon running"):
                    await shop.media.invalidate(1)
            stats = {stats.name.rpartition(".")[2]: stats for stats in shop.cache.stats().functions}
            assert (stats["get_media"].unguarded, stats["get_thumbs"].unguarded) == (
                2 * 12,
                2 * 11,
            )  # a refresh is no call
            assert await shop.loaded_by(shop.plain(1)) == ("1 v1", 1)
            assert await shop.loaded_by(shop.plain(1)) == ("1 v1", 0)
            await shop.plain.invalidate(1)  # stands under no generation
            assert await shop.plain.peek(1) is None
            shop.vouch()
            assert await shop.loaded_by(shop.media.get_many(IDS)) == ({i: f"{i} v1" for i in IDS}, 10)
            assert await shop.loaded_by(shop.thumbs(IDS)) == ({i: f"{i} v1" for i in IDS}, 10)
            assert await shop.loaded_by(shop.media.get_many(IDS)) == ({i: f"{i} v1" for i in IDS}, 0)
            assert await shop.loaded_by(shop.thumbs(IDS)) == ({i: f"{i} v1" for i in IDS}, 0)
            assert await shop.loaded_by(shop.media(1)) == ("1 v1", 0)
            assert [(await f.lookup(1)).state for f in (shop.media, shop.thumbs)] == ["fresh"] * 2
            assert [entry and entry.value for f in (shop.media, shop.thumbs) if (entry := await f.peek(1))] == [
                "1 v1"
            ] * 2
            shop.version = 2
            await shop.media.invalidate(1)
            await shop.thumbs.invalidate(1)
            assert await shop.media.get_many([1, 2]) == {1: "1 v2", 2: "2 v1"}
            assert await shop.thumbs([1, 2]) == {1: "1 v2", 2: "2 v1"}
            assert await shop.media.refresh(3) == "3 v2"
            assert await shop.thumbs.refresh([3]) == {3: "3 v2"}
            assert await shop.loaded_by(shop.media(3)) == ("3 v2", 0)
            for voucher in shop.vouchers:
                voucher.bump()
            assert await shop.loaded_by(shop.media(5)) == ("5 v2", 1)
            assert await shop.loaded_by(shop.media(5)) == ("5 v2", 0), "the first was asked for anew, and stored"
            assert sum(function.unguarded for function in shop.cache.stats().functions) == 2 * (12 + 11)
            assert [(node.errors, node.down_for) for node in shop.cache.stats().nodes] == [
                ({"timeout": 0, "broken": 0, "protocol": 0, "down": 0}, None)
            ] * 2

    run(main())


def test_invalidation_by_key_under_a_guard(shop: Shop, run: Run) -> None:
    """`invalidate` voids what stands under the generation, and a value stays as stale only for who wants that."""

    async def main() -> None:
        async with shop.cache:
            shop.vouch()
            assert await shop.media(1) == "1 v1"
            shop.version = 2
            await shop.cache.invalidate(shop.media.key(1), stale_for=60)
            key, media = shop.media.key(1), shop.mark_of(shop.media)
            node: Any = shop.cache.driver().store.node_for(key)
            found = await node.lease_get(key, LONG, mark=media)
            assert isinstance(found, Lease)
            assert found.value is not None
            assert isinstance(await node.lease_get(key, 1, mark=media), Stale)
            await node.release(found)
            for voucher in shop.vouchers:
                voucher.bump()
            assert await shop.media(1) == "1 v2"
            shop.version = 3
            before = node.trust.known
            for voucher in shop.vouchers:
                voucher.bump()
            assert await shop.media(1) == "1 v3"
            shop.version = 4
            node.trust.read(before.raw)  # as a slower thread may: the generation that is known is not the record's
            await shop.media.invalidate(1)
            assert await shop.media(1) == "1 v4"

    run(main())


def test_theft_under_a_guard(shop: Shop) -> None:
    """A lease whose holder is gone is stolen under the generation: what is loaded then is a hit."""

    async def main() -> None:
        async with shop.cache:
            shop.vouch()

            @shop.cache.cached(
                "slow:{media_id}", ttl=600, lease_for=1, wait_for=60, depends_on=row("media", media_id="id")
            )
            async def get_slow(media_id: int) -> str:
                return shop.load(media_id)

            shop.vouch()
            [voucher] = [v for v in shop.vouchers if v.node.name == shop.name_of(get_slow.key(1))]
            held = voucher.node.lease_get(wire_key(voucher.generation, get_slow.key(1)), LONG)
            assert isinstance(held, Lease)
            assert await shop.loaded_by(get_slow(1)) == ("1 v1", 1)
            assert await shop.loaded_by(get_slow(1)) == ("1 v1", 0)

    asyncio.run(main())


def test_clear(shop: Shop, run: Run) -> None:
    """After `clear` no guarded value from before is served, and records keep what is left of their time."""

    async def main() -> None:
        async with shop.cache:
            with pytest.raises(GuardError):
                await shop.cache.clear()
            shop.vouch()
            await shop.media.get_many(IDS)
            shop.version = 2
            await shop.cache.clear()
            assert await shop.media.get_many(IDS) == {i: f"{i} v2" for i in IDS}
            for voucher in shop.vouchers:
                found = voucher.node.look(voucher.key)
                assert found is not None
                assert found.expires_in is not None
                assert 50 < found.expires_in <= 60
            shop.nodes[0].invalidate([shop.vouchers[0].key])
            with pytest.raises(GuardError, match=shop.nodes[0].name):
                await shop.cache.clear()

    run(main())


def test_clear_without_a_guard(memcached: MemcachedServer, run: Run) -> None:
    """Nothing that stands on the network without a generation can be cleared; what is in this process can."""

    async def main() -> None:
        async with AsyncCache.from_url(f"memcached://{memcached.address}", guard="none") as cache:
            with pytest.raises(ConfigError, match="guard='daemon'"):
                await cache.clear()
            with cache.override("memory://"):
                lease = await cache.lease_get(b"key")
                assert isinstance(lease, Lease)
                await cache.lease_set(lease, b"value", 60)
                await cache.clear()
                assert isinstance(await cache.lease_get(b"key"), Lease)

    run(main())
