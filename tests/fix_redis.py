"""Redis stores of a test's own, and servers that only pretend to be one."""

import asyncio
import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leasecache.config import open_async_store, open_store
from leasecache.errors import NodeError
from leasecache.lab import RedisServer, wait_until
from leasecache.lease import Answer, Lease, Stored
from leasecache.stores.base import Store
from tests.driven import DrivenStore

KEY = b"race"
FLAGS = 0x10000001

Open = Callable[[str], Any]


@pytest.fixture(params=["sync", "async"])
def open_redis(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open stores by URL, once as they are and once over asyncio; they are closed in the end."""
    with contextlib.ExitStack() as stores:

        def opened(url: str) -> Any:
            if request.param == "sync":
                store: Any = open_store(url)
            else:
                store = DrivenStore(open_async_store(url), asyncio.new_event_loop())
            stores.callback(store.close)
            return store

        yield opened


def won(store: Store, key: bytes = KEY) -> Lease:
    """Return a lease that this call has won."""
    answer = store.lease_get(key, 60)
    assert isinstance(answer, Lease)
    return answer


def filled(store: Store, key: bytes = KEY, value: bytes = b"value", ttl: float = 60) -> None:
    """Store a value."""
    assert store.lease_set(won(store, key), FLAGS, value, ttl) == Stored()


def answered(store: Store, key: bytes = KEY) -> Answer:
    """Return the answer to a lease-get, once the node gives one again."""

    def ask() -> Answer | None:
        try:
            return store.lease_get(key, 60)
        except NodeError:
            return None

    return wait_until(ask, 60, "the node to answer again")


def holds(server: RedisServer, key: str) -> bool:
    """Tell whether the server has a key."""
    return "\r\n:1\r\n" in "\r\n" + server.ask(f"EXISTS {key}")


def bulk(data: bytes) -> bytes:
    """Return a bulk string of the protocol."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def hello(version: bytes = b"7.0.15", role: bytes = b"master", mode: bytes = b"standalone") -> bytes:
    """Return the reply to HELLO."""
    told = (b"server", b"redis", b"version", version, b"mode", mode, b"role", role)
    return b"*%d\r\n" % len(told) + b"".join(bulk(part) for part in told)


class _Pretender(socketserver.BaseRequestHandler):
    """Greets like Redis, and gives every other command to `server.reply`, which gets the connection and the command."""

    server: Any

    def handle(self) -> None:
        reader = self.request.makefile("rb")
        with contextlib.suppress(OSError):
            while command := _command(reader):
                self.server.seen.append(command)
                if command[0] == b"HELLO":
                    self.server.greet(self.request)
                elif command[0] == b"SCRIPT":
                    self.request.sendall(bulk(command[2][:40]))
                elif command[0] == b"CLIENT":
                    self.server.login(self.request)
                elif self.server.reply(self.request, command) is False:
                    return


def _command(reader: Any) -> list[bytes]:
    line = reader.readline()
    parts = []
    for _ in range(int(line[1:] or 0) if line.startswith(b"*") else 0):
        size = int(reader.readline()[1:])
        parts.append(reader.read(size + 2)[:-2])
    return parts


@contextlib.contextmanager
def pretending(
    reply: Callable[[Any, list[bytes]], bool | None], greet: Callable[[Any], None] | None = None
) -> Iterator[Any]:
    """Serve on a free port until the end; `reply` hangs up by returning False.

    What it says to CLIENT, with which redis-py introduces itself, can be changed by its attribute `login`.
    """
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Pretender) as server:
        server.daemon_threads = True
        server.seen = []  # type: ignore[attr-defined]
        server.reply = reply  # type: ignore[attr-defined]
        server.login = lambda connection: connection.sendall(b"+OK\r\n")  # type: ignore[attr-defined]
        server.greet = greet or (lambda connection: connection.sendall(hello()))  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def url_of(server: Any, options: str = "") -> str:
    """Return the cache URL of a pretending server."""
    return f"redis://127.0.0.1:{server.server_address[1]}/0?{options}"
