"""Garbage from the network is an error of the connection, never of the application's value."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from leasecache import Cache, NodeError
from leasecache.lab import wait_until

VERSION = b"VERSION 1.6.45\r\n"
SETTINGS = b"STAT cas_enabled yes\r\nSTAT item_size_max 1048576\r\nEND\r\n"

GARBAGE = {
    "binary": b"\x00\xff\xfe\r\n",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "another command's reply": b"HD\r\n",
    "an error": b"ERROR\r\n",
    "a server error": b"SERVER_ERROR out of memory\r\n",
    "no size": b"VA \r\n",
    "negative size": b"VA -1 c1 f268435457\r\n\r\n",
    "huge size": b"VA 99999999999999999999 c1 f268435457\r\n",
    "value too long": b"VA 2 c1 f268435457 t9\r\nabc\r\n",
    "value cut off": b"VA 10 c1 f268435457 t9\r\nabc",
    "line without end": b"VA " + b"9" * 5000,
    "two replies": b"VA 1 c1 f268435457 t9\r\na\r\n" * 2,
    "unknown flag": b"VA 1 c1 f268435457 t9 ?\r\na\r\n",
    "number that is none": b"VA 1 cX f268435457 t9\r\na\r\n",
    "flags beyond 32 bits": b"VA 1 c1 f4294967296 t9\r\na\r\n",
    "nothing": b"",
}


class _Puzzled(socketserver.StreamRequestHandler):
    """Greets like memcached, and answers a lease-get with what only a lease-set can be answered."""

    server: Any

    def handle(self) -> None:
        asked = 0
        for line in self.rfile:
            if line.startswith(b"mg"):
                asked += 1
            self.wfile.write({b"v": VERSION, b"s": SETTINGS}.get(line[:1], b"HD\r\n"))
            self.server.asked = max(self.server.asked, asked)


class _Handler(socketserver.StreamRequestHandler):
    """Greets like memcached, answers every other line with `server.garbage`, and hangs up."""

    server: Any

    def handle(self) -> None:
        for line in self.rfile:
            if line.startswith(b"version"):
                self.wfile.write(VERSION)
            elif line.startswith(b"stats"):
                self.wfile.write(SETTINGS)
            else:
                self.wfile.write(self.server.garbage)
                return


@contextmanager
def served(handler: type[socketserver.StreamRequestHandler], **state: object) -> Iterator[Any]:
    """Serve on a free port; `state` becomes attributes of the server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        for name, value in state.items():
            setattr(server, name, value)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(server: Any) -> str:
    """Return the cache URL of a server."""
    return f"memcached://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(params=GARBAGE.values(), ids=GARBAGE.keys())
def garbage_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server that answers garbage."""
    with served(_Handler, garbage=request.param) as server:
        yield url_of(server)


def test_connection_that_answered_garbage_is_not_used_again() -> None:
    """An answer that the command cannot have may be another command's: whatever follows on the wire is not trusted."""
    with served(_Puzzled, asked=0) as server, Cache.from_url(url_of(server)) as cache:
        for _ in range(3):
            wait_until(lambda: _puzzles(cache), 60, "the node to be probed again")
        assert server.asked == 1


def _puzzles(cache: Cache) -> bool:
    with pytest.raises(NodeError) as caught:
        cache.lease_get(b"item:1")
    return "unexpected reply HD" in str(caught.value)


def test_garbage_gives_the_loaders_value(garbage_url: str) -> None:
    """Whatever a node answers to a lease-get, the caller gets what its loader returns, for one key and for many."""
    with Cache.from_url(garbage_url) as cache:

        @cache.cached("item:{item_id}", ttl=60)
        def get_item(item_id: int) -> bytes:
            return b"loaded %d" % item_id

        assert get_item.lookup(1).value == b"loaded 1"
        assert get_item.get_many([1, 2]) == {1: b"loaded 1", 2: b"loaded 2"}
        assert get_item.peek(1) is None


def test_garbage_is_no_acknowledgement(garbage_url: str) -> None:
    """An invalidation that is not answered as the protocol says has not happened, hard or soft, and says so."""
    with Cache.from_url(garbage_url) as cache:
        with pytest.raises(NodeError):
            cache.invalidate(b"item:1", stale_for=10)
        with pytest.raises(NodeError):
            cache.invalidate(b"item:1", b"item:2")
