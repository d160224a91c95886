"""Memcached for the races of leases: one that counts its CAS numbers itself, and one that takes ours."""

import socket
from collections.abc import Iterator

import pytest

from leasecache.lab import MemcachedServer, Server
from leasecache.lease import Lease
from leasecache.stores import greeting
from leasecache.stores.base import LeaseNode
from leasecache.stores.memcached import MemcachedNode

KEY = b"race"
FLAGS = 0x10000001


@pytest.fixture
def counting_memcached(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemcachedServer]:
    """A memcached that counts its CAS numbers itself, or is taken for one by its version; its log has every request."""
    monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    with MemcachedServer("-vv") as server:
        yield server


@pytest.fixture(params=["CAS of the server", "CAS of ours"])
def each_memcached(request: pytest.FixtureRequest) -> Iterator[MemcachedServer]:
    """Each of the two kinds, for the test alone."""
    if request.param == "CAS of the server":
        yield request.getfixturevalue("counting_memcached")
        return
    with MemcachedServer("-vv", recent=True) as server:
        yield server


@pytest.fixture
def each_node(each_memcached: MemcachedServer) -> Iterator[MemcachedNode]:
    """A node of `each_memcached`."""
    opened = MemcachedNode(each_memcached.address)
    yield opened
    opened.close()


def won(node: LeaseNode, key: bytes = KEY, lease_for: float = 10) -> Lease:
    """Ask for a lease that must be free."""
    answer = node.lease_get(key, lease_for)
    assert isinstance(answer, Lease)
    return answer


def cas(lease: Lease) -> int:
    """Return the CAS number of a lease."""
    assert lease.token is not None
    return lease.token.cas


def raw(server: Server, request: bytes) -> bytes:
    """Send commands of the meta protocol as another client would, and return the replies."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request + b"mn\r\n")
        answer = b""
        while not answer.endswith(b"MN\r\n"):
            chunk = connection.recv(65536)
            assert chunk, answer
            answer += chunk
    return answer.removesuffix(b"MN\r\n")
