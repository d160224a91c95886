"""Stores under test: in memory, on Redis and on memcached; what is compiled also by its pure twin."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from leasecache import _accel
from leasecache.lab import MemcachedServer, RedisServer
from leasecache.stores import greeting
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.memory import MemoryStore
from leasecache.stores.redis import RedisNode
from leasecache.stores.routed import RoutedStore
from tests.twins import TWINS

SWITCHED = ("MemoryReader", "NodeReader", "RingReader", "Wire", "parse_reply")
SERVERS = {"memcached": "shared_memcached", "memcached_e": "recent_memcached"}  # with its own CAS numbers, with ours


@pytest.fixture(scope="session")
def shared_memcached() -> Iterator[MemcachedServer]:
    """A memcached for tests that keep to keys of their own."""
    with MemcachedServer() as server:
        yield server


@pytest.fixture(scope="session")
def recent_memcached() -> Iterator[MemcachedServer]:
    """One like that, which takes CAS numbers from its clients."""
    with MemcachedServer(recent=True) as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis for tests that keep to keys of their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["redis", *(f"{kind}-{twin}" for kind in ("memory", *SERVERS) for twin in ("c", "python"))])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Each store; in memory and on memcached of either kind once by compiled code and once by its pure twin."""
    if request.param == "redis":
        opened = RoutedStore([RedisNode(request.getfixturevalue("shared_redis").address)])
        yield opened
        opened.close()
        return
    kind, _, implementation = request.param.partition("-")
    twin = TWINS[0] if implementation == "python" else TWINS[-1]
    for name in SWITCHED:
        monkeypatch.setattr(_accel, name, getattr(twin, name))
    if kind == "memory":
        yield MemoryStore()
        return
    if kind == "memcached":  # or is taken for it by its version
        monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    server: MemcachedServer = request.getfixturevalue(SERVERS[kind])
    opened = RoutedStore([MemcachedNode(server.address)])
    yield opened
    opened.close()


@pytest.fixture
def key() -> bytes:
    """A key that no other test uses."""
    return b"test:" + uuid.uuid4().hex.encode()
