"""memcached over asyncio: many tasks, many loops, one connection each, and whoever is cancelled amid the others."""

import asyncio
import contextlib
import gc
import getpass
import os
import random
import socket
import stat
import subprocess
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from leasecache.codecs import UNCACHEABLE
from leasecache.config import open_async_store
from leasecache.errors import ConfigError, NodeError
from leasecache.lab import MemcachedServer, TcpProxy, wait_until
from leasecache.lab.install import memcached_program
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Refused, Stored, Wait
from leasecache.stores.amemcached import AsyncMemcachedNode
from leasecache.stores.arouted import AsyncRoutedStore
from leasecache.stores.memcached import MemcachedNode, store_request
from tests.fix_fork import in_a_child
from tests.fix_stores import use_twin

FLAGS = 0x10000001
TASKS = 200
LONG = 3600  # s: a lease that does not run out while the test lasts
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@asynccontextmanager
async def opened(address: str, **options: Any) -> AsyncIterator[AsyncMemcachedNode]:
    """A node that is closed in the end."""
    node = AsyncMemcachedNode(address, **options)
    try:
        yield node
    finally:
        await node.aclose()


async def won(node: AsyncMemcachedNode, key: bytes) -> Lease:
    answer = await node.lease_get(key, LONG)
    assert isinstance(answer, Lease)
    return answer


async def free(node: AsyncMemcachedNode, key: bytes) -> None:
    """Return once a lease can be won: the server may serve the connection that gives it back a moment later."""
    while not isinstance(await node.lease_get(key, LONG), Lease):
        await asyncio.sleep(0.001)


async def fill(node: AsyncMemcachedNode, values: dict[bytes, bytes]) -> None:
    """Store each value under a lease."""
    leases = [await won(node, key) for key in values]
    stored = await node.lease_set_many([Fill(lease, FLAGS, values[lease.key], 600) for lease in leases])
    assert stored == [Stored()] * len(values)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait without holding up the loop."""
    await asyncio.to_thread(wait_until, condition, 60, what)


def connections(server: MemcachedServer) -> int:
    """Return how many connections the server has accepted."""
    line = next(line for line in server.ask("stats").splitlines() if line.startswith("STAT total_connections"))
    return int(line.split()[-1])


def test_tasks_share_one_connection(memcached: MemcachedServer, run: Run) -> None:
    """200 tasks that begin at once open one connection, and each gets the value of its own key."""

    async def main() -> None:
        async with opened(memcached.address) as node:

            async def use(key: bytes) -> None:
                lease = await won(node, key)
                assert await node.lease_set(lease, FLAGS, key * 10, 60) == Stored()
                read = node.reader(10, 0, FLAGS)
                for _ in range(10):
                    assert await read(key) == key * 10

            before = connections(memcached)
            await asyncio.gather(*[use(b"key%d" % i) for i in range(TASKS)])
            assert connections(memcached) - before == 2  # the other is that of the question
            assert node.connections == (1, 1)

    run(main())


class Crowd:
    """Tasks that read at random; every value tells whose it is."""

    def __init__(self, node: AsyncMemcachedNode, rng: random.Random) -> None:
        self.node = node
        self.rng = rng
        sizes = [rng.choice([1, 30, 300, 6000]) for _ in range(30)]
        self.values = {b"key%d" % i: b"value of key%d " % i * size for i, size in enumerate(sizes)}
        self.read = node.reader(LONG, 0, FLAGS)
        self.answers = 0
        self.wrong: list[str] = []

    def check(self, key: bytes, answer: bytes | Answer | NodeError) -> None:
        value = answer.value if isinstance(answer, Hit) else answer
        self.answers += 1
        if value != self.values[key]:
            self.wrong.append(f"{key!r}: {str(answer)[:80]}")

    async def ask(self) -> None:
        rng = random.Random(self.rng.random())
        while True:
            keys = rng.choices(list(self.values), k=3)
            how = rng.randrange(4)
            if how == 0:
                self.check(keys[0], await self.read(keys[0]))
            elif how == 1:
                self.check(keys[0], await self.node.lease_get(keys[0], LONG))
            elif how == 2:
                for key, answer in zip(keys, await self.node.batch_reader(LONG, 0, FLAGS)(keys), strict=True):
                    self.check(key, answer)
            else:
                await self.node.invalidate([b"other%d" % i for i in range(rng.randrange(4))], rng.choice([0, 5]))

    async def disturb(self, least: int) -> None:
        """Cancel tasks and begin others in their place until so many answers have come."""
        tasks = [asyncio.ensure_future(self.ask()) for _ in range(TASKS)]
        while self.answers < least:
            for i in self.rng.sample(range(TASKS), 20):
                tasks[i].cancel()
                tasks[i] = asyncio.ensure_future(self.ask())
            some = self.answers + self.rng.randrange(40)
            while self.answers < some:
                await asyncio.sleep(0)
            failed = [task.exception() for task in tasks if task.done()]
            assert failed == []
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def test_cancelled_tasks_leave_the_others_answers_right(memcached: MemcachedServer, run: Run) -> None:
    """Tasks are cancelled at random among 200; guard: the reply of a cancelled request is read in its turn."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")

    async def main() -> Crowd:
        async with opened(memcached.address) as node:
            crowd = Crowd(node, random.Random(seed))
            await fill(node, crowd.values)
            before = connections(memcached)
            await crowd.disturb(least=3000)
            assert connections(memcached) - before == 1, "the connection broke"
            return crowd

    assert run(main()).wrong == [], f"seed {seed}"


HOW: dict[str, Callable[[AsyncMemcachedNode, bytes], Any]] = {
    "one": lambda node, key: node.lease_get(key, LONG),
    "reader": lambda node, key: node.reader(LONG, 0, FLAGS)(key),
    "many": lambda node, key: node.lease_get_many([Ask(b"%b:%d" % (key, i), LONG) for i in range(3)]),
}


@pytest.mark.parametrize("how", HOW)
def test_cancelled_winner_gives_its_lease_back(memcached: MemcachedServer, run: Run, how: str) -> None:
    """A lease-get that wins after its task was cancelled is released at once; guard: `orphaned`."""
    keys = [b"key:%d" % i for i in range(3)] if how == "many" else [b"key"]

    async def main() -> None:
        async def ask() -> None:
            await HOW[how](node, b"key")

        async with opened(memcached.address) as node, opened(memcached.address) as other:
            await node.lease_get(b"to_connect", 1)
            task = asyncio.ensure_future(ask())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await node.lease_get(b"behind_it", 1)  # the reply to the cancelled request has come by now
            for key in keys:
                await asyncio.wait_for(free(other, key), 60)

    run(main())


def test_cancelled_batch_gives_back_what_other_nodes_have_won(run: Run) -> None:
    """When one node hangs and the batch is cancelled, the leases of the other go back; guard: `_return`."""

    async def main(addresses: list[str], proxy: TcpProxy) -> None:
        store = AsyncRoutedStore([AsyncMemcachedNode(address) for address in addresses])
        keys = [b"key%d" % i for i in range(20)]
        quick = [key for key in keys if store.node_for(key).name == addresses[0]]
        assert 0 < len(quick) < len(keys)
        await store.lease_get_many([Ask(b"connect" + key, 1) for key in keys])
        proxy.stall("replies")
        async with opened(addresses[0]) as other:
            task = asyncio.ensure_future(store.lease_get_many([Ask(key, LONG) for key in keys]))
            while not isinstance(await other.lease_get(quick[-1], 1), Wait):
                await asyncio.sleep(0)  # whoever looks too early holds the lease itself, for a second
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await free(other, quick[-1])
        proxy.flow()
        await store.aclose()

    with MemcachedServer() as first, MemcachedServer() as second, TcpProxy(second.port) as proxy:
        run(asyncio.wait_for(main([first.address, proxy.address], proxy), 120))


def test_cancelled_first_caller_does_not_end_the_connecting(memcached: MemcachedServer, run: Run) -> None:
    """Who waits for a connection that another caller has begun gets it, though that caller is cancelled."""

    async def main() -> None:
        async with opened(memcached.address) as node:
            first, second = [asyncio.ensure_future(node.lease_get(b"key%d" % i, 10)) for i in range(2)]
            await asyncio.sleep(0)
            first.cancel()
            assert isinstance(await second, Lease)
            assert connections(memcached) - before == 2

    before = connections(memcached)
    run(main())


def test_each_event_loop_has_its_own_connection(memcached: MemcachedServer, run: Run) -> None:
    """Two loops in two threads use one node at once; a lease of one may be stored by the other when it is older."""
    node = AsyncMemcachedNode(memcached.address)
    both = threading.Barrier(2)
    seen: list[tuple[int, int]] = []

    async def main(name: bytes) -> None:
        await node.lease_get(b"connect" + name, 1)
        await asyncio.to_thread(both.wait, 60)
        await fill(node, {b"%b%d" % (name, i): b"%b %d" % (name, i) for i in range(100)})
        read = node.reader(10, 0, FLAGS)
        found = await asyncio.gather(*[_await(read(b"%b%d" % (name, i))) for i in range(100)])
        assert found == [b"%b %d" % (name, i) for i in range(100)]
        await asyncio.to_thread(both.wait, 60)
        seen.append(node.connections)
        await asyncio.to_thread(both.wait, 60)
        await node.aclose()

    threads = [threading.Thread(target=run, args=(main(name),)) for name in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [count for count, _ in seen] == [2, 2]
    assert node.connections == (0, 0)


async def _await(answer: Any) -> Any:
    return await answer


def test_closed_loops_are_forgotten(memcached: MemcachedServer) -> None:
    """The connection of a loop that was closed without it goes when another loop connects."""
    node = AsyncMemcachedNode(memcached.address)

    async def use(close: bool) -> tuple[int, int]:
        await node.lease_get(b"key", 1)
        seen = node.connections
        if close:
            await node.aclose()
        return seen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's: the transport was not closed
        asyncio.run(use(close=False))
        assert asyncio.run(use(close=True)) == (1, 1)
        gc.collect()
    assert node.connections == (0, 0)


def sockets_to(port: int) -> int:
    """Return how many descriptors of this process are connected to a port."""
    found = 0
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    found += connection.getpeername()[1:2] == (port,)
    return found


@pytest.mark.parametrize("implementation", ["c", "python"])
def test_fork(memcached: MemcachedServer, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child talks over a connection of its own and cannot store under the parent's lease; the parent can.

    Guard: `forget`, without which the child would keep the parent's connection open.
    """
    use_twin(implementation, monkeypatch)
    loop = asyncio.new_event_loop()
    node = AsyncMemcachedNode(memcached.address)
    lease = loop.run_until_complete(won(node, b"key"))

    async def child() -> str:
        inherited = sockets_to(memcached.port)
        before = await node.lease_set(lease, FLAGS, b"child", 60)
        found = await node.lease_get(b"key", 10)
        after = await node.lease_set(lease, FLAGS, b"child", 60)
        await node.aclose()
        return " ".join([str(inherited), *(type(answer).__name__ for answer in (before, found, after))])

    assert sockets_to(memcached.port) == 1
    assert in_a_child(lambda: asyncio.run(child())) == "0 Refused Wait Refused"
    assert loop.run_until_complete(node.lease_set(lease, FLAGS, b"parent", 60)) == Stored()
    loop.run_until_complete(node.aclose())
    loop.close()


def test_large_values_wait_for_room(memcached: MemcachedServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server takes nothing, only so many requests are written down; guard: the wait for room in `_over`."""
    built = 0

    def counted(*args: Any) -> bytes:
        nonlocal built
        built += 1
        return store_request(*args)

    async def main(proxy: TcpProxy) -> None:
        async with opened(proxy.address, timeout=60) as node:
            leases = [await won(node, b"key%d" % i) for i in range(60)]
            proxy.stall("requests")
            body = b"x" * 900_000
            tasks = [asyncio.ensure_future(node.lease_set(lease, FLAGS, body, 60)) for lease in leases]
            calm, seen = 0, -1
            while calm < 20:  # turns in which nothing was added
                await asyncio.sleep(0.001)
                calm, seen = (calm + 1, seen) if built == seen else (0, built)
            assert 0 < built < 40  # what the sockets' buffers take, and little more
            proxy.flow()
            assert await asyncio.gather(*tasks) == [Stored()] * 60

    monkeypatch.setattr("leasecache.stores.amemcached.store_request", counted)
    with TcpProxy(memcached.port) as proxy:
        run(main(proxy))


def test_value_over_item_size_max(memcached: MemcachedServer, run: Run) -> None:
    """Of a value that the server cannot hold there is a mark, and nobody waits for it."""

    async def main() -> None:
        async with opened(memcached.address) as node:
            outcome = await node.lease_set(await won(node, b"key"), FLAGS, b"x" * 2**20, 60)
            assert isinstance(outcome, Refused)
            assert "item_size_max of 1048576 bytes" in outcome.reason
            answer = await node.lease_get(b"key", 10)
            assert isinstance(answer, Hit)
            assert (answer.value, answer.flags) == (b"", UNCACHEABLE)

    run(main())


def test_unix_socket(run: Run, tmp_path: Path) -> None:
    """A node may be the path of a Unix socket."""

    async def main() -> None:
        async with opened(str(path)) as node:
            await fill(node, {b"key": b"value"})
            assert await node.reader(10, 0, FLAGS)(b"key") == b"value"
            assert isinstance(await node.look(b"key"), Hit)

    path = tmp_path / "memcached.sock"
    command = [str(memcached_program()), "-s", str(path), "-u", getpass.getuser()]
    with subprocess.Popen(command) as server:
        try:
            wait_until(lambda: _listens(path), 60, "memcached to listen")
            run(main())
        finally:
            server.terminate()


def _listens(path: Path) -> bool:
    """Tell whether a server accepts connections there: the path itself is made a moment earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_pool_is_no_option_of_an_asynchronous_cache() -> None:
    """A URL with pool= is refused, because it would do nothing."""
    with pytest.raises(ConfigError, match="pool="):
        open_async_store("memcached://127.0.0.1:1?pool=3")


def test_synchronous_and_asynchronous_nodes_share_leases(memcached: MemcachedServer, run: Run) -> None:
    """What one wins the other waits for; what one stores the other hits."""
    threaded = MemcachedNode(memcached.address)

    async def main() -> None:
        async with opened(memcached.address) as node:
            lease = await won(node, b"key")
            assert isinstance(threaded.lease_get(b"key", 10), Wait)
            assert await node.lease_set(lease, FLAGS, b"value", 60) == Stored()
            found = threaded.lease_get(b"key", 10)
            assert isinstance(found, Hit)
            assert found.value == b"value"

    run(main())
    threaded.close()
