"""memcached over asyncio when it fails: every call ends in its time, and nobody gets another's answer."""

import asyncio
import itertools
import socket
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from leasecache.config import open_async_store
from leasecache.errors import ConfigError, NodeError, NodeTimeout, ProtocolError
from leasecache.lab import MemcachedServer, TcpProxy
from leasecache.lab.memcached import Certificate
from leasecache.lease import Hit, Lease, Refused, Stored
from leasecache.stores.amemcached import AsyncMemcachedNode
from leasecache.stores.conversation import Conversation
from leasecache.stores.dial import Tls
from leasecache.stores.within import within
from tests.integration.test_garbage import GARBAGE

FLAGS = 0x10000001
KEY = b"key"
TASKS = 50
BOUND = 60.0  # s: far more than these calls take, far less than calls that hang
LIMITED = {"timeout": 0.3, "connect_timeout": 0.3}  # s, before a server that says nothing
GREETING = b"VERSION 1.6.18\r\nSTAT cas_enabled yes\r\nSTAT item_size_max 1048576\r\nEND\r\n"
Run = Callable[[Coroutine[Any, Any, Any]], Any]
Answer = Callable[[StreamReader, StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def opened(address: str, **options: Any) -> AsyncIterator[AsyncMemcachedNode]:
    """A node that is closed in the end."""
    node = AsyncMemcachedNode(address, **options)
    try:
        yield node
    finally:
        await node.aclose()


class Scripted:
    """A server that greets like memcached and then does as it is told; counts who came."""

    def __init__(self, answer: Answer, greeting: bytes = GREETING) -> None:
        self.accepted = 0
        self._answer = answer
        self._greeting = greeting
        self._over = asyncio.Event()
        self._busy: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in list(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.ensure_future(self._talk(reader, writer))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    async def _talk(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await reader.readuntil(b"stats settings\r\n")
            writer.write(self._greeting)
            await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


def saying(answer: bytes) -> Answer:
    """Answer the first request alike, and hang up."""

    async def say(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await writer.drain()

    return say


async def silence(reader: StreamReader, writer: StreamWriter) -> None:
    """Read and answer nothing."""
    while await reader.read(65536):
        pass


async def drip(reader: StreamReader, writer: StreamWriter) -> None:
    """Answer the first request a byte at a time."""
    for byte in itertools.chain(b"VA 1000000 c1 f268435457 t9\r\n", itertools.repeat(0)):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def crowd(node: AsyncMemcachedNode) -> list[Any]:
    """Return what many tasks get that read at once, in several ways."""
    read = node.reader(10, 0, FLAGS)

    async def one(i: int) -> Any:
        if i % 2:
            return await read(KEY)
        return await node.lease_get(KEY, 10)

    return await asyncio.gather(*[one(i) for i in range(TASKS)], return_exceptions=True)


FAULTS: dict[str, tuple[Answer, type[NodeError]]] = {
    "silence": (silence, NodeTimeout),
    "a byte at a time": (drip, NodeTimeout),
    "the end amid a value": (saying(b"VA 10 c1 f268435457 t9\r\nabc"), NodeError),
    "garbage": (saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ProtocolError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_task_fails_in_time_and_the_node_is_left_alone(run: Run, fault: str) -> None:
    """All tasks that wait get the error soon, over one connection; who comes then is refused without trying."""
    answer, kind = FAULTS[fault]

    async def main() -> None:
        server = Scripted(answer)
        async with server as address, opened(address, **(LIMITED if kind is NodeTimeout else {})) as node:
            began = time.monotonic()
            results = await crowd(node)
            assert {type(result) for result in results} == {kind}
            assert all(str(result).startswith(f"memcached {address}: ") for result in results)
            assert time.monotonic() - began < BOUND
            assert server.accepted == 1
            node._down.delay = node._down._until = 3600.0 + time.monotonic()
            assert all("is marked down" in str(result) for result in await crowd(node))
            assert server.accepted == 1
            assert node.errors.down == TASKS

    run(main())


@pytest.mark.parametrize("garbage", [name for name in GARBAGE if name not in ("two replies", "huge size")])
def test_garbage_is_an_error(run: Run, garbage: str) -> None:
    """Whatever comes instead of an answer is a NodeError, for a lease-get, a reader and an invalidation."""

    async def main() -> None:
        async with Scripted(saying(GARBAGE[garbage])) as address:
            asks: list[Callable[[AsyncMemcachedNode], Any]] = [
                lambda node: node.lease_get(KEY, 10),
                lambda node: node.reader(10, 0, FLAGS)(KEY),
                lambda node: node.invalidate([KEY]),
                lambda node: node.invalidate([KEY], 10),
            ]
            for ask in asks:
                async with opened(address) as node:
                    with pytest.raises(NodeError):
                        await ask(node)

    run(main())


def test_second_answer_reaches_nobody(run: Run) -> None:
    """A server that answers one request twice loses its connection; nobody takes the second for an answer."""

    async def twice(reader: StreamReader, writer: StreamWriter) -> None:
        while await reader.readline():
            writer.write(b"VA 1 c1 f268435457 t9\r\na\r\n" * 2)

    async def main() -> None:
        server = Scripted(twice)
        async with server as address, opened(address) as node:
            read = node.reader(10, 0, FLAGS)
            found = await node.lease_get(KEY, 10)
            assert isinstance(found, Hit)
            with pytest.raises(NodeError, match="marked down"):
                await read(KEY)
            assert node.errors.protocol == 1

    run(main())


GREETINGS: dict[str, tuple[bytes, type[Exception], str]] = {
    "nothing": (b"", NodeTimeout, "no answer within"),
    "garbage": (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, "unexpected answer to version"),
    "too old": (GREETING.replace(b"1.6.18", b"1.6.9"), ConfigError, "leases need 1.6.13"),
    "without CAS": (GREETING.replace(b"enabled yes", b"enabled no"), ConfigError, "runs with -C"),
}


@pytest.mark.parametrize("greeting", GREETINGS)
def test_greetings(run: Run, greeting: str) -> None:
    """A server that does not greet as it should is an error that names it, for all who wait for the connection."""
    text, kind, message = GREETINGS[greeting]

    async def main() -> None:
        server = Scripted(silence, text)
        async with server as address, opened(address, **(LIMITED if kind is NodeTimeout else {})) as node:
            for error in await crowd(node):
                assert type(error) is kind
                assert str(error).startswith(f"memcached {address}: ")
                assert message in str(error)
            assert server.accepted == 1

    run(main())


def test_nobody_listens(run: Run) -> None:
    """A port that refuses is a NodeError, for figures and for peeking, too."""

    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{closed.getsockname()[1]}"
            asks: list[Callable[[AsyncMemcachedNode], Any]] = [
                lambda node: node.lease_get(KEY, 10),
                lambda node: node.look(KEY),
                lambda node: node.stats(),
            ]
            for ask in asks:
                async with opened(address) as node:
                    with pytest.raises(NodeError, match=f"memcached {address}: "):
                        await ask(node)
                    assert node.errors.broken == 1

    run(main())


def test_held_up_loop_is_no_timeout(memcached: MemcachedServer, run: Run) -> None:
    """A reply that is there when the loop goes on counts, though its time was over; guard: the grace of `_tick`."""

    async def main() -> None:
        async with opened(memcached.address, timeout=1) as node:
            lease = await node.lease_get(KEY, 10)
            assert isinstance(lease, Lease)
            assert await node.lease_set(lease, FLAGS, b"x" * 900_000, 60) == Stored()
            task = asyncio.ensure_future(node.lease_get(KEY, 10))
            for _ in range(3):
                await asyncio.sleep(0)
            time.sleep(1.5)  # the application computes
            assert isinstance(await task, Hit)

    run(main())


def test_connection_that_ends_under_a_request(run: Run) -> None:
    """A request that the server did not answer any more is sent again over a new connection; guard: `died`."""

    async def once(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readline()
        writer.write(b"VA 1 c1 f268435457 t9\r\na\r\n")
        await reader.readline()

    async def main() -> None:
        server = Scripted(once)
        async with server as address, opened(address) as node:
            for connections in (1, 2, 3):
                assert isinstance(await node.lease_get(KEY, 10), Hit)
                assert server.accepted == connections

    run(main())


async def answered(node: AsyncMemcachedNode) -> Any:
    """Ask until the node is believed again."""
    while True:
        try:
            return await node.lease_get(KEY, 10)
        except NodeError:
            await asyncio.sleep(0.01)


def test_restarted_server(memcached: MemcachedServer, run: Run) -> None:
    """A server that went and came back while nobody asked is asked over a new connection, without an error."""

    async def main() -> None:
        async with opened(memcached.address) as node:
            read = node.reader(10, 0, FLAGS)
            assert isinstance(await read(KEY), Lease)
            await asyncio.to_thread(memcached.restart)
            assert isinstance(await read(KEY), Lease)

    run(main())


def test_killed_server(memcached: MemcachedServer, run: Run) -> None:
    """Tasks that wait when the server dies fail soon; when it is back it is probed and believed."""

    async def main() -> None:
        async with opened(memcached.address, timeout=10) as node:
            await node.lease_get(KEY, 10)
            await asyncio.to_thread(memcached.pause)
            waiting = asyncio.ensure_future(crowd(node))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.to_thread(memcached.kill)
            results = await asyncio.wait_for(waiting, BOUND)
            assert all(isinstance(result, NodeError) for result in results)
            await asyncio.to_thread(memcached.start)
            assert isinstance(await asyncio.wait_for(answered(node), BOUND), Lease)

    run(main())


def test_late_replies_reach_nobody(memcached: MemcachedServer, run: Run) -> None:
    """After a time-out the connection is closed, so that a reply which comes later is not taken for another's."""

    async def main(proxy: TcpProxy) -> None:
        async with opened(proxy.address, timeout=1) as node:
            lease = await node.lease_get(b"value", 10)
            assert isinstance(lease, Lease)
            assert await node.lease_set(lease, FLAGS, b"mine", 60) == Stored()
            proxy.stall("replies")
            results = await asyncio.gather(*[node.lease_get(b"value", 10) for _ in range(5)], return_exceptions=True)
            assert {type(result) for result in results} == {NodeTimeout}
            proxy.flow()
            other = await asyncio.wait_for(answered(node), BOUND)
            assert isinstance(other, Lease)
            assert other.key == KEY

    with TcpProxy(memcached.port) as proxy:
        run(main(proxy))


def test_token_from_before_a_restart_is_refused(memcached: MemcachedServer, run: Run) -> None:
    """CAS numbers start anew after a restart; guard: `_present` asks for a connection older than the lease.

    The store at the end shows that the server itself takes a token with that number.
    """

    async def main() -> None:
        async with opened(memcached.address) as node:
            old = await node.lease_get(KEY, 10)
            assert isinstance(old, Lease)
            await asyncio.to_thread(memcached.restart)
            new = await asyncio.wait_for(answered(node), BOUND)
            assert isinstance(new, Lease)
            assert old.token is not None
            assert new.token is not None
            assert old.token.cas == new.token.cas
            assert isinstance(await node.lease_set(old, FLAGS, b"stale", 60), Refused)
            await node.release(old)
            assert await node.lease_set(new, FLAGS, b"value", 60) == Stored()

    run(main())


@pytest.mark.parametrize("recent", [False, True], ids=["system", "recent"])
def test_behind_a_proxy(run: Run, recent: bool) -> None:
    """With CAS numbers of our own a lease outlives its connection; a server that takes none is refused."""

    async def main(address: str) -> None:
        async with opened(address, proxied=True) as node:
            if not recent:
                with pytest.raises(ConfigError, match="behind a proxy"):
                    await node.lease_get(KEY, 10)
                return
            lease = await node.lease_get(KEY, 10)
            assert isinstance(lease, Lease)
            await node.aclose()
            assert await node.lease_set(lease, FLAGS, b"value", 60) == Stored()

    with MemcachedServer(recent=recent) as server:
        run(main(server.address))


def test_tls(run: Run, tmp_path: Path) -> None:
    """Leases go over TLS with the authority of the server's certificate; without it the error says what is missing."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")

    async def main(server: MemcachedServer) -> None:
        async with opened(server.address, tls=Tls(ca=str(tmp_path / "ca.pem"))) as node:
            lease = await node.lease_get(KEY, 10)
            assert isinstance(lease, Lease)
            assert await node.lease_set(lease, FLAGS, b"x" * 200_000, 60) == Stored()
            assert await node.reader(10, 0, FLAGS)(KEY) == b"x" * 200_000
            assert isinstance(await node.look(KEY), Hit)
        async with opened(server.address, tls=Tls()) as node:
            with pytest.raises(NodeError, match="is ca= the authority"):
                await node.lease_get(KEY, 10)

    with MemcachedServer(certificate=Certificate(tmp_path / "server.pem", tmp_path / "server.key")) as server:
        run(main(server))


def test_user_and_password(run: Run) -> None:
    """The credentials of the URL are presented on every connection, that for figures too."""

    async def main(url: str) -> None:
        store = open_async_store(url)
        lease = await store.lease_get(KEY, 10)
        assert isinstance(lease, Lease)
        assert await store.lease_set(lease, FLAGS, b"value", 60) == Stored()
        assert next(iter((await store.stats()).values()))["curr_items"] == 1
        await store.aclose()

    with MemcachedServer(credentials=("app", "s3cret")) as server:
        run(main(server.url))


def flooding(head: bytes, more: bytes) -> Answer:
    """Answer the first request with something that does not end."""

    async def flood(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readline()
        writer.write(head)
        while True:
            writer.write(more)
            await writer.drain()

    return flood


FLOODS: dict[str, tuple[bytes, bytes, Callable[[AsyncMemcachedNode], Coroutine[Any, Any, Any]]]] = {
    "a value": (b"VA 1073741824 c1 f1 t9\r\n", b"x" * 65536, lambda node: node.lease_get(KEY, 10)),
    "a record": (
        b"VA 1073741824\r\n",
        b"x" * 65536,
        lambda node: node.invalidate_under(b"!guard:", [], 0),
    ),
    "acknowledgements": (b"", b"NF\r\n" * 1000, lambda node: node.invalidate([KEY])),
    "figures": (b"", b"STAT name 1\r\n" * 1000, lambda node: node.stats()),
    "a look": (
        b"ME key exp=9 la=1 cas=1 fetch=no cls=1 size=1\r\nVALUE key 1 1073741824 1\r\n",
        b"x" * 65536,
        lambda node: node.look(KEY),
    ),
    "a line": (b"ME ", b"x" * 65536, lambda node: node.look(KEY)),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_answer_that_does_not_end_is_cut_short(run: Run, flood: str) -> None:
    """What a server sends is not kept beyond what it could have stored, and nobody waits for the rest.

    Guards: the limits of `Mux` and of `Conversation`.
    """
    head, more, ask = FLOODS[flood]

    async def main() -> None:
        async with Scripted(flooding(head, more)) as address, opened(address, timeout=BOUND) as node:
            with pytest.raises(ProtocolError):
                await asyncio.wait_for(ask(node), BOUND / 2)

    run(main())


def test_cancellation_is_not_lost_to_an_answer(run: Run) -> None:
    """Whoever is cancelled in the turn in which a look is answered, or a connection is there, is cancelled.

    Guard: `within`, in whose place `asyncio.wait_for` of Python 3.11 returns the answer.
    """

    async def main() -> None:
        conversation, transport = Conversation(BOUND), Sink()
        conversation.connection_made(transport)
        asked = asyncio.ensure_future(conversation.ask(b"mn\r\n", lambda data: data))
        await transport.written.wait()
        conversation.data_received(b"MN\r\n")
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        late = asyncio.ensure_future(within(0.001, asyncio.sleep(BOUND)))
        with pytest.raises(asyncio.TimeoutError):
            await late
        assert await within(BOUND, asyncio.sleep(0, "done")) == "done"

    run(main())


class Sink:
    """A transport that says when something is written."""

    def __init__(self) -> None:
        self.written = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written.set()
