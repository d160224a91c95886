"""Generations that change at random under an `AsyncCache`, and an oracle: nothing that a bump made old is served."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from leasecache import AsyncCache, row
from leasecache.guard import wire_key
from leasecache.lab import MemcachedServer
from leasecache.stores.memcached import MemcachedNode
from tests.fix_guard import Voucher

IDS = range(12)
TASKS = 24
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class World:
    """The rows' versions, and since when no answer may be older than which."""

    def __init__(self) -> None:
        self.versions = dict.fromkeys(IDS, 1)
        self.floors = dict.fromkeys(IDS, 1)  # no call that begins now may be answered by anything older

    def change(self, ids: Any) -> None:
        for row_id in ids:
            self.versions[row_id] += 1

    def acknowledge(self, versions: dict[int, int]) -> None:
        self.floors.update(versions)


class Daemon:
    """Does in a thread what a daemon may do to the nodes of a cache, at random, and says what that has made old."""

    def __init__(self, world: World, cache: AsyncCache, addresses: list[str], rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.vouchers = [Voucher(MemcachedNode(address), addresses, "shop") for address in addresses]
        self.rules = cache.rules.rules
        self.render: Callable[[int], list[bytes]] = lambda row_id: []
        self.done: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            for voucher in self.vouchers:
                voucher.vouch(self.rules)
            while not self.over.wait(self.rng.choice([0.001, 0.005, 0.02])):
                act = self.rng.choice([self.bump, self.bump, self.invalidate, self.invalidate, self.desert, self.spoil])
                act()
                self.done[act.__name__] += 1
        except BaseException as error:
            self.failure = error
        finally:
            for voucher in self.vouchers:
                voucher.node.close()

    def bump(self) -> None:
        """Change everything, then give every node another generation."""
        self.world.change(IDS)
        versions = dict(self.world.versions)
        for voucher in self.vouchers:
            voucher.bump()
        self.world.acknowledge(versions)

    def invalidate(self) -> None:
        """Change a row, then invalidate its keys."""
        changed = self.rng.choice(IDS)
        self.world.change([changed])
        version = self.world.versions[changed]
        for voucher in self.vouchers:
            voucher.node.invalidate([wire_key(voucher.generation, key) for key in self.render(changed)])
        self.world.acknowledge({changed: version})

    def desert(self) -> None:
        """Let a record go, change everything and invalidate nothing; come back with another generation."""
        voucher = self.rng.choice(self.vouchers)
        voucher.withdraw()
        self._change_behind(voucher)

    def spoil(self) -> None:
        """Write what vouches for nobody here instead."""
        voucher = self.rng.choice(self.vouchers)
        if self.rng.random() < 0.5:
            voucher.put(self.rng.randbytes(80))
        else:
            voucher.write(rings=frozenset([b"0" * 12]))
        self._change_behind(voucher)

    def _change_behind(self, deserted: Voucher) -> None:
        self.world.change(IDS)
        versions = dict(self.world.versions)
        for voucher in self.vouchers:
            if voucher is not deserted:
                voucher.bump()
        self.world.acknowledge(versions)
        self.over.wait(self.rng.choice([0, 0.002]))
        deserted.bump()


class Readers:
    """Tasks that call at random, and check every answer."""

    def __init__(self, world: World, cache: AsyncCache, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []

        @cache.cached("media:{media_id}", ttl=600, depends_on=row("media", media_id="id"))
        async def media(media_id: int) -> int:
            return (await self.load([media_id]))[media_id]

        @cache.cached_many("thumb:{media_id}", ttl=600, depends_on=row("media", media_id="id"))
        async def thumbs(media_ids: list[int]) -> dict[int, int]:
            return await self.load(media_ids)

        self.media, self.thumbs = media, thumbs

    async def load(self, ids: list[int]) -> dict[int, int]:
        found = {row_id: self.world.versions[row_id] for row_id in ids}
        for _ in range(self.rng.choice([0, 0, 1, 5, 40])):
            await asyncio.sleep(0)
        return found

    async def read(self) -> None:
        while True:
            how = self.rng.choice(["call", "call", "many", "thumbs", "lookup", "peek"])
            ids = self.rng.sample(IDS, 1 if how in ("call", "lookup", "peek") else 4)
            floors = dict(self.world.floors)
            for row_id, version in (await self._ask(how, ids)).items():
                self.answers[how] += 1
                if version < floors[row_id]:
                    self.wrong.append(f"{how} {row_id}: {version} after {floors[row_id]} was acknowledged")

    async def _ask(self, how: str, ids: list[int]) -> dict[int, int]:
        if how == "call":
            return {ids[0]: await self.media(ids[0])}
        if how == "many":
            return await self.media.get_many(ids)
        if how == "thumbs":
            return dict(await self.thumbs(ids))
        if how == "lookup":
            entry = await self.thumbs.lookup(ids[0])
            self.answers[entry.state] += 1
            return {ids[0]: entry.value}
        looked = await self.media.peek(ids[0])
        return {} if looked is None else {ids[0]: looked.value}

    async def disturb(self, enough: Callable[[], bool]) -> None:
        """Cancel readers and begin others in their place until it is enough."""
        tasks = [asyncio.ensure_future(self.read()) for _ in range(TASKS)]
        while not enough():
            await asyncio.sleep(0.002)
            for i in self.rng.sample(range(TASKS), 3):
                tasks[i].cancel()
                tasks[i] = asyncio.ensure_future(self.read())
            failed = [task.exception() for task in tasks if task.done()]
            assert failed == []
        for task in tasks:
            task.cancel()
        _, kept = await asyncio.wait(tasks, timeout=60)
        assert not kept, "cancelled, and went on"


def test_nothing_is_older_than_an_acknowledged_bump(run: Run) -> None:
    """Records are bumped, spoilt and withdrawn while cancelled and other tasks read: no answer is too old.

    Guards: the verdict on the record of the same write, in the multiplexed connection and in `GuardedBatch`; the
    generation in tokens.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    world = World()

    async def main(addresses: list[str]) -> None:
        async with AsyncCache.from_url(f"memcached://{','.join(addresses)}?namespace=shop", guard="daemon") as cache:
            readers = Readers(world, cache, rng)
            daemon = Daemon(world, cache, addresses, random.Random(seed + 1))
            daemon.render = lambda row_id: [readers.media.key(row_id), readers.thumbs.key(row_id)]
            daemon.thread.start()
            deadline = asyncio.get_running_loop().time() + 120

            def enough() -> bool:
                done = sum(readers.answers.values()) >= 1200 and min(daemon.done["bump"], daemon.done["spoil"]) >= 10
                return (
                    (done and readers.answers["fresh"] > 0)
                    or bool(daemon.failure)
                    or asyncio.get_running_loop().time() > deadline
                )

            try:
                await readers.disturb(enough)
            finally:
                daemon.over.set()
                await asyncio.to_thread(daemon.thread.join)
            print(dict(readers.answers), dict(daemon.done))
            if daemon.failure is not None:
                raise daemon.failure
            assert readers.wrong == [], f"seed {seed}"
            assert readers.answers["fresh"] > 0

    with MemcachedServer() as first, MemcachedServer(recent=True) as second:
        run(main([first.address, second.address]))
